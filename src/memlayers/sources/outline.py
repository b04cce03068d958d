"""What a document is made of: its sections, and in each the sentences, list items, cells and definitions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from memlayers.sources.lines import Line, lines_of

PassageKind = Literal["sentence", "line", "item", "cell", "definition", "code"]

_SENTENCE_END: Final = re.compile(r"[.!?…][\"”’')\]*_]*[ \t]+(?=[\"“‘'(\[*_`]*[^\W_a-z])")
_SHORTENED: Final = re.compile(
    r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Jr|Sr|Rev|Gen|Col|Capt|Lt|Sgt|Gov|Sen|Rep|Ltd|Inc|Co|Corp|Bros|No|Nos|vs|"
    r"approx|est|ca|c|cf|e\.g|i\.e|etc|al|Fig|Vol|pp?|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Ext|ext|Tel|tel)|"
    r"\b(?:[A-Za-z]\.)+[A-Za-z])\Z"
)
_ENDS_NONETHELESS: Final = re.compile(r"(?:Ltd|Inc|Co|Corp|etc|Jr|Sr|Bros)\Z")  # where a new sentence clearly begins
_BEGINS: Final = re.compile(
    r"(?:The|A|An|It|He|She|They|We|You|This|That|These|Those|In|On|At|For|Its|Our|Every|All)\b"
)
_CELL: Final = re.compile(r"(?:\\.|[^|\\])*")
_MARKS: Final = (
    (re.compile(r"!\[[^\[\]]*\]\([^()]*\)"), ""),
    (re.compile(r"\[([^\[\]]*)\]\((?:[^()]|\([^()]*\))*\)"), r"\1"),
    (re.compile(r"<(https?://[^>\s]+|[\w.+-]+@[\w.-]+)>"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^<>]*>"), ""),
    (re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])(.+?)(?<=[^\s*])\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<!\w)_(?=[^\s_])(.+?)(?<=[^\s_])_(?!\w)"), r"\1"),
    (re.compile(r"`([^`]*)`"), r"\1"),
    (re.compile(r"\\([\\`*_{}\[\]()#+.!|<>~-])"), r"\1"),
    (re.compile(r"^(?:>[ \t]?)+"), ""),
    (re.compile(r"^\[[ xX]\] "), ""),
)


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under a heading.

    Attributes:
        heading: without marks; "" of what comes before the first.
        level: of it from 1, 0 before the first.
        parent: the section that it is part of.
    """

    heading: str
    level: int
    parent: Section | None = None

    @property
    def path(self) -> tuple[Section, ...]:
        """It and what it is part of, the innermost first; without what comes before the first heading."""
        found, each = [], self
        while each.level:
            found.append(each)
            if each.parent is None:
                break
            each = each.parent
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Passage:
    """A sentence, a line that is none, a list item, a table's cell, a definition, or code.

    Attributes:
        kind: what it is.
        start: in characters of the document's text.
        end: of it, exclusive.
        section: where it stands.
        paragraph: the number of its paragraph, list or table.
        above: the items that an item belongs to, the outermost first; of a definition the term.
        row: of a cell, the first cell of its row.
        column: of a cell, the header of its column.
        width: of a cell, how many columns its table has.
        first_column: of a cell, the header of the table's first column.
    """

    kind: PassageKind
    start: int
    end: int
    section: Section
    paragraph: int
    above: tuple[str, ...] = ()
    row: str = ""
    column: str = ""
    width: int = 0
    first_column: str = ""


def without_marks(text: str) -> str:
    """Text as it is shown: no emphasis, links or code marks, on one line."""
    for mark, shown in _MARKS:
        text = mark.sub(shown, text)
    return " ".join(text.split())


def outline(text: str) -> list[Passage]:
    """The passages of a document's text, in order; its headings are where they stand."""
    section = Section("", 0)
    found: list[Passage] = []
    lines = lines_of(text)
    number = 0
    items: list[tuple[int, str]] = []  # the open ones: depth, text
    header: list[str] = []
    term = ""
    for i, line in enumerate(lines):
        before = lines[i - 1].kind if i else "blank"
        shown = text[line.start : line.end]
        if line.kind == "heading":
            section = _under(section, without_marks(shown), line.level)
        if line.kind not in ("item", "blank"):
            items = []
        if line.kind != before and not (line.kind == "item" and before == "blank" and items):
            number += 1
        if line.kind == "item":
            while items and items[-1][0] >= line.level:
                items.pop()
            above = tuple(each for _, each in items)
            items.append((line.level, without_marks(shown)))
            parts = list(sentences(text, line.start, line.end))
            for start, end in parts:
                found.append(Passage("item" if len(parts) == 1 else "sentence", start, end, section, number, above))
        elif line.kind == "text":
            parts = list(sentences(text, line.start, line.end))
            for start, end in parts:
                kind: PassageKind = "line" if len(parts) == 1 and text[end - 1] not in ".!?" else "sentence"
                found.append(Passage(kind, start, end, section, number))
        elif line.kind == "term":
            term = without_marks(shown)
        elif line.kind == "definition":
            found.append(Passage("definition", line.start, line.end, section, number, (term,)))
        elif line.kind == "header":
            header = [without_marks(text[start:end]) for start, end in _cells(text, line)]
        elif line.kind == "row":
            found += _row(text, line, header, section, number)
        elif line.kind == "code":
            if before == "code" and found and found[-1].kind == "code":
                found[-1] = Passage("code", found[-1].start, line.end, section, found[-1].paragraph)
            else:
                found.append(Passage("code", line.start, line.end, section, number))
    return found


def _under(section: Section, heading: str, level: int) -> Section:
    parent: Section | None = section
    while parent is not None and parent.level >= level:
        parent = parent.parent
    return Section(heading, level, parent)


def _row(text: str, line: Line, header: list[str], section: Section, number: int) -> Iterator[Passage]:
    """The cells of a row beside its first; a cell beyond the header has no column."""
    cells = list(_cells(text, line))
    name = without_marks(text[slice(*cells[0])]) if cells else ""
    for i, (start, end) in enumerate(cells[1:], 1):
        column = header[i] if i < len(header) else ""
        yield Passage(
            "cell", start, end, section, number, row=name, column=column, width=len(header),
            first_column=header[0] if header else "",
        )  # fmt: skip


def _cells(text: str, line: Line) -> Iterator[tuple[int, int]]:
    """Where the cells of a row stand, without the space around them."""
    shown = text[line.start : line.end]
    at = line.start + (1 if shown.startswith("|") else 0)
    stop = line.end - (1 if shown.endswith("|") and not shown.endswith("\\|") and len(shown) > 1 else 0)
    while at <= stop:
        found = _CELL.match(text, at, stop)
        end = found.end() if found else at
        cell = text[at:end]
        start = at + len(cell) - len(cell.lstrip())
        yield start, max(start, at + len(cell.rstrip()))
        if end < stop and text[end] != "|":  # a lone backslash
            break
        at = end + 1


def sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the sentences between two characters of a text stand; a shortened word ends none, nor does a bracket."""
    at = start
    for cut in _SENTENCE_END.finditer(text, start, end):
        before = text[max(at, cut.start() - 8) : cut.start()]
        if text[cut.start()] == "." and _SHORTENED.search(before):
            if not (_ENDS_NONETHELESS.search(before) and _BEGINS.match(text, cut.end())):
                continue
        said = text[at : cut.start()]
        if said.count("(") > said.count(")") + text[cut.start() : cut.end()].count(")"):
            continue
        yield at, cut.start() + len(cut[0].rstrip())
        at = cut.end()
    if at < end:
        yield at, end
