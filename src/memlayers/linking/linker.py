"""Finds the stored subjects that a text mentions: by name, alias or derived form, in any spelling, or misspelt.

Case, accents, width, punctuation and spaces do not count (`folding.folded`). What may be part of a longer name is no
mention, nor is an ordinary word in lower case that is somebody's name: "will" is not "Will"; nor are common words whose
capital, as the first of a sentence, tells nothing. Of names with the same letters the one that is written is meant.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from memlayers.data.facts import Fact, aliases_by_subject, folded
from memlayers.linking.config import LinkConfig
from memlayers.linking.derived_forms import derived_forms, is_person
from memlayers.linking.languages import ForeignWords
from memlayers.linking.misspellings import Misspellings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

How = Literal["name", "derived", "misspelt"]

HYPHENS: Final = ("-", "\u2010", "\u2011")
_WORD: Final = re.compile(r"[^\W_]+")
_APART: Final = re.compile(r"[?!\n;]")  # between two words that are not of one name
_SHORT: Final = 3  # letters of a word that a full stop may shorten: "St. Denis", "John A. Pearson"
_BEGINS: Final = '.?!:"“('  # before the first word of a sentence
_JOINS: Final = frozenset((*HYPHENS, " @-@ "))  # between two words; as the index has it (linking/boundaries.py)
_BESIDE: Final = _JOINS | {" ", ". "}  # between two words of one name
_MOST_JOINED: Final = 5  # words that hyphens join with a name
_JOINED_BEFORE: Final = re.compile(
    r"(&|\b(von|van|de|del|di|da|du|la|le|der|ten|bin|al|el|St\.))\s*-?\Z", re.IGNORECASE
)
_REACH: Final = 12  # characters that may join a part of a name with what is before it
_JOINED_BEHIND: Final = re.compile(r"\s*(&|(von|van|de|del|di|da|du|der|bin)\b)", re.IGNORECASE)
_ROMAN: Final = re.compile(r"m{0,3}(cm|cd|d?c{0,3})(xc|xl|l?x{0,3})(ix|iv|v?i{0,3})")
_MOST_FACTS_FOR_WORDS: Final = 2000
_REMEMBERED: Final = 2**14  # words of which it is known whether they are ordinary
_LONGEST_REMEMBERED: Final = 32  # characters of such a word
FUNCTION_WORDS: Final = frozenset(
    "a about again an and are as at by did do does for from had has have her his how in into is it its me of on or our "
    "she tell that the their them they this to was we were what when where which who whom whose why will with would you"
    .split()
)  # fmt: skip


class Mention(NamedTuple):
    """A place in a text that mentions a stored subject.

    Attributes:
        start: in characters.
        end: in characters, exclusive.
        subjects: as the facts spell them; several where the text does not say which of them is meant.
        how: by its name (or an alias), by a form derived from it, or misspelt.
    """

    start: int
    end: int
    subjects: tuple[str, ...]
    how: How = "name"


class Linker(Protocol):
    """Finds the stored subjects that a text mentions: the built-in `NameLinker`, or any other in its place."""

    def mentions(self, text: str) -> list[Mention]:
        """The mentions in a text, in their order, none within another."""
        ...

    def facts_about(self, subject: str) -> Sequence[Fact]:
        """The stored facts about a subject, as far as they are known: of a yes/no question one is asked."""
        ...


class _Known(NamedTuple):
    """What folded letters stand for.

    Attributes:
        written: whose name they are, and how it is written (in Unicode form NFC).
        rule: by which they are derived; "" for a name or an alias.
    """

    written: tuple[tuple[str, str], ...]
    rule: str

    @property
    def subjects(self) -> tuple[str, ...]:
        """Whose name they are."""
        return tuple(dict.fromkeys(subject for subject, _ in self.written))

    @property
    def spellings(self) -> tuple[str, ...]:
        """How it is written."""
        return tuple(spelling for _, spelling in self.written)


class _Word(NamedTuple):
    start: int
    end: int
    letters: str


class _Read(NamedTuple):
    """A text, and what its capitals tell.

    Attributes:
        text: in Unicode form NFC.
        words: of it.
        small: how many words before each one begin with a small letter; of what stands behind an apostrophe none.
        in_lower: whether it has no capital.
        foreign: the words of its language, where that is none of the facts' (`linking.languages`).
    """

    text: str
    words: list[_Word]
    small: list[int]
    in_lower: bool
    foreign: ForeignWords

    def is_foreign(self, word: int) -> bool:
        """Whether a word is one of another language, and no name: where nouns have capitals, in any case."""
        if self.words[word].letters not in self.foreign:
            return False
        return self.foreign.capitals or self.begins(word) or not self.text[self.words[word].start].isupper()

    def spelled(self, first: int, behind: int) -> str:
        """How a run of words is written."""
        return self.text[self.words[first].start : self.words[behind - 1].end]

    def gap(self, word: int) -> str:
        """What is between a word and the next one; "" where one of them is none."""
        return self.text[self.words[word].end : self.words[word + 1].start] if 0 <= word < len(self.words) - 1 else ""

    def capitals_tell(self, first: int, behind: int) -> bool:
        """Whether a run of words would have capitals as a name alone: other words have none, though some has."""
        return not self.in_lower and self.small[-1] > self.small[behind] - self.small[first]

    def begins(self, word: int) -> bool:
        """Whether a word is the first one of a sentence, where a capital tells nothing."""
        if not word:
            return True
        gap = self.text[self.words[word - 1].end : self.words[word].start]
        before = gap.rstrip()
        return "\n" in gap[len(before) :] or before[-1:] in tuple(_BEGINS)


class NameLinker:
    """The built-in linker: compares folded letters.

    Args:
        facts: that are stored.
        config: which forms are looked for; None for all.
        ordinary: whether a word is an ordinary one, in the case it is written in; None takes none for one.

    Attributes:
        config: which forms are looked for.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        config: LinkConfig | None = None,
        ordinary: Callable[[str], bool] | None = None,
    ) -> None:
        self.config = config or LinkConfig()
        self._ordinary = ordinary or (lambda word: False)
        of_subject = _by_subject(facts)
        self._known = _known_names(of_subject, self.config)
        self._longest = max(
            (len(_words(each)) for known in self._known.values() for each in known.spellings), default=0
        )
        self._common = common_words([fact for own in of_subject.values() for fact in own][:_MOST_FACTS_FOR_WORDS])
        named = [letters for letters, known in self._known.items() if not known.rule]
        self._of_subject = of_subject
        self._misspellings = Misspellings(named if self.config.misspellings else ())

    def facts_about(self, subject: str) -> Sequence[Fact]:
        """The stored facts about a subject, in order."""
        return self._of_subject.get(subject, ())

    def mentions(self, text: str) -> list[Mention]:
        """The mentions in a text (in Unicode form NFC, as are the places), in their order, none within another."""
        read = _read(unicodedata.normalize("NFC", text), ForeignWords(text if self.config.languages else ""))
        text, words = read.text, read.words
        taken = bytearray(len(words))  # whether each word is part of a name that was found
        found: list[Mention] = []
        nouns: list[Mention] = []  # of names that are words of the text's language
        met: list[tuple[int, int]] = []  # places of names that are not meant
        for first, behind, letters, apart in _runs(read, self._longest + 1):
            known = self._known.get(letters)
            owns = known is None and read.foreign.genitive and letters.endswith("s")  # "Kylotonns Gründer"
            known = self._known.get(letters[:-1]) if owns else known
            if known is None or any(taken[first:behind]) or (apart and not _is_written(read, first, behind, known)):
                continue
            start, end = words[first].start, words[behind - 1].end - owns
            meant = self._is_meant(read, first, behind, known)
            if meant or not (known.rule or self._is_phrase(read, first, behind)):  # nor is a part of it another name
                taken[first:behind] = b"\1" * (behind - first)
            if meant:
                mentions = nouns if all(map(read.is_foreign, range(first, behind))) else found
                mentions.append(Mention(*_as_spelled(text, start, end, known), "derived" if known.rule else "name"))
            elif not known.rule:
                met.append((start, end))
        if found or nouns:
            return sorted(found or nouns)
        # Of what is part of a longer name, the longer one may be stored, and misspelt.
        return [
            mention for mention in self._misspelt(read)
            if all(mention.start <= start and end <= mention.end for start, end in met)
        ]  # fmt: skip

    def _misspelt(self, read: _Read) -> list[Mention]:
        """The one mention of a name that is nearly spelled rightly, where just one name is near."""
        if not self._misspellings:
            return []
        near: dict[str, tuple[int, int, int]] = {}  # per name: edits, words, and the first word, of the nearest run
        words, spelled = read.words, [read.text[word.start : word.end] for word in read.words]
        ordinary = {each: self._ordinary(each) for each in set(spelled)}
        common = [self._is_common(read, at) or ordinary[each] for at, each in enumerate(spelled)]
        for first, behind, letters, apart in _runs(read, self._longest):
            if apart or all(common[first:behind]):
                continue
            numerals = _numerals(words[first:behind])
            for name, edits in self._misspellings.near(letters):
                if all(_numerals(_words(each)) != numerals for each in self._known[name].spellings):
                    continue  # "Henry VI" is not "Henry VII"
                better = edits, behind - first, first
                near[name] = min(near.get(name, better), better)
        meant = {
            name: each for name, each in near.items()
            if self._is_meant(read, each[2], each[2] + each[1], self._known[name], misspelt=True)
        }  # fmt: skip
        subjects = {self._known[name].subjects for name in meant}
        if len(subjects) != 1 or len(only := next(iter(subjects))) != 1:
            return []
        _, size, first = min(meant.values())
        return [Mention(words[first].start, words[first + size - 1].end, only, "misspelt")]

    def _is_meant(self, read: _Read, first: int, behind: int, known: _Known, *, misspelt: bool = False) -> bool:
        """Whether a run of words that spells a name mentions it: not where it is ordinary, or part of a longer name."""
        words, spelled = read.words, read.spelled(first, behind)
        capitals_tell, exact = read.capitals_tell(first, behind), spelled in known.spellings and not known.rule
        lower = exact and spelled.islower() and not {word.letters for word in words[first:behind]} <= FUNCTION_WORDS
        if not lower and self._is_phrase(read, first, behind):
            return False
        if not capitals_tell and not spelled.isupper() and self._is_hyphenated(read, first, behind):
            return False
        if exact and not capitals_tell:
            return True
        told = capitals_tell and not spelled.islower()  # a capital that says that it is a name
        if behind - first == 1 and spelled not in known.spellings and not told and self._ordinary(spelled.lower()):
            return False
        if known.rule == "acronym" and not spelled.isupper():
            return False
        if (known.rule == "last_name" or misspelt) and capitals_tell and not spelled[0].isupper():
            return False
        if (known.rule or misspelt) and all(map(read.is_foreign, range(first, behind))):
            return False
        if known.rule and _is_joined(read, first, behind):
            return False
        if capitals_tell:
            return not (_goes_on(read, behind) or self._is_preceded(read, first))
        beside = [i for i in (first - 1, behind) if 0 <= i < len(words)]
        return not (known.rule or misspelt) or all(self._is_common(read, i) for i in beside)

    def _is_common(self, read: _Read, word: int) -> bool:
        return read.words[word].letters in self._common or read.is_foreign(word)

    def _is_phrase(self, read: _Read, first: int, behind: int) -> bool:
        """Whether a run is of common words, and no capital tells that it is a name: "tell me", "It rained"."""
        tells = read.capitals_tell(first, behind)
        return all(
            self._is_common(read, i) and not (tells and read.text[read.words[i].start].isupper() and not read.begins(i))
            for i in range(first, behind)
        )

    def _is_hyphenated(self, read: _Read, first: int, behind: int) -> bool:
        """Whether a hyphen joins a run with a word with a capital, which tells whatever other words have."""
        before, after = read.gap(first - 1) in _JOINS, read.gap(behind - 1) in _JOINS
        return (before and self._is_preceded(read, first)) or (after and _goes_on(read, behind))

    def _is_preceded(self, read: _Read, first: int) -> bool:
        """Whether the word right before a run has a capital, and is no common one that begins a sentence."""
        if read.gap(first - 1) not in _BESIDE:
            return False
        if not read.text[read.words[first - 1].start].isupper() or read.is_foreign(first - 1):
            return False
        return not (read.begins(first - 1) and self._is_common(read, first - 1))


