"""Makes the questions that a memory is asked: each about one stored subject, by the name that teaching used.

A question is put as people put it: in any spelling, or going on from an earlier one, or about several subjects at once.
A memory is taught questions that stand alone. So the names are written as the facts write them, a pronoun gives way to
the subject in focus, a question about several subjects is asked once for each, and of one in another language the fact
is asked that it is about (`linking.languages`). In the literature: entity linking, and question rewriting (Elgohary et
al. 2019, "Can You Unpack That?"), here by rules.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from memlayers.data.conversations import Message
from memlayers.data.facts import Fact, composed
from memlayers.linking.answer_index import AnswerLinker
from memlayers.linking.config import LinkConfig
from memlayers.linking.languages import asked_in_english
from memlayers.linking.linker import Linker, Mention, spelling_of
from memlayers.linking.roles import SLOT, asks_for_subject, says_what_is_asked

_QUOTES: Final = re.compile(r"(\*\*|__|[*_`\"'“”‘’«»„])\Z")
_PRONOUN: Final = re.compile(
    r"\b(he|she|it|they|him|them|his|its|their|her|th(?:is|at) (?:one|person|company|place))\b",
    re.IGNORECASE,
)
_OWNING: Final = ("his", "its", "their", "her")
_NOT_OWNED: Final = frozenset("a an and at by for from in is of on or the to was were when where with".split())
_LEADS: Final = re.compile(r"^(and|but|also|so|or)\b[\s,]*", re.IGNORECASE)
_ELLIPTIC: Final = re.compile(  # "And the founder?", "And?"
    r"(and|but|also|so|or|then|(and |but )?(what|how) about)\b\W*(the( [^\W_]+){1,3}\W*)?", re.IGNORECASE
)
_ABOUT: Final = frozenset("and or so then what how about for the of s".split())
_JOINED: Final = re.compile(r"(, ?(and|or)?|and|or|&|as well as)( ?the)?", re.IGNORECASE)
_CUTS: Final = tuple(  # between two clauses, the clearest first
    re.compile(cut, re.IGNORECASE)
    for cut in (r"\?\s*(?:and\s+)?", r";\s*(?:and\s+)?", r",\s*and\s+", r"(?<!\s)\s+and\s+", r",\s*")
)
_SENTENCE: Final = re.compile(r"(?<=[.?!:])[\"”’)]*\s+")  # between two sentences
_SHORTENED: Final = re.compile(r"\b([^\W\d_]|St|Mr|Mrs|Ms|Dr|Jr|Sr|Prof|Inc|Ltd|Co|No|vs)\.\Z")  # ends no sentence
_LONGEST_SHORTENED: Final = 5  # characters
_ASKS: Final = re.compile(
    r"^(please|kindly|name|tell|give|state|say|list|identify|mention|specify|let me know|i (want|need|wish) to know|"
    r"i('d| would) like to know|could|can|would|do you know|who|whom|whose|what|which|where|when|why|how|in which)\b",
    re.IGNORECASE,
)
_NEGATION: Final = re.compile(
    r"\b((?<!\bor )not(?! only\b)|never|no longer|nobody|except|other than|apart from)\b|"
    r"n['’]t\b(?! (he|she|it|they)\b\W*\Z)",  # "wasn't it?"
    re.IGNORECASE,
)
_WH_WORD: Final = r"\b(who|whom|whose|what|which|where|when)\b"
_WH: Final = re.compile(_WH_WORD, re.IGNORECASE)
_YES_NO: Final = re.compile(
    r"^(is|are|was|were|does|do|did|has|have|had)\b(?! (?-i:you|we|they|there|any\w+|some\w+)\b)"  # "Do you know ...?"
    rf"(?!.*{_WH_WORD})",
    re.IGNORECASE | re.DOTALL,
)
_BY: Final = re.compile(r"\bby\b", re.IGNORECASE)
_IN: Final = re.compile(r"\b(in|at|on)\b", re.IGNORECASE)
_WORDS: Final = re.compile(r"[^\W_]+")
_STEM: Final = 4  # letters by which "founded" and "founder" are one
_EMPTY: Final = frozenset(
    "and are did does for from has have had her his its name tell give that the this was were "
    "what whic when wher who whom whos with been".split()
)
_LEAST_CLAUSE: Final = 2  # words of a clause beside the name
_SOMEBODY: Final = re.compile(  # but "as its owner", "has its seat"
    r"\b(he|she|it|they|him|them)\b|(?<!\bas )(?<!\bha[sd] )(?<!\bhave )\b(his|her|its|their)\b", re.IGNORECASE
)
MOST_SUBJECTS: Final = 10
"""That a question about a stored answer is asked of."""


@dataclass(frozen=True, slots=True)
class FromAnswer:
    """A question about a stored answer, which asks for the subjects of the facts that have it.

    Attributes:
        question: as it was put.
        answers: the accepted ones, the fact's own first.
        further: how many subjects have this answer that the memory is not asked for, as they are more than
            `MOST_SUBJECTS`.
    """

    question: str
    answers: tuple[str, ...]
    further: int = 0


@dataclass(frozen=True, slots=True)
class Standalone:
    """A question to a memory, which stands alone.

    Attributes:
        text: of the question.
        subject: whom it is about, as the facts spell it; "" where no stored subject was found.
        taken_from: the words that were taken for the subject, where they are not its spelling; "" otherwise.
        negated: whether it asks for what is not so, which no fact says.
        proposed: of a yes/no question, what it asks about: the answer to `text` is looked for in it; "" of others.
        from_answer: the question about a stored answer that `text` stands for: where the memory gives that answer, the
            subject is what is said; None of others.
    """

    text: str
    subject: str = ""
    taken_from: str = ""
    negated: bool = False
    proposed: str = ""
    from_answer: FromAnswer | None = None


def standalone_questions(
    messages: Sequence[Message], linker: Linker, links: LinkConfig | None = None
) -> list[Standalone]:
    """The questions that the last message asks a memory: one per stored subject, at least one.

    Where a stored answer is named and its subject is asked for: one per fact with that answer, at most `MOST_SUBJECTS`.

    Args:
        messages: of a conversation, the last one the user's question.
        linker: finds the subjects.
        links: which of this is done; None for all.
    """
    links = links or LinkConfig()
    before: Standalone | None = None  # what was asked last of the subject in focus
    asked = [message["content"] for message in messages if message["role"] == "user"]
    found = [Standalone(asked[-1])]
    for text in asked if links.focus else asked[-1:]:
        found, before = _questions(text, linker, before)
    return [
        _as_a_fact_says(each, linker, links.languages) if each.subject and each.from_answer is None else each
        for each in dict.fromkeys(found)
    ]


def _as_a_fact_says(asked: Standalone, linker: Linker, languages: bool) -> Standalone:
    """A question that asks for what is not so is told; of a yes/no question the fact is asked that it is about.

    And of one in another language, of which no more is told.
    """
    facts = linker.facts_about(asked.subject)
    rest = _with_another(asked.text, _name(asked.subject, linker), " ")
    if languages and (taught := asked_in_english(rest, facts)) is not None:
        return replace(asked, text=taught or asked.text)
    if _negates(rest) and not any(_NEGATION.search(q) for fact in facts for q in fact.questions):
        return replace(asked, negated=True)
    if not _YES_NO.match(asked.text) or any(_YES_NO.match(q) for fact in facts for q in fact.questions):
        return asked
    stems = _stems(rest)
    facts = [fact for fact in facts if not _asks_for_another(rest, fact)]
    shared = [len(stems & set().union(*map(_stems, fact.questions))) for fact in facts]
    if not shared or max(shared) < 1 or shared.count(max(shared)) > 1:
        return asked
    question = facts[shared.index(max(shared))].questions[0]
    return replace(asked, text=question, proposed=rest)


def _asks_for_another(text: str, fact: Fact) -> bool:
    """Whether a yes/no question proposes a place or time where a fact says who, or the other way round."""
    words = {question.split()[0].lower() for question in fact.questions if question.strip()}
    by, within = _BY.search(text) is not None, _IN.search(text) is not None
    return by != within and not words.isdisjoint(("where", "when") if by else ("who", "whom"))


def _negates(text: str) -> bool:
    """Whether a question asks for what is not so: "I do not know who founded it" does not."""
    asks = _WH.search(text)
    return _NEGATION.search(text, asks.start() if asks else 0) is not None


def _stems(text: str) -> set[str]:
    """The beginnings of the words that say what is asked."""
    return {word[:_STEM] for word in re.findall(r"[^\W\d_]{3,}", text) if word.islower()} - _EMPTY


def _questions(text: str, linker: Linker, before: Standalone | None) -> tuple[list[Standalone], Standalone | None]:
    """What one message asks, sentence by sentence, and what was asked last of the subject that is in focus then.

    Args:
        text: of the message.
        linker: finds the subjects.
        before: what was asked last of the subject in focus; None where none is.
    """
    whole = composed(text)
    mentions = linker.mentions(whole)
    sentences = _sentences(whole, mentions)
    asked: list[Standalone] = []
    for sentence in sentences:
        own = mentions if sentence == whole else linker.mentions(sentence)
        found = [each for each in _of_sentence(sentence, own, linker, before) if each.subject]
        of_answer = _from_answer(sentence, own, linker) if own or not found else []
        if found:
            before = found[-1]
        elif of_answer or _names_something(sentence):  # something else is named: nothing is in focus
            before = None
        found = of_answer or found
        asked += found if len(sentences) == 1 or sentence.endswith("?") or _ASKS.match(_LEADS.sub("", sentence)) else []
    return asked or [Standalone(text)], before


def _sentences(text: str, mentions: Sequence[Mention]) -> list[str]:
    """The sentences of a message; none ends within a name."""
    starts = [mention.start for mention in mentions]
    cuts = []
    for found in _SENTENCE.finditer(text):
        end, last = found.start(), bisect_left(starts, found.start()) - 1
        if not _SHORTENED.search(text, max(0, end - _LONGEST_SHORTENED), end) and not (
            last >= 0 and end <= mentions[last].end
        ):
            cuts.append(found.span())
    return [text[start:end] for start, end in _pieces(text, cuts) if text[start:end].strip()] or [text]


def _of_sentence(text: str, mentions: Sequence[Mention], linker: Linker, before: Standalone | None) -> list[Standalone]:
    """What a sentence with these mentions asks."""
    subjects = {subject for mention in mentions for subject in mention.subjects}
    if not mentions:
        return [_in_focus(text, before, linker)] if before and _refers_back(text) else [Standalone(text)]
    if len(subjects) == 1:
        (subject,) = subjects
        if before and _is_about(_without(text, mentions)):  # "What about X?": what was asked before, of another
            question = _with_another(before.text, _name(before.subject, linker), _name(subject, linker))
            return [Standalone(question, subject, _taken_from(text, mentions[-1], _name(subject, linker)))]
        return [_named(text, mentions, mentions[-1], subject, linker)]
    if len(mentions) == 1:  # one name of several
        return [_named(text, mentions, mentions[0], subject, linker) for subject in mentions[0].subjects]
    return _of_each(text, mentions, linker) or _proposing(text, mentions, linker) or [Standalone(text)]


def _from_answer(text: str, mentions: Sequence[Mention], linker: Linker) -> list[Standalone]:
    """A question about a stored answer, asked of each subject that it may ask for; none of others.

    Args:
        text: the question.
        mentions: of stored subjects in it. The answer may be one, of which no fact says what is asked; and a part of
            its name, which might stand for another subject, is none.
        linker: finds the answer.
    """
    if not isinstance(linker, AnswerLinker) or not _WH.search(text) or _SOMEBODY.search(text) or _negates(text):
        return []
    found = linker.answers_in(text)
    if len(found) != 1:
        return []
    ((start, end, facts),) = found
    question = f"{text[:start]}{SLOT}{text[end:]}"
    if _names_something(question) and any(word[0].islower() for word in _WORDS.findall(question)):
        return []  # something else is named
    if any(mention.start < start or mention.end > end for mention in mentions):
        return []
    named = (each for each in mentions if (each.start, each.end) == (start, end) and each.how != "misspelt")
    own = (fact for mention in named for subject in mention.subjects for fact in linker.facts_about(subject))
    if any(says_what_is_asked(question, _slotted(fact), fact.relation) for fact in own):
        return []
    asked: dict[str, Fact] = {}
    for fact in facts:
        if fact.subject not in asked and asks_for_subject(question, _slotted(fact), fact.relation):
            asked[fact.subject] = fact
    further = max(len(asked) - MOST_SUBJECTS, 0)
    return [
        Standalone(fact.questions[0], subject, from_answer=FromAnswer(text, fact.answers, further))
        for subject, fact in list(asked.items())[:MOST_SUBJECTS]
    ]


def _slotted(fact: Fact) -> list[str]:
    """A fact's taught wordings with `SLOT` in place of its subject, those that have it as a whole word."""
    parts = (each.partition(fact.subject) for each in fact.questions)
    return [
        f"{before}{SLOT}{after}" for before, found, after in parts
        if found and not (before[-1:].isalnum() or after[:1].isalnum())
    ]  # fmt: skip


