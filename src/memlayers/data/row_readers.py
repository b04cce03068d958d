"""The text of a facts file as numbered rows: JSON lines, a JSON list, or CSV. No torch.

Every error is an `InputError` of one line: `FILE:LINE: what is wrong; how to repair it`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

from memlayers.data.fact_rows import BadRow, Row, kind_of
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath

CSV_COLUMNS = ("id", "subject", "relation", "question", "answer")

NumberedRows: TypeAlias = Iterator[tuple[int, Row]]

_FACT_ROW: Final = '{"question": "...", "answers": ["..."]} or a fact'


def json_line_rows(
    path: StrPath, lines: Iterable[str], *, numbers_as_text: bool = False, wanted: str = _FACT_ROW
) -> NumberedRows:
    """The rows of JSON lines, each with its line number from 1; empty lines are passed over.

    Args:
        path: named in errors.
        lines: not split at U+2028 and others, as str.splitlines does: JSON strings may hold those.
        numbers_as_text: whether a number is kept as the text that it is written as.
        wanted: what a row should be, for errors.
    """
    decode = _decoder(numbers_as_text).decode
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except BadRow as error:
            raise InputError(f"{path}:{number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}:{number}: malformed JSON ({_reason(error)}); write one JSON object per line"
            ) from None
        yield number, _as_object(path, number, row, wanted)


def json_list_rows(path: StrPath, text: str, *, numbers_as_text: bool = False, wanted: str = _FACT_ROW) -> NumberedRows:
    """The rows of a JSON list, decoded one by one, so that each has the line number on which it begins.

    Args:
        path: named in errors.
        text: of the file.
        numbers_as_text: whether a number is kept as the text that it is written as.
        wanted: what a row should be, for errors.
    """
    decoder = _decoder(numbers_as_text)
    number, counted = 1, 0
    at = _skip_space(text, text.index("[") + 1)
    while True:
        number, counted = number + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            break
        try:
            row, at = decoder.raw_decode(text, at)
        except BadRow as error:
            raise InputError(f"{path}:{number}: {error}") from None
        except (ValueError, RecursionError) as error:
            where = error.lineno if isinstance(error, json.JSONDecodeError) else number
            raise InputError(f"{path}:{where}: malformed JSON ({_reason(error)}); repair the list") from None
        yield number, _as_object(path, number, row, wanted)
        at = _skip_space(text, at)
        if text[at : at + 1] not in (",", "]"):
            number += text.count("\n", counted, at)
            raise InputError(f"{path}:{number}: malformed JSON (a comma or ] is missing); repair the list")
        if text[at] == ",":
            at = _skip_space(text, at + 1)
    if text[at + 1 :].strip():
        number += text.count("\n", counted, _skip_space(text, at + 1))
        raise InputError(f"{path}:{number}: something follows the closing ]; remove it")


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(f"field {twice!r} appears twice; keep one")
    return row


def _as_object(path: StrPath, number: int, row: Any, wanted: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{path}:{number}: the row is {kind_of(row)}, not an object; write {wanted}")
    return row


def _decoder(numbers_as_text: bool) -> json.JSONDecoder:
    if numbers_as_text:
        return json.JSONDecoder(object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=str)
    return json.JSONDecoder(object_pairs_hook=_object)


def csv_rows(path: StrPath, text: str) -> NumberedRows:
    """The rows of CSV with a header, each with the number of its first line; an empty optional cell is no field."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    columns: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}:{number}: malformed CSV ({error}); check the quotes of this row") from None
        if cells is None:
            return
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if not columns:
            columns = _csv_header(path, number, cells)
        elif len(cells) != len(columns):
            raise InputError(
                f"{path}:{number}: {len(cells)} cells where the header has {len(columns)}; "
                "put text that holds a comma in double quotes"
            )
        else:
            cell_of = dict(zip(columns, cells, strict=True))
            yield number, {name: cell for name, cell in cell_of.items() if cell or name in ("question", "answer")}


def _csv_header(path: StrPath, number: int, cells: list[str]) -> list[str]:
    columns = [cell.lower() for cell in cells]
    missing = [name for name in ("question", "answer") if name not in columns]
    if len(missing) == 2:
        raise InputError(f"{path}:{number}: no header; let the first line name the columns, e.g. question,answer")
    if missing:
        raise InputError(f"{path}:{number}: column {missing[0]!r} is missing; the header needs question and answer")
    for name in columns:
        if name not in CSV_COLUMNS:
            raise InputError(f"{path}:{number}: unknown column {name!r}; known columns: {', '.join(CSV_COLUMNS)}")
        if columns.count(name) > 1:
            raise InputError(f"{path}:{number}: column {name!r} appears twice; keep one")
    return columns
