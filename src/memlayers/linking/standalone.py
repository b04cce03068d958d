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
from dataclasses import dataclass
from typing import Final

from memlayers.data.conversations import Message
from memlayers.linking.linker import Linker, Mention

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
_CLAUSES: Final = re.compile(r"(?:\?\s*|;\s*|,?\s+and\s+|,\s*)(?=\w)", re.IGNORECASE)
_LEAST_CLAUSE: Final = 2  # words of a clause beside the name


@dataclass(frozen=True, slots=True)
class Standalone:
    """A question to a memory, which stands alone.

    Attributes:
        text: of the question.
        subject: whom it is about, as the facts spell it; "" where no stored subject was found.
        taken_from: the words that were taken for the subject, where they are not its spelling; "" otherwise.
    """

    text: str
    subject: str = ""
    taken_from: str = ""


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
    return found


def _questions(text: str, linker: Linker, earlier: Sequence[Standalone]) -> list[Standalone]:
    """What one message asks, given what was asked before it of stored subjects."""
    text = unicodedata.normalize("NFC", text)
    mentions = linker.mentions(text)
    subjects = {subject for mention in mentions for subject in mention.subjects}
    if not mentions:
        return [_in_focus(text, earlier[-1])] if earlier and _refers_back(text) else [Standalone(text)]
    if len(subjects) == 1:
        (subject,) = subjects
        if earlier and _ABOUT.match(_without(text, mentions)):  # "What about X?": what was asked before, of another
            before = earlier[-1]
            question = before.text.replace(before.subject, subject)
            return [Standalone(question, subject, _taken_from(text, mentions[-1], subject))]
        return [_named(text, mentions, mentions[-1], subject)]
    if len(mentions) == 1:  # one name of several
        return [_named(text, mentions, mentions[0], subject) for subject in mentions[0].subjects]
    return _of_each(text, mentions) or [Standalone(text)]


def _of_each(text: str, mentions: Sequence[Mention]) -> list[Standalone]:
    """A question about several subjects, asked of each; none where it cannot be told apart."""
    pieces = _clauses(text)
    inside = [[m for m in mentions if start <= m.start and m.end <= end] for start, end in pieces]
    if all(len(own) == 1 for own in inside) and all(
        len(_without(text[start:end], [_moved(own[0], -start)]).split()) >= _LEAST_CLAUSE
        for (start, end), own in zip(pieces, inside, strict=True)
    ):
        found = []
        for (start, end), (own,) in zip(pieces, inside, strict=True):
            clause, moved = text[start:end].rstrip(" ?.!,;"), _moved(own, -start)
            question = clause[:1].upper() + clause[1:] + "?"
            found += [_named(question, [moved], moved, subject) for subject in moved.subjects]
        return found
    between = [text[a.end : b.start] for a, b in zip(mentions, mentions[1:], strict=False)]
    if all(map(_JOINED.match, between)):
        head, tail = text[: mentions[0].start], text[mentions[-1].end :]
        return [
            _named(head + text[m.start : m.end] + tail, [moved], moved, subject)
            for m in mentions
            for moved in [_moved(m, mentions[0].start - m.start)]
            for subject in m.subjects
        ]
    return []


def _clauses(text: str) -> list[tuple[int, int]]:
    """Where the clauses of a question lie, start and end in characters."""
    cuts = [found.span() for found in _CLAUSES.finditer(text)]
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if text[start:end].strip(" ?.!")]


def _named(text: str, mentions: Sequence[Mention], mention: Mention, subject: str) -> Standalone:
    """A question with its subject's name as the facts spell it, in sentence case where its capitals say nothing."""
    taken = _taken_from(text, mention, subject)
    pieces, at = [], 0
    for each in (m for m in mentions if subject in m.subjects):
        start, end = _unquoted(text, each)
        pieces += [text[at:start], subject]
        at = end
    pieces.append(text[at:])
    outside = "".join(pieces[::2])
    if not any(word[0].islower() for word in re.findall(r"[^\W\d_]+", outside)):  # all capitals, or all words with one
        pieces[::2] = [piece.lower() for piece in pieces[::2]]
    question = "".join(pieces)
    if question == text:
        return Standalone(text, subject)
    if pieces[0]:
        question = question[:1].upper() + question[1:]
    return Standalone(question, subject, taken)


def _in_focus(text: str, before: Standalone) -> Standalone:
    """A question that refers to the subject of an earlier one."""
    subject = before.subject
    said = re.sub(r"^(and|but|also|so|or)\b[\s,]*", "", text, flags=re.IGNORECASE)
    if _ABOUT.match(_PRONOUN.sub("", said)):  # "what about her?"
        return Standalone(before.text, subject, before.taken_from)
    found = _PRONOUN.search(said)
    if found is None:
        question = f"{said.rstrip(' ?.!')} of {subject}?"
    else:
        after = re.match(r"\s+([\w’']+)", said[found.end() :])
        owns = found[1].lower() in _OWNING and (
            found[1].lower() != "her" or (after is not None and after[1].lower() not in _NOT_OWNED)
        )
        name = f"{subject}'s" if owns else subject
        question = said[: found.start()] + name + said[found.end() :]
    return Standalone(question[:1].upper() + question[1:], subject)


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


def _taken_from(text: str, mention: Mention, subject: str) -> str:
    words = text[mention.start : mention.end]
    return "" if words == subject else words
