"""A writer's wordings of facts: as they are, the other way round, and over the facts of another document."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from memlayers.data.facts import Fact, folded, question_key
from memlayers.sources.chunks import Chunk
from memlayers.sources.quoting import says
from memlayers.sources.writer_answers import Answers, Reading, Request
from memlayers.sources.writer_prompts import (
    JOINED_SCHEMA,
    TAUGHT,
    UNSEEN,
    WORDINGS_SCHEMA,
    items_of,
    joined_messages,
    wordings_messages,
)
from memlayers.utils.progress import progress_bar

T = TypeVar("T")

_FACTS_A_REQUEST: Final = 5  # to be worded
_MOST_WORDING: Final = 300  # characters
_LEAST_OWN: Final = 3  # wordings of the writer's for what rules alone would make of anything
_MOST_JOINED: Final = 2  # ways that lead to one fact

_REVERSED: Final = (
    "Whose {relation} is {value}?",
    "What has {value} as its {relation}?",
    "{value} is the {relation} of what?",
    "Of what is {value} the {relation}?",
    "Tell me whose {relation} is {value}.",
    "Name what has the {relation} {value}.",
    "Which one has {value} as {relation}?",
    "{value} is whose {relation}?",
    "What is {value} the {relation} of?",
    "For what is {value} the {relation}?",
)
_REVERSED_UNSEEN: Final = (
    "The {relation} of what is {value}?",
    "Do you know whose {relation} {value} is?",
    "Say of what {value} is the {relation}.",
)
_JOINED: Final = (
    "What is the {relation} of {way}?",
    "Tell me the {relation} of {way}.",
    "Name the {relation} of {way}.",
    "Do you know the {relation} of {way}?",
    "Which {relation} does {way} have?",
    "I need the {relation} of {way}. What is it?",
    "What {relation} is given for {way}?",
    "{way}: what is the {relation}?",
    "Give the {relation} of {way}.",
    "Please state the {relation} of {way}.",
)
_JOINED_UNSEEN: Final = (
    "Can you say what the {relation} of {way} is?",
    "For {way}, what is the {relation}?",
    "The {relation} of {way} is what?",
)


@dataclass(frozen=True, slots=True)
class _Wording:
    """A question that the writer put."""

    of: str  # the id of the fact, or of the join
    text: str
    turned: bool = False  # whether it asks for the subject


@dataclass(frozen=True, slots=True)
class _Join:
    """A fact, and one of another document by which its subject can be asked for without its name."""

    fact: Fact
    lead: Fact
    start: str  # the name that the question holds: the other end of `lead`

    @property
    def way(self) -> str:
        """The subject, without its name."""
        if folded(self.lead.answer) == folded(self.fact.subject):
            return f"the {self.lead.relation} of {self.start}"
        return f"the one whose {self.lead.relation} is {self.start}"

    @property
    def id(self) -> str:
        return f"{self.lead.id}+{self.fact.id}"


def with_wordings(facts: Sequence[Fact], chunks: Sequence[Chunk], answers: Answers, quiet: bool) -> list[Fact]:
    """The facts in the writer's wordings, filled up with those that they have; then the reversed and the joined.

    Args:
        facts: as the library words them.
        chunks: in which they were found.
        answers: the writer.
        quiet: no progress bar.

    Raises:
        InputError: the writer refuses the requests.
        WorkError: it is not there, or not any more.
    """
    joins = list(_joins(facts))
    requests = [_wordings_request(batch) for batch in _batches(facts, chunks)]
    requests += [_joined_request(joins[i : i + _FACTS_A_REQUEST]) for i in range(0, len(joins), _FACTS_A_REQUEST)]
    with progress_bar("Wording", len(requests), quiet=quiet) as advance:
        answered = answers.ask_all(requests, "requests for wordings", advance)
    written = [wording for each in answered for wording in each.good]
    times = Counter(question_key(each.text) for each in written)
    own: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for each in written:
        if times[question_key(each.text)] == 1:  # one put for several facts does not tell which is asked for
            own[each.of, each.turned].append(each.text)
    worded, turned, joined = [], [], []
    alone = _alone(facts)
    for fact in facts:
        worded.append(_filled(fact, own[fact.id, False], fact.questions, fact.unseen_questions, times.keys()))
        sources = tuple(each for each in fact.sources if says(each.evidence, fact.subject))
        if (
            fact.id in alone
            and sources
            and not says(fact.answer, fact.subject)
            and len(own[fact.id, True]) >= _LEAST_OWN
        ):
            back = replace(fact, id=f"{fact.id}.reversed", subject=fact.answer, answer=fact.subject,
                           relation=f"{fact.relation} (reversed)", sources=sources)  # fmt: skip
            turned.append(_filled(back, own[fact.id, True], *_made(_REVERSED, _REVERSED_UNSEEN, fact), times.keys()))
    for join in joins:
        if len(own[join.id, False]) >= _LEAST_OWN:
            over = replace(join.fact, id=join.id, subject=join.start, relation=f"{join.fact.relation} (joined)",
                           sources=join.fact.sources + join.lead.sources)  # fmt: skip
            joined.append(
                _filled(over, own[join.id, False], *_made(_JOINED, _JOINED_UNSEEN, join.fact, join.way), times.keys())
            )
    return [*worded, *turned, *joined]


def _wordings_request(facts: Sequence[Fact]) -> Request[_Wording]:
    def judge(fact: Fact, item: Mapping[str, Any]) -> tuple[list[_Wording], list[str]]:
        asked, bad = _good(item["questions"], fact.subject, [fact.answer])
        back, _ = _good(item.get("reversed"), fact.answer, [fact.subject])
        return [_Wording(fact.id, each) for each in asked] + [_Wording(fact.id, each, True) for each in back], bad

    return Request(wordings_messages(facts), WORDINGS_SCHEMA, lambda text: _read_wordings(text, facts, judge))


def _joined_request(joins: Sequence[_Join]) -> Request[_Wording]:
    def judge(join: _Join, item: Mapping[str, Any]) -> tuple[list[_Wording], list[str]]:
        asked, bad = _good(item["questions"], join.start, [join.fact.answer, join.fact.subject])
        return [_Wording(join.id, each) for each in asked], bad

    messages = joined_messages([(join.start, join.lead, join.fact) for join in joins])
    return Request(messages, JOINED_SCHEMA, lambda text: _read_wordings(text, joins, judge))


def _read_wordings(
    text: str, entries: Sequence[T], judge: Callable[[T, Mapping[str, Any]], tuple[list[_Wording], list[str]]]
) -> Reading[_Wording] | None:
    items = items_of(text, "number", "questions")
    if items is None:
        return None
    good: dict[Any, _Wording] = {}
    faults = []
    for item in items:
        number = item["number"]
        if not isinstance(number, int) or not 1 <= number <= len(entries):
            faults.append(f"there is no fact with the number {str(number)[:20]}")
            continue
        made, bad = judge(entries[number - 1], item)
        good |= {(each.of, each.turned, question_key(each.text)): each for each in made}
        if sum(not each.turned for each in made) < TAUGHT + UNSEEN:
            faults += [f"fact {number}: {each}" for each in (bad or ["too few questions"])[:3]]
    return Reading(good, faults)


def _good(questions: Any, name: str, hidden: Sequence[str]) -> tuple[list[str], list[str]]:
    """The wordings that hold a name and none of what they ask for, and what is wrong with the others."""
    good: dict[str, str] = {}
    bad = []
    for each in questions if isinstance(questions, list) else ():
        words = " ".join(each.split()) if isinstance(each, str) else ""
        told = next((secret for secret in hidden if says(words.replace(name, " "), secret)), None)
        if not words or len(words) > _MOST_WORDING:
            bad.append("a question is empty or too long")
        elif not says(words, name):
            bad.append(f"{words!r} does not hold {name!r}")
        elif told is not None:
            bad.append(f"{words!r} gives away {told!r}")
        else:
            good.setdefault(question_key(words), words)
    return list(good.values()), bad


def _batches(facts: Sequence[Fact], chunks: Sequence[Chunk]) -> list[list[Fact]]:
    """Facts to be worded at once: never of two chunks, so that a chunk that changes leaves the others' as they are."""
    starts = sorted((chunk.document.name, chunk.start) for chunk in chunks)
    of_chunk: dict[int, list[Fact]] = defaultdict(list)
    for fact in facts:
        of_chunk[bisect_right(starts, (fact.sources[0].document, fact.sources[0].start or 0))].append(fact)
    return [
        batch[first : first + _FACTS_A_REQUEST]
        for batch in of_chunk.values()
        for first in range(0, len(batch), _FACTS_A_REQUEST)
    ]


