"""Facts asked as people ask: seeded questions in the splits of docs/asked.md, none in a wording that was taught.

No torch. `asked_scores` puts the questions to a memory.
"""

from __future__ import annotations

import random
import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from memlayers.data.answers import contains_answer, exact_match
from memlayers.data.conversations import Asked, Message, question_of
from memlayers.data.facts import Fact, aliases_by_subject, question_key
from memlayers.evaluation.asked_frames import (
    ANY_RELATION,
    OPENING,
    PARAGRAPHS,
    PREAMBLE,
    SENTENCE,
    SMALL_TALK,
    Frame,
    frame_of,
)
from memlayers.evaluation.results import Results

Scored: TypeAlias = Literal["strict", "contained", "first_word", "not_given"]


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """One question of a split.

    Attributes:
        split: a name in `SPLITS`.
        facts: the ids of the facts it asks for.
        question: a text, or a conversation that ends in the question.
        answers: the accepted answers, one tuple for each thing that is asked.
        scored: when what is said counts as right: "strict" where it is an accepted answer, "contained" where it
            contains one to each thing asked, "first_word" where it begins with one, "not_given" where it contains none.
    """

    split: str
    facts: tuple[str, ...]
    question: Asked
    answers: tuple[tuple[str, ...], ...]
    scored: Scored

    @property
    def last(self) -> str:
        """The question without the conversation before it."""
        return question_of(self.question)

    def right(self, said: str) -> bool:
        """Whether what was said answers the question, as its split is scored."""
        if self.scored == "strict":
            return exact_match(said, self.answers[0])
        if self.scored == "first_word":
            return re.findall(r"\w+", said.casefold())[:1] in [[answer] for answer in self.answers[0]]
        contained = [contains_answer(said, answers) for answers in self.answers]
        return all(contained) if self.scored == "contained" else bool(said.strip()) and not any(contained)


SPLITS: Final = (
    "as_spelled", "lower", "upper", "title", "no_accents", "no_punctuation", "hyphened", "quoted", "bold",
    "one_misspelling", "two_misspellings", "alias", "last_name", "possessive", "preamble", "paragraph", "statement",
    "yes_no_true", "yes_no_false", "negated", "reversed", "sentence", "german", "two_subjects", "follow_up",
    "follow_up_small_talk",
)  # fmt: skip
"""Every split, in the order of the tables; the first is the baseline."""


def asked_questions(
    facts: Sequence[Fact], seed: int, taught: Sequence[Fact] | None = None
) -> dict[str, list[AskedQuestion]]:
    """Puts facts into the questions of each split.

    A fact's wording is one of its unseen ones, the same in all splits, or "What is the RELATION of SUBJECT?" where it
    has none. A split has those facts that it can be made for, all splits in one order, which is random: its first so
    many are a sample of it, and the same facts where they can be.

    Args:
        facts: what to ask for.
        seed: of the order and of every choice.
        taught: what the memory was taught, where `facts` are of entities that were never taught: their own `questions`
            are then asked, too. None where `facts` are what it was taught.

    Returns:
        The questions by split, in the order of `SPLITS`, without those that have none.
    """
    maker = _Maker(facts, seed, taught)
    found: dict[str, dict[str, AskedQuestion]] = {split: {} for split in SPLITS}
    for item in maker.questions():
        if question_key(item.last) not in maker.taught:
            # By conversation as a whole: pronouns make one question of many.
            found[item.split].setdefault(question_key(str(item.question)), item)
    return {split: list(items.values()) for split, items in found.items() if items}


def splits_in(runs: Sequence[Results]) -> list[str]:
    """The splits that some results have rows of, in the order of `SPLITS`; none for results of another kind."""
    of_asked = ("answered_by_memory", "fabricated_by_memory")
    return [split for split in SPLITS if any(run.find(metric, split) for run in runs for metric in of_asked)]


def misspelled(name: str, edits: int, rng: random.Random) -> str | None:
    """A name with so many letters swapped with the next, left out, put in or replaced; None where it is too short.

    A name of five letters takes one edit, one of ten two. Words keep their first letters.
    """
    if sum(map(str.isalpha, name)) < 5 * edits:
        return None
    places = [i for i in range(1, len(name)) if name[i].isalpha() and name[i - 1].isalpha()]
    chosen: list[int] = []
    while places and len(chosen) < edits:
        chosen.append(rng.choice(places))
        places = [i for i in places if abs(i - chosen[-1]) > 1]  # an edit concerns a letter and the next
    if len(chosen) < edits:
        return None
    for place in sorted(chosen, reverse=True):
        name = name[:place] + _edited(name[place:], rng)
    return name


def _edited(rest: str, rng: random.Random) -> str:
    """What stands from some letter on, with an edit to this letter."""
    letter, following = rest[0], rest[1:2]
    other = rng.choice([each for each in string.ascii_lowercase if each != letter.casefold()])
    other = other.upper() if letter.isupper() else other
    ways = [rest[1:], other + rest, other + rest[1:]]
    if following.isalpha() and following.casefold() != letter.casefold():
        ways.append(following + letter + rest[2:])
    return rng.choice(ways)


