"""The certificate: of every passage of the sources the facts made from it, and whether the memory answers them.

Loads no torch.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from memlayers.data.fact_rows import source_row
from memlayers.data.facts import Fact, Source
from memlayers.sources.claims import LeftOut

SCHEMA: Final = "memlayers.certificate/1"

Change = Literal["added", "updated", "moved", "unchanged"]
"""What this call did to a fact: told it, gave it a new answer, noted where it is found now, or left it alone."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A wording that was never taught, and what was answered to it.

    Attributes:
        question: the wording.
        answer: by the memory, in free generation.
        right: by strict match.
        contained: whether an accepted answer's words stand in it, one after the other.
        f1: token F1 beside the accepted answer that fits best, 0 to 1.
    """

    question: str
    answer: str
    right: bool
    contained: bool
    f1: float


@dataclass(frozen=True, slots=True)
class Certified:
    """A fact of the sources that the memory holds.

    Attributes:
        fact: with its sources.
        change: what this call did to it.
        asked: its wordings that were never taught.
        known_before: whether the bare backbone answers the first of them, by containment.
    """

    fact: Fact
    change: Change
    asked: tuple[Asked, ...]
    known_before: bool

    @property
    def answered(self) -> bool:
        """Whether each of these wordings is answered rightly; false where there is none."""
        return bool(self.asked) and all(asked.right for asked in self.asked)


@dataclass(slots=True)
class Certificate:
    """What was in the sources, and what became of it.

    Attributes:
        facts: in the order of their sources.
        passages: every sentence, list item or cell that was read, in order.
        left_out: what became no fact, and why.
        forgotten: the ids of the facts that the sources do not state any more, and that the memory forgot.
        summary: what was measured of all facts together: metric -> {"value", "n", "low", "high"}.
        settings: how this was made.
        environment: where it was made.
    """

    facts: list[Certified] = field(default_factory=list)
    passages: list[Source] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    forgotten: tuple[str, ...] = ()
    summary: dict[str, dict[str, float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, int]:
        """How many facts were added, updated, moved, left alone and forgotten."""
        counted = Counter(each.change for each in self.facts)
        told = {name: counted[name] for name in ("added", "updated", "moved", "unchanged")}
        return {**told, "forgotten": len(self.forgotten)}

    @property
    def reasons(self) -> dict[str, int]:
        """How much was left out, by why; the commonest first."""
        return dict(Counter(each.why for each in self.left_out).most_common())

    def of_passages(self) -> list[tuple[Source, list[Certified], list[str]]]:
        """Each passage with the facts that were made from it, and why it, or a part of it, was left out.

        What was left out, or is stated, outside all passages (a cell that is empty) is a passage of its own at the end.
        """
        places = _Places(self.passages)
        facts: dict[int, list[Certified]] = defaultdict(list)
        why: dict[int, dict[str, None]] = defaultdict(dict)
        rest: dict[Source, tuple[list[Certified], dict[str, None]]] = {}
        for each in self.facts:
            for source in each.fact.sources:
                place = places.of(source)
                into = facts[place] if place is not None else rest.setdefault(source, ([], {}))[0]
                if each not in into:
                    into.append(each)
        for left in self.left_out:
            place = places.of(left.source)
            reasons = why[place] if place is not None else rest.setdefault(left.source, ([], {}))[1]
            reasons[left.why] = None
        found = [(passage, facts[i], list(why[i])) for i, passage in enumerate(self.passages)]
        return found + [(source, own, list(reasons)) for source, (own, reasons) in rest.items()]

    def text(self) -> str:
        """All of it as JSON."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "environment": self.environment,
                "settings": self.settings,
                "changes": self.changes,
                "summary": self.summary,
                "reasons": self.reasons,
                "forgotten": self.forgotten,
                "facts": [
                    {
                        "id": each.fact.id,
                        "subject": each.fact.subject,
                        "relation": each.fact.relation,
                        "answer": each.fact.answer,
                        "change": each.change,
                        "answered": each.answered,
                        "known_before": each.known_before,
                        "asked": [asdict(asked) for asked in each.asked],
                        "sources": [source_row(source) for source in each.fact.sources],
                    }
                    for each in self.facts
                ],
                "passages": [
                    {**source_row(passage), "facts": [each.fact.id for each in facts], "left_out": why}
                    for passage, facts, why in self.of_passages()
                ],
            },
            ensure_ascii=False,
            indent=1,
        )


class _Places:
    """Finds the passage that a source lies in."""

    def __init__(self, passages: Sequence[Source]) -> None:
        self._cells: dict[tuple[str, int, str], int] = {}
        self._spans: dict[str, list[tuple[int, int, int]]] = defaultdict(list)  # by document: start, end, which; sorted
        for i, passage in enumerate(passages):
            if passage.row is not None:
                self._cells.setdefault((passage.document, passage.row, passage.column), i)
            elif passage.start is not None and passage.end is not None:
                self._spans[passage.document].append((passage.start, passage.end, i))
        for spans in self._spans.values():
            spans.sort()
        self._longest = {name: max(end - start for start, end, _ in spans) for name, spans in self._spans.items()}

    def of(self, source: Source) -> int | None:
        """The number of the first passage that holds it, or the greatest part of it; None where none does."""
        if source.row is not None:
            return self._cells.get((source.document, source.row, source.column))
        if source.start is None or source.end is None:
            return None
        spans = self._spans.get(source.document, [])
        first = bisect_left(spans, (source.start - self._longest.get(source.document, 0),))
        near = spans[first : bisect_left(spans, (source.end,))]
        shared = [(min(end, source.end) - max(start, source.start), -i) for start, end, i in near if source.start < end]
        return -max(shared)[1] if shared else None
