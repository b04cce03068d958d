"""Tables as facts: one fact per cell, in bounded memory.

A table is read twice. The first reading sees of what kind each column's values are, and which subjects have several
rows. The second makes the facts: those of a subject with one row at once, those of the others when their last row is
read, since only then is it known whether the rows agree. Until then such rows lie in a temporary database, which goes
to disk when it grows. What is kept in memory is eight bytes a row, and a little for each subject with several rows.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from memlayers.data.facts import Fact, Source, folded
from memlayers.sources.claims import Claim, Extraction, Kind, LeftOut
from memlayers.sources.relations import kind_of_most, kind_of_value, relation_name
from memlayers.sources.table_readers import open_rows
from memlayers.sources.table_rows import Cell, Rows, choices
from memlayers.sources.wordings import Wordings, grouped
from memlayers.utils.errors import InputError, WorkError, reason_of
from memlayers.utils.files import StrPath

EMPTY: Final = "empty cell"
"""Why a cell is left out that holds nothing, or only a mark for it: "-", "n/a", "nan", "null"."""
NO_SUBJECT: Final = "row without a subject"
"""Why a row is left out whose subject cell is empty."""
NO_TEXT: Final = "neither text nor a number"
"""Why a cell is left out that holds a list, an object, bytes, or a sheet's error."""


@dataclass(frozen=True)
class Table:
    """A table whose cells are claims.

    Attributes:
        rows: the table.
        subject: the column that names the subjects.
        relations: of the other columns that are read, by column.
    """

    rows: Rows
    subject: str
    relations: dict[str, str]

    def claims(self) -> Iterator[Claim | LeftOut]:
        """What each cell says, row by row, and what became no claim."""
        for number, cells in self.rows.read():
            yield from self._of_row(number, cells)

    def facts(self, wordings: Wordings | None = None) -> Iterator[Fact | LeftOut]:
        """The facts as they are found, and what became none.

        Raises:
            InputError: no rows, or anything wrong with one of them.
            WorkError: the table changed while it was read.
        """
        wordings = wordings or Wordings.load()
        named = wordings.names(self.relations.values())
        kinds: dict[str, Counter[Kind]] = {name: Counter() for name in named.values()}
        prints = array("q")  # of the subjects, in order; two that share one are taken for several rows of one
        place = {column: i for i, column in enumerate(self.rows.columns)}
        columns = [(place[column], kinds[named[relation]]) for column, relation in self.relations.items()]
        for _, cells in self.rows.read():
            prints.append(hash(folded(cells[place[self.subject]] or "")))
            for i, counts in columns:
                if value := cells[i]:
                    counts[kind_of_value(value)] += 1
        if not prints:
            raise InputError(f"{self.rows.name}: an empty table; give one with rows below its header")
        phrasings = wordings.phrasings({name: kind_of_most(counts.items()) for name, counts in kinds.items()})

        def made(rows: Iterable[tuple[int, Sequence[Cell]]]) -> Iterator[Fact | LeftOut]:
            claims = []
            for number, cells in rows:
                for each in self._of_row(number, cells):
                    if isinstance(each, Claim):
                        claims.append(each)
                    else:
                        yield each
            found = grouped(claims, named, phrasings)
            yield from found.left_out
            yield from found.facts

        with closing(_Shelf(prints)) as shelf:
            changed = WorkError(f"{self.rows.name}: the table changed while it was read; read it again")
            at = 0
            for number, cells in self.rows.read():
                if at == len(prints) or hash(folded(cells[place[self.subject]] or "")) != prints[at]:
                    raise changed
                yield from made(shelf.passed(prints[at], number, cells))
                at += 1
            if at < len(prints):
                raise changed

    def _of_row(self, number: int, cells: Sequence[Cell]) -> Iterator[Claim | LeftOut]:
        cell = dict(zip(self.rows.columns, cells, strict=True))
        subject = cell[self.subject]
        if not subject:
            why = NO_TEXT if subject is None and any(cells) else NO_SUBJECT
            yield LeftOut(Source(self.rows.name, "", row=number, column=self.subject), why)
            return
        for column, relation in self.relations.items():
            value = cell[column]
            source = Source(self.rows.name, value or "", row=number, column=column)
            if value:
                yield Claim(subject, relation, value, source)
            else:
                yield LeftOut(source, NO_TEXT if value is None else EMPTY)


