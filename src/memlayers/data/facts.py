"""Facts and questions, and the checks of a set of facts: duplicates, contradictions, shared names. Loads no torch."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from memlayers.utils.errors import InputError

PUBLIC_FACTS: Final = Path(__file__).parents[1] / "pocket" / "known.jsonl"
"""Public facts that ship with the package; the pocket backbone knows them."""
MOST_WORDS: Final = 20
"""Of a subject's alias."""
MOST_CHARACTERS: Final = 200
"""Of a subject's alias."""
_FOLDED_ASCII: Final = {code: chr(code).lower() if chr(code).isalnum() else None for code in range(128)}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a fact was found: in a text a span of characters, in a table a cell.

    Attributes:
        document: the file, as it was named.
        evidence: the words that say it, as they stand there.
        start: of the evidence in the document's text, in characters; None in a table.
        end: of it, exclusive.
        page: from 1; None where there are no pages.
        row: of a table, from 1 as its file numbers lines or rows, the header being one; None in a text.
        column: of a table; "" in a text.
    """

    document: str
    evidence: str
    start: int | None = None
    end: int | None = None
    page: int | None = None
    row: int | None = None
    column: str = ""

    @property
    def place(self) -> str:
        """Document and place in a few words: "prices.csv, row 12, column price"; "handbook.pdf, page 3"."""
        parts = [self.document]
        if self.page is not None:
            parts.append(f"page {self.page}")
        if self.row is not None:
            parts.append(f"row {self.row}")
        if self.column:
            parts.append(f"column {self.column}")
        if self.start is not None:
            parts.append(f"characters {self.start} to {self.end}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact to teach.

    Attributes:
        id: unique in its file.
        subject: who or what the fact is about; "" when the source is a plain question row.
        answer: the text to be generated.
        questions: the phrasings that may be taught, at least one.
        relation: optional name of the relation, e.g. "place of birth".
        unseen_questions: phrasings that are never taught, only asked.
        aliases: further answers that count as right.
        subject_aliases: other names of the subject; they count for all facts of that subject (`aliases_by_subject`).
        sources: where it was found, where it was found in a document or a table.

    Raises:
        InputError: a text stands where several belong, or `alias_fault` finds one in a subject's alias.
    """

    id: str
    subject: str
    answer: str
    questions: tuple[str, ...]
    relation: str = ""
    unseen_questions: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    subject_aliases: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        for name in ("questions", "unseen_questions", "aliases", "subject_aliases"):
            if isinstance(getattr(self, name), str):
                raise InputError(f"fact {self.id!r}: {name} is a text: give a tuple of texts")
        for alias in self.subject_aliases:
            if fault := alias_fault(self.subject, alias):
                raise InputError(f"fact {self.id!r}: subject_aliases: {fault}")

    @property
    def answers(self) -> tuple[str, ...]:
        """Every accepted answer, the taught one first."""
        return (self.answer, *self.aliases)


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its accepted answers (known facts, TriviaQA, ...)."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Clash:
    """Several facts that ask the same question.

    Attributes:
        question: as the first of them words it.
        ids: of the facts, in file order.
        answers: one per fact.
        lines: one per fact; empty when line numbers are not known.
        places: of the facts in their list, from 0.
    """

    question: str
    ids: tuple[str, ...]
    answers: tuple[str, ...]
    lines: tuple[int, ...] = ()
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SharedName:
    """A subject's alias that is a name of another subject too: it does not say which of them is meant.

    Attributes:
        alias: as the first fact that gives it spells it.
        subjects: at least two, in file order.
        ids: for each of them the first fact that gives it this name.
        lines: one per fact; empty when line numbers are not known.
    """

    alias: str
    subjects: tuple[str, ...]
    ids: tuple[str, ...]
    lines: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FactReport:
    """What `check_facts` found: facts said twice, facts that contradict each other, and names of several subjects."""

    duplicates: list[Clash] = field(default_factory=list)
    contradictions: list[Clash] = field(default_factory=list)
    shared_names: list[SharedName] = field(default_factory=list)


