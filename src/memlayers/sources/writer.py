"""Facts that a language model writes from documents, each with its evidence; nothing that the text does not say passes.

Chunks -> what they say, with evidence -> wordings, also of what is asked the other way round, and of what joins two
documents -> checks.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from memlayers.data.facts import MOST_CHARACTERS, Fact, Source, folded, question_key
from memlayers.sources.chunks import Chunk, chunks_of
from memlayers.sources.claims import Claim, Extraction, LeftOut
from memlayers.sources.documents import Document
from memlayers.sources.outline import Passage, outline
from memlayers.sources.quoting import find_quoted, says
from memlayers.sources.structures import MOST_WORDS
from memlayers.sources.writer_answers import Answers, Reading, Request
from memlayers.sources.writer_prompts import (
    FACTS_SCHEMA,
    JOINED_SCHEMA,
    TAUGHT,
    UNSEEN,
    WORDINGS_SCHEMA,
    facts_messages,
    items_of,
    joined_messages,
    wordings_messages,
)
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from memlayers.sources.wordings import Wordings

T = TypeVar("T")

NONSENSE: Final = "the writer's answer cannot be read"
SAYS_NOTHING: Final = "the writer finds no fact in it"
NOT_QUOTED: Final = "evidence not in the document"

_WORDS_OF_A_SENTENCE: Final = 6  # at least; what has fewer, as an item of a list, may be all answer
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


def from_writer(
    documents: Sequence[Document],
    answers: Answers,
    wordings: Wordings | None = None,
    *,
    subject: str = "",
    most_words: int = MOST_WORDS,
    quiet: bool = False,
) -> Extraction:
    """Has a writer make facts of documents.

    Args:
        documents: any number.
        answers: the writer, with the folder in which its answers are kept; its `usage` counts what was asked.
        wordings: of a fact for which the writer words too few questions; the shipped ones if not given.
        subject: whom the documents are about, where they do not say it.
        most_words: of an answer; what is longer is left out.
        quiet: no progress bars.

    Returns:
        The facts, each with at least 10 wordings to teach and 3 that are not taught; every passage, and of each that
        became no fact why. Facts that are asked the other way round have "(reversed)" behind their relation, those that
        join two documents "(joined)". A fact's evidence stands in its document word for word.

    Raises:
        InputError: the writer refuses the requests.
        WorkError: it is not there, or not any more, or none of its answers can be read. What it answered is kept; the
            same call goes on from there.
    """
    from memlayers.sources.wordings import worded

    requests = read_requests(documents, subject, most_words)
    chunks = [chunk for chunk, _ in requests]
    with progress_bar("Reading", len(requests), quiet=quiet) as advance:
        read = answers.ask_all([request for _, request in requests], "chunks", advance)
    if chunks and not any(each.readable for each in read):
        raise WorkError(
            f"the writer {answers.writer.model!r} answered nonsense, no JSON with facts, to "
            f"{'the only chunk' if len(chunks) == 1 else f'all {len(chunks)} chunks'}; name another model"
        )
    found = Extraction()
    for chunk, each in zip(chunks, read, strict=True):
        found.left_out += each.left_out if each.readable else [LeftOut(chunk.source, NONSENSE)]
    merged = worded((claim for each in read for claim in each.good), wordings)
    found.facts = _with_wordings(merged.facts, chunks, answers, quiet)
    found.left_out += merged.left_out
    found.passages = [
        document.source(each.start, each.end) for document in documents for each in outline(document.text)
    ]
    told = {(claim.source.document, claim.source.start) for each in read for claim in each.good}
    unread = [chunk for chunk, each in zip(chunks, read, strict=True) if not each.readable]
    found.left_out += _without_fact(found.passages, told, unread)
    return found


def read_requests(
    documents: Sequence[Document], subject: str = "", most_words: int = MOST_WORDS
) -> list[tuple[Chunk, Request[Claim]]]:
    """What asks for the facts of documents: their chunks, and a request for each. Arguments as of `from_writer`.

    Raises:
        InputError: an answer may have no word.
    """
    if most_words < 1:
        raise InputError(f"{most_words} words of an answer at most; give at least 1")
    made = []
    for document in documents:
        passages = outline(document.text)
        for chunk in chunks_of(document):
            if subject:
                chunk = replace(chunk, headings=(subject, *chunk.headings))
            made.append((chunk, _facts_request(chunk, passages, most_words)))
    return made


# What a chunk says


def _facts_request(chunk: Chunk, passages: Sequence[Passage], most_words: int) -> Request[Claim]:
    def read(text: str) -> Reading[Claim] | None:
        items = items_of(text, "subject", "relation", "answer", "evidence")
        if items is None:
            return None
        good: dict[Any, Claim] = {}
        faults, left_out = [], []
        for item in items:
            claim = _claim_of(chunk, passages, item, most_words)
            if isinstance(claim, Claim):
                good.setdefault((folded(claim.subject), folded(claim.relation), folded(claim.value)), claim)
            else:
                faults.append(f"{claim}: {json.dumps(item, ensure_ascii=False)[:_MOST_WORDING]}")
                left_out.append(LeftOut(chunk.source, claim))
        return Reading(good, faults, left_out)

    return Request(facts_messages(chunk), FACTS_SCHEMA, read)


def _claim_of(chunk: Chunk, passages: Sequence[Passage], item: Mapping[str, Any], most_words: int) -> Claim | str:
    """What an item says, as the document spells it; or why it is left out."""
    document = chunk.document
    if not all(isinstance(value, str) and value.strip() for value in item.values()):
        return "a field that is empty, or no text"
    if max(len(item["subject"]), len(item["relation"])) > MOST_CHARACTERS:
        return "a subject or relation too long"
    quoted = find_quoted(document.text, item["evidence"], chunk.start, chunk.end)
    if quoted is None:
        return NOT_QUOTED
    answer = find_quoted(document.text, item["answer"], *quoted)
    answer = answer or find_quoted(document.text, item["answer"], *quoted, any_case=True)
    if answer is None:
        return "answer not in its evidence"
    if answer == quoted and len(item["evidence"].split()) >= _WORDS_OF_A_SENTENCE:
        return "answer is the whole sentence"
    around = passages[max(0, bisect_right(passages, answer[0], key=lambda each: each.start) - 1)] if passages else None
    if around is None or not around.start <= answer[0] < answer[1] <= around.end:
        return "answer not within one passage"
    value = " ".join(document.text[slice(*answer)].split())
    subject = _spelled(chunk, item["subject"])
    if subject is None:
        return "subject not in the document"
    if says(subject, value):
        return "answer within its subject"
    if len(value.split()) > most_words:
        return "too long for an answer"
    relation = " ".join(item["relation"].split()).rstrip("?:.")
    return Claim(subject, relation, value, document.source(max(quoted[0], around.start), min(quoted[1], around.end)))


def _spelled(chunk: Chunk, subject: str) -> str | None:
    """A subject as the document spells it: the chunk before its headings, these before the rest."""
    text = chunk.document.text
    for any_case in (False, True):
        for where in (text[chunk.start : chunk.end], *chunk.headings, text):
            if found := find_quoted(where, subject, any_case=any_case):
                return " ".join(where[slice(*found)].split())
    return None


def _without_fact(
    passages: Iterable[Source], told: Set[tuple[str, int | None]], unread: Iterable[Chunk]
) -> Iterator[LeftOut]:
    """The passages in which no evidence begins, but for those of chunks whose answer could not be read."""
    missing = {(chunk.document.name, place) for chunk in unread for place in range(chunk.start, chunk.end)}
    for each in passages:
        if (each.document, each.start) not in missing and not any(
            (each.document, place) in told for place in range(each.start or 0, each.end or 0)
        ):
            yield LeftOut(each, SAYS_NOTHING)


# Wordings


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


def _with_wordings(facts: Sequence[Fact], chunks: Sequence[Chunk], answers: Answers, quiet: bool) -> list[Fact]:
    """The facts in the writer's wordings, filled up with those that they have; then the reversed and the joined."""
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
