"""Opens tables of every kind: CSV, TSV, JSON, JSONL and Parquet files, workbooks and databases. Loads no torch.

Rows are read one by one, but for a JSON list. Every error is an `InputError` of one line.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from memlayers.data.row_readers import json_line_rows, json_list_rows
from memlayers.sources.table_databases import database_rows
from memlayers.sources.table_rows import NumberedCells, Rows, cell_text, package_for, shown, with_header
from memlayers.sources.table_workbooks import workbook_rows
from memlayers.utils.errors import InputError, reason_of
from memlayers.utils.files import StrPath

_TEXT_FILES: Final = (".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson")
_BINARY_FILES: Final = (".parquet", ".xlsx", ".xlsm", ".sqlite", ".sqlite3", ".db")


def open_rows(
    place: StrPath, *, sheet: str | None = None, table: str | None = None, query: str | None = None,
    encoding: str | None = None,
) -> Rows:  # fmt: skip
    """Opens a table by the ending of its name, or a database by its address.

    Args:
        place: a file, or an SQLAlchemy address.
        sheet: of a workbook; its first if not given.
        table: of a database; its only one if not given.
        query: SQL that selects the rows, in place of a table.
        encoding: of CSV, TSV and JSON; UTF-8 if not given.

    Raises:
        InputError: the place cannot be read as a table, or an argument does not go with it.
    """
    place = str(place)
    suffix = "" if "://" in place else Path(place).suffix.lower()
    is_database = "://" in place or suffix in (".sqlite", ".sqlite3", ".db")
    for name, value, fits in (
        ("sheet", sheet, suffix in (".xlsx", ".xlsm")),
        ("table", table, is_database),
        ("query", query, is_database),
        ("encoding", encoding, suffix in _TEXT_FILES),
    ):
        if value is not None and not fits:
            raise InputError(f"{shown(place)}: {name} says nothing about this kind of table; leave it out")
    if "://" not in place:
        _check_file(place, suffix)
    if is_database:
        return database_rows(place, table, query)
    if suffix == ".parquet":
        return _parquet(place)
    if suffix in (".xlsx", ".xlsm"):
        return workbook_rows(place, sheet)
    _check_text(place, encoding)
    if suffix in (".csv", ".tsv", ".tab"):
        return with_header(place, lambda: _csv_cells(place, suffix, encoding), ragged=False)
    return _json(place, suffix, encoding)


# Files


def _check_file(place: str, suffix: str) -> None:
    if suffix == ".xls":
        raise InputError(f"{place}: a workbook of the old format; save it as .xlsx")
    if suffix not in _TEXT_FILES + _BINARY_FILES:
        raise InputError(
            f"{place}: unknown kind of table {suffix!r}; use {', '.join(_TEXT_FILES + _BINARY_FILES)} or an address "
            "such as sqlite:///shop.db"
        )
    if not Path(place).exists():
        raise InputError(f"{place}: no such file; check the path")
    if not Path(place).is_file():
        raise InputError(f"{place}: not a regular file, which is read more than once; save it as one")
    with _readable(place), open(place, "rb") as file:
        if not file.read(1):
            raise InputError(f"{place}: the file is empty; give one with something in it")


@contextmanager
def _readable(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror or error}); check its permissions") from None


def _check_text(place: str, encoding: str | None) -> None:
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise InputError(f"{place}: unknown encoding {encoding!r}; give one such as cp1252 or utf-16") from None
    with _readable(place), open(place, "rb") as file:
        head = file.read(8192)
    if encoding is None and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{place}: UTF-16; give encoding utf-16, or save the file as UTF-8")
    if encoding is None and b"\0" in head:
        raise InputError(f"{place}: a binary file, whatever its name says; give a table of text")


@contextmanager
def _text_file(place: str, encoding: str | None) -> Iterator[Iterator[str]]:
    """A file's lines, ends kept as they are."""
    encoding = encoding or "utf-8"
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding  # Excel writes a mark
    with _readable(place), open(place, encoding=encoding, newline="") as file:
        try:
            yield file
        except UnicodeError:
            raise InputError(_not_decoded(place, encoding)) from None


def _not_decoded(place: str, encoding: str) -> str:
    if encoding != "utf-8-sig":
        return f"{place}: not {encoding}; give its own encoding, or save the file as UTF-8"
    with open(place, "rb") as file:  # the reader decodes block by block: its error knows no line
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as found:
                byte = line[found.start]
                return (
                    f"{place}:{number}: not UTF-8 (byte 0x{byte:02x}); give the encoding, such as cp1252, "
                    "or save the file as UTF-8"
                )
    return f"{place}: not UTF-8; give the encoding, such as cp1252, or save the file as UTF-8"


def _csv_cells(place: str, suffix: str, encoding: str | None) -> NumberedCells:
    with _text_file(place, encoding) as lines:
        mark = "\t" if suffix != ".csv" else _separator(next((line for line in lines if line.strip()), ""))
    with _text_file(place, encoding) as lines:
        reader = csv.reader(lines, delimiter=mark, strict=True, skipinitialspace=True)
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise InputError(f"{place}:{number}: malformed ({error}); check the quotes of this row") from None
            if row is None:
                return
            yield number, [cell_text(cell) for cell in row]


def _separator(header: str) -> str:
    """What parts a CSV file's cells: a comma; a semicolon or a tab where its header has those and no comma."""
    return next((mark for mark in ",;\t" if mark in header), ",")


def _json(place: str, suffix: str, encoding: str | None) -> Rows:
    wanted = '{"name": "...", "price": "..."}'

    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        with _text_file(place, encoding) as lines:
            if suffix == ".json":  # a list is one text: it is read whole
                text = "".join(lines)
                if text.lstrip().startswith("["):
                    yield from json_list_rows(place, text, numbers_as_text=True, wanted=wanted)
                    return
                lines = iter(text.split("\n"))
            yield from json_line_rows(place, lines, numbers_as_text=True, wanted=wanted)

    columns: dict[str, None] = {}
    for _, row in objects():
        columns.update(dict.fromkeys(row))
    if not columns:
        raise InputError(f"{place}: an empty table; give a list of objects, or an object per line")

    def read() -> NumberedCells:
        for number, row in objects():
            yield number, [cell_text(row.get(column)) for column in columns]

    return Rows(place, tuple(columns), read)


def _parquet(place: str) -> Rows:
    with package_for("pyarrow", place):
        import pyarrow as pa
        import pyarrow.parquet as pq

    def opened() -> Any:
        try:
            return pq.ParquetFile(place)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{place}: not a Parquet file ({reason_of(error)[:100]}); check the file") from None

    with opened() as file:
        columns = tuple(file.schema_arrow.names)
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(f"{place}: column {column!r} appears twice; rename one")

    def texts(column: Any) -> list[Any]:
        if pa.types.is_floating(column.type):  # by Arrow, which writes a 32-bit 146.99 so
            return [
                cell_text(float(text)) if text and "e" in text else text for text in column.cast("string").to_pylist()
            ]
        if pa.types.is_timestamp(column.type):  # a datetime holds no nanoseconds
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        return list(column.to_pylist())

    def read() -> NumberedCells:
        number = 0
        with opened() as file:
            try:
                for batch in file.iter_batches(batch_size=4096):
                    for row in zip(*map(texts, batch.columns), strict=True):
                        number += 1
                        yield number, [cell_text(value) for value in row]
            except pa.ArrowException as error:
                raise InputError(f"{place}: cannot be read ({reason_of(error)[:100]}); check the file") from None

    return Rows(place, columns, read)
