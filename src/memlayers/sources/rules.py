"""Claims found in documents by rules, without a model: what is clearly stated, and nothing that would be guessed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from memlayers.data.facts import folded
from memlayers.sources.claims import Claim, Extraction, Kind, LeftOut
from memlayers.sources.documents import Document, read_document
from memlayers.sources.lexicon import GENERAL_HEADINGS, NAMES, is_relational
from memlayers.sources.outline import Passage, outline, without_marks
from memlayers.sources.statements import Context, statements
from memlayers.sources.structures import (
    KEY_HEADERS,
    MOST_WORDS,
    NAME_HEADERS,
    NO_RULE,
    ROLE_HEADERS,
    VALUE_HEADERS,
    Keyed,
    answers_a_clause,
    counted,
    is_no_person,
    is_weak,
    key_fault,
    keyed,
    leads_on,
    noun,
    put,
    relation,
    trimmed,
    value_fault,
)
from memlayers.sources.subjects import Subjects, bare_heading
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath

if TYPE_CHECKING:
    from memlayers.sources.wordings import Wordings

NO_SUBJECT: Final = "no subject: the title is no name; --subject names it"
TOO_LITTLE: Final = "a key that says too little by itself"
_RECORD_KEYS: Final = frozenset(
    ["name", "product", "product name", "company", "company name", "employee", "country", "city", "model", "full name"]
)
_VERB: Final = re.compile(r"\b(?:is|are|was|were|has|have|had|can|will|may|must)\b")
_MOST_TOLD: Final = 12  # words with a capital first and no comma among them; more are a sentence
_MOST_SAID: Final = 6  # words after a colon in a sentence that are a value
_STRONG_LEVEL: Final = 3  # from here on a heading names a field, not a chapter


def from_documents(
    paths: Iterable[StrPath],
    wordings: Wordings | None = None,
    *,
    subject: str = "",
    encoding: str | None = None,
    most_words: int = MOST_WORDS,
) -> Extraction:
    """The facts that documents state, by rules.

    Args:
        paths: of the documents.
        wordings: of the questions; the shipped ones if not given.
        subject: whom a document is about whose title is no name.
        encoding: of texts that are not UTF-8.
        most_words: of an answer; what is longer is left out.

    Returns:
        Facts with their sources, every passage, and of each that became no fact why.

    Raises:
        InputError: no words, or as `read_document`; all documents are read before anything is made of them.
    """
    from memlayers.sources.wordings import worded

    if most_words < 1:
        raise InputError(f"{most_words} words of an answer at most; give at least 1")
    documents = [read_document(path, encoding) for path in paths]
    found = Extraction()
    claims: list[Claim] = []
    for document in documents:
        claimed, rest = claims_in(document, subject, most_words)
        claims += claimed
        found.extend([rest])
    return found.extend([worded(claims, wordings)])


def claims_in(document: Document, subject: str = "", most_words: int = MOST_WORDS) -> tuple[list[Claim], Extraction]:
    """What one document states, and its passages with what was left out of them."""
    return _Reader(document, subject, most_words).read()


class _Reader:
    """Reads one document by rules."""

    def __init__(self, document: Document, subject: str, most_words: int) -> None:
        self._document = document
        self._most_words = most_words
        self._passages = outline(document.text)
        self._subjects = Subjects(document.text, self._passages, subject)
        self._raw = [document.text[each.start : each.end] for each in self._passages]
        self._shown = [without_marks(each) for each in self._raw]
        self._named = Counter(folded(noun(found.key)) for each in self._raw if (found := keyed(each)))
        self._named.update(
            {folded(noun(bare_heading(each.heading))): 1 for each in {p.section for p in self._passages}}
        )
        self._in_section = Counter(each.section for each in self._passages)
        self._parents = {each.parent for passage in self._passages for each in passage.section.path}
        self._record: tuple[int, str] = (-1, "")  # the paragraph that begins with a name, and that name

        self._lead: tuple[int, str] = (-1, "")  # the paragraph whose first line says what the others are, and what

    def read(self) -> tuple[list[Claim], Extraction]:
        claims: list[Claim] = []
        rest = Extraction()
        for i, passage in enumerate(self._passages):
            source = self._document.source(passage.start, passage.end)
            rest.passages.append(source)
            made: list[Claim] = []
            why = NO_RULE
            for name, what, value, kind in self._said(i):
                fault = "" if not what and value else value_fault(value, self._most_words)
                if not what:
                    why = value or why
                elif fault:
                    why = fault
                elif not name:
                    why = NO_SUBJECT
                elif value not in source.evidence:
                    why = "a value with marks within"
                elif folded(name) == folded(value):
                    why = "the value is the subject's own name"
                else:
                    made.append(Claim(name, what, value, source, kind))
            claims += made
            if not made:
                rest.left_out.append(LeftOut(source, why))
        return claims, rest

    def _said(self, i: int) -> Iterator[tuple[str, str, str, Kind | None]]:
        """(subject, relation, value, kind) of a passage; without a relation, the value says why there is none."""
        passage, shown = self._passages[i], self._shown[i]
        if passage.kind == "code":
            yield "", "", "code", None
        elif passage.kind == "cell":
            yield self._cell(i)
        elif passage.kind == "definition":
            yield self._definition(i)
        elif (found := keyed(self._raw[i])) and self._is_keyed(i, found):
            yield self._key(i, without_marks(found.key), trimmed(without_marks(found.value)))
        elif self._is_alone(i):
            yield self._beneath_heading(i)
        else:
            context = self._context(i)
            for each in statements(shown, context):
                if each.subject or context.about:
                    yield each.subject or context.about, each.relation, each.value, each.kind

    def _key(self, i: int, key: str, value: str, heading: str | None = None) -> tuple[str, str, str, Kind | None]:
        """Of "key: value": about the nearest name above it; `heading` is the field it is of, if not the one above."""
        passage = self._passages[i]
        if fault := key_fault(key):
            return "", "", fault, None
        name = self._subjects.of(passage.section)
        if key.casefold() in _RECORD_KEYS and not passage.above and self._begins_record(i):
            self._record = (passage.paragraph, value)
            return "", "", "names what the lines after it are about", None
        if self._record[0] == passage.paragraph and not passage.above:
            return self._record[1], self._noun_alone(key), value, None
        parents = tuple(self._heading_of(each) for each in passage.above) if passage.kind == "item" else ()
        alone = self._named[folded(noun(key))] < 2 and passage.section.level < _STRONG_LEVEL
        above = self._field(passage) if heading is None else heading
        if passage.section.level < _STRONG_LEVEL and " " in key and not is_weak(key) and not is_relational(above):
            above = ""  # a chapter of several things
        what = relation(key, parents, above, alone=alone)
        if lead := leads_on(value):
            self._lead = (passage.paragraph, lead)
            return "", "", "says what the lines after it are", None
        if answers_a_clause(key, value) or is_no_person(key, value):
            return "", "", NO_RULE, None
        if what and self._lead[0] == passage.paragraph:
            what = put(what, self._lead[1])
        return (name, counted(what, value), value, None) if what else ("", "", TOO_LITTLE, None)

    def _noun_alone(self, key: str) -> str:
        return "" if is_weak(key) and key.casefold() not in NAMES else noun(key)

    def _begins_record(self, i: int) -> bool:
        """Whether a passage is the first of several keys that stand together."""
        number = self._passages[i].paragraph
        if self._field(self._passages[i]).casefold() not in ("", *GENERAL_HEADINGS):
            return False
        if i and self._passages[i - 1].paragraph == number:
            return False
        following = self._passages[i + 1 : i + 2]
        return bool(following) and following[0].paragraph == number and keyed(self._raw[i + 1]) is not None

    def _field(self, passage: Passage) -> str:
        """The heading above a passage, if it names neither a subject nor the document; "" if it does."""
        heading = bare_heading(passage.section.heading)
        return "" if self._subjects.names_subject(passage.section) or _VERB.search(heading) else heading

    @staticmethod
    def _heading_of(item: str) -> str:
        """What the parts of an item are parts of: its key, or all of it."""
        found = keyed(item)
        return (found.key if found else item).strip().rstrip(":")

    def _is_keyed(self, i: int, found: Keyed) -> bool:
        """Whether a colon parts a key from its value: in a list, beside other keys, or where the key is a relation."""
        passage = self._passages[i]
        if passage.kind == "sentence" and len(found.value.split()) > _MOST_SAID and found.value.endswith((".", "!")):
            return False
        short = len(found.key.split()) <= _MOST_SAID
        if passage.kind == "item" or (short and is_relational(found.key)) or self._raw[i].startswith(("**", "__")):
            return True
        beside = (self._passages[each] for each in (i - 1, i + 1) if 0 <= each < len(self._passages))
        number = passage.paragraph
        return any(each.paragraph == number and keyed(self._text_of(each)) for each in beside) or (
            passage.kind == "line" and self._subjects.names_subject(passage.section)
        )

    def _text_of(self, passage: Passage) -> str:
        return self._document.text[passage.start : passage.end]

    def _is_alone(self, i: int) -> bool:
        """Whether a line is all that stands under its heading."""
        passage = self._passages[i]
        section = passage.section
        return (
            passage.kind in ("line", "item")
            and self._in_section[section] == 1
            and section.level > 1
            and section not in self._parents
            and not self._subjects.names_subject(section)
        )

    def _beneath_heading(self, i: int) -> tuple[str, str, str, Kind | None]:
        passage = self._passages[i]
        key = bare_heading(passage.section.heading)
        if fault := key_fault(key):
            return "", "", fault, None
        if key.casefold() in GENERAL_HEADINGS or _VERB.search(self._shown[i]):
            return "", "", NO_RULE, None
        parent = passage.section.parent
        name = self._subjects.of(parent) if parent else self._subjects.document
        above = parent.heading if parent and is_weak(key) and not self._subjects.names_subject(parent) else ""
        what, value = relation(key, (), above, alone=True), trimmed(self._shown[i])
        told = value[:1].isupper() and len(value.split()) > _MOST_TOLD and not re.search("[,;]", value)
        if told or (name and name in value):  # a sentence, or a picture's caption
            return "", "", NO_RULE, None
        return (name, counted(what, value), value, None) if what else ("", "", TOO_LITTLE, None)

    def _definition(self, i: int) -> tuple[str, str, str, Kind | None]:
        """Of a term and what stands beneath it: a key and its value, or a word and its meaning."""
        passage, value = self._passages[i], trimmed(self._shown[i])
        term = passage.above[0]
        name = self._subjects.of(passage.section)
        if name and (is_relational(term) or len(value.split()) < 4):
            return self._key(i, term, value)
        if key_fault(term) or len(term.split()) > 5 or len(value.split()) < 4:
            return "", "", NO_RULE, None
        return term, "meaning", value, "text"

    def _cell(self, i: int) -> tuple[str, str, str, Kind | None]:
        """Of a table's cell: its row's first cell is the subject, its column's header the relation."""
        passage, value = self._passages[i], trimmed(self._shown[i])
        first, column = passage.first_column.casefold(), passage.column
        row = passage.row
        if not row:
            return "", "", "a row without a name", None
        if (
            passage.width == 2
            and first in KEY_HEADERS
            and (column.casefold() in VALUE_HEADERS or first in ROLE_HEADERS)
        ):
            return self._key(i, row.rstrip(":"), value, heading="" if first in ROLE_HEADERS else None)
        if not column:
            return "", "", "a column without a header", None
        if fault := key_fault(column):
            return "", "", fault, None
        if not (first in NAME_HEADERS and len(row.split()) <= 8) and not self._names_a_row(row):
            return "", "", "a row whose first cell is no name", None
        what = relation(column, (), self._field(passage), alone=True) if is_weak(column) else noun(column)
        return (row, what, value, None) if what else ("", "", TOO_LITTLE, None)

    def _names_a_row(self, row: str) -> bool:
        words = row.split()
        return (
            len(words) <= 8
            and "`" not in row
            and row[:1].isupper()
            and (
                len(words) > 1
                and words[1][:1].isupper()
                or self._subjects.is_name(row)
                or any(c.isdigit() for c in row)
            )
            and not re.search(r"[.:;?!]\s|[<>=]|,\s+[a-z]", row)
            and not is_relational(row)
        )

    def _context(self, i: int) -> Context:
        passage = self._passages[i]
        return Context(
            about=self._subjects.of(passage.section),
            organised=self._subjects.organised,
            certain=self._is_certain(i),
            is_name=self._subjects.is_name,
        )

    def _is_certain(self, i: int) -> bool:
        """Whether no sentence before it in its paragraph begins with another name than the subject's."""
        passage = self._passages[i]
        about = self._subjects.of(passage.section)
        for before in range(i - 1, -1, -1):
            if self._passages[before].paragraph != passage.paragraph:
                break
            shown = self._shown[before]
            found = re.match(r"(?:The )?[A-Z0-9][\w'’&-]*(?: (?:(?:of|de|van|&) )?[A-Z0-9][\w'’&-]*)*", shown)
            if found and not found[0].removeprefix("The ").startswith(about) and self._subjects.is_name(found[0]):
                return False
        return True
