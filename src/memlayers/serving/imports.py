"""A file that was sent to a memory being served: read, compared with what is stored, learned in parts.

As `memlayers learn` does: facts that are new are added, those with another answer updated, those that this file stated
before and states no more forgotten. What was stored by hand or from other files is left alone. Each part is one edit,
saved and published by itself: answers follow along, and an import that ended early goes on where it is sent again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from memlayers.certificate.difference import Difference, difference
from memlayers.certificate.learn import checked, others
from memlayers.certificate.steps import Step, steps
from memlayers.data.facts import Fact, Source
from memlayers.sources.claims import Extraction, LeftOut
from memlayers.sources.documents import KINDS as DOCUMENTS
from memlayers.sources.reading import ReadOptions, holds_facts, named, read_sources
from memlayers.sources.table_readers import open_rows
from memlayers.utils.errors import InputError

ENDINGS: Final = (".csv", ".tsv", ".jsonl", ".json", ".xlsx", ".parquet", *DOCUMENTS)
"""Of the files that are taken."""
PART: Final = 16
"""Facts in one edit."""


@dataclass(frozen=True, slots=True)
class Read:
    """A file that was read.

    Attributes:
        name: as it was sent.
        subject: the column that names what each row of a table is about; "" for other files.
        columns: of a table.
        found: facts, passages, and what was left out.
        told: what the memory does not hold yet.
    """

    name: str
    subject: str
    columns: tuple[str, ...]
    found: Extraction
    told: Difference

    @property
    def left_out(self) -> dict[str, int]:
        """How many cells became no fact, by the reason."""
        return dict(Counter(each.why for each in self.found.left_out))

    def steps(self) -> list[Step]:
        """The edits that tell the memory, in order."""
        return steps(self.told, PART)


@dataclass(slots=True)
class Progress:
    """How far an import is.

    Attributes:
        total: facts to tell.
        done: told, or refused.
        refused: facts that the memory did not take, each with why.
    """

    total: int
    done: int = 0
    refused: list[tuple[Fact, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As an event has it."""
        refused = [{"id": fact.id, "subject": fact.subject, "message": why} for fact, why in self.refused]
        return {"done": self.done, "total": self.total, "refused": refused}


def read_upload(path: Path, stored: Sequence[Fact], options: ReadOptions) -> Read:
    """Reads a file that was sent.

    Args:
        path: where it lies, under its own name in a folder that no message and no fact names.
        stored: the memory's facts.
        options: how it is read, a document by rules; without a subject's column, a table's first one is taken.

    Raises:
        InputError: it cannot be read, is of a kind that is not taken, or states no fact.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{path.name}: not a kind of file that is taken; send one of {', '.join(ENDINGS)}")
    try:
        return _read(path, stored, options)
    except InputError as error:
        raise InputError(_without(path, str(error))) from None


def _read(path: Path, stored: Sequence[Fact], options: ReadOptions) -> Read:
    columns: tuple[str, ...] = ()
    if holds_facts(path):
        options = ReadOptions()
    elif path.suffix.lower() in DOCUMENTS:
        options = ReadOptions(about=options.about, encoding=options.encoding)
    else:
        columns = tuple(open_rows(path, sheet=options.sheet, encoding=options.encoding).columns)
        options = replace(options, subject=columns[0] if options.subject is None else options.subject)
    found = _called(read_sources([path], options), path)
    documents = named([path.name], found.passages)
    found = checked(found, others(stored, found, documents))
    if not found.facts:
        why = ", ".join(f"{count:,} {each}" for each, count in Counter(one.why for one in found.left_out).items())
        raise InputError(f"{path.name}: states no facts ({why or 'it is empty'})")
    return Read(path.name, options.subject or "", columns, found, difference(stored, found.facts, documents))


def _called(found: Extraction, path: Path) -> Extraction:
    """What was found, with the file's own name in place of where it lay."""

    def source(each: Source) -> Source:
        return replace(each, document=_without(path, each.document))

    return Extraction(
        [replace(fact, sources=tuple(map(source, fact.sources))) for fact in found.facts],
        list(map(source, found.passages)),
        [LeftOut(source(each.source), each.why) for each in found.left_out],
    )


def _without(path: Path, text: str) -> str:
    return text.replace(f"{path.parent}{os.sep}", "")
