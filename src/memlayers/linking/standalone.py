"""Makes the questions that a memory is asked: each about one stored subject, by the name that teaching used.

A question is put as people put it: in any spelling, or going on from an earlier one, or about several subjects at once.
A memory is taught questions that stand alone. So the names are written as the facts write them, a pronoun gives way to
the subject in focus, and a question about several subjects is asked once for each. In the literature: entity linking,
and question rewriting (Elgohary et al. 2019, "Can You Unpack That?"), here by rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from memlayers.data.conversations import Message
from memlayers.linking.linker import Linker, Mention, spelling_of

_QUOTES: Final = re.compile(r"(\*\*|__|[*_`\"'“”‘’«»„])$")
_PRONOUN: Final = re.compile(
    r"\b(he|she|it|they|him|them|his|its|their|her|th(?:is|at) (?:one|person|company|place))\b",
    re.IGNORECASE,
)
_OWNING: Final = ("his", "its", "their", "her")
_NOT_OWNED: Final = frozenset("a an and at by for from in is of on or the to was were when where with".split())
_ELLIPTIC: Final = re.compile(r"^(and|what about|how about|also|or|but|then)\b", re.IGNORECASE)
_ABOUT: Final = re.compile(r"^(and|or|so|then|what|how|about|for|the|of|\s|[,.?!'’s])*$", re.IGNORECASE)
_JOINED: Final = re.compile(r"^\s*(,\s*(and|or)?|and|or|&|as well as)\s*(the\s*)?$", re.IGNORECASE)
_CUTS: Final = tuple(  # between two clauses, the clearest first
    re.compile(cut, re.IGNORECASE)
    for cut in (r"\?\s*(?:and\s+)?", r";\s*(?:and\s+)?", r",\s*and\s+", r"\s+and\s+", r",\s*")
)
_SENTENCE: Final = re.compile(r"(?<=[.?!:])[\"”’)]*\s+")  # between two sentences
_SHORTENED: Final = re.compile(r"\b([^\W\d_]|St|Mr|Mrs|Ms|Dr|Jr|Sr|Prof|Inc|Ltd|Co|No|vs)\.$")  # ends no sentence
_ASKS: Final = re.compile(
    r"^(please|kindly|name|tell|give|state|say|list|identify|mention|specify|let me know|i (want|need|wish) to know|"
    r"i('d| would) like to know|could|can|would|do you know|who|whom|whose|what|which|where|when|why|how|in which)\b",
    re.IGNORECASE,
)
_NEGATION: Final = re.compile(r"\b(not|never|no longer|nobody|except|other than|apart from)\b|n['’]t\b", re.IGNORECASE)
_YES_NO: Final = re.compile(
    r"^(is|are|was|were|does|do|did|has|have|had)\b(?!.*\b(who|whom|whose|what|which|where|when)\b)", re.IGNORECASE
)
_STEM: Final = 4  # letters by which "founded" and "founder" are one
_EMPTY: Final = frozenset(
    "and are did does for from has have had her his its name tell give that the this was were "
    "what whic when wher who whom whos with been".split()
)
_LEAST_CLAUSE: Final = 2  # words of a clause beside the name


@dataclass(frozen=True, slots=True)
class Standalone:
    """A question to a memory, which stands alone.

    Attributes:
        text: of the question.
        subject: whom it is about, as the facts spell it; "" where no stored subject was found.
        taken_from: the words that were taken for the subject, where they are not its spelling; "" otherwise.
        negated: whether it asks for what is not so, which no fact says.
        proposed: of a yes/no question, what it asks about: the answer to `text` is looked for in it; "" of others.
    """

    text: str
    subject: str = ""
    taken_from: str = ""
    negated: bool = False
    proposed: str = ""


def standalone_questions(messages: Sequence[Message], linker: Linker, *, focus: bool = True) -> list[Standalone]:
    """The questions that the last message asks a memory: one per stored subject, at least one.

    Args:
        messages: of a conversation, the last one the user's question.
        linker: finds the subjects.
        focus: whether the subject that was named last stands for a pronoun.
    """
    earlier: list[Standalone] = []
    asked = [message["content"] for message in messages if message["role"] == "user"]
    found = [Standalone(asked[-1])]
    for text in asked if focus else asked[-1:]:
        found = _questions(text, linker, earlier)
        if found[0].subject or not _names_something(text):
            earlier = [*earlier, *(each for each in found if each.subject)]
        else:  # something else is named: nothing is in focus
            earlier = []
    return [_as_a_fact_says(each, linker) if each.subject else each for each in found]


def _as_a_fact_says(asked: Standalone, linker: Linker) -> Standalone:
    """A question that asks for what is not so is told; of a yes/no question the fact is asked that it is about."""
    facts = linker.facts_about(asked.subject)
    rest = asked.text.replace(_name(asked.subject, linker), " ")
    if _NEGATION.search(rest) and not any(_NEGATION.search(q) for fact in facts for q in fact.questions):
        return replace(asked, negated=True)
    if not _YES_NO.match(asked.text) or any(_YES_NO.match(q) for fact in facts for q in fact.questions):
        return asked
    stems = _stems(rest)
    shared = [len(stems & set().union(*map(_stems, fact.questions))) for fact in facts]
    if not shared or max(shared) < 1 or shared.count(max(shared)) > 1:
        return asked
    question = facts[shared.index(max(shared))].questions[0]
    return replace(asked, text=question, proposed=rest)


def _stems(text: str) -> set[str]:
    """The beginnings of the words that say what is asked."""
    return {word[:_STEM] for word in re.findall(r"[^\W\d_]{3,}", text) if word.islower()} - _EMPTY


def _questions(text: str, linker: Linker, earlier: Sequence[Standalone]) -> list[Standalone]:
    """What one message asks, given what was asked before it of stored subjects: sentence by sentence."""
    text = unicodedata.normalize("NFC", text)
    sentences = _sentences(text, linker.mentions(text))
    if len(sentences) == 1:
        return _of_sentence(text, linker, earlier)
    asked: list[Standalone] = []
    before = list(earlier)
    for sentence in sentences:
        found = [each for each in _of_sentence(sentence, linker, before) if each.subject]
        before += found
        asked += found if sentence.endswith("?") or _ASKS.match(sentence) else []
    return asked or [Standalone(text)]


def _sentences(text: str, mentions: Sequence[Mention]) -> list[str]:
    """The sentences of a message; none ends within a name."""
    cuts = [
        found.span() for found in _SENTENCE.finditer(text)
        if not _SHORTENED.search(text[: found.start()]) and not any(m.start < found.start() <= m.end for m in mentions)
    ]  # fmt: skip
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True) if text[start:end].strip()] or [text]


def _of_sentence(text: str, linker: Linker, earlier: Sequence[Standalone]) -> list[Standalone]:
    """What a sentence asks."""
    mentions = linker.mentions(text)
    subjects = {subject for mention in mentions for subject in mention.subjects}
    if not mentions:
        return [_in_focus(text, earlier[-1], linker)] if earlier and _refers_back(text) else [Standalone(text)]
    if len(subjects) == 1:
        (subject,) = subjects
        if earlier and _ABOUT.match(_without(text, mentions)):  # "What about X?": what was asked before, of another
            before = earlier[-1]
            question = before.text.replace(_name(before.subject, linker), _name(subject, linker))
            return [Standalone(question, subject, _taken_from(text, mentions[-1], _name(subject, linker)))]
        return [_named(text, mentions, mentions[-1], subject, linker)]
    if len(mentions) == 1:  # one name of several
        return [_named(text, mentions, mentions[0], subject, linker) for subject in mentions[0].subjects]
    return _of_each(text, mentions, linker) or [Standalone(text)]


def _of_each(text: str, mentions: Sequence[Mention], linker: Linker) -> list[Standalone]:
    """A question about several subjects, asked of each; none where it cannot be told apart."""
    pieces = _clauses(text, mentions)
    inside = [[m for m in mentions if start <= m.start and m.end <= end] for start, end in pieces]
    if all(len(own) == 1 for own in inside) and all(
        len(_without(text[start:end], [_moved(own[0], -start)]).split()) >= _LEAST_CLAUSE
        for (start, end), own in zip(pieces, inside, strict=True)
    ):
        found = []
        for (start, end), (own,) in zip(pieces, inside, strict=True):
            clause, moved = text[start:end].rstrip(" ?.!,;"), _moved(own, -start)
            question = clause[:1].upper() + clause[1:] + "?"
            found += [_named(question, [moved], moved, subject, linker) for subject in moved.subjects]
        return found
    between = [text[a.end : b.start] for a, b in zip(mentions, mentions[1:], strict=False)]
    if all(map(_JOINED.match, between)):
        head, tail = text[: mentions[0].start], text[mentions[-1].end :]
        return [
            _named(head + text[m.start : m.end] + tail, [moved], moved, subject, linker)
            for m in mentions
            for moved in [_moved(m, mentions[0].start - m.start)]
            for subject in m.subjects
        ]
    return []


def _clauses(text: str, mentions: Sequence[Mention]) -> list[tuple[int, int]]:
    """Where the clauses of a question lie that have a mention each, start and end in characters; or the whole."""
    cuts = []
    for one, other in zip(mentions, mentions[1:], strict=False):
        places = (cut.search(text, one.end, other.start) for cut in _CUTS)
        place = next((found.span() for found in places if found), None)
        if place is None:
            return [(0, len(text))]
        cuts.append(place)
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if text[start:end].strip(" ?.!")]


def _named(text: str, mentions: Sequence[Mention], mention: Mention, subject: str, linker: Linker) -> Standalone:
    """A question with its subject's name as the facts spell it, in sentence case where its capitals say nothing."""
    name = _name(subject, linker)
    taken = _taken_from(text, mention, name)
    pieces, at = [], 0
    for each in (m for m in mentions if subject in m.subjects):
        start, end = _unquoted(text, each)
        pieces += [text[at:start], name]
        at = end
    pieces.append(text[at:])
    outside = "".join(pieces[::2])
    if not any(word[0].islower() for word in re.findall(r"(?<!['’\w])[^\W\d_]+", outside)):  # capitals alone
        pieces[::2] = [piece.lower() for piece in pieces[::2]]
    question = "".join(pieces)
    if question == text:
        return Standalone(text, subject)
    if pieces[0]:
        question = question[:1].upper() + question[1:]
    return Standalone(question, subject, taken)


