"""Progress bars for long work; on a stream that is no terminal, one line per stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(label: str, total: int, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Shows a bar on stderr while the block runs.

    Args:
        label: what is being done.
        total: units of work.
        quiet: show nothing.

    Yields:
        A function to call with the number of units done; ``note=`` adds a short text beside the bar.
    """
    console = Console(file=sys.stderr, quiet=quiet)
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    if not quiet and not console.is_terminal:
        console.print(f"{label} ({total})", highlight=False)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(label, total=total, note="")

        def advance(units: int = 1, *, note: str | None = None) -> None:
            progress.update(task, advance=units)
            if note is not None:
                progress.update(task, note=note)

        yield advance