def _of_each(text: str, mentions: Sequence[Mention], linker: Linker) -> list[Standalone]:
    """A question about several subjects, asked of each; none where it cannot be told apart."""
    pieces = _clauses(text, mentions)
    clauses = [_without(text[start:end], [_moved(own, -start)]) for start, end, own in pieces]
    if pieces and all(len(clause.split()) >= _LEAST_CLAUSE for clause in clauses):
        found = []
        for start, end, own in pieces:
            moved = _moved(own, -start)
            clause = text[start : max(own.end, start + len(text[start:end].rstrip(" ?.!,;")))]
            question = _capital(clause) + "?"
            found += [_named(question, [moved], moved, subject, linker) for subject in moved.subjects]
        return found
    between = [text[a.end : b.start] for a, b in zip(mentions, mentions[1:], strict=False)]
    if all(_JOINED.fullmatch(" ".join(gap.split())) for gap in between):
        head, tail = text[: mentions[0].start], text[mentions[-1].end :]
        return [
            _named(head + text[m.start : m.end] + tail, [moved], moved, subject, linker)
            for m in mentions
            for moved in [_moved(m, mentions[0].start - m.start)]
            for subject in m.subjects
        ]
    return []


def _proposing(text: str, mentions: Sequence[Mention], linker: Linker) -> list[Standalone]:
    """A yes/no question about one stored subject that proposes another one: "Was X founded by Y?"; none of others.

    Of both subjects the one is asked about whose fact says what is asked. Where each has such a fact, "by" tells: what
    stands before it is asked about.
    """
    if len(mentions) != 2 or not _YES_NO.match(text):
        return []
    first, second = mentions
    found = [
        asked for mention in mentions if len(mention.subjects) == 1
        for asked in [_named(text, [mention], mention, mention.subjects[0], linker)]
        if _as_a_fact_says(asked, linker, languages=True).proposed
    ]  # fmt: skip
    return found[:1] if len(found) == 1 or _BY.search(text, first.end, second.start) else []