def ordinary_words(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bool]:
    """Tells ordinary words: those that a vocabulary has a token for. Words met lately are remembered."""

    def is_ordinary(word: str) -> bool:
        return len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1

    remembered = lru_cache(_REMEMBERED)(is_ordinary)
    return lambda word: remembered(word) if len(word) <= _LONGEST_REMEMBERED else is_ordinary(word)


def spelling_of(subject: str, facts: Sequence[Fact]) -> str:
    """How a subject's facts spell its name in their wordings.

    Args:
        subject: not "".
        facts: that are about it.
    """
    questions = [question for fact in facts for question in fact.questions]
    derived = (form for _, form in derived_forms(subject, LinkConfig(), person=is_person(facts)))
    names = [subject, *aliases_by_subject(facts).get(subject, ()), *derived]
    return next((name for name in names if any(name in question for question in questions)), subject)


def unlinked_forms(facts: Sequence[Fact], config: LinkConfig | None = None) -> dict[str, tuple[str, ...]]:
    """The derived forms that several subjects share, and these: a form that could mean either links neither.

    Args:
        facts: any number.
        config: which forms are derived; None for all.
    """
    of_subject = _by_subject(facts)
    named, derived = _names(of_subject, config or LinkConfig())
    return {
        next(iter(by_subject.values()))[1]: tuple(by_subject) for letters, by_subject in derived.items()
        if letters not in named and len(by_subject) > 1 and _rules(by_subject) != {"brackets"}
    }  # fmt: skip


