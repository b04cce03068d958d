"""Which facts' phrasings hold a name, in any spelling: each fact's are folded once, however many edits ask."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from memlayers.data.facts import Fact, folded


class FoldedPhrasings:
    """The phrasings of facts without case, accents, punctuation and spaces (`data.facts.folded`)."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[tuple[str, ...], str]] = {}  # by a fact's id

    def holding(self, facts: Iterable[Fact], names: Collection[str]) -> Iterator[tuple[Fact, list[int]]]:
        """The facts of which a phrasing holds one of these names, folded; with the places of such phrasings."""
        for fact in facts:
            letters = self._of(fact)
            if any(name in letters for name in names):
                lines = letters.split("\n")
                yield fact, [place for place, line in enumerate(lines) if any(name in line for name in names)]

    def forget(self, ids: Iterable[str]) -> None:
        """Drops what is kept of these facts."""
        for each in ids:
            self._found.pop(each, None)

    def _of(self, fact: Fact) -> str:
        """A line each."""
        questions, letters = self._found.get(fact.id, ((), ""))
        if questions is not fact.questions:  # one of the fact's own may have come in its place
            letters = "\n".join(map(folded, fact.questions))
            self._found[fact.id] = fact.questions, letters
        return letters
