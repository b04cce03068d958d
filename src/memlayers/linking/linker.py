"""Finds the stored subjects that a text mentions: by name, alias or derived form, in any spelling, or misspelt.

Case, accents, width, punctuation and spaces do not count (`folding.folded`). What may be part of a longer name is no
mention, nor is an ordinary word in lower case that is somebody's name: "will" is not "Will"; nor are common words whose
capital, as the first of a sentence, tells nothing. Of names with the same letters the one that is written is meant.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from memlayers.data.facts import Fact, aliases_by_subject, composed, folded
from memlayers.linking.answer_index import AnswerIndex, AnswerMention
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
_NAMES_ALONE: Final = LinkConfig(
    last_name=False, article=False, brackets=False, company=False, acronym=False, misspellings=False
)
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


class _Form(NamedTuple):
    """One way to write a subject's name.

    Attributes:
        subject: whose name it is.
        spelling: how it is written (in Unicode form NFC).
        rule: by which it is derived; "" for a name or an alias.
    """

    subject: str
    spelling: str
    rule: str


class _Known(NamedTuple):
    """What folded letters stand for.

    Attributes:
        forms: at least one; all of them names or aliases, or all derived by the same rule.
    """

    forms: tuple[_Form, ...]

    @property
    def rule(self) -> str:
        """By which the forms are derived; "" for names and aliases."""
        return self.forms[0].rule

    @property
    def subjects(self) -> tuple[str, ...]:
        """Whose name they are."""
        return tuple(dict.fromkeys(form.subject for form in self.forms))

    @property
    def spellings(self) -> tuple[str, ...]:
        """How it is written."""
        return tuple(form.spelling for form in self.forms)


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
        self._facts: list[Fact] = []
        self._of_subject: dict[str, list[Fact]] = {}
        self._forms: dict[str, tuple[_Form, ...]] = {}  # by their letters, in the order of the subjects
        self._sizes: Counter[int] = Counter()  # how many names and aliases have so many words
        self._misspellings = Misspellings()
        self._answers: AnswerIndex | None = None  # made when it is first asked for
        self._take(facts)

    def updated(self, facts: Sequence[Fact]) -> NameLinker:
        """The linker of other facts, as if it were made anew; this one stays as it is.

        What they have in common is shared, and the work is that of the subjects that differ: after an edit of 100,000
        facts a fraction of a second.

        Args:
            facts: that are stored now.
        """
        other = copy.copy(self)
        other._take(facts)
        return other

    def _take(self, facts: Sequence[Fact]) -> None:
        """Puts what these facts name in place of what was there. Tables are replaced: other linkers may share them."""
        differ = _subjects_that_differ(self._facts, facts)
        before, now = self._of_subject, dict.fromkeys(fact.subject for fact in facts if fact.subject)
        changed = _by_subject(fact for fact in facts if fact.subject in differ)
        found: dict[str, list[_Form]] = {}
        for subject in differ:
            for letters in _forms_of(subject, before.get(subject, ()), self.config):
                found.setdefault(letters, [])
        for subject, own in changed.items():
            for letters, forms in _forms_of(subject, own, self.config).items():
                found.setdefault(letters, []).extend(forms)
        places = {subject: place for place, subject in enumerate(now)}
        table, sizes = self._forms.copy(), self._sizes.copy()
        gone, new = dict[str, None](), dict[str, None]()  # letters of names
        for letters, forms in found.items():
            if len(letters) < 2:
                continue
            old = table.pop(letters, ())
            forms += (form for form in old if form.subject not in differ)
            if forms:
                table[letters] = tuple(sorted(forms, key=lambda form: places[form.subject]))
            for side, names, one in ((old, gone, -1), (forms, new, 1)):
                for form in side:
                    if not form.rule:
                        names[letters] = None
                        sizes[len(_WORD.findall(form.spelling))] += one
        self._facts, self._answers = list(facts), None
        self._of_subject = {subject: changed.get(subject) or before[subject] for subject in now}
        self._forms, self._sizes = table, +sizes
        self._longest = max(self._sizes, default=0)  # no derived form has more words than what it is derived from
        ordered = chain.from_iterable(self._of_subject.values())
        self._common = common_words([*islice(ordered, _MOST_FACTS_FOR_WORDS)])
        if self.config.misspellings:
            self._misspellings = self._misspellings.updated(gone, new)

    def _known(self, letters: str) -> _Known | None:
        """What folded letters stand for; None for nothing, or nothing certain."""
        forms = self._forms.get(letters)
        return None if forms is None else _meant_by(forms)

    def answers_in(self, text: str) -> list[AnswerMention]:
        """The stored answers that a text names (in Unicode form NFC, as are the places), in their order."""
        if self._answers is None:
            self._answers = AnswerIndex(fact for own in self._of_subject.values() for fact in own)
        return self._answers.mentions(
            composed(text), lambda named, text: NameLinker(named, _NAMES_ALONE, self._ordinary).mentions(text)
        )

    def facts_about(self, subject: str) -> Sequence[Fact]:
        """The stored facts about a subject, in order."""
        return self._of_subject.get(subject, ())

    def mentions(self, text: str) -> list[Mention]:
        """The mentions in a text (in Unicode form NFC, as are the places), in their order, none within another."""
        read = _read(composed(text), ForeignWords(text if self.config.languages else ""))
        text, words = read.text, read.words
        taken = bytearray(len(words))  # whether each word is part of a name that was found
        found: list[Mention] = []
        nouns: list[Mention] = []  # of names that are words of the text's language
        met: list[tuple[int, int]] = []  # places of names that are not meant
        for first, behind, letters, apart in _runs(read, self._longest + 1):
            known = self._known(letters)
            owns = known is None and read.foreign.genitive and letters.endswith("s")  # "Kylotonns Gründer"
            known = self._known(letters[:-1]) if owns else known
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
                if all(_numerals(_words(form.spelling)) != numerals for form in self._forms[name] if not form.rule):
                    continue  # "Henry VI" is not "Henry VII"
                better = edits, behind - first, first
                near[name] = min(near.get(name, better), better)
        meant, subjects = list[tuple[int, int, int]](), set[tuple[str, ...]]()
        for name, each in near.items():
            known = self._known(name)
            if known is not None and self._is_meant(read, each[2], each[2] + each[1], known, misspelt=True):
                meant.append(each)
                subjects.add(known.subjects)
        if len(subjects) != 1 or len(only := next(iter(subjects))) != 1:
            return []
        _, size, first = min(meant)
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
    found: dict[str, list[_Form]] = {}
    for subject, own in _by_subject(facts).items():
        for letters, forms in _forms_of(subject, own, config or LinkConfig()).items():
            found.setdefault(letters, []).extend(forms)
    return {
        forms[0].spelling: tuple(form.subject for form in forms) for forms in found.values() if _meant_by(forms) is None
    }


def _subjects_that_differ(before: Sequence[Fact], now: Sequence[Fact]) -> dict[str, None]:
    """The subjects whose facts are others now; of the facts that stay, the very objects, the order stays too."""
    stay = set(map(id, before)) & set(map(id, now))
    if [fact for fact in before if id(fact) in stay] == [fact for fact in now if id(fact) in stay]:
        return dict.fromkeys(fact.subject for fact in (*before, *now) if id(fact) not in stay)
    return dict.fromkeys(fact.subject for fact in (*before, *now))


def _by_subject(facts: Iterable[Fact]) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.subject:
            found.setdefault(fact.subject, []).append(fact)
    return found


def _forms_of(subject: str, facts: Sequence[Fact], config: LinkConfig) -> dict[str, list[_Form]]:
    """By their folded letters the names and aliases of a subject; and the forms derived from them that are none."""
    if not facts:
        return {}
    names: dict[str, list[_Form]] = {}
    derived: dict[str, list[_Form]] = {}
    person = is_person(facts)
    for name in dict.fromkeys((subject, *aliases_by_subject(facts).get(subject, ()))):
        names.setdefault(folded(name), []).append(_Form(subject, composed(name), ""))
        for rule, form in derived_forms(name, config, person=person):
            derived[folded(form)] = [_Form(subject, composed(form), rule)]
    return derived | names


def _meant_by(forms: Sequence[_Form]) -> _Known | None:
    """What folded letters stand for that these forms, at least one, have; None where that is not certain.

    Names and aliases come first. Names that differ in a qualifier alone are offered together; any other derived form
    that two subjects share means neither.
    """
    names = tuple(form for form in forms if not form.rule)
    if names or len(forms) == 1 or {form.rule for form in forms} == {"brackets"}:
        return _Known(names or tuple(forms))
    return None


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
    for subject, spelling, _ in known.forms:
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
