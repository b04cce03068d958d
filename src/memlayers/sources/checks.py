"""Checks of facts before anything is taught, and what can be done about what they find (docs/sources.md). No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from memlayers.data.facts import Clash, Fact, FactReport, Question, check_facts, folded, question_key
from memlayers.linking.linker import unlinked_forms
from memlayers.sources.documents import Document
from memlayers.sources.evidence import evidence_findings
from memlayers.sources.findings import KINDS, CheckReport, Finding, Noting, alias_givers, free_id, listed, shortened
from memlayers.sources.mending import Mended, fixed
from memlayers.sources.originals import Originals
from memlayers.sources.stored import stored_findings
from memlayers.sources.wording_checks import answer_findings, given_away, subject_findings, wording_findings
from memlayers.utils.files import StrPath

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CheckReport", "Finding", "Knows", "Mended", "check", "fixed"]

Knows = Callable[[Sequence[Question]], Iterable[Question]]
"""Those of some questions that a backbone answers by itself: `evaluation.known.questions_known`."""

_ASKED_AGAIN = 2
_EITHER_OR = frozenset(("yes", "no", "true", "false"))


def check(
    facts: Sequence[Fact],
    lines: Sequence[int] | None = None,
    *,
    documents: Mapping[str, Document | StrPath] | None = None,
    memory: Sequence[Fact] | None = None,
    knows: Knows | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> CheckReport:
    """Checks facts before they are taught.

    Args:
        facts: the facts.
        lines: the line number of each, from `read_facts_with_lines`.
        documents: by the names that the facts' sources have for them: documents, or where a file lies. Others are read
            from where their name says, if they are there.
        memory: the facts of a memory that these are to be added to; None for none.
        knows: tells what a backbone knows already; None asks none.
        tokenizer: a backbone's, which counts the tokens of answers, and tells ordinary words; without one words are
            counted, and the shipped text tells.
    """
    note, originals, clashes = Noting(facts, lines), Originals(documents), check_facts(facts, lines)
    forms = unlinked_forms(facts)
    found = [
        *_repeated_ids(facts, note),
        *evidence_findings(facts, note, originals),
        *_clash_findings(facts, clashes, note),
        *_name_findings(facts, clashes, forms, note),
        *wording_findings(facts, note),
        *subject_findings(facts, note, tokenizer),
        *answer_findings(facts, note, tokenizer),
        *(stored_findings(facts, memory, note) if memory is not None else ()),
        *(_known_findings(facts, knows, note) if knows is not None else ()),
    ]
    order = {kind: n for n, kind in enumerate(KINDS)}
    found.sort(key=lambda finding: (order[finding.kind], finding.places))
    again = partial(check, documents=documents, memory=memory, tokenizer=tokenizer)
    return CheckReport(found, clashes, forms, originals, again)


def _repeated_ids(facts: Sequence[Fact], note: Noting) -> Iterator[Finding]:
    ids = {fact.id for fact in facts}
    seen: set[str] = set()
    for i, fact in enumerate(facts if len(ids) < len(facts) else ()):
        if fact.id in seen:
            ids.add(new := free_id(fact.id, ids))
            said = f"an earlier fact has the id {fact.id!r}, too: give each its own"
            yield note("same_id", [i], said, texts=(new,))
        seen.add(fact.id)


# Facts that ask the same question, or say the same of one subject


def _clash_findings(facts: Sequence[Fact], clashes: FactReport, note: Noting) -> Iterator[Finding]:
    """Contradictions, duplicates, and wordings that two subjects share.

    Facts about one subject contradict each other, or are one; of facts about two, the wording is to blame.
    """
    same = _Groups()
    for clash in clashes.duplicates:
        for places in _by_subject(facts, clash.places):
            same.join(places)
    values: list[list[int]] = []
    for of_relation in _by_relation(facts):
        groups = _by_answer(facts, of_relation)
        for places in groups:
            same.join(places)
        if len(groups) > 1:
            values.append(of_relation)

    against: set[int] = set()
    for clash in clashes.contradictions:
        if len(_by_subject(facts, clash.places)) > 1:
            yield _ambiguous(facts, clash, clash.places, "ambiguous_wording", note)
            continue
        sides = sorted({place for side in clash.places for place in same.members(side)})
        against.update(sides)
        answers = listed(dict.fromkeys(facts[i].answer for i in sides))
        yield note(
            "contradiction",
            sides,
            f"{clash.question!r} is answered {answers}: keep one answer",
            texts=(clash.question,),
        )
    for places in same.groups():
        if not against.issuperset(places):
            first = facts[places[0]]
            yield note(
                "duplicate", places,
                f"{len(places)} facts answer {_asked(first)!r} with {shortened(first.answer)!r}: make one of them, "
                "with all their wordings",
            )  # fmt: skip
    for clash in clashes.duplicates:
        if len(parts := _by_subject(facts, clash.places)) > 1:
            yield _ambiguous(facts, clash, [i for part in parts[1:] for i in part], "shared_wording", note)
    for places in values:
        if not against.issuperset(places):
            answers = listed(dict.fromkeys(facts[i].answer for i in places))
            first = facts[places[0]]
            yield note(
                "two_values", places,
                f"the {first.relation!r} of {shortened(first.subject)!r} is {answers}: keep one of them, or make their "
                "wordings say which is meant",
            )  # fmt: skip


def _ambiguous(facts: Sequence[Fact], clash: Clash, places: Iterable[int], kind: str, note: Noting) -> Finding:
    """The finding that these facts of a clash share wordings with facts about another subject."""
    parts = _by_subject(facts, clash.places)
    every = Counter(key for own in parts for key in {question_key(each) for i in own for each in _wordings(facts[i])})
    shared = [each for own in parts for i in own for each in _wordings(facts[i]) if every[question_key(each)] > 1]
    subjects = listed(dict.fromkeys(facts[own[0]].subject for own in parts))
    said = f"{shortened(clash.question)!r} is asked about {subjects}: word it so that it says which is meant"
    return note(kind, places, said, texts=tuple(dict.fromkeys(shared)))


def _by_subject(facts: Sequence[Fact], places: Sequence[int]) -> list[list[int]]:
    """Facts by their subject, in order; those without one are with the first."""
    found: dict[str, list[int]] = {}
    names = [folded(facts[i].subject) for i in places]
    first = next(filter(None, names), "")
    for i, name in zip(places, names, strict=True):
        found.setdefault(name or first, []).append(i)
    return list(found.values())


def _by_relation(facts: Sequence[Fact]) -> list[list[int]]:
    """The facts that say something of the same subject and relation, several of each."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, fact in enumerate(facts):
        if fact.subject and fact.relation:
            found.setdefault((folded(fact.subject), folded(fact.relation)), []).append(i)
    return [places for places in found.values() if len(places) > 1]