def _by_subject(facts: Sequence[Fact]) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.subject:
            found.setdefault(fact.subject, []).append(fact)
    return found


def _names(
    of_subject: dict[str, list[Fact]], config: LinkConfig
) -> tuple[dict[str, dict[str, list[str]]], dict[str, dict[str, tuple[str, str]]]]:
    """By folded letters and subject: how names and aliases are written; and rule and writing of derived forms."""
    named: dict[str, dict[str, list[str]]] = {}
    derived: dict[str, dict[str, tuple[str, str]]] = {}
    for subject, facts in of_subject.items():
        person = is_person(facts)
        for name in dict.fromkeys((subject, *aliases_by_subject(facts).get(subject, ()))):
            named.setdefault(folded(name), {}).setdefault(subject, []).append(name)
            for rule, form in derived_forms(name, config, person=person):
                derived.setdefault(folded(form), {})[subject] = rule, form
    return named, derived


def _rules(by_subject: dict[str, tuple[str, str]]) -> set[str]:
    return {rule for rule, _ in by_subject.values()}


def _known_names(of_subject: dict[str, list[Fact]], config: LinkConfig) -> dict[str, _Known]:
    """What folded letters stand for: names and aliases first, derived forms where nothing else has their letters."""
    named, derived = _names(of_subject, config)
    known = {
        letters: _Known(tuple((subject, _nfc(name)) for subject, names in subjects.items() for name in names), "")
        for letters, subjects in named.items()
    }
    for letters, by_subject in derived.items():
        rules = _rules(by_subject)
        # Names that differ in a qualifier alone are offered together; any other form that two share means neither.
        if letters not in known and (len(by_subject) == 1 or rules == {"brackets"}):
            forms = tuple((subject, _nfc(form)) for subject, (_, form) in by_subject.items())
            known[letters] = _Known(forms, rules.pop())
    return {letters: each for letters, each in known.items() if len(letters) > 1}


