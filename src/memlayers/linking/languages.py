"""Questions in German, French, Spanish, Italian, Portuguese and Dutch: which stored fact each of them asks for.

A lexicon (`languages.yaml`) says what words of a language ask for, as tags: relations ("birth"), and the kind of the
answer ("who", "where", "when", "many"). The words of a fact's English wordings have the same tags. The fact is asked
that has all tags of the question, where one alone has them best. Loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from memlayers.data.facts import Fact, composed, folded

_LEXICON: Final = Path(__file__).with_name("languages.yaml")
_WORD: Final = re.compile(r"[^\W\d_]+")
_BEGINS: Final = re.compile("[.?!:¿¡]")  # before the first word of a sentence
_ENDS_WITH_NAME: Final = re.compile(r"(?:\s|['’])\s[?.!\s]*\Z")  # "Founder of X?", where a space stands for X
_KINDS: Final = frozenset(("who", "where", "when"))  # a question with one asks no fact without it
_LEAST_SHARE: Final = 0.15  # of a fact's wordings that show a tag which is of the fact, not of one odd wording
_LEAST_WORDS: Final = 2  # of a language, where none of them is a question word
_UMLAUTS: Final = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})


@dataclass(frozen=True)
class _Words:
    """Words and beginnings of words, folded, with the tags of each."""

    whole: Mapping[str, frozenset[str]]
    beginnings: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, rows: Mapping[str, str]) -> _Words:
        """Reads rows: tags, and the words that have them; "gründ*" is the beginning of a word."""
        whole: dict[str, frozenset[str]] = {}
        beginnings: dict[str, frozenset[str]] = {}
        for tags, words in rows.items():
            for word in words.split():
                found = beginnings if word.endswith("*") else whole
                for spelled in (folded(word), folded(word.translate(_UMLAUTS))):
                    found[spelled] = found.get(spelled, frozenset()) | set(tags.split())
        return cls(whole, beginnings)

    def tags(self, word: str) -> frozenset[str] | None:
        """The tags of a folded word, its own and those of its beginnings; None where it is not known."""
        found = [self.whole.get(word), *(self.beginnings.get(word[:size]) for size in range(3, len(word) + 1))]
        known = [tags for tags in found if tags is not None]
        return frozenset[str]().union(*known) if known else None


@dataclass(frozen=True)
class _Language:
    """What the lexicon knows of a language.

    Attributes:
        asks: question words.
        tells: words that begin what asks without a question word, as "name" does.
        opens: verbs that a yes/no question begins with, in lower case, not folded.
        negates: words of a question for what is not so.
        function: other function words.
        relations: words that say what is asked, and names of things: without tags.
        capitals: whether nouns are written with a capital.
        genitive: whether "s" behind a name, without an apostrophe, says whose something is.
    """

    asks: _Words
    tells: frozenset[str]
    opens: frozenset[str]
    negates: frozenset[str]
    function: frozenset[str]
    relations: _Words
    capitals: bool
    genitive: bool

    def knows(self, word: str) -> bool:
        """Whether a folded word is one of the language's."""
        return word in self.function or any(each.tags(word) is not None for each in (self.asks, self.relations))


@dataclass(frozen=True)
class _Lexicon:
    """The lexicon.

    Attributes:
        languages: that it knows.
        english: the tags of English words.
        marks: words that only English has.
        shared: words of another language that are English, too.
        weak: tags, mostly of verbs, that say what is asked where no other tag does.
        vague: tags that say it where none but weak ones do.
        places: tags of facts that say where something is: of these alone "Where is X?" asks.
        events: tags of what happened: "what" and "how" ask of it for more than who, where or when.
        alone: tags of facts that nothing else asks for: "internet country code" says no country.
    """

    languages: tuple[_Language, ...]
    english: _Words
    marks: frozenset[str]
    shared: frozenset[str]
    weak: frozenset[str]
    vague: frozenset[str]
    places: frozenset[str]
    events: frozenset[str]
    alone: frozenset[str]


@dataclass(frozen=True)
class _Said:
    """A word of a text: as it is written, folded, and whether its capital, if any, is that of a name."""

    written: str
    letters: str
    named: bool


class ForeignWords:
    """The words of the language that a text is in: none where it is English or not known."""

    def __init__(self, text: str) -> None:
        self._language = _language(_said(text))

    def __bool__(self) -> bool:
        """Whether the text is in another language that the lexicon knows."""
        return self._language is not None

    def __contains__(self, letters: object) -> bool:
        """Whether a folded word is one of them."""
        return self._language is not None and isinstance(letters, str) and self._language.knows(letters)

    @property
    def capitals(self) -> bool:
        """Whether a capital says nothing within a sentence: nouns have one."""
        return self._language is not None and self._language.capitals

    @property
    def genitive(self) -> bool:
        """Whether an "s" behind a name, without an apostrophe, says whose something is."""
        return self._language is not None and self._language.genitive


