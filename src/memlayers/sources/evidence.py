"""Evidence looked for, word for word, in the documents and tables that it is said to be from. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memlayers.data.facts import Fact, Source
from memlayers.sources.findings import Finding, Noting, listed, shortened
from memlayers.sources.originals import Originals
from memlayers.sources.word_spans import holds


def evidence_findings(facts: Sequence[Fact], note: Noting, originals: Originals) -> Iterator[Finding]:
    """Evidence that is not in its document, or elsewhere in it; answers that are not in the evidence."""
    originals.read_cells(source for fact in facts for source in fact.sources)
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
            f"{name}: {originals.missing[name]}: not checked; say where it is with "
            "--documents", texts=(name,),
        )  # fmt: skip


def _moved(source: Source, there: Source) -> bool:
    """Whether a source does not say itself where it was found; one without a place need only have the words."""
    return there.evidence != source.evidence or (source.start is not None and there != source)