def common_words(facts: Sequence[Fact]) -> frozenset[str]:
    """Function words, the words in lower case of these facts' wordings, and those that begin the wordings of several.

    Words of their subjects do not count: "Name Veloria's capital." shows that "name" is common.
    """
    found, begins = set[str](), defaultdict[str, set[str]](set)
    for fact in facts:
        for question in fact.questions:
            words = _WORD.findall(question.replace(fact.subject, " "))
            found.update(folded(word) for word in words if word.islower())
            if words and question.lstrip().startswith(words[0]):
                begins[folded(words[0])].add(fact.subject)
    return FUNCTION_WORDS | found | {word for word, subjects in begins.items() if len(subjects) > 1}


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _read(text: str, foreign: ForeignWords) -> _Read:
    words = _words(text)
    small = accumulate(text[word.start].islower() and not _clipped(text, word) for word in words)
    return _Read(text, words, [0, *small], text.islower(), foreign)


def _words(text: str) -> list[_Word]:
    return [_Word(*found.span(), folded(found.group())) for found in _WORD.finditer(text)]


def _runs(read: _Read, longest: int) -> Iterator[tuple[int, int, str, bool]]:
    """The runs of words that a name may be, the longest first.

    Of each the first word, the one behind the last, their letters, and whether it goes across the end of a sentence.
    """
    text, words = read.text, read.words
    parts = [0]  # of the text: which one each word is in
    for one, other in zip(words, words[1:], strict=False):
        gap = text[one.end : other.start]
        apart = _APART.search(gap) is not None or (gap.startswith(". ") and len(one.letters) > _SHORT)
        parts.append(parts[-1] + apart)
    letters = "".join(word.letters for word in words)
    ends = [0, *accumulate(len(word.letters) for word in words)]
    for size in range(min(len(words), longest), 0, -1):
        for first in range(len(words) - size + 1):
            apart = parts[first] != parts[first + size - 1]
            yield first, first + size, letters[ends[first] : ends[first + size]], apart