def asked_in_english(text: str, facts: Sequence[Fact]) -> str | None:
    """The taught wording of the fact that a question in another language asks for.

    Args:
        text: of the question, with a space in place of the subject's name.
        facts: about the subject.

    Returns:
        The fact's first wording; "" where no fact, or several, say what is asked; None of a question in English.
    """
    said = _said(text)
    language, lexicon = _language(said), _lexicon()
    if language is None:
        return None
    words = [word.letters for word in said if language.capitals or not word.named or word.written.isupper()]
    asks = [found for word in words if (found := language.asks.tags(word)) is not None]
    if not said or not language.negates.isdisjoint(words) or _is_yes_no(text, said, language, bool(asks)):
        return ""
    first = asks[0] if asks else frozenset[str]()
    tags = frozenset[str]().union(*(language.relations.tags(word) or () for word in words))
    kinds, wanted = (tags | first) & _KINDS, tags - _KINDS - {"thing"}
    if "who" in first:  # "Von wem stammt die Aufnahme X?" asks for no place
        wanted -= {"origin"}
    strong = (wanted - lexicon.weak - lexicon.vague) or (wanted - lexicon.weak)
    where = not wanted and "where" in kinds and all(map(language.knows, words))  # "Where is X?"
    needed = strong or wanted or frozenset(("located",) if where else ())
    # "What did X found?", "How did X die?" and "How many children has X?" ask for no person, place or time.
    neither = "many" in first or (not first.isdisjoint(("thing", "how")) and not kinds and needed <= lexicon.events)
    scored: dict[str, float] = {}
    for fact in facts:
        shares, main = _tags(fact)
        shown = main | {tag for tag, share in shares.items() if share >= _LEAST_SHARE}
        said_kinds, own = shown & _KINDS, main - _KINDS
        elsewhere = not strong and needed <= lexicon.places and not own <= lexicon.places
        if not kinds <= said_kinds or (neither and said_kinds) or elsewhere or not own & lexicon.alone <= wanted:
            continue
        if needed <= shares.keys() and needed & shown:
            score = sum(shares.get(tag, 0.0) + (tag in main) for tag in needed | wanted | kinds)
            scored[fact.questions[0]] = max(score, scored.get(fact.questions[0], 0.0))
    best = [question for question, score in scored.items() if score == max(scored.values())]
    return best[0] if len(best) == 1 else ""


def _is_yes_no(text: str, said: Sequence[_Said], language: _Language, asks: bool) -> bool:
    """Whether a question asks for yes or no, or says nothing that asks."""
    begins = not text.startswith(" ") and said[0].written.lower() in language.opens
    if begins or asks or any(word.letters in language.tells for word in said):
        return begins
    verb = any(word.written.lower() in language.opens for word in said)
    strange = any(word.named and not language.knows(word.letters) for word in said)
    return verb or strange or text.startswith(" ") or _ENDS_WITH_NAME.search(text) is None


def _language(said: Sequence[_Said]) -> _Language | None:
    """The language of a text that has a word which only English has: None; else the one with most words of it."""
    lexicon = _lexicon()
    if any(word.letters in lexicon.marks for word in said if not word.named):
        return None
    best, most = None, 0
    for language in lexicon.languages:
        own = [word.letters for word in said if language.capitals or not word.named]
        asks = [word for word in own if language.asks.tags(word) is not None]
        others = [word for word in own if word not in lexicon.shared]
        says = [word for word in others if language.relations.tags(word) and not lexicon.english.tags(word)]
        count = sum(word in asks or word in says or word in language.function for word in others)
        sure = bool(asks and says) or not lexicon.shared.issuperset(asks)
        if count > most and (sure or count >= _LEAST_WORDS):
            best, most = language, count
    return best


def _said(text: str) -> list[_Said]:
    text = composed(text)
    shouted = not any(map(str.islower, text))
    said, end = list[_Said](), 0
    for found in _WORD.finditer(text):
        begins = not said or _BEGINS.search(text, end, found.start()) is not None
        word, end = found.group(), found.end()
        said.append(_Said(word, folded(word), not (shouted or begins) and word[0].isupper()))
    return said


def _tags(fact: Fact) -> tuple[dict[str, float], set[str]]:
    """The tags of a fact: in which share of its wordings each is; and those of its relation and its first wording."""
    english = _lexicon().english
    texts = []
    for text in (fact.relation, *fact.questions):
        for name in (fact.subject, *fact.answers):
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text) if name else text
        words = (word.letters for word in _said(text) if not word.named or word.written.isupper())
        texts.append(frozenset[str]().union(*(english.tags(word) or () for word in words)))
    counted: dict[str, float] = {}
    for tag in (tag for tags in texts for tag in tags):
        counted[tag] = counted.get(tag, 0) + 1 / len(texts)
    return counted, set(texts[0] | texts[1])


@cache
def _lexicon() -> _Lexicon:
    import yaml

    read = yaml.safe_load(_LEXICON.read_text(encoding="utf-8"))
    languages = tuple(
        _Language(
            asks=_Words.of(each["asks"]),
            tells=_folded(each["tells"]),
            opens=frozenset(each["opens"].split()),
            negates=_folded(each["negates"]),
            function=_folded(" ".join(each[key] for key in ("tells", "opens", "negates", "function"))),
            relations=_Words.of(each["relations"]),
            capitals=each.get("capitals", False),
            genitive=each.get("genitive", False),
        )
        for each in read["languages"].values()
    )
    english = read["english"]
    return _Lexicon(
        languages,
        _Words.of(english["tags"]),
        *(_folded(english[key]) for key in ("marks", "shared", "weak", "vague", "places", "events", "alone")),
    )


def _folded(words: str) -> frozenset[str]:
    return frozenset(folded(spelled) for word in words.split() for spelled in (word, word.translate(_UMLAUTS)))


def lexicon_words() -> Iterable[str]:
    """The function and question words of all languages that count as a sign of them, folded."""
    lexicon = _lexicon()
    for language in lexicon.languages:
        yield from (word for word in (*language.function, *language.asks.whole) if word not in lexicon.shared)