def _by_answer(facts: Sequence[Fact], places: Sequence[int]) -> list[list[int]]:
    """Facts that agree: the answer of each is accepted by the first of its group."""
    groups: list[tuple[set[str], list[int]]] = []
    for i in places:
        for accepted, members in groups:
            if question_key(facts[i].answer) in accepted:
                members.append(i)
                break
        else:
            groups.append(({question_key(answer) for answer in facts[i].answers}, [i]))
    return [members for _, members in groups]


class _Groups:
    """Facts that belong together, by their places."""

    def __init__(self) -> None:
        self._group: dict[int, list[int]] = {}

    def join(self, places: Sequence[int]) -> None:
        """Has these facts, and those of their groups, be one group."""
        whole = sorted({member for place in places for member in self.members(place)})
        for member in whole:
            self._group[member] = whole

    def members(self, place: int) -> list[int]:
        """The group of a fact, itself among them."""
        return self._group.get(place, [place])

    def groups(self) -> list[list[int]]:
        """Each group of several, once."""
        return [group for place, group in sorted(self._group.items()) if group[0] == place and len(group) > 1]


# Names, and what the backbone knows


def _name_findings(
    facts: Sequence[Fact], clashes: FactReport, forms: Mapping[str, tuple[str, ...]], note: Noting
) -> Iterator[Finding]:
    """Names, short forms and spellings that do not say which subject is meant."""
    about: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        if fact.subject:
            about.setdefault(fact.subject, []).append(i)
    givers = alias_givers(facts)
    for shared in clashes.shared_names:
        yield note(
            "shared_name", givers[folded(shared.alias)],
            f"{shared.alias!r} is a name of {listed(shared.subjects)}: leave it to one of them", texts=(shared.alias,),
        )  # fmt: skip
    for form, subjects in forms.items():
        yield note(
            "shared_form", [about[subject][0] for subject in subjects],
            f"{form!r} links to none of {listed(subjects)}: it could mean each of them", texts=(form,),
        )  # fmt: skip
    spelled: dict[str, list[str]] = {}
    for subject in about:
        spelled.setdefault(folded(subject), []).append(subject)
    for alike in spelled.values():
        if len(alike) > 1:
            yield note(
                "spelled_apart", [about[subject][0] for subject in alike],
                f"{listed(alike)} have the same letters, and are two subjects: spell them alike if they are one",
            )  # fmt: skip


def _known_findings(facts: Sequence[Fact], knows: Knows, note: Noting) -> Iterator[Finding]:
    """Facts that a backbone answers by itself: in a taught wording, and then in two more, as one may be luck.

    Of answers like yes and no half are right by chance, so that nothing is known by them.
    """
    wordings = {
        i: [
            question
            for question in fact.questions
            if question not in given_away(fact, [fact.subject] if fact.subject else [])
        ]
        for i, fact in enumerate(facts)
        if not _EITHER_OR.intersection(map(question_key, fact.answers))
    }
    left = [i for i, questions in wordings.items() if questions]
    for number in range(1 + _ASKED_AGAIN):
        asked = {i: wordings[i][number] for i in left if number < len(wordings[i])}
        if asked:
            right = {each.question for each in knows([Question(asked[i], facts[i].answers) for i in asked])}
            left = [i for i in left if i not in asked or asked[i] in right]
    for i in left:
        yield note(
            "known_already", [i],
            f"the backbone answers {_asked(facts[i])!r} with {shortened(facts[i].answer)!r} by itself: it need not be "
            "taught",
        )  # fmt: skip


def _asked(fact: Fact) -> str:
    return shortened(fact.questions[0])


def _wordings(fact: Fact) -> tuple[str, ...]:
    return (*fact.questions, *fact.unseen_questions)
