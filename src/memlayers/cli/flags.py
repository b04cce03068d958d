"""The flags of a command made from the fields of the settings: name, type, choices, help and group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from memlayers.config.options import option_of
from memlayers.config.teach import FlagField, TeachConfig, flag_fields, read_teach_config
from memlayers.utils.errors import InputError

Command = Callable[..., None]

_WIDEST = 20  # columns of a flag's choices in --help; more of them are listed in its text


def with_flags(flags: Iterable[str]) -> Callable[[Command], Command]:
    """Gives a command these flags of the settings (`flag_fields`); it gets them as keywords, None where not given."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        kept = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        known, settings = flag_fields(), TeachConfig()
        made = [_parameter(flag, known[flag], settings) for flag in flags]
        # A panel stands in --help where the first of its flags does.
        kept += sorted(made, key=lambda each: each.annotation.__metadata__[0].rich_help_panel == "Advanced")
        command.__signature__ = own.replace(parameters=kept)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in kept}
        return command

    return decorate


def _parameter(flag: str, where: FlagField, settings: TeachConfig) -> inspect.Parameter:
    section = getattr(settings, where.section) if where.section else settings
    kind, choices = _kind(get_type_hints(type(section))[where.field.name])
    found = option_of(where.field)
    assert found is not None
    title = "Teaching" if where.section == "schedule" else where.section.capitalize() or None
    said = found.help.split(". ")[0].rstrip(".")  # its first sentence
    metavar = "|".join(map(str, choices)) or ("" if kind is bool else None)
    if len(metavar or "") > _WIDEST:
        said, metavar = f"{said}: {', '.join(map(str, choices))}", None
    option = typer.Option(
        help=said + "." + _default(where.field.default, found.shown),
        show_default=False,
        metavar=metavar,
        autocompletion=(lambda: list(map(str, choices))) if choices else None,
        rich_help_panel="Advanced" if found.advanced else title,
    )
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(hint: Any) -> tuple[type, tuple[Any, ...]]:
    """The type a flag's text is read as, and what may be chosen; the settings check what is given."""
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0]), get_args(hint)
    parts = [part for part in get_args(hint) if part is not NoneType]
    if get_origin(hint) is not list and parts:  # or None
        return _kind(parts[0])
    return (hint if hint in (bool, int, float) else str), ()


def _default(value: Any, shown: str) -> str:
    if isinstance(value, bool):
        return f" [{'on' if value else 'off'}]"
    text = shown if value is None else str(value)
    return f" [{text}]" if text else ""


def read_settings(path: Path | None, flags: dict[str, Any]) -> TeachConfig:
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