def _without_accents(text: str) -> str:
    marked = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFC", "".join(each for each in marked if not unicodedata.combining(each)))


def _without_punctuation(text: str) -> str:
    """Dashes and slashes become spaces, other punctuation is left out."""
    spaced = re.sub(r"[-‐-―/_]", " ", text)
    kept = (each for each in spaced if not unicodedata.category(each).startswith("P"))
    return " ".join("".join(kept).split())


def _with_pronoun(question: str, subject: str, person: bool) -> str:
    """A question with a pronoun in place of its subject."""
    before, _, after = question.partition(subject)
    word = (_words(before) or [""])[-1]
    is_object = word in _PREPOSITIONS or (word not in ("", "is", "was") and not _words(after))
    if after.startswith(("'s", "’s")):
        pronoun, after = ("his" if person else "its"), after[2:]
    elif person:
        pronoun = "him" if is_object else "he"
    else:
        pronoun = "it"
    return f"{before}{pronoun if before else pronoun.capitalize()}{after}"


def _joined(first: str, second: str, name: str) -> str:
    """Two questions as one; `name` is the subject of the second."""
    keeps = second.startswith((name, "I ", "I'"))
    return f"{first.rstrip(' .?!')}, and {second if keeps else second[0].lower() + second[1:]}"


def _conversation(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]


_RESPELLED: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {
        "lower": str.lower,
        "upper": str.upper,
        "title": string.capwords,
        "no_accents": _without_accents,
        "no_punctuation": _without_punctuation,
    }
)
"""What is done to the whole question."""

_NAMED: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {
        "hyphened": lambda name: name.replace(" ", "-"),
        "quoted": lambda name: f'"{name}"',
        "bold": lambda name: f"**{name}**",
    }
)
"""What is done to the subject's name."""

_PREPOSITIONS: Final = frozenset("about behind by for from in of on than to with".split())
_SUFFIXES: Final = frozenset(("jr", "sr", "ii", "iii", "iv", "junior", "senior"))


