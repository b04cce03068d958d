"""Whom a document, and each of its sections, is about: a name in its title or heading, told from ordinary words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from memlayers.sources.lexicon import (
    DOCUMENT_WORDS,
    GENERAL_HEADINGS,
    LEGAL_FORM,
    ORGANISATION,
    ORGANISED_WORDS,
    is_relational,
)
from memlayers.sources.outline import Passage, Section, without_marks

_MOST_WORDS: Final = 6
_BESIDE: Final = 3  # sections before and after one that are compared with it
_SMALL_WORDS: Final = frozenset(
    "a an and at by da de del der di du for in la le of on or the to van von with &".split()
)
_TITLE_ENDS: Final = re.compile(rf"(?:^|[\s:,–—|-]+)(?:the\s+)?{DOCUMENT_WORDS}\s*$", re.IGNORECASE)
_TITLE_STARTS: Final = re.compile(
    rf"^(?:the\s+)?(?:{DOCUMENT_WORDS}\s*(?:of|for|to|about|[:–—|-])|about|welcome to|meet|introducing)\s+(?:the\s+)?",
    re.IGNORECASE,
)
_PARTS: Final = re.compile(  # an article on a part of what is known of a subject
    r"^(?:geography|economy|demographics|climate|politics|government|transport(?:ation)?|(?:tele)?communications) "
    r"(?:of|in) (?:the )?",
    re.IGNORECASE,
)
_ABSTRACT: Final = re.compile(r"\A\w+(?:ity|tion|sion|ment|ness|ing|ance|ence|ics|logy|ism|ies)\Z")
_NUMBER: Final = re.compile(r"^(?:(?:Section|Chapter|Part|Article) )?\d{1,2}(?:\.\d{1,2})*[.):]?\s+(?=\D)")
_NO_NAME: Final = re.compile(
    r"(?:how|what|why|when|where|who|which|is|are|do|does|can|should|if|using|getting|making|working|we|you|your|our|"
    r"my|i|it|this|that|these|those|he|she|they|there|here|every|each|all|some|any|no|not|in|on|at|for|from|to|with|by|"
    r"and|but|or|as|after|before|since|during|while|because|one|two|three|four|five|six|seven|eight|nine|ten|most|many|"
    r"history|list|outline|timeline|culture|index|music|battle|treaty|"
    r"both|another|other|such|note|today|step|phase|part|chapter|section|appendix|figure|table|day|week|month|year)\b",
    re.IGNORECASE,
)
_RELATIVE: Final = ("company", "firm", "organisation", "organization", "business", "team", "staff", "employer")


class Subjects:
    """Whom a document is about, and its sections.

    Attributes:
        document: the name in its title, or the one that was given; "" where neither is one.
        organised: whether it describes an organisation, so that "the office" is the office of it.
    """

    def __init__(self, text: str, passages: Sequence[Passage], given: str = "") -> None:
        """Reads them.

        Args:
            text: of the document.
            passages: of it, from `outline`.
            given: whom it is about; "" where its title says it.
        """
        self._text = text
        self._lower = set(re.findall(r"(?<![\w@./-])[a-zà-ÿ][\w'’-]*(?![\w@/]|[.-]\w)", text))
        self._sections = list(dict.fromkeys(each.section for each in passages))
        self._named: dict[str, bool] = {}
        title = self._title = next((each.path[-1].heading for each in self._sections if each.level), "")
        self._within = set(re.findall(r"(?<=[a-z,;] )[A-Z0-9À-Þ][\w'’&-]*", text))  # not where a sentence begins
        self._entities: dict[Section, bool] = {}
        self.document = given or self._in_title(title)
        kinds = "|".join(ORGANISATION)
        self.organised = bool(self.document) and bool(
            given
            or LEGAL_FORM.search(title)
            or ORGANISED_WORDS.search(title)
            or re.search(rf"\b{re.escape(self.document)}\b[^.]{{0,40}}? is an? [^.]{{0,60}}?\b(?:{kinds})\b", text)
        )
        self._records = self._sections_with_shared_keys(passages)
        self._sentence_case = self._headings_in_sentence_case()

    def of(self, section: Section) -> str:
        """Whom a section is about: the nearest heading that is a name, or whom the document is about; "" for nobody."""
        for each in section.path:
            if self._is_entity(each):
                return bare_heading(each.heading)
        return self.document

    def names_subject(self, section: Section) -> bool:
        """Whether a section's own heading is the name of its subject, or the document's title."""
        return not section.level or self._is_entity(section) or self.is_title(section)

    def is_title(self, section: Section) -> bool:
        """Whether a section's heading is the document's title."""
        return section.heading == self._title and section.path[-1] is section

    def is_name(self, phrase: str) -> bool:
        """Whether a phrase is a name, though it begins a sentence: its words are not used as ordinary ones."""
        if phrase not in self._named:
            self._named[phrase] = self._reads_as_name(phrase)
        return self._named[phrase]

    # Reading

    def _in_title(self, title: str) -> str:
        """The name that a title holds: "Brindle & Oake" in "Brindle & Oake Ltd. Staff Handbook"."""
        name = _PARTS.sub("", bare_heading(title))
        for _ in range(3):
            name = _TITLE_STARTS.sub("", _TITLE_ENDS.sub("", name)).strip(" :,–—|-")
        if " - " in name or " | " in name or " – " in name:
            name = re.split(r" [-|–] ", name)[0]
        if not name or name.casefold() in GENERAL_HEADINGS or _NO_NAME.match(name) or len(name.split()) > _MOST_WORDS:
            return ""
        if " in " in name:  # of a part of what a place has
            return ""
        short = LEGAL_FORM.sub("", name).strip(" ,")
        body = self._text.replace(title, " ", 1)
        if short != name and re.search(rf"\b{re.escape(short)}\b(?!,? (?:Ltd|Inc|Limited))", body):
            name = short
        if name.islower():  # a piece of software, mostly
            return name if " " not in name and body.count(name) > 1 and not is_relational(name) else ""
        if not _capitalised(name) or _TITLE_ENDS.search(name):
            return ""
        ordinary = {word for word in name.casefold().split() if word not in _SMALL_WORDS}
        if re.search(rf"\b{re.escape(name)}\b", body):
            return name if len(ordinary) > 1 or not ordinary <= self._lower else ""
        return (
            ""
            if ordinary <= self._lower or _ABSTRACT.search(name) or (len(ordinary) > 1 and is_relational(name))
            else name
        )

    def _reads_as_name(self, phrase: str) -> bool:
        bare = phrase.removeprefix("The ").removeprefix("the ")
        words = bare.split()
        if not words or _NO_NAME.match(bare) or not _capitalised(bare) or bare.casefold() in GENERAL_HEADINGS:
            return False
        if self.document and bare.casefold() == self.document.casefold():
            return True
        capitalised = [word for word in words if word[:1].isupper() or word[:1].isdigit()]
        if len(capitalised) > 1:
            return bare.lower() not in self._text and not is_relational(bare)
        word = capitalised[0]
        if not any(letter.isalpha() for letter in word):
            return False
        if any(letter.isdigit() for letter in word) or any(letter.isupper() for letter in word[1:]):
            return True
        return word.lower() not in self._lower and word in self._within

    def _is_entity(self, section: Section) -> bool:
        """Whether a section's heading is the name of what it is about."""
        if section not in self._entities:
            self._entities[section] = self._heading_is_name(section)
        return self._entities[section]

    def _heading_is_name(self, section: Section) -> bool:
        heading = bare_heading(section.heading)
        if self.is_title(section) or heading.casefold() in GENERAL_HEADINGS or len(heading.split()) > _MOST_WORDS:
            return False
        if _NO_NAME.match(heading) or not _capitalised(heading) or is_relational(heading):
            return False
        ordinary = heading.lower() in self._text or {heading.lower()} <= self._lower
        if section in self._records and not self.document and not ordinary:
            return True
        if len(heading.split()) > 1 or any(letter.isdigit() for letter in heading):
            numbered = re.search(r"[A-Za-z]+[ -]?\d|\d[A-Za-z]", heading) is not None
            used = heading.split()[0] in self._within and (
                re.search(rf"(?<=[a-z,;] ){re.escape(heading)}\b", self._text) is not None
            )
            shared = section in self._records and self._sentence_case
            return not ordinary and (numbered and section in self._records or used or shared)
        return False

    def _headings_in_sentence_case(self) -> bool:
        """Whether some headings of several words are not written as names are."""
        headings = [bare_heading(each.heading) for each in self._sections if each.level > 1]
        return any(len(each.split()) > 1 and not _capitalised(each) for each in headings)

    def _sections_with_shared_keys(self, passages: Sequence[Passage]) -> set[Section]:
        """The sections whose keys are those of another section beside them: records of several things."""
        keys: dict[Section, set[str]] = {}
        for each in passages:
            if each.kind in ("item", "line", "sentence") and not each.above:
                shown = without_marks(self._text[each.start : each.end])
                found = re.match(r"([^\W_][^:.!?]{0,40}):\s", shown)
                if found:
                    keys.setdefault(each.section, set()).add(found[1].casefold())
        records: set[Section] = set()
        by_place: dict[tuple[int, Section | None], list[Section]] = {}
        for section in keys:
            by_place.setdefault((section.level, section.parent), []).append(section)
        for members in by_place.values():
            for i, section in enumerate(members):
                others = (
                    keys[other] for other in members[max(0, i - _BESIDE) : i + _BESIDE + 1] if other is not section
                )
                if any(len(keys[section] & other) * 2 >= max(len(keys[section]), 2) for other in others):
                    records.add(section)
        return records


def bare_heading(heading: str) -> str:
    """A heading without its number and final marks."""
    return _NUMBER.sub("", heading).strip().rstrip(":.").strip()


def _capitalised(name: str) -> bool:
    """Whether every word but small ones begins with a capital or a digit, or is a mark."""
    words = name.split()
    big = [word.lstrip("(\"“'‘") for word in words if word not in _SMALL_WORDS]
    return bool(big) and all(word[:1].isupper() or not word[:1].isalpha() for word in big)