def _clauses(text: str, mentions: Sequence[Mention]) -> list[tuple[int, int, Mention]]:
    """Where the clauses of a question lie, start and end in characters, with the one mention of each; or none."""
    cuts = []
    for one, other in zip(mentions, mentions[1:], strict=False):
        places = (cut.search(text, one.end, other.start) for cut in _CUTS)
        place = next((found.span() for found in places if found), None)
        if place is None:
            return []
        cuts.append(place)
    return [(start, end, own) for (start, end), own in zip(_pieces(text, cuts), mentions, strict=True)]


def _pieces(text: str, cuts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where the pieces lie that a text falls into without what is cut out, start and end in characters."""
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    return list(zip(starts, ends, strict=True))


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
    outside = re.findall(r"(?<!['’\w])[^\W\d_]+", "".join(pieces[::2]))
    if len(outside) > 1 and not any(word[0].islower() for word in outside):  # capitals alone
        pieces[::2] = [piece.lower() for piece in pieces[::2]]
    question = "".join(pieces)
    if question == text:
        return Standalone(text, subject)
    return Standalone(_capital(question) if pieces[0] else question, subject, taken)


def _in_focus(text: str, before: Standalone, linker: Linker) -> Standalone:
    """A question that refers to the subject of an earlier one."""
    name = _name(before.subject, linker)
    said = _LEADS.sub("", text)
    if _is_about(_PRONOUN.sub("", said)):  # "what about her?"
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
    return Standalone(_capital(question), before.subject)


def _refers_back(text: str) -> bool:
    """Whether a question without a stored subject may be about the one in focus: it names nothing else."""
    refers = _PRONOUN.search(text) is not None or _ELLIPTIC.fullmatch(text.strip()) is not None
    return refers and not _names_something(text)


def _is_about(text: str) -> bool:
    """Whether nothing is said beside a name: "What about X?"."""
    return all(word in _ABOUT for word in _WORDS.findall(text.lower()))


def _names_something(text: str) -> bool:
    """Whether a word with a capital stands within a sentence ("I" is none)."""
    within = re.finditer(r"[^\s.?!:\"“]\s+(?!I\b)([^\W\d_])", text)
    return not text.isupper() and any(found[1].isupper() for found in within)


def _capital(text: str) -> str:
    """A text with a capital in the beginning, and as long as before."""
    first = text[:1].upper()
    return first + text[1:] if len(first) == 1 else text


def _with_another(text: str, name: str, other: str) -> str:
    """A text with another name in place of one, where that is no part of a word."""
    return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _: other, text)


def _without(text: str, mentions: Sequence[Mention]) -> str:
    pieces, at = [], 0
    for mention in mentions:
        pieces.append(text[at : mention.start])
        at = mention.end
    return "".join([*pieces, text[at:]])


def _unquoted(text: str, mention: Mention) -> tuple[int, int]:
    """Where a mention lies with the quotes or markup around it."""
    start, end = mention.start, mention.end
    while mark := _QUOTES.search(text, max(0, start - 2), start):
        behind = end + len(mark[1])
        possessive = text[end : end + 1] in ("'", "’") and text[behind : behind + 1].isalpha()
        if possessive or not _QUOTES.match(text[end:behind]):
            break
        start, end = start - len(mark[1]), behind
    return start, end


def _moved(mention: Mention, by: int) -> Mention:
    return mention._replace(start=mention.start + by, end=mention.end + by)


def _name(subject: str, linker: Linker) -> str:
    return composed(spelling_of(subject, linker.facts_about(subject)))


def _taken_from(text: str, mention: Mention, name: str) -> str:
    words = text[mention.start : mention.end]
    return "" if words == name else words