class _Maker:
    """Makes the questions of `asked_questions`; those in a taught wording are among them.

    Attributes:
        taught: the keys of all taught wordings.
    """

    def __init__(self, facts: Sequence[Fact], seed: int, taught: Sequence[Fact] | None) -> None:
        self._seed, self._never_taught = seed, taught is not None
        self._facts = random.Random(f"{seed}:asked").sample(list(facts), len(facts))
        self.taught = {question_key(each) for fact in (facts if taught is None else taught) for each in fact.questions}
        known = [*facts, *(taught or ())]
        self._aliases = aliases_by_subject(known)
        self._names = {name.casefold() for fact in known for name in self._spellings(fact)}
        self._subjects_of: dict[str, set[str]] = defaultdict(set)  # the subjects whose wordings have a word
        self._of_relation: dict[str, list[Fact]] = defaultdict(list)
        for fact in known:
            self._of_relation[fact.relation].append(fact)
            for word in _words(" ".join((*self._spellings(fact), *fact.questions, *fact.unseen_questions))):
                self._subjects_of[word].add(fact.subject)
        self._base = {fact.id: self._wording(fact) for fact in self._facts}

    def questions(self) -> Iterator[AskedQuestion]:
        """All of them, the facts in a random order."""
        for fact in self._facts:
            base = self._base[fact.id]
            if base:
                yield from self._whole(fact, base)
            if base and fact.subject and fact.subject in base:
                yield from self._named(fact, base)
                yield from self._follow_ups(fact, base)
            if fact.subject and fact.relation:
                yield from self._framed(fact, frame_of(fact.relation))
        yield from self._pairs()

    def _spellings(self, fact: Fact) -> tuple[str, ...]:
        """The subject's name and its aliases."""
        return (fact.subject, *self._aliases.get(fact.subject, ()))

    def _rng(self, fact: Fact, purpose: str) -> random.Random:
        return random.Random(f"{self._seed}:{fact.id}:{purpose}")

    def _wording(self, fact: Fact) -> str:
        """The base wording: one that was not taught, with the subject's name if there is one; "" for none."""
        there = [*fact.unseen_questions, *(fact.questions if self._never_taught else ())]
        there = [each for each in there if question_key(each) not in self.taught]
        naming = [each for each in there if fact.subject in each]
        if not naming and fact.subject and fact.relation:
            built = ANY_RELATION.format(relation=fact.relation, s=fact.subject)
            naming = [built] if question_key(built) not in self.taught else []
        return self._rng(fact, "wording").choice(naming or there or [""])

    def _whole(self, fact: Fact, base: str) -> Iterator[AskedQuestion]:
        """Those for which the subject need not be known."""
        yield _asked("as_spelled", fact, base)
        for split, respelled in _RESPELLED.items():
            if (text := respelled(base)) != base:
                yield _asked(split, fact, text)
        yield _asked("preamble", fact, PREAMBLE.format(q=base))
        yield _asked("paragraph", fact, self._rng(fact, "paragraph").choice(PARAGRAPHS).format(q=base))
        yield _asked("sentence", fact, SENTENCE.format(q=base), scored="contained")

    def _named(self, fact: Fact, base: str) -> Iterator[AskedQuestion]:
        """Those with another name in place of the subject's."""
        names = {split: named(fact.subject) for split, named in _NAMED.items()}
        names["one_misspelling"], names["two_misspellings"] = (self._misspelled(fact, edits) for edits in (1, 2))
        names["alias"] = self._rng(fact, "alias").choice(self._aliases.get(fact.subject, ("",)))
        names["last_name"] = self._last_name(fact)
        for split, name in names.items():
            if name and name != fact.subject:
                yield _asked(split, fact, base.replace(fact.subject, name))

    def _misspelled(self, fact: Fact, edits: int) -> str:
        """The subject's name misspelled, and no other fact's; "" where there is no such name."""
        rng = self._rng(fact, f"misspelled {edits}")
        tries = (misspelled(fact.subject, edits, rng) for _ in range(20))
        return next((name for name in tries if name and name.casefold() not in self._names), "")

    def _last_name(self, fact: Fact) -> str:
        """The last name of a person, if no other subject's wordings have it; otherwise ""."""
        words = fact.subject.split()
        if not (frame_of(fact.relation).person and 2 <= len(words) <= 4 and all(word[0].isupper() for word in words)):
            return ""
        last = words[-1].casefold().rstrip(".")
        alone = all(self._subjects_of[word] == {fact.subject} for word in _words(last))
        return words[-1] if alone and len(last) > 1 and last not in _SUFFIXES else ""

    def _framed(self, fact: Fact, frame: Frame) -> Iterator[AskedQuestion]:
        """Those in a frame of the relation."""

        def put(template: str, answer: str = fact.answer) -> str:
            return template.format(s=fact.subject, a=answer)

        right = self._answers_about(fact)
        yield _asked("possessive", fact, put(frame.possessive), right)
        yield _asked("statement", fact, put(frame.statement), right, "contained")
        yield _asked("yes_no_true", fact, put(frame.yes_no), ("yes",), "first_word")
        same = self._of_relation[fact.relation]
        wrong = [each.answer for each in same if not exact_match(each.answer, right)]
        if wrong:
            other = self._rng(fact, "yes_no_false").choice(wrong)
            yield _asked("yes_no_false", fact, put(frame.yes_no, other), ("no",), "first_word")
        yield _asked("negated", fact, put(frame.negated), right, "not_given")
        subjects = [name for each in same if exact_match(fact.answer, each.answers) for name in self._spellings(each)]
        yield _asked("reversed", fact, put(frame.reversed), tuple(dict.fromkeys(subjects)), "contained")
        if frame.german:
            yield _asked("german", fact, put(frame.german), right, "contained")

    def _answers_about(self, fact: Fact) -> tuple[str, ...]:
        """What is right of the fact's subject and relation, by this fact or another."""
        same = (each for each in self._of_relation[fact.relation] if each.subject == fact.subject)
        return tuple(dict.fromkeys((*fact.answers, *(answer for each in same for answer in each.answers))))

    def _follow_ups(self, fact: Fact, base: str) -> Iterator[AskedQuestion]:
        """Those after a turn that names the subject, with a pronoun in its place."""
        opening = [(role, content.format(s=fact.subject)) for role, content in OPENING]
        last = ("user", _with_pronoun(base, fact.subject, frame_of(fact.relation).person))
        yield _asked("follow_up", fact, _conversation(*opening, last))
        yield _asked("follow_up_small_talk", fact, _conversation(*opening, *SMALL_TALK, last))

    def _pairs(self) -> Iterator[AskedQuestion]:
        """Two subjects in one question, of the same relation; each fact is in one of them at most."""
        waiting: dict[str, Fact] = {}
        for fact in self._facts:
            if not fact.subject or fact.subject not in self._base[fact.id]:
                continue
            other = waiting.get(fact.relation)
            if other is None or other.subject == fact.subject:
                waiting[fact.relation] = fact
                continue
            del waiting[fact.relation]
            question = _joined(self._base[other.id], self._base[fact.id], fact.subject)
            answers = (other.answers, fact.answers)
            yield AskedQuestion("two_subjects", (other.id, fact.id), question, answers, "contained")


def _asked(
    split: str,
    fact: Fact,
    question: Asked,
    answers: tuple[str, ...] | None = None,
    scored: Scored = "strict",
) -> AskedQuestion:
    """A question for one fact; its answers are the fact's where none are given."""
    return AskedQuestion(split, (fact.id,), question, (fact.answers if answers is None else answers,), scored)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
