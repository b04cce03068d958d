"""Evidence looked for, word for word, in the documents that it is said to be from. Loads no torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from memlayers.data.facts import Fact, Source
from memlayers.sources.documents import Document, read_document
from memlayers.sources.findings import Finding, Noting, listed, shortened
from memlayers.sources.wording_checks import holds, stands_alone
from memlayers.utils.errors import InputError


class Originals:
    """The documents that sources name, each read once.

    Args:
        documents: by the names that sources have for them. Others are read from where their name says, if they are
            there.

    Attributes:
        documents: that were given, or found.
        missing: why a document that was asked for is not among them, by its name.
    """

    def __init__(self, documents: Mapping[str, Document] | None = None) -> None:
        self.documents = dict(documents or {})
        self.missing: dict[str, str] = {}

    def document(self, name: str) -> Document | None:
        """The document of this name; None where it cannot be read."""
        if name not in self.documents and name not in self.missing:
            if not Path(name).is_file():
                self.missing[name] = "no such file"
            else:
                try:
                    self.documents[name] = read_document(name)
                except InputError as error:
                    self.missing[name] = str(error)
        return self.documents.get(name)

    def located(self, source: Source) -> Source | None:
        """A source with the place where its document has its evidence, in the document's own spaces; None for nowhere.

        A source whose document cannot be read is as it was.
        """
        document = self.document(source.document)
        if document is None:
            return source
        text, start = document.text, source.start
        if start is not None and text[start : source.end] == source.evidence:
            return source if stands_alone(text, start, start + len(source.evidence)) else None
        place = _place(text, source.evidence, start or 0)
        return None if place is None else replace(document.source(*place), document=source.document)


def evidence_findings(facts: Sequence[Fact], note: Noting, originals: Originals) -> Iterator[Finding]:
    """Evidence that is not in its document, or elsewhere in it; answers that are not in the evidence."""
    unread: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        found = [originals.located(source) for source in fact.sources]
        for name in dict.fromkeys(source.document for source in fact.sources):
            if name in originals.missing:
                unread.setdefault(name, []).append(i)
        lost = [n for n, source in enumerate(found) if source is None]
        if lost:
            first = fact.sources[lost[0]]
            yield note(
                "evidence_not_found", [i],
                f"{shortened(first.evidence)!r} is not in {first.place}: give the words that stand there, or leave the "
                "source out", texts=tuple(fact.sources[n].evidence for n in lost), sources=tuple(lost),
            )  # fmt: skip
        moved = {n: there for n, there in enumerate(found) if there is not None and _moved(fact.sources[n], there)}
        if moved:
            n, there = next(iter(moved.items()))
            yield note(
                "evidence_elsewhere", [i],
                f"{shortened(fact.sources[n].evidence)!r} stands in {there.place}, or with other spaces: correct the "
                "place", sources=tuple(moved), corrected=tuple(moved.values()),
            )  # fmt: skip
        there_are = [source.evidence for source in found if source is not None]
        if there_are and not any(holds(evidence, answer) for evidence in there_are for answer in fact.answers):
            yield note(
                "answer_not_in_evidence", [i],
                f"{shortened(fact.answer)!r} is not in its evidence, {listed(there_are)}: answer in the words that "
                "stand there, or give the place that says it",
            )  # fmt: skip
    for name, places in unread.items():
        yield note(
            "document_not_there", places,
            f"{name}: {originals.missing[name].removeprefix(f'{name}: ')}: not checked; say where it is with "
            "--documents", texts=(name,),
        )  # fmt: skip


def _moved(source: Source, there: Source) -> bool:
    """Whether a source does not say itself where it was found; one without a place need only have the words."""
    return there.evidence != source.evidence or (source.start is not None and there != source)


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
