"""Tells which end of a fact a question asks for: the answer, as the fact's wordings do, or the subject.

In "Who founded Kylotonn?" the subject is what is founded, and the answer is who founds. "What did Yann Tamb found?" has
these roles the other way round: the answer founds, and what is founded is asked for. "Who founded Yann Tamb?" has them
as the wording has, and asks for something else. The roles are those of semantic role labelling (Gildea and Jurafsky
2002, "Automatic Labeling of Semantic Roles"), here read off the place of an argument by rules, for English alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Set
from functools import lru_cache
from typing import Final, NamedTuple

SLOT: Final = "\ue000"
"""Stands in a text for a name: a fact's subject in its wordings, its answer in a question from the other end."""

_ASKED: Final = "\ue001"  # what a question word and its noun stand for
_TOKEN: Final = re.compile(rf"{SLOT}|['’]s\b|[^\W_]+")
_BE: Final = frozenset("is are was were be been being am".split())
_HAVE: Final = frozenset("has have had".split())
_DO: Final = frozenset("do does did can could will would may might shall should must".split())
_ARTICLES: Final = frozenset("a an the its their his her".split())
_WITHIN: Final = frozenset("in at on within inside".split())
_PREPOSITIONS: Final = _WITHIN | frozenset("by of to for with from under as into".split())
_THINGS: Final = frozenset("who whom whose what which".split())  # question words that ask for a thing or a person
_PLACES: Final = frozenset("where when".split())
_RELATIVE: Final = frozenset("that who whom which".split())
_FUNCTION: Final = (
    _BE | _HAVE | _DO | _ARTICLES | _PREPOSITIONS | _RELATIVE | frozenset("'s ’s and or also ever name names".split())
)
_POLITE: Final = frozenset(
    "and but also so then please kindly could can would will you do does tell me us say know i d like want need wish "
    "to let name state give if remember that the is it of".split()
)
_KINDS: Final = frozenset("type kind sort".split())
_IRREGULAR: Final = {
    form: stem
    for stem, forms in {
        "birth": "born birthplace", "die": "died dies dying dead death", "write": "wrote written writer writing",
        "make": "made makes making maker", "build": "built", "lead": "led", "sing": "sang sung song",
        "hold": "held", "win": "won winning winner", "buy": "bought", "sell": "sold", "teach": "taught",
        "marry": "marries married marriage", "begin": "began begun", "lie": "lies lay lying", "draw": "drew drawn",
        "know": "knew known", "speak": "spoke spoken", "give": "gave given", "take": "took taken", "run": "ran",
        "think": "thought", "choose": "chose chosen", "drive": "drove driven", "fly": "flew flown",
        "grow": "grew grown", "wear": "wore worn", "eat": "ate eaten", "keep": "kept", "lose": "lost", "pay": "paid",
        "meet": "met", "shoot": "shot", "fight": "fought", "bring": "brought", "feed": "fed",
        "spend": "spent", "send": "sent",
    }.items()
    for form in (stem, *forms.split())
}  # fmt: skip
_ENDING: Final = re.compile(
    r"(erships?|ships?|ations?|ions?|ments?|ances?|ings?|ers?|ors?|ies|ied|ed|es|s|e|y)\Z"
)  # fmt: skip
_LEAST_STEM: Final = 3  # letters
_AGENT: Final = re.compile(r"(er|or)s?\Z")  # "owner": the one who owns
_LIGHT: Final = frozenset("belong associat call relat".split())  # stems that alone say no relation
_BOTH_WAYS: Final = frozenset("marry spous sibl twin bord neighbour neighbor".split())
_AMONG_OTHERS: Final = frozenset(  # asks for one of several, which the facts do not tell, or for no thing
    "else other another first second third last next latest newest oldest youngest earliest largest biggest smallest "
    "longest highest tallest best most worst year date day month century time number reason".split()
)
_MOST_NOUNS: Final = 3  # "Who is the video game company that ...?"


class Clause(NamedTuple):
    """What a question says of a name.

    Attributes:
        words: the stems of the words that say what is asked.
        roles: of what is asked for and of the name; several where these come to the same ("the owner of X" owns X).
        asks: whether a question word asks for a thing or a person.
    """

    words: frozenset[str]
    roles: frozenset[tuple[str, str]]
    asks: bool


def asks_for_subject(question: str, wordings: Iterable[str], relation: str) -> bool:
    """Whether a question about a fact's answer asks for the fact's subject.

    One wording, or the relation's name, has to have all the words that say what is asked.

    Args:
        question: with `SLOT` in place of the answer.
        wordings: of the fact, each with `SLOT` in place of the subject.
        relation: its name; "" for none.
    """
    asked = clause(question, polite=True)
    if asked is None or not asked.asks or asked.words <= _LIGHT:
        return False
    read = _saying(asked, wordings, relation)
    if asked.words <= _BOTH_WAYS:
        return bool(read)
    swapped = {(name, sought) for sought, name in asked.roles}
    # The nearer wording tells: "Who is a citizen of X?" is not "What is the country of citizenship of X?".
    return _least_besides(asked, read, swapped) < _least_besides(asked, read, asked.roles)


