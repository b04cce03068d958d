"""What tables of all kinds have in common: rows of cells, each cell a text. Loads no torch."""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath

Cell: TypeAlias = str | None
"""A cell's text, "" where it is empty, None where it is none: a list, an object, bytes, an error."""
NumberedCells: TypeAlias = Iterator[tuple[int, Sequence[Cell]]]

_NO_VALUE: Final = frozenset({"n/a", "#n/a", "nan", "null", "<na>", "-", "--", "–", "—", "?"})
"""Besides nothing at all; in lower case. Not "NA" (Namibia) and not "none", which can be a value."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A table that can be read several times.

    Attributes:
        name: of the file, with the sheet or the database's table where it has several; a password is left out.
        columns: as the header has them.
        read: gives each row's number and its cells, one per column; rows without any text are passed over.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[], NumberedCells]


def shown(place: StrPath) -> str:
    """A place as messages name it: an address without its password."""
    place = str(place)
    if "://" not in place:
        return place
    return re.sub(r"\?.*", "", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", place))


def choices(named: str, wanted: str, known: Iterable[str]) -> str:
    """For an error about a name that is not there: what was wanted, the nearest, and what there is."""
    known = list(known)
    folded = {each.casefold(): each for each in reversed(known)}
    near = get_close_matches(wanted.casefold(), folded, n=1)
    meant = f" (did you mean {folded[near[0]]!r}?)" if near else ""
    listed = ", ".join(map(repr, known[:20])) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return f"no {named} {wanted!r}{meant}; there {'is' if len(known) == 1 else 'are'} {listed or 'none'}"


def cell_text(value: Any) -> Cell:
    """A value as a cell's text: dates as ISO writes them, whole floats without a point, true and false."""
    if value is None:
        return ""
    if isinstance(value, str):
        text = value.strip()
        return "" if text.casefold() in _NO_VALUE else text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if value != value:
            return ""
        return (
            str(int(value)) if value.is_integer() and abs(value) < 1e15 else format(decimal.Decimal(repr(value)), "f")
        )
    if isinstance(value, decimal.Decimal):
        return format(value, "f") if value.is_finite() else ""
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time() and value.tzinfo is None
        return value.date().isoformat() if midnight else value.isoformat(sep=" ")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple, dict, set, bytes, bytearray, memoryview)):
        return None
    return str(value).strip()  # a duration, a UUID


def with_header(name: str, cells: Callable[[], NumberedCells], *, ragged: bool) -> Rows:
    """Rows below a header, the first row with text in it.

    Args:
        name: of the table.
        cells: gives the rows, the header's among them.
        ragged: whether rows may be shorter or longer than the header.
    """
    number, header = next(((number, row) for number, row in cells() if any(row)), (0, ()))
    if not header:
        raise InputError(f"{name}: an empty table; give one with a header and rows")
    columns = [cell or "" for cell in header]
    kept = [i for i, column in enumerate(columns) if column]
    for i in kept:
        if columns.count(columns[i]) > 1:
            raise InputError(f"{name}:{number}: column {columns[i]!r} appears twice; rename one")
    start = number

    def read() -> NumberedCells:
        for number, row in cells():
            if number <= start or not any(cell != "" for cell in row):
                continue
            if len(row) != len(columns) and not ragged:
                raise InputError(
                    f"{name}:{number}: {len(row)} cells where the header has {len(columns)}; "
                    "put text that holds a separator in double quotes"
                )
            row = [*row, *[""] * (len(columns) - len(row))]
            for i, cell in enumerate(row):
                if cell and (i >= len(columns) or not columns[i]):
                    raise InputError(f"{name}:{number}: {cell[:40]!r} stands in a column without a name; give it one")
            yield number, [row[i] for i in kept]

    return Rows(name, tuple(columns[i] for i in kept), read)


@contextmanager
def package_for(name: str, place: StrPath) -> Iterator[None]:
    """A block that imports a package of the extra `tables`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != name:
            raise
        raise InputError(
            f"{shown(place)}: the package {name} is not installed, which reads it; pip install 'memlayers[tables]'"
        ) from None
