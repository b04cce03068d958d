"""The app, its entry point, and what several commands share."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.ranks import LAUNCHED, launched, told_by

if TYPE_CHECKING:
    from memlayers.editing.memory import Memory
    from memlayers.linking.config import LinkConfig


SHARED = ("teach",)
"""The commands whose work the processes of one job share (docs/scale.md)."""


class _Commands(TyperGroup):
    """The commands. Ctrl-C ends each of them in one line; what typer does about it differs with its version."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stop("interrupted", 130)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A launcher's processes share what can be shared; anything else the first one does, and the others end."""
        found = super().resolve_command(ctx, args)
        if launched() and found[0] not in SHARED:
            if os.environ.get("RANK", "0") != "0":
                raise typer.Exit
            for name in LAUNCHED:
                os.environ.pop(name, None)
        return found


app = typer.Typer(
    cls=_Commands,
    help="Teach a frozen language model new facts, without making it worse.",
    epilog="Example: memlayers demo --out runs/demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; chosen if not given.")]
Pool = Annotated[str, typer.Option(help="Where the value pool is.", metavar="device|host|disk")]
Folder = Annotated[Path, typer.Argument(help="Folder of a memory.")]
Backbone = Annotated[str | None, typer.Option(help="Another place of the backbone.")]
Gate = Annotated[bool, typer.Option(help="Off: the memory is read for every token.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        import memlayers

        print(f"memlayers {memlayers.__version__}")
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the command ``memlayers``."""
    # What the libraries beneath have to say is not the user's to repair; what is, is said in our own line.
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty() or {"-q", "--quiet"} & set(sys.argv):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(prog_name="memlayers")
    except InputError as error:
        stop(error, 2)
    except WorkError as error:
        stop(error, 1)


def stop(message: object, code: int) -> NoReturn:
    """Ends the process with one line on stderr; of what all processes of a job know, one says it."""
    rank = int(os.environ.get("RANK") or 0)
    speaker = told_by(message) if isinstance(message, BaseException) else 0
    if speaker in (None, rank):
        print(f"memlayers: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def going_on_with_resume(work: Path) -> Iterator[None]:
    """Has Ctrl-C in the block say how to go on, where there is something to go on with.

    Args:
        work: the folder of the unfinished work.
    """
    try:
        yield
    except KeyboardInterrupt:
        if work.is_dir():
            stop(f"interrupted; the same command with --resume goes on from what is saved in {work}", 130)
        raise


def open_memory(
    folder: Path,
    *,
    backbone: str | None,
    device: str | None,
    gate: bool = True,
    pool: str = "device",
    quiet: bool = False,
    links: LinkConfig | None = None,
) -> Memory:
    """Loads a memory under a bar."""
    from memlayers.editing.memory import load_memory
    from memlayers.utils.progress import progress_bar

    opened = load_memory(folder, backbone=backbone, device=device, gate=gate, pool=pool, lazy=True, links=links)
    with progress_bar("Loading the memory", quiet=quiet):
        _ = opened.model
    return opened


def print_rows(results: Any) -> None:
    """The rows as a table on stdout."""
    from memlayers.evaluation.formatting import format_value

    lines = []
    for row in results.rows:
        ends = [format_value(row.metric, end) for end in (row.ci_low, row.ci_high) if end is not None]
        lines.append([row.metric, row.split, format_value(row.metric, row.value), f"{row.n:,}", " to ".join(ends)])
    print_table(["metric", "split", "value", "n", "95 % interval"], lines)


def print_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table on stdout; its first column is never wrapped."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column(head[0], no_wrap=True), *head[1:])
    for line in lines:
        table.add_row(*line)
    Console().print(table)