def question_key(text: str) -> str:
    """What two questions, or two answers, have in common that count as the same.

    Case, spacing, Unicode form (NFKC) and final punctuation are left out.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip("?.! ") or text


def composed(text: str) -> str:
    """A text in Unicode form NFC: an accented letter is one character, however it was typed."""
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """The letters and digits of a text, in lower case, without accents, in their common width (NFKC, NFKD)."""
    if text.isascii():  # the same, five times as fast
        return text.translate(_FOLDED_ASCII)
    wide = unicodedata.normalize("NFKC", text).casefold()
    return "".join(each for each in unicodedata.normalize("NFKD", wide) if each.isalnum())


def alias_fault(subject: str, alias: str) -> str:
    """What is wrong with an alias of a subject by itself, and how to repair it; "" where nothing is."""
    name = folded(alias)
    if not subject:
        return f"{alias!r} is an alias of no subject; give the fact its subject, or leave it out"
    if not name:
        return f"{alias!r} holds no letter and no digit; give a name, or leave it out"
    if len(alias) > MOST_CHARACTERS or len(alias.split()) > MOST_WORDS:
        return (
            f"{alias[:40]!r}... has {len(alias.split())} words and {len(alias)} characters; give a name of at most "
            f"{MOST_WORDS} words and {MOST_CHARACTERS} characters"
        )
    if name == folded(subject):
        return f"{alias!r} is the subject's own name: case, accents and punctuation do not count; leave it out"
    return ""


def aliases_by_subject(facts: Iterable[Fact]) -> dict[str, tuple[str, ...]]:
    """The aliases of each subject that has some: all that its facts give, in order, without doubles."""
    found: dict[str, dict[str, str]] = {}
    for fact in facts:
        for alias in fact.subject_aliases:
            found.setdefault(fact.subject, {}).setdefault(folded(alias), alias)
    return {subject: tuple(aliases.values()) for subject, aliases in found.items()}


def shared_names(facts: Sequence[Fact], lines: Sequence[int] | None = None) -> list[SharedName]:
    """The aliases that are a name of another subject too, as its subject or its alias.

    Names are the same when their letters and digits are, but for case, accents and width.

    Args:
        facts: the facts.
        lines: the line number of each, from `read_facts_with_lines`.
    """
    spelled: dict[str, str] = {}
    for fact in facts:
        for alias in fact.subject_aliases:
            spelled.setdefault(folded(alias), alias)
    if not spelled:
        return []
    holders: dict[str, dict[str, int]] = {}  # of each such name: subject -> the first fact that gives it
    for i, fact in enumerate(facts):
        subject = folded(fact.subject)
        for name in (subject, *map(folded, fact.subject_aliases)):
            if name in spelled:
                holders.setdefault(name, {}).setdefault(subject, i)
    return [
        SharedName(
            alias=spelled[name],
            subjects=tuple(facts[i].subject for i in places.values()),
            ids=tuple(facts[i].id for i in places.values()),
            lines=() if lines is None else tuple(lines[i] for i in places.values()),
        )
        for name, places in holders.items()
        if len(places) > 1
    ]


def check_facts(facts: Sequence[Fact], lines: Sequence[int] | None = None) -> FactReport:
    """Find facts that ask the same question, be it taught or unseen, and compare their answers; and `shared_names`.

    Questions are the same when they agree but for case, spacing, Unicode form and final punctuation. Facts
    agree when one answer is accepted by all of them (aliases count): they are duplicates. Otherwise they
    contradict each other. Facts that share several questions are reported once.

    Args:
        facts: the facts.
        lines: the line number of each, from `read_facts_with_lines`.
    """
    report = FactReport(shared_names=shared_names(facts, lines))
    reported: set[tuple[int, ...]] = set()
    for members in _by_question(facts).values():
        key = tuple(members)
        if key in reported:
            continue
        reported.add(key)
        accepted = [{question_key(answer) for answer in facts[i].answers} for i in members]
        if set.intersection(*accepted):
            report.duplicates.append(_clash(facts, members, lines))
            continue
        report.contradictions.append(_clash(facts, members, lines))
        by_answer: dict[str, list[int]] = {}
        for i in members:
            by_answer.setdefault(question_key(facts[i].answer), []).append(i)
        same = (group for group in by_answer.values() if len(group) > 1 and tuple(group) not in reported)
        report.duplicates.extend(_clash(facts, group, lines) for group in same)
    return report


def split_facts(facts: Sequence[Fact], fraction: float, seed: int = 0) -> tuple[list[Fact], list[Fact]]:
    """Split facts at random, the same way in every process; both parts keep the order of `facts`.

    Args:
        facts: the facts.
        fraction: share of the first part, 0 to 1; its size is rounded to the nearest whole number.
        seed: of the choice.

    Raises:
        InputError: `fraction` is not between 0 and 1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"fraction is {fraction}; give a number from 0 to 1")
    chosen = set(random.Random(f"split:{seed}").sample(range(len(facts)), round(fraction * len(facts))))
    first = [fact for i, fact in enumerate(facts) if i in chosen]
    second = [fact for i, fact in enumerate(facts) if i not in chosen]
    return first, second


# Checking


def _by_question(facts: Sequence[Fact]) -> dict[str, list[int]]:
    """Indices of the facts that ask each (normalised) question that several ask, each fact once."""
    first: dict[str, int] = {}
    groups: dict[str, list[int]] = {}  # hardly any question is asked by several
    for i, fact in enumerate(facts):
        for question in (*fact.questions, *fact.unseen_questions):
            key = question_key(question)
            if (other := first.setdefault(key, i)) != i:
                members = groups.setdefault(key, [other])
                if members[-1] != i:
                    members.append(i)
    return groups


def _clash(facts: Sequence[Fact], members: list[int], lines: Sequence[int] | None) -> Clash:
    shared = set.intersection(
        *({question_key(q) for q in (*facts[i].questions, *facts[i].unseen_questions)} for i in members)
    )
    first = facts[members[0]]
    question = next(q for q in (*first.questions, *first.unseen_questions) if question_key(q) in shared)
    return Clash(
        question=question,
        ids=tuple(facts[i].id for i in members),
        answers=tuple(facts[i].answer for i in members),
        lines=() if lines is None else tuple(lines[i] for i in members),
        places=tuple(members),
    )
