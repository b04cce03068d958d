"""The app, its entry point, and what several verbs share."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from typer.core import TyperGroup

from memlayers.config.options import option_of
from memlayers.config.teach import TeachConfig, flag_fields, read_teach_config
from memlayers.utils.errors import InputError, WorkError


class _Commands(TyperGroup):
    """The verbs. Ctrl-C ends each of them in one line; what typer does about it differs with its version."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stop("interrupted", 130)


app = typer.Typer(
    cls=_Commands,
    help="Teach a frozen language model new facts, without making it worse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; chosen if not given.")]


Folder = Annotated[Path, typer.Argument(help="Folder of a memory.")]


Backbone = Annotated[str | None, typer.Option(help="Another place of the backbone.")]


def main() -> None:
    """Entry point of the command ``memlayers``."""
    # What the libraries beneath have to say is not the user's to mend; what is, is said in our own line.
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
    """Ends the process with one line on stderr."""
    print(f"memlayers: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def with_teach_flags(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one flag per field of `TeachConfig`, with the help of its docstring; None means not given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for flag, where in flag_fields().items():
            if flag in left_out:
                continue
            field = where.field
            kind = _flag_kind(get_type_hints(_section_kind(where.section))[field.name])
            text = str(getattr(option_of(field), "help", "")) + ("" if field.default is None else f" [{field.default}]")
            option = typer.Option(help=text, show_default=False)
            annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
            parameters.append(
                inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _section_kind(section: str) -> Any:
    return type(getattr(TeachConfig(), section)) if section else TeachConfig


def _flag_kind(hint: Any) -> Any:
    """The type a flag's text is read as."""
    text = str(hint)
    return next((kind for kind in (bool, int, float) if kind.__name__ in text and "list" not in text), str)


def teach_config(path: Path | None, flags: dict[str, Any]) -> TeachConfig:
    """The settings of a YAML file, if there is one, with the flags that were given laid over them."""
    if flags.get("layers") is not None:
        flags["layers"] = layer_numbers(str(flags["layers"]))
    return read_teach_config(path, flags)


def layer_numbers(text: str) -> list[int]:
    """Numbers with commas between.

    Raises:
        InputError: something else.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--layers {text}: give numbers with commas between, as 2,4,6") from None


def print_rows(results: Any) -> None:
    """The rows as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    from memlayers.evaluation.formatting import format_value

    table = Table("metric", "split", "value", "n", "95 % interval")
    for row in results.rows:
        ends = [format_value(row.metric, end) for end in (row.ci_low, row.ci_high) if end is not None]
        table.add_row(row.metric, row.split, format_value(row.metric, row.value), f"{row.n:,}", " to ".join(ends))
    Console().print(table)