class _Shelf:
    """Where rows wait for the last row of their subject."""

    def __init__(self, prints: array[int]) -> None:
        import numpy as np

        ordered = np.sort(np.frombuffer(prints, dtype=np.int64))
        several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        counts = np.searchsorted(ordered, several, "right") - np.searchsorted(ordered, several, "left")
        self._prints = array("q", several.tobytes())
        self._left = array("q", counts.astype(np.int64).tobytes())
        self._rows = sqlite3.connect("")  # a temporary one: in memory while it is small
        self._rows.execute("CREATE TABLE rows (print INTEGER, number INTEGER, cells TEXT)")
        self._rows.execute("CREATE INDEX prints ON rows (print)")

    def passed(self, print: int, number: int, cells: Sequence[Cell]) -> list[tuple[int, Sequence[Cell]]]:
        """The rows whose subject has no further one: this row, with those that waited for it, or none."""
        at = bisect_left(self._prints, print)
        if at == len(self._prints) or self._prints[at] != print:
            return [(number, cells)]
        self._left[at] -= 1
        try:
            self._rows.execute("INSERT INTO rows VALUES (?, ?, ?)", (print, number, json.dumps(cells)))
            if self._left[at]:
                return []
            found = self._rows.execute("SELECT number, cells FROM rows WHERE print = ? ORDER BY rowid", (print,))
            waiting: list[tuple[int, Sequence[Cell]]] = [(number, json.loads(cells)) for number, cells in found]
            self._rows.execute("DELETE FROM rows WHERE print = ?", (print,))
        except sqlite3.Error as error:
            raise WorkError(f"temporary files cannot be written ({reason_of(error)}); free some space") from error
        return waiting

    def close(self) -> None:
        self._rows.close()


def open_table(
    place: StrPath,
    *,
    subject: str,
    columns: Iterable[str] | None = None,
    sheet: str | None = None,
    table: str | None = None,
    query: str | None = None,
    encoding: str | None = None,
) -> Table:
    """Opens a table.

    Args:
        place: a CSV, TSV, JSON, JSONL, Parquet, XLSX or SQLite file, or an SQLAlchemy address.
        subject: the column that names what each row is about.
        columns: those to read; all others than the subject's if not given.
        sheet: of a workbook; its first if not given.
        table: of a database; its only one if not given.
        query: SQL that selects the rows, in place of a table.
        encoding: of CSV, TSV and JSON; UTF-8 if not given.

    Raises:
        InputError: the place cannot be read as a table, or a column is not there.
    """
    rows = open_rows(place, sheet=sheet, table=table, query=query, encoding=encoding)
    chosen = [each for each in rows.columns if each != subject] if columns is None else list(dict.fromkeys(columns))
    for column in (subject, *chosen):
        if column not in rows.columns:
            raise InputError(f"{rows.name}: {choices('column', column, rows.columns)}")
    if subject in chosen:
        raise InputError(f"{rows.name}: column {subject!r} names the subject; leave it out of columns")
    if not chosen:
        raise InputError(f"{rows.name}: no column besides the subject's; a fact needs a value")
    return Table(rows, subject, _relations(rows.name, chosen))


def _relations(name: str, columns: Iterable[str]) -> dict[str, str]:
    """What the columns are called as relations; the unit tells apart those of one name: "price in EUR"."""
    found = {column: relation_name(column) for column in columns}
    shared = Counter(folded(each.name) for each in found.values())
    relations = {
        column: f"{each.name} in {each.unit}" if each.unit and shared[folded(each.name)] > 1 else each.name
        for column, each in found.items()
    }
    holder: dict[str, str] = {}
    for column, relation in relations.items():
        other = holder.setdefault(folded(relation) or relation, column)
        if other != column:
            raise InputError(
                f"{name}: columns {other!r} and {column!r} have one name, {relation!r}; rename one, or choose columns"
            )
    return relations


def from_table(
    place: StrPath,
    *,
    subject: str,
    columns: Iterable[str] | None = None,
    sheet: str | None = None,
    table: str | None = None,
    query: str | None = None,
    encoding: str | None = None,
    wordings: Wordings | None = None,
) -> Extraction:
    """The facts of a table, in memory; `Table.facts` gives them one by one.

    Args:
        place: as the other arguments, see `open_table`.
        subject: the column that names what each row is about.
        columns: those to read.
        sheet: of a workbook.
        table: of a database.
        query: in place of a table.
        encoding: of CSV, TSV and JSON.
        wordings: the shipped ones if not given.

    Returns:
        Facts, every cell that holds something as a passage, and what was left out.

    Raises:
        InputError, WorkError: as `open_table` and `Table.facts`.
    """
    opened = open_table(
        place, subject=subject, columns=columns, sheet=sheet, table=table, query=query, encoding=encoding
    )
    found = Extraction(passages=[each.source for each in opened.claims() if isinstance(each, Claim)])
    for each in opened.facts(wordings):
        if isinstance(each, Fact):
            found.facts.append(each)
        else:
            found.left_out.append(each)
    return found