def _in_focus(text: str, before: Standalone, linker: Linker) -> Standalone:
    """A question that refers to the subject of an earlier one."""
    name = _name(before.subject, linker)
    said = re.sub(r"^(and|but|also|so|or)\b[\s,]*", "", text, flags=re.IGNORECASE)
    if _ABOUT.match(_PRONOUN.sub("", said)):  # "what about her?"
        return Standalone(before.text, before.subject, before.taken_from)
    found = _PRONOUN.search(said)
    if found is None:
        question = f"{said.rstrip(' ?.!')} of {name}?"
    else:
        after = re.match(r"\s+([\w’']+)", said[found.end() :])
        owns = found[1].lower() in _OWNING and (
            found[1].lower() != "her" or (after is not None and after[1].lower() not in _NOT_OWNED)
        )
        name = f"{name}'s" if owns else name
        question = said[: found.start()] + name + said[found.end() :]
    return Standalone(question[:1].upper() + question[1:], before.subject)


def _refers_back(text: str) -> bool:
    """Whether a question without a stored subject may be about the one in focus: it names nothing else."""
    return (_PRONOUN.search(text) is not None or _ELLIPTIC.match(text.strip()) is not None) and not _names_something(
        text
    )


def _names_something(text: str) -> bool:
    """Whether a word with a capital stands within a sentence ("I" is none)."""
    return re.search(r"[^\s.?!:\"“]\s+(?!I\b)[^\W\d_a-z][\w]*", text) is not None and not text.isupper()


def _without(text: str, mentions: Sequence[Mention]) -> str:
    pieces, at = [], 0
    for mention in mentions:
        pieces.append(text[at : mention.start])
        at = mention.end
    return "".join([*pieces, text[at:]])


def _unquoted(text: str, mention: Mention) -> tuple[int, int]:
    """Where a mention lies with the quotes or markup around it."""
    start, end = mention.start, mention.end
    while (mark := _QUOTES.search(text[:start])) and _QUOTES.match(text[end:][: len(mark[1])] or " "):
        start, end = start - len(mark[1]), end + len(mark[1])
    return start, end


def _moved(mention: Mention, by: int) -> Mention:
    return mention._replace(start=mention.start + by, end=mention.end + by)


def _name(subject: str, linker: Linker) -> str:
    return spelling_of(subject, linker.facts_about(subject))


def _taken_from(text: str, mention: Mention, name: str) -> str:
    words = text[mention.start : mention.end]
    return "" if words == name else words