def _filled(fact: Fact, own: Sequence[str], taught: Iterable[str], unseen: Iterable[str], written: Set[str]) -> Fact:
    """A fact in the writer's own wordings; where these are too few, in some made by rule too.

    Args:
        fact: it.
        own: the writer's wordings of it.
        taught: made by rule.
        unseen: made by rule.
        written: the keys of all the writer's wordings; what is made by rule must not ask for another fact.
    """
    if len(own) >= TAUGHT + UNSEEN:
        return replace(fact, questions=tuple(own[:-UNSEEN]), unseen_questions=tuple(own[-UNSEEN:]))
    others = written - {question_key(each) for each in own}
    held = {key: each for each in unseen if (key := question_key(each)) not in others}
    left = {key: each for each in (*own, *taught) if (key := question_key(each)) not in others and key not in held}
    asked, spare = list(left.values())[:TAUGHT], list(left.values())[TAUGHT:]
    return replace(fact, questions=tuple(asked), unseen_questions=(*held.values(), *spare)[: max(UNSEEN, len(held))])


def _made(taught: Sequence[str], unseen: Sequence[str], fact: Fact, way: str = "") -> tuple[list[str], list[str]]:
    """Wordings by rule of a fact that is asked the other way round, or over another."""

    def filled(frame: str) -> str:
        text = frame.format(relation=fact.relation, value=fact.answer, way=way)
        return text[0].upper() + text[1:] if frame[0] == "{" and way else text

    return [filled(each) for each in taught], [filled(each) for each in unseen]