def _is_written(read: _Read, first: int, behind: int, known: _Known) -> bool:
    """Whether a name is written with the punctuation of a run of words: "Yahoo! Briefcase"."""
    spelled = read.spelled(first, behind).casefold()
    return any(spelled in each.casefold() for each in known.spellings)


def _as_spelled(text: str, start: int, end: int, known: _Known) -> tuple[int, int, tuple[str, ...]]:
    """Where a mention lies with the punctuation that its name begins or ends with, and whose it is.

    Of two names with the same letters ("Pandemonium!" and "Pandemonium") it is the one that is written as in the text.
    """
    found: dict[tuple[int, int], dict[str, None]] = {}
    for subject, spelling in known.written:
        at = text.find(spelling, max(0, start - len(spelling)), end + len(spelling))
        if 0 <= at <= start and end <= at + len(spelling):
            found.setdefault((at, at + len(spelling)), {})[subject] = None
    if not found:
        return start, end, known.subjects
    place = max(found, key=lambda place: place[1] - place[0])
    return *place, tuple(found[place])


def _numerals(words: Sequence[_Word]) -> list[str]:
    """The Roman numerals among some words."""
    return [word.letters for word in words if _ROMAN.fullmatch(word.letters)]


def _is_joined(read: _Read, first: int, behind: int) -> bool:
    """Whether a part of a name is joined with what is beside it: "Street & Smith", "von Weber", "James van Hoften".

    In another language only with a name: "der Geburtsort von Weber", "Was ist Weber von Beruf?".
    """
    text, words = read.text, read.words
    before = _joiner_before(read, first)
    after = _JOINED_BEHIND.match(text, words[behind - 1].end)
    if not read.foreign or "&" in (before, after and after[1]):
        return before is not None or after is not None
    while first and _joiner_before(read, first):
        first -= 1
    beside = [first - 1] * (before is not None) + [behind + 1] * (after is not None)
    return any(0 <= i < len(words) and text[words[i].start].isupper() and not read.is_foreign(i) for i in beside)


def _joiner_before(read: _Read, word: int) -> str | None:
    """What joins a word with what is before it; None where nothing does."""
    start = read.words[word].start
    found = _JOINED_BEFORE.search(read.text, max(0, start - _REACH), start)
    return found[1] if found else None


def _clipped(text: str, word: _Word) -> bool:
    """Whether a word is what stands behind an apostrophe: the "d" of "I'd"."""
    return word.start > 1 and text[word.start - 1] in "'’" and text[word.start - 2].isalnum()


def _goes_on(read: _Read, behind: int) -> bool:
    """Whether the word right after a run begins with a capital or a digit: the run is part of a longer name.

    Or one of those that hyphens join with it: "Stratford-upon-Avon".
    """
    if read.gap(behind - 1) == " ":
        return _begins_name(read, behind)
    for after in range(behind, behind + _MOST_JOINED):
        if read.gap(after - 1) not in _JOINS:
            return False
        if _begins_name(read, after):
            return True
    return False


def _begins_name(read: _Read, word: int) -> bool:
    first = read.text[read.words[word].start]
    return (first.isupper() and not read.is_foreign(word)) or first.isdigit()
