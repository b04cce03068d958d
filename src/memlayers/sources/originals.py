"""The documents and tables that facts are from, looked up by what their sources say. Loads no torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from memlayers.data.facts import Source
from memlayers.sources.documents import Document, read_document
from memlayers.sources.word_spans import stands_alone
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath


class Originals:
    """The documents and tables that sources name; each is read once.

    Args:
        given: by the names that sources have for them: documents, or where a file lies. Others are read from where
            their name says, if they are there.

    Attributes:
        missing: why what a source names could not be read, by its name.
    """

    def __init__(self, given: Mapping[str, Document | StrPath] | None = None) -> None:
        self.missing: dict[str, str] = {}
        self._given = dict(given or {})
        self._documents: dict[str, Document] = {}
        self._cells: dict[str, dict[tuple[int, str], str]] = {}

    def document(self, name: str) -> Document | None:
        """The document of this name; None where it cannot be read."""
        if name not in self._documents and name not in self.missing:
            given = self._given.get(name, name)
            try:
                self._documents[name] = given if isinstance(given, Document) else read_document(_file(given))
            except InputError as error:
                self.missing[name] = _reason(error, given)
        return self._documents.get(name)

    def read_cells(self, sources: Iterable[Source]) -> None:
        """Reads the cells that some sources are, table by table; before `located` is asked for them."""
        wanted: dict[str, set[tuple[int, str]]] = {}
        for source in sources:
            if source.row is not None and source.document not in self._cells:
                wanted.setdefault(source.document, set()).add((source.row, source.column))
        for name, places in wanted.items():
            try:
                self._cells[name] = self._read_table(name, places)
            except InputError as error:
                self.missing[name] = _reason(error, self._given.get(name, name))

    def located(self, source: Source) -> Source | None:
        """A source with the place where its evidence stands, in the document's own spaces; None for nowhere.

        A source whose document or table cannot be read is as it was.
        """
        if source.row is not None:
            cells = self._cells.get(source.document)
            there = source.evidence if cells is None else cells.get((source.row, source.column), "")
            return replace(source, evidence=there) if there.split() == source.evidence.split() else None
        document = self.document(source.document)
        if document is None:
            return source
        text, start = document.text, source.start
        if start is not None and text[start : source.end] == source.evidence:
            return source if stands_alone(text, start, start + len(source.evidence)) else None
        place = _place(text, source.evidence, start or 0)
        return None if place is None else replace(document.source(*place), document=source.document)

    def _read_table(self, name: str, places: set[tuple[int, str]]) -> dict[tuple[int, str], str]:
        from memlayers.sources.table_readers import open_rows

        given = self._given.get(name)
        file, options = file_and_part(name)
        if given is None and "://" in name:
            raise InputError("an address, which is not looked up")
        if Path(file).suffix.lower() in (".db", ".sqlite", ".sqlite3") and not options:
            raise InputError("rows of a query, which is not known here")
        rows = open_rows(_file(file if given is None or isinstance(given, Document) else given), **options)
        columns = {column: rows.columns.index(column) for _, column in places if column in rows.columns}
        by_row: dict[int, list[str]] = {}
        for row, column in places:
            if column in columns:
                by_row.setdefault(row, []).append(column)
        return {
            (number, column): cells[columns[column]] or ""
            for number, cells in rows.read()
            for column in by_row.get(number, ())
        }


def file_and_part(name: str) -> tuple[str, dict[str, str]]:
    """The file that a source's name for a table means, and the sheet or the database's table in it."""
    found = re.fullmatch(r"(.+\.\w+), (sheet|table) (.+)", name)
    return (found[1], {found[2]: found[3]}) if found else (name, {})


def _file(place: StrPath) -> StrPath:
    if not Path(place).is_file():
        raise InputError("no such file")
    return place


def _reason(error: InputError, place: Document | StrPath) -> str:
    return str(error).removeprefix(f"{place}: ")


def _place(text: str, evidence: str, near: int) -> tuple[int, int] | None:
    """Where words stand in a text, start and end in characters, whatever spaces are between them; the nearest place."""
    for form in (evidence, unicodedata.normalize("NFC", evidence), unicodedata.normalize("NFD", evidence)):
        words = form.split()
        if not words:
            return None
        spans = (found.span() for found in re.finditer(r"\s+".join(map(re.escape, words)), text))
        places = [span for span in spans if stands_alone(text, *span)]
        if places:
            return min(places, key=lambda place: abs(place[0] - near))
    return None
