"""The edits that tell a memory what has changed in its sources. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from memlayers.certificate.difference import Difference
from memlayers.data.facts import Fact

if TYPE_CHECKING:
    from memlayers.editing.memory import Memory
    from memlayers.editing.report import EditReport

StepKind: TypeAlias = Literal["forget", "update", "add", "sources"]

_MANY: Final = 8  # facts in one edit, above which stored facts are taught again beside them
_REHEARSED: Final = 16  # so many, see `EditConfig.rehearsed`


@dataclass(frozen=True, slots=True)
class Step:
    """One edit.

    Attributes:
        kind: which; "sources" notes where stored facts are found now.
        facts: at least one.
    """

    kind: StepKind
    facts: tuple[Fact, ...]

    def run(self, memory: Memory) -> EditReport:
        """Makes it. Raises as the memory's own edits."""
        before = memory.edits
        if len(self.facts) > _MANY:
            memory.edits = replace(before, rehearsed=max(before.rehearsed, _REHEARSED))
        try:
            return _EDITS[self.kind](memory, self.facts)
        finally:
            memory.edits = before

    def halves(self) -> list[Step]:
        """Two of half as many facts, for one that was refused; none for one fact, which is then the one at fault."""
        half = len(self.facts) // 2
        return [Step(self.kind, self.facts[:half]), Step(self.kind, self.facts[half:])] if half else []


_EDITS: Final[Mapping[StepKind, Callable[[Memory, Sequence[Fact]], EditReport]]] = MappingProxyType(
    {
        "forget": lambda memory, facts: memory.forget(ids=[fact.id for fact in facts]),
        "update": lambda memory, facts: memory.update(facts),
        "add": lambda memory, facts: memory.add(facts),
        "sources": lambda memory, facts: memory.set_sources(facts),
    }
)


def steps(told: Difference, most: int | None = None) -> list[Step]:
    """The edits that tell a memory a difference, in order: at most `most` facts in each, or one edit of each kind."""
    every: tuple[tuple[StepKind, tuple[Fact, ...]], ...] = (
        ("forget", told.forgotten), ("update", told.updated), ("add", told.added), ("sources", told.moved)
    )  # fmt: skip
    return [
        Step(kind, facts[start : start + (most or len(facts))])
        for kind, facts in every
        for start in range(0, len(facts), most or len(facts) or 1)
    ]
