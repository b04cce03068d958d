"""What a memory must be told of sources that it has learned before: only what has changed. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from memlayers.data.facts import Fact


@dataclass(frozen=True, slots=True)
class Difference:
    """The facts found now beside those that are stored, by their ids.

    Attributes:
        added: facts that are not stored.
        updated: facts that are stored with another answer.
        forgotten: stored facts whose every source is one of the documents, where they are found no more; and those
            about a subject that is spelled otherwise now, which are also among `added`.
        moved: stored facts that say the same, at other places.
        unchanged: stored facts that nothing is to be done about.
    """

    added: tuple[Fact, ...]
    updated: tuple[Fact, ...]
    forgotten: tuple[Fact, ...]
    moved: tuple[Fact, ...]
    unchanged: tuple[Fact, ...]

    @property
    def empty(self) -> bool:
        """Whether the memory holds all of it already."""
        return not (self.added or self.updated or self.forgotten or self.moved)


def difference(stored: Sequence[Fact], found: Sequence[Fact], documents: Collection[str]) -> Difference:
    """Compares the facts of a memory with those that some documents state now.

    A fact is the same where its id is, which sources make from subject and relation, and where answer and aliases are
    the same to the letter. What was stored by hand, or found in other documents, is left alone.

    Args:
        stored: the facts of the memory, in order.
        found: those that the documents state, in order; their ids differ.
        documents: the names that `found` was looked for in.
    """
    held = {fact.id: fact for fact in stored}
    added: list[Fact] = []
    updated: list[Fact] = []
    forgotten: list[Fact] = []
    moved: list[Fact] = []
    unchanged: list[Fact] = []
    for fact in found:
        before = held.get(fact.id)
        if before is None:
            added.append(fact)
        elif before.subject != fact.subject:
            forgotten.append(before)
            added.append(fact)
        elif (before.answer, before.aliases) != (fact.answer, fact.aliases):
            updated.append(fact)
        else:
            elsewhere = tuple(source for source in before.sources if source.document not in documents)
            now = replace(before, sources=tuple(dict.fromkeys((*elsewhere, *fact.sources))))
            (unchanged if set(now.sources) == set(before.sources) else moved).append(now)
    ids = {fact.id for fact in found}
    for fact in stored:
        if fact.id in ids or not any(source.document in documents for source in fact.sources):
            continue
        left = tuple(source for source in fact.sources if source.document not in documents)
        if left:  # another document still says it
            moved.append(replace(fact, sources=left))
        else:
            forgotten.append(fact)
    return Difference(tuple(added), tuple(updated), tuple(forgotten), tuple(moved), tuple(unchanged))
