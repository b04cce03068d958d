"""Sheets of XLSX workbooks as rows of text, by openpyxl. Loads no torch."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree.ElementTree import ParseError

from memlayers.sources.table_rows import NumberedCells, Rows, cell_text, choices, package_for, with_header
from memlayers.utils.errors import InputError


def workbook_rows(place: str, sheet: str | None) -> Rows:
    """A sheet, the first if none is named; formulas count as the values that they had when the file was saved.

    Raises:
        InputError: not a workbook, no such sheet, merged cells in it, or no header.
    """
    with open(place, "rb") as file:
        if file.read(4) == b"\xd0\xcf\x11\xe0":
            raise InputError(f"{place}: encrypted, or of the old format; save it as .xlsx without a password")
    with _open_workbook(place) as book:
        sheets = {each.title: each for each in book.worksheets}
        if sheet is not None and sheet not in sheets:
            raise InputError(f"{place}: {choices('sheet', sheet, sheets)}")
        title = sheet or next(iter(sheets))
        name = f"{place}, sheet {title}" if len(sheets) > 1 else place
        _refuse_merged_cells(place, name, sheets[title])

    def cells() -> NumberedCells:
        with _open_workbook(place) as book:
            rows = book[title]
            rows.reset_dimensions()  # what the file says of them may be wrong
            for number, row in enumerate(rows.iter_rows(), start=1):
                yield number, [None if each.data_type == "e" and each.value != "#N/A" else cell_text(each.value)
                               for each in row]  # fmt: skip

    return with_header(name, cells, ragged=True)


@contextmanager
def _open_workbook(place: str) -> Iterator[Any]:
    """A workbook with the values that its formulas had when it was saved, read row by row."""
    with package_for("openpyxl", place):
        import openpyxl
    try:
        book = openpyxl.load_workbook(place, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, ParseError, openpyxl.utils.exceptions.InvalidFileException):
        raise InputError(f"{place}: not a workbook; save it as .xlsx") from None
    try:
        yield book
    finally:
        book.close()


def _refuse_merged_cells(place: str, name: str, sheet: Any) -> None:
    """Refuses merged cells: to which row and column their value belongs nobody can say."""
    # openpyxl knows of them only where it holds the whole sheet in memory; they stand behind the rows.
    with zipfile.ZipFile(place) as archive, archive.open(sheet._worksheet_path) as file:
        kept = b""
        while block := file.read(1 << 20):
            kept = kept[-200:] + block
            if found := re.search(rb'<(?:\w+:)?mergeCell [^>]*?ref="([^"]+)"', kept):
                raise InputError(f"{name}: the cells {found[1].decode()} are merged; split them, one value to a cell")