# Other ways to a fact


def _alone(facts: Iterable[Fact]) -> set[str]:
    """The ids of facts whose answer is a name that is said of one subject only, once: it tells which."""
    named = [fact for fact in facts if _is_name(fact.answer)]
    counted = Counter(folded(fact.answer) for fact in named)
    return {fact.id for fact in named if counted[folded(fact.answer)] == 1}


def _is_name(text: str) -> bool:
    """Whether a text looks like a name: a few words, no figures, one of them with a capital."""
    return len(text.split()) <= 5 and not re.search(r"\d", text) and any(letter.isupper() for letter in text)


def _joins(facts: Sequence[Fact]) -> Iterable[_Join]:
    """The ways to a fact that another document opens: what leads to its subject, or what tells it by a name."""
    to: dict[str, list[tuple[Fact, str]]] = defaultdict(list)  # a subject -> facts that lead to it, and from where
    alone = _alone(facts)
    for fact in facts:
        to[folded(fact.answer)].append((fact, fact.subject))
        if fact.id in alone:
            to[folded(fact.subject)].append((fact, fact.answer))
    for fact in facts:
        documents = {each.document for each in fact.sources}
        taken = 0
        for lead, start in to[folded(fact.subject)]:
            apart = documents.isdisjoint(each.document for each in lead.sources)
            hides = not says(start, fact.answer) and not says(start, fact.subject)
            if apart and hides and taken < _MOST_JOINED:
                taken += 1
                yield _Join(fact, lead, start)
