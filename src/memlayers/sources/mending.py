"""What can be done about findings: facts dropped, changed, or made one. Loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from memlayers.data.facts import Fact, folded, question_key
from memlayers.sources.findings import KINDS, CheckReport, Finding
from memlayers.sources.wording_checks import given_away

_MOST_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Mended:
    """Something that was done about a finding.

    Attributes:
        id: of the fact, as it was.
        did: in a few words: "dropped", "made one with 'a'", "wordings dropped".
        kind: of the finding.
        dropped: whether the fact is not there any more, by itself at least.
    """

    id: str
    did: str
    kind: str
    dropped: bool = False


def fixed(facts: Sequence[Fact], report: CheckReport) -> tuple[list[Fact], list[Mended]]:
    """The facts after everything was done about the findings that can be; checked again, none of that is found.

    Nothing is guessed: of facts that contradict each other none is kept. What a person has to look at stays as it is,
    and so do updates of a memory.

    Args:
        facts: that were checked.
        report: of the check.

    Returns:
        The facts that are left, in order, and what was done.
    """
    left, did = _fixed_once(facts, report)
    for _ in range(_MOST_ROUNDS):
        # Facts that are made one, or told under another name, may clash with others by that.
        if report.again is None or not any(KINDS[each.kind].mend in ("merge", "subject") for each in did):
            break
        report = report.again(left)
        if not report.fixable:
            break
        left, more = _fixed_once(left, report)
        did += more
    return left, did


def _fixed_once(facts: Sequence[Fact], report: CheckReport) -> tuple[list[Fact], list[Mended]]:
    left: dict[int, Fact] = dict(enumerate(facts))
    did: list[Mended] = []
    one_by_one = [finding for finding in report.findings if finding.fixable and KINDS[finding.kind].mend != "merge"]
    # What is dropped need not be changed.
    for finding in sorted(one_by_one, key=lambda finding: KINDS[finding.kind].mend != "drop"):
        for place in finding.places:
            fact = left.get(place)
            after = fact and _mended(fact, finding)
            if after is None and fact is not None:
                del left[place]
                did.append(Mended(facts[place].id, "dropped", finding.kind, dropped=True))
            elif after is not None and after != fact:
                left[place] = after
                did.append(Mended(facts[place].id, KINDS[finding.kind].mended, finding.kind))
    for finding in report.of("duplicate"):
        first, *others = [place for place in finding.places if place in left] or [-1]
        if others:
            left[first] = _one_of([left[first], *map(left.pop, others)])
            said = f"made one with {facts[first].id!r}"
            did += [Mended(facts[place].id, said, finding.kind, dropped=True) for place in others]
    return list(left.values()), did


def _mended(fact: Fact, finding: Finding) -> Fact | None:
    """A fact after what is done about a finding; None where nothing is left of it."""
    mend, texts = KINDS[finding.kind].mend, finding.texts
    if mend == "wordings":
        return _without_wordings(fact, set(map(question_key, texts)))
    if mend == "repeats":
        questions = _distinct(fact.questions)
        unseen = _distinct(fact.unseen_questions, set(map(question_key, questions)))
        return replace(fact, questions=questions, unseen_questions=unseen)
    if mend == "sources":
        corrected = dict(zip(finding.sources, finding.corrected, strict=False))
        sources = tuple(
            corrected.get(n, source) for n, source in enumerate(fact.sources) if corrected or n not in finding.sources
        )
        return replace(fact, sources=sources) if sources else None
    if mend == "aliases":
        return replace(fact, subject_aliases=_other_names(fact, texts))
    if mend == "subject":
        return replace(fact, subject=texts[0], subject_aliases=_other_names(fact, texts))
    if mend == "id":
        return replace(fact, id=texts[0])
    return None


def _one_of(facts: Sequence[Fact]) -> Fact:
    """Facts that say the same as one fact: the first, with what the others have besides."""
    first = facts[0]
    subject = next((fact.subject for fact in facts if fact.subject), "")
    answers = [answer for fact in facts for answer in fact.answers]
    names = {folded(name): name for fact in reversed(facts) for name in reversed(fact.subject_aliases)}
    questions = _distinct(question for fact in facts for question in fact.questions)
    unseen = _distinct(
        (question for fact in facts for question in fact.unseen_questions), set(map(question_key, questions))
    )
    whole = replace(
        first, subject=subject, relation=next((fact.relation for fact in facts if fact.relation), ""),
        questions=questions, unseen_questions=unseen, aliases=_distinct(answers, {question_key(first.answer)}),
        subject_aliases=tuple(name for letters, name in names.items() if letters != folded(subject)),
        sources=tuple(dict.fromkeys(source for fact in facts for source in fact.sources)),
    )  # fmt: skip
    given = set(map(question_key, given_away(whole, (subject, *whole.subject_aliases) if subject else ())))
    return _without_wordings(whole, given) or first  # another one's wording may hold the first one's answer


def _without_wordings(fact: Fact, keys: Collection[str]) -> Fact | None:
    """A fact without the wordings of these keys; None where no taught one is left."""
    questions = tuple(each for each in fact.questions if question_key(each) not in keys)
    unseen = tuple(each for each in fact.unseen_questions if question_key(each) not in keys)
    return replace(fact, questions=questions, unseen_questions=unseen) if questions else None


def _distinct(texts: Iterable[str], known: Collection[str] = ()) -> tuple[str, ...]:
    """Texts without those that count as the same as an earlier one, or are of these keys."""
    found: dict[str, str] = {}
    for text in texts:
        if (key := question_key(text)) not in known:
            found.setdefault(key, text)
    return tuple(found.values())


def _other_names(fact: Fact, names: Iterable[str]) -> tuple[str, ...]:
    """A fact's subject aliases but for these names."""
    gone = set(map(folded, names))
    return tuple(alias for alias in fact.subject_aliases if folded(alias) not in gone)
