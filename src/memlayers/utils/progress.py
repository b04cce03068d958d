"""Progress bars for long work; on a stream that is no terminal, one line per stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Shows a bar with the time gone and the time left on stderr while the block runs.

    Args:
        label: what is being done.
        total: units of work; None where that is not known: then a terminal alone shows it, with the time gone.
        quiet: show nothing.

    Yields:
        A function to call with the number of units done; ``note=`` adds a short text beside the bar.
    """
    if quiet or not sys.stderr.isatty():
        if not quiet and total is not None:
            print(f"{label} ({total})", file=sys.stderr)
        yield lambda units=1, *, note=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    known = total is not None
    columns = [
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=20),
        *([TextColumn("{task.completed:.0f}/{task.total:.0f}")] if known else []),
        TimeElapsedColumn(),
        *([TextColumn("left:"), TimeRemainingColumn()] if known else []),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=Console(file=sys.stderr), transient=not known) as progress:
        task = progress.add_task(label, total=total, note="")

        def advance(units: int = 1, *, note: str | None = None) -> None:
            progress.update(task, advance=units)
            if note is not None:
                progress.update(task, note=note)

        yield advance