def says_what_is_asked(question: str, wordings: Iterable[str], relation: str) -> bool:
    """Whether a fact's wordings have the words that say what is asked, whichever end a question asks for.

    Args and their forms are those of `asks_for_subject`.
    """
    asked = clause(question, polite=True)
    return asked is not None and bool(_saying(asked, wordings, relation))


def _saying(asked: Clause, wordings: Iterable[str], relation: str) -> list[Clause]:
    """The wordings, the relation's name among them, that have all the words that say what is asked."""
    named = [f"What is the {relation} of {SLOT}?"] if relation else []
    read = map(clause, (*wordings, *named))
    return [taught for taught in read if taught is not None and asked.words <= taught.words]


def _least_besides(asked: Clause, wordings: Iterable[Clause], roles: Set[tuple[str, str]]) -> float:
    """How many words the nearest wording with one of these roles has that the question lacks; infinite for none."""
    return min((len(each.words - asked.words) for each in wordings if each.roles & roles), default=math.inf)


@lru_cache(4096)
def clause(text: str, *, polite: bool = False) -> Clause | None:
    """Reads a question with one `SLOT` in it; None where it has none, or several, or cannot be read.

    Args:
        text: the question.
        polite: whether nothing but polite words may stand before what is asked: "Could you tell me".
    """
    words = _TOKEN.findall(text.lower())
    if words.count(SLOT) != 1 or (polite and not _AMONG_OTHERS.isdisjoint(words)):
        return None
    words = [
        "is" if word in ("'s", "’s") and i and words[i - 1] in _THINGS | _PLACES else word.replace("’", "'")
        for i, word in enumerate(words)
    ]
    read = _with_asked(words, polite)
    if read is None:
        return None
    words, place, asks = read
    alternatives = {word for i in _places(words, "or") for word in (*words[i - 1 : i], *words[i + 1 : i + 2])}
    content = [word for word in words if word not in _FUNCTION and word not in (SLOT, _ASKED)]
    told = frozenset(stem(word) for word in content if polite or word not in alternatives)
    roles = "in" if place else _role(words, words.index(_ASKED)), _role(words, words.index(SLOT))
    agent = any(_AGENT.search(word) for word in content)
    return Clause(told, frozenset({roles, *_same_as(roles, agent, polite)}), asks)


def _same_as(roles: tuple[str, str], agent: bool, polite: bool) -> tuple[tuple[str, str], ...]:
    """Other roles that come to the same: who is the owner of X owns X; in what is the birthplace of X, X was born.

    Args:
        roles: of what is asked for and of the name.
        agent: whether a noun names who does something.
        polite: of a question, not of a wording: there a noun names no place.
    """
    if roles == ("possessor", "value") and agent and polite:
        return (("patient", "agent"),)
    if roles != ("value", "possessor"):
        return ()
    places = () if polite else (("in", "patient"), ("in", "agent"), ("in", "possessor"))
    return (*places, ("agent", "patient")) if agent else places


def stem(word: str) -> str:
    """What the forms of a word have in common: "found" of "founded" and "founder"; a few irregular ones are known."""
    word = _IRREGULAR.get(word, word)
    for _ in range(2):  # "headquartered"
        cut = _ENDING.sub("", word)
        if cut == word or len(cut) < _LEAST_STEM or word in _IRREGULAR:
            break
        word = cut
    return word


def _with_asked(words: list[str], polite: bool) -> tuple[list[str], bool, bool] | None:
    """The words from the question on, what is asked for as one; whether that is a place or time, or a thing."""
    at = next((i for i, word in enumerate(words) if word in _THINGS | _PLACES or word in ("why", "how")), None)
    if at is None:
        return None if polite else ([_ASKED, "is", *_without_lead(words)], False, False)
    word = words[at]
    if word in ("why", "how"):
        return None
    first = at - 1 if at and words[at - 1] in _PREPOSITIONS else at
    lead = words[:first]
    if SLOT not in lead:
        if polite and not _POLITE.issuperset(lead):
            return None
        words, at = words[first:], at - first
    behind = at + 1
    if word == "whose":
        return [*words[:at], _ASKED, "'s", *words[behind:]], False, True
    if word in ("what", "which"):
        behind = _noun_end(words, behind)
    elif word in ("who", "whom") and words[behind : behind + 2] == ["or", "what"]:
        behind += 2
    return _without_relative([*words[:at], _ASKED, *words[behind:]], at), word in _PLACES, word in _THINGS


