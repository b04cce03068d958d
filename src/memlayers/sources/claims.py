"""What a table or a document says, before it is worded as facts: claims, passages, and what was left out. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from memlayers.data.facts import Fact, Source

Kind = Literal["person", "place", "date", "number", "yes_no", "text"]
"""What kind of thing a value is; a number may have a unit."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that is said of a subject: its relation has this value.

    Attributes:
        subject: as the source spells it.
        relation: a noun as a person says it, in the singular and without an article: "price", "chief executive".
        value: the answer, word for word as the source has it.
        source: where; its evidence holds the value.
        kind: of the value; None where only the value itself tells.
    """

    subject: str
    relation: str
    value: str
    source: Source
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that became no fact.

    Attributes:
        source: where it stands.
        why: in a few words, the same for the same reason: "empty cell".
    """

    source: Source
    why: str


@dataclass(slots=True)
class Extraction:
    """What was found in tables and documents.

    Attributes:
        facts: in the order of their sources.
        passages: every sentence, list item or cell that was read, in order; its text is the source's evidence. A fact's
            own source lies within one of them.
        left_out: what became no fact, and why.
    """

    facts: list[Fact] = field(default_factory=list)
    passages: list[Source] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def extend(self, others: Iterable[Extraction]) -> Extraction:
        """Adds what was found elsewhere, and returns itself."""
        for other in others:
            self.facts += other.facts
            self.passages += other.passages
            self.left_out += other.left_out
        return self
