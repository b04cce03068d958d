"""Files to facts, whatever they are: facts files, tables, and documents by rules or by a writer. No torch for rules."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memlayers.data.fact_files import read_facts
from memlayers.data.facts import Source
from memlayers.sources.claims import Extraction
from memlayers.sources.documents import KINDS as DOCUMENTS
from memlayers.sources.documents import read_document
from memlayers.sources.rules import from_documents
from memlayers.sources.tables import from_table
from memlayers.sources.wordings import Wordings
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath

if TYPE_CHECKING:
    from memlayers.sources.writer_answers import Answers


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are read.

    Attributes:
        subject: the column of tables that names what each row is about.
        columns: of tables, those to read; None for all.
        sheet: of workbooks.
        table: of databases.
        about: whom a document is about whose title does not say it.
        encoding: of texts that are not UTF-8.
        wordings: a file of one's own wordings.
    """

    subject: str | None = None
    columns: Sequence[str] | None = None
    sheet: str | None = None
    table: str | None = None
    about: str = ""
    encoding: str | None = None
    wordings: StrPath | None = None


def read_sources(places: Iterable[StrPath], options: ReadOptions, writer: Answers | None = None) -> Extraction:
    """The facts that files state.

    Args:
        places: facts files (JSONL rows with questions and answers), tables (or the address of a database) and
            documents, told by the ending of their names.
        options: how they are read.
        writer: makes the facts of documents, in place of rules.

    Returns:
        Facts, passages, and what was left out; those of the documents together, after the tables.

    Raises:
        InputError: a file cannot be read, a table is given and no column of it to name its rows.
        WorkError: the writer failed.
    """
    library = Wordings.load(options.wordings)
    found, documents = Extraction(), []
    for place in places:
        if "://" not in str(place) and Path(place).suffix.lower() in DOCUMENTS:
            documents.append(place)
        elif holds_facts(place):
            facts = read_facts(place, strict=True)
            found.extend([Extraction(facts, [source for fact in facts for source in fact.sources])])
        elif options.subject is None:
            raise InputError(f"{place}: a table; name the column that says what each row is about with --subject")
        else:
            found.extend([
                from_table(
                    place, subject=options.subject, columns=options.columns, sheet=options.sheet, table=options.table,
                    encoding=options.encoding, wordings=library,
                )
            ])  # fmt: skip
    if documents and writer is not None:
        from memlayers.sources.writer import from_writer

        texts = [read_document(path, options.encoding) for path in documents]
        found.extend([from_writer(texts, writer, library, subject=options.about)])
    elif documents:
        found.extend([from_documents(documents, library, subject=options.about, encoding=options.encoding)])
    return found


def holds_facts(place: StrPath) -> bool:
    """Whether a file is one of facts: of JSON lines, the first of which has questions and an answer."""
    if "://" in str(place) or Path(place).suffix.lower() != ".jsonl":
        return False
    try:
        with open(place, encoding="utf-8-sig") as file:
            row = json.loads(file.readline())
    except (OSError, ValueError):
        return False  # the reader of tables says what is wrong
    return (
        isinstance(row, dict) and bool({"question", "questions"} & set(row)) and bool({"answer", "answers"} & set(row))
    )


def named(places: Iterable[StrPath], passages: Iterable[Source]) -> set[str]:
    """The names that the sources of these files' facts have for them."""
    return {*map(str, places), *(passage.document for passage in passages)}