def _noun_end(words: list[str], first: int) -> int:
    """Where the noun ends that "which" asks for a thing by: "video game company" of "which video game company made"."""
    if words[first : first + 1] and words[first] in _KINDS and words[first + 1 : first + 2] == ["of"]:
        first += 2
    behind = first
    while behind < len(words) and (words[behind] == "or" or words[behind] not in _FUNCTION | {SLOT}):
        behind += 1
    others = (*words[: first - 1], *words[behind:])
    # A verb is no part of it: "which person launched X", "what lies in X".
    if not any(word not in _FUNCTION - _BE - _HAVE - _DO and word != SLOT for word in others):
        behind = max(behind - 1, first)
    return behind


def _without_relative(words: list[str], at: int) -> list[str]:
    """A question without "is the company that", or "is the name of the company that"."""
    i = at + 1
    if words[i : i + 1] and words[i] in _BE and words[i + 1 : i + 2] and words[i + 1] in _ARTICLES:
        i += 2
        if words[i : i + 3] in (["name", "of", "the"], ["names", "of", "the"]):
            i += 3
        for size in range(1, _MOST_NOUNS + 1):
            noun, relative = words[i : i + size], words[i + size : i + size + 1]
            if relative and relative[0] in _RELATIVE and not any(word in _FUNCTION or word == SLOT for word in noun):
                return [*words[: at + 1], *words[i + size + 1 :]]
    return words


def _without_lead(words: list[str]) -> list[str]:
    """What a request asks to name: "the founder of X" of "Please name the founder of X"."""
    i = 0
    while i < len(words) and words[i] in _POLITE - _ARTICLES:
        i += 1
    return words[i:]


def _role(words: list[str], at: int) -> str:
    """The role of what stands at a place.

    "agent" does what the verb says, "patient" has it done or is said to be something, "possessor" has the noun ("the
    founder of X", "X's founder"), "value" is the noun ("X is the founder"); the others are prepositions, "in" any of
    place and time.
    """
    before, after = [word for word in words[:at] if word not in _ARTICLES], words[at + 1 :]
    previous, following = before[-1] if before else "", after[0] if after else ""
    if following == "'s":
        return "possessor"
    if previous in _HAVE and following == "as":
        return "value"
    if previous == "of" and any(_article_behind(words, i) for i, word in enumerate(words[:at]) if word in _HAVE):
        return "value"  # "has a price of X"
    if previous in _PREPOSITIONS:
        return _of_preposition(previous)
    if words[at] == _ASKED and not before:
        return _role_in_front(after)
    if not before or previous in _RELATIVE or previous == _ASKED:
        if following in _HAVE:
            return "possessor" if "as" in after else "patient" if "been" in after else "agent"
        return _role_beside_be(after[1:]) if following in _BE else "agent" if following else "patient"
    if previous in _BE:
        return _role_beside_be(after)
    if previous in _DO:
        return "agent"
    if previous in _HAVE:
        return "patient" if following in ("", "been") else "agent"
    noun = len(words[:at]) > 1 and words[at - 2] in _ARTICLES  # "the genre X"
    return "value" if noun else "patient"


def _role_in_front(after: list[str]) -> str:
    """The role of what a question asks for that begins with it, by what stands behind it."""
    following, then = (*after, "", "")[:2]
    if after[-1:] and after[-1] in _PREPOSITIONS:  # "Who is X married to?"
        return _of_preposition(after[-1])
    if following in _BE:
        if then in ("", SLOT) or then in _ARTICLES or after[2:3] == ["of"]:
            return "value"
        return "possessor" if then == "of" else "patient"  # "is of the genre X"; "was born in X"
    if following in _HAVE:
        if (then == SLOT and "as" in after) or (then != SLOT and then in _ARTICLES):
            return "possessor"  # "has X as its capital", "has the price X"
        return "patient" if then == "been" or (then == SLOT and len(after) > 2) else "agent"
    return "patient" if following in _DO or following == SLOT else "agent"


def _role_beside_be(after: list[str]) -> str:
    """The role of what stands beside a form of "be", by what is said of it."""
    noun = not after or after[0] in _ARTICLES or after[1:2] == ["of"]
    return "value" if noun else "patient"


def _of_preposition(word: str) -> str:
    return {"by": "agent", "of": "possessor"}.get(word, "in" if word in _WITHIN else word)


def _article_behind(words: list[str], i: int) -> bool:
    return words[i + 1 : i + 2] != [] and words[i + 1] in _ARTICLES


def _places(words: list[str], word: str) -> list[int]:
    return [i for i, each in enumerate(words) if each == word]
