"""What the checks of facts find: the kinds, one finding, the report. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Literal, NamedTuple

from memlayers.data.facts import Fact, FactReport, Source, folded
from memlayers.sources.originals import Originals

Mend = Literal["", "drop", "merge", "wordings", "repeats", "sources", "aliases", "subject", "id"]
"""What is done about a finding: nothing; the facts are dropped, or made one; these wordings are dropped, or all but the
first of those that repeat; these sources are dropped or corrected; these aliases are dropped; the subject, or the id,
is given anew. A fact without a wording, or without a source where it had some, is dropped."""


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        title: for a heading.
        refused: whether such facts are not to be taught; otherwise they are to be looked at.
        mend: what `fixed` does about it.
        mended: the same in words; "" for nothing.
    """

    title: str
    refused: bool
    mend: Mend = ""
    mended: str = ""


KINDS: Final[dict[str, Kind]] = {
    "same_id": Kind("id used twice", True, "id", "the later one gets another id"),
    "evidence_not_found": Kind("evidence not where it is said to be", True, "sources", "the source is dropped"),
    "evidence_elsewhere": Kind("evidence at another place", False, "sources", "the place is corrected"),
    "document_not_there": Kind("document not there, not checked", False),
    "answer_not_in_evidence": Kind("answer not in the evidence", True, "drop", "the fact is dropped"),
    "contradiction": Kind("contradiction", True, "drop", "all sides are dropped"),
    "ambiguous_wording": Kind("one wording, two subjects, two answers", True, "wordings", "the wording is dropped"),
    "shared_wording": Kind("one wording, two subjects", False, "wordings", "the first fact keeps it"),
    "two_values": Kind("two answers to one relation", False),
    "duplicate": Kind("duplicate", False, "merge", "made one fact"),
    "shared_name": Kind("name of two subjects", True, "aliases", "the alias is dropped"),
    "shared_form": Kind("short form of several subjects", False),
    "spelled_apart": Kind("subject spelled in two ways", False),
    "stored_already": Kind("stored already", False, "drop", "the fact is left out"),
    "update": Kind("stored with another answer", False, "", "the fact is kept, as an update"),
    "stored_question": Kind("wording of another stored fact", True, "wordings", "the wording is dropped"),
    "stored_alias": Kind("subject stored under another name", True, "subject", "the stored name becomes the subject"),
    "stored_id": Kind("id of another stored fact", True, "id", "the fact gets another id"),
    "known_already": Kind("known to the backbone", False, "drop", "the fact is dropped"),
    "answer_too_long": Kind("answer too long", True, "drop", "the fact is dropped"),
    "gives_answer_away": Kind("wording gives its answer away", False, "wordings", "the wording is dropped"),
    "repeated_wording": Kind("wording given twice", False, "repeats", "the first is kept"),
    "empty_wording": Kind("wording without a word", True, "wordings", "the wording is dropped"),
    "few_wordings": Kind("too few wordings", False),
    "no_subject": Kind("no subject", False),
    "subject_not_named": Kind("subject not named in a wording", False),
    "ordinary_subject": Kind("subject is an ordinary word", False),
}
"""By their names, in the order of the report."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found.

    Attributes:
        kind: one of `KINDS`.
        said: what is wrong, and how to mend it, in one sentence.
        places: of the facts in their list, from 0.
        ids: of these facts.
        lines: of these facts; empty where line numbers are not known.
        texts: the wordings or aliases that are meant, or the name to be given; empty where that is no part of it.
        sources: the numbers, from 0, of the fact's sources that are meant.
        corrected: in their place; empty where they are to be dropped.
    """

    kind: str
    said: str
    places: tuple[int, ...]
    ids: tuple[str, ...]
    lines: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    sources: tuple[int, ...] = ()
    corrected: tuple[Source, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether such a fact is not to be taught; otherwise it is to be looked at."""
        return KINDS[self.kind].refused

    @property
    def fixable(self) -> bool:
        """Whether `fixed` does something about it."""
        return bool(KINDS[self.kind].mend)

    def as_json(self) -> dict[str, Any]:
        """For scripts; places and corrected sources are left out."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind, "severity": "refused" if kind.refused else "to look at", "ids": self.ids,
            "lines": self.lines, "said": self.said, "fix": kind.mended, "texts": self.texts,
        }  # fmt: skip


@dataclass(slots=True)
class CheckReport:
    """What the checks of some facts found.

    Attributes:
        findings: by kind, in the order of `KINDS`, then in file order.
        clashes: what `check_facts` finds, from which some of the findings are made.
        unlinked_forms: see `linking.linker.unlinked_forms`.
        originals: what evidence was looked for in.
        again: the same check of other facts, but for what a backbone knows; None where it is not at hand.
    """

    findings: list[Finding] = field(default_factory=list)
    clashes: FactReport = field(default_factory=FactReport)
    unlinked_forms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    originals: Originals = field(default_factory=Originals, repr=False, compare=False)
    again: Callable[[Sequence[Fact]], CheckReport] | None = field(default=None, repr=False, compare=False)

    @property
    def refused(self) -> bool:
        """Whether something was found that is not to be taught."""
        return any(finding.refused for finding in self.findings)

    @property
    def fixable(self) -> bool:
        """Whether `fixed` would change something."""
        return any(finding.fixable for finding in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind that has some, in the order of `KINDS`."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS if kind in found}

    def of(self, *kinds: str) -> list[Finding]:
        """The findings of these kinds."""
        return [finding for finding in self.findings if finding.kind in kinds]


class Noting:
    """Makes the findings about some facts.

    Args:
        facts: the facts.
        lines: the line number of each; None where they are not known.
    """

    def __init__(self, facts: Sequence[Fact], lines: Sequence[int] | None = None) -> None:
        self._facts, self._lines = facts, lines

    def __call__(self, kind: str, places: Iterable[int], said: str, **more: Any) -> Finding:
        """A finding about the facts at these places; `more` are further fields of it."""
        places = tuple(places)
        lines = () if self._lines is None else tuple(self._lines[i] for i in places)
        return Finding(kind, said, places, tuple(self._facts[i].id for i in places), lines, **more)


def listed(texts: Iterable[str], most: int = 3) -> str:
    """Some texts in quotes, with commas between, and how many there are beyond."""
    texts = list(texts)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(repr(shortened(text)) for text in texts[:most]) + more


def shortened(text: str, most: int = 80) -> str:
    """A text on one line, of at most so many characters and three full stops."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most].rstrip() + "..."


def free_id(base: str, taken: Collection[str]) -> str:
    """An id that is not taken: the first of base-2, base-3 and so on."""
    return next(f"{base}-{n}" for n in count(2) if f"{base}-{n}" not in taken)


def alias_givers(facts: Sequence[Fact]) -> dict[str, list[int]]:
    """The facts that give each alias of a subject, by the alias's folded letters."""
    found: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        for alias in fact.subject_aliases:
            found.setdefault(folded(alias), []).append(i)
    return found
