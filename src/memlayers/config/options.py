"""How a section of settings is written: a dataclass whose fields carry their help; types and ranges are checked.

A field's help is its documentation, in Python and in ``--help``. Its flag is its name, or the name that `option` gives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from memlayers.utils.errors import InputError

_KEY: Final = "memlayers"  # of a field's metadata; peft's own fields carry others

Check = Callable[[Any], str | None]
"""Says what is wrong with a value that is of the right type and not None; None where nothing is."""


class Option(NamedTuple):
    """What a field carries besides its default; see `option`."""

    help: str
    flag: str | None
    advanced: bool
    check: Check | None
    shown: str


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = "",
    advanced: bool = False,
    check: Check | None = None,
    shown: str = "",
) -> Any:
    """A field of a section.

    Args:
        default: its default.
        help: what it means, with the unit; its first sentence is what ``--help`` says.
        flag: its name on the command line, words joined by underscores; "" for the field's own name, None for no flag.
        advanced: whether ``--help`` lists it under "advanced".
        check: beyond the type.
        shown: what ``--help`` says of a default that is None, in a word; `help` says all of it.
    """
    return dataclasses.field(default=default, metadata={_KEY: Option(help, flag, advanced, check, shown)})


def at_least(least: float) -> Check:
    """Numbers from `least` on."""
    return lambda value: None if value >= least else f"it must be at least {least:g}"


def positive(value: Any) -> str | None:
    """Finite numbers above 0."""
    return None if 0 < value < math.inf else "it must be positive, and finite"


def not_negative(value: Any) -> str | None:
    """Numbers from 0 on."""
    return None if value >= 0 else "it must not be negative"


def share(of: str) -> Check:
    """Shares of something, above 0 and below 1."""
    return lambda value: None if 0 < value < 1 else f"it is a share of {of}, above 0 and below 1"


def option_of(field: dataclasses.Field[Any]) -> Option | None:
    """What `option` gave to a field; None for other fields, a section say."""
    found: Option | None = field.metadata.get(_KEY)
    return found


def flag_of(field: dataclasses.Field[Any]) -> str | None:
    """The name of a field's flag, with underscores; None where it has none."""
    found = option_of(field)
    if found is None:
        return None
    return field.name if found.flag == "" else found.flag


def check_section(section: Any) -> None:
    """Checks every field of a section against its annotated type and its own check.

    Raises:
        InputError: names the first field that has a wrong value, by its flag, and says what to give.
    """
    for name, kind in get_type_hints(type(section)).items():
        field = section.__dataclass_fields__.get(name)
        found = None if field is None else option_of(field)
        if found is None:
            continue
        value, told = getattr(section, name), flag_of(field) or name
        try:
            msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError:
            choices = _choices(kind)
            if choices:
                raise InputError(f"{told} is {value!r}: take one of {', '.join(map(str, choices))}") from None
            raise InputError(f"{told} is {value!r}: give {_in_words(kind)}") from None
        if value is not None and found.check is not None and (message := found.check(value)) is not None:
            raise InputError(f"{told} is {value!r}: {message}")


def _choices(kind: Any) -> tuple[Any, ...]:
    """What may be chosen where the type is a `Literal`, with or without None."""
    if isinstance(kind, UnionType) or get_origin(kind) is not Literal:
        return tuple(choice for one in get_args(kind) for choice in _choices(one)) if get_args(kind) else ()
    return get_args(kind)


def _in_words(kind: Any) -> str:
    """A type in words, for an error message."""
    if isinstance(kind, UnionType):
        return " or ".join(_in_words(one) for one in get_args(kind))
    if get_origin(kind) is list:
        return f"a list, each {_in_words(get_args(kind)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "nothing"}[kind]
