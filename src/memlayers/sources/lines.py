"""The lines of a text, plain or Markdown: which is a heading, an item, a row, a paragraph; and wrapped lines joined."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

LineKind = Literal["blank", "heading", "item", "header", "row", "rule", "term", "definition", "text", "code", "markup"]

_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING: Final = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*\Z")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-{2,})[ \t]*\Z")
_BREAK: Final = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*\Z")
_ITEM: Final = re.compile(r"([ \t]*)(?:[-*+•‣▪◦–]|\d{1,3}[.)]|[a-z]\))[ \t]+(?=\S)")
_TABLE_RULE: Final = re.compile(r"[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|)+(?:[ \t]*:?-+:?)?[ \t]*\Z")
_DEFINITION: Final = re.compile(r" {0,3}:[ \t]+(?=\S)")
_NUMBERED: Final = re.compile(r"(?:(?:Section|Chapter|Part|Article)[ ]+)?(\d{1,2}(?:\.\d{1,2})*)[.):]?[ \t]+(?=[A-Z])")
_MARKUP: Final = re.compile(r"[ \t]*(?:<[!/?a-zA-Z]|!\[[^\]]*\]\([^)]*\)[ \t]*\Z|\[!\[|\[[^\]]+\]:[ \t])")
_KEYED: Final = re.compile(r"[ \t]*(?:\*\*|__)?[^\W_][^:.!?|]{0,40}?(?:\*\*|__)?:(?:\*\*|__)?[ \t]+\S")
_ENDS_IN_SHORT: Final = re.compile(r"\b(?:Ltd|Inc|Co|Corp|Jr|Sr|plc)\.\Z")
_MARKED: Final = re.compile(r"^ {0,3}#{1,6}[ \t]+\S|^[^\s>|-][^\n]*\n {0,3}(?:={3,}|-{3,})[ \t]*$", re.MULTILINE)
_MOST_HEADING_WORDS: Final = 8
_LEAST_WIDTH: Final = 50  # characters: what is narrower was not wrapped
_FULL: Final = 0.8  # of the widest line: a line so long, with the next word, was wrapped


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a text.

    Attributes:
        kind: what it is; a table's `header` comes before its `rule`, and a `term` before its `definition`.
        start: of what it says, in characters: after a heading's marks and an item's bullet.
        end: of it, exclusive.
        level: of a heading from 1; of an item its depth in columns; 0 of others.
    """

    kind: LineKind
    start: int
    end: int
    level: int = 0


def lines_of(text: str) -> list[Line]:
    """The lines of a text, each with its kind.

    A text without Markdown's headings has plain ones: a short line that stands alone, or is numbered; the first of
    them is its title.
    """
    raw = list(_raw_lines(text))
    kinds: list[Line] = []
    fence = ""
    marked = has_marked_headings(text)
    front = bool(raw) and text[slice(*raw[0])].rstrip() == "---"
    for i, (start, end) in enumerate(raw):
        line = text[start:end]
        begin = start + len(line) - len(line.lstrip())
        close = start + len(line.rstrip())
        if front:
            kinds.append(Line("markup", begin, close))
            front = i == 0 or line.rstrip() not in ("---", "...")
        elif fence:
            kinds.append(Line("code", start, close))
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif opened := _FENCE.match(line):
            fence = opened[1]
            kinds.append(Line("code", start, close))
        elif not line.strip():
            kinds.append(Line("blank", start, start))
        else:
            kinds.append(_line(text, raw, i, kinds, marked))
            _look_back(text, kinds)
    return kinds


def has_marked_headings(text: str) -> bool:
    """Whether a text has Markdown's headings."""
    return (
        re.search(r"^ {0,3}#{1,6}[ \t]+\S|^[^\s>|-][^\n]*\n {0,3}(?:={3,}|-{3,})[ \t]*$", text, re.MULTILINE)
        is not None
    )


def unwrapped(text: str, *, plain: bool) -> str:
    """A text with every wrapped paragraph and item on one line.

    Args:
        text: with plain line ends.
        plain: whether it is no Markdown: a line break counts there where the line before is not full.
    """
    lines = lines_of(text)
    width = _width(lines) if plain else 0
    parts: list[str] = []
    end = 0  # of what is in `parts`
    for before, line in zip([None, *lines], lines, strict=False):
        if before is not None and _continues(text, before, line, width):
            parts.append(" " + text[line.start : line.end])
        else:
            start = text.rfind("\n", 0, line.start) + 1
            parts.append(text[end:start] if before is not None else text[:start])
            parts.append(text[start : line.end])
        end = text.find("\n", line.end)
        end = len(text) if end < 0 else end
    return "".join(parts) + text[end:]


def _continues(text: str, before: Line, line: Line, width: int) -> bool:
    """Whether a line goes on with the sentence of the line before it."""
    if line.kind != "text" or before.kind not in ("text", "item", "definition"):
        return False
    first, second = text[before.start : before.end], text[line.start : line.end]
    after = text[before.end : text.find("\n", before.end)]
    if after.startswith("  ") or first.endswith("\\") or (_KEYED.match(first) and _KEYED.match(second)):
        return False
    if not width:
        return True
    indent = before.start - text.rfind("\n", 0, before.start) - 1
    full = indent + len(first) + 1 + len(second.split()[0]) > _FULL * width
    return width >= _LEAST_WIDTH and (full or second[0].islower())


def _width(lines: list[Line]) -> int:
    """Of the widest line that another follows, in characters; at least 1."""
    kinds = ("text", "item")
    pairs = zip(lines, lines[1:], strict=False)
    return max((one.end - one.start for one, other in pairs if one.kind in kinds and other.kind == "text"), default=1)


def _raw_lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line in text.split("\n"):
        yield start, start + len(line)
        start += len(line) + 1


def _line(text: str, raw: list[tuple[int, int]], i: int, before: list[Line], marked: bool) -> Line:
    """What a line is that is neither blank nor code, by itself, the lines before it, and the next."""
    start, end = raw[i]
    line = text[start:end]
    begin, close = start + len(line) - len(line.lstrip()), start + len(line.rstrip())
    previous: LineKind = before[-1].kind if before else "blank"
    following = text[slice(*raw[i + 1])] if i + 1 < len(raw) else ""
    if found := _HEADING.match(line):
        return Line("heading", start + found.start(2), start + found.end(2), len(found[1]))
    if previous in ("header", "rule", "row") and "|" in line:
        return Line("rule" if previous == "header" else "row", begin, close)
    if "|" in line and _TABLE_RULE.match(following) and "|" in following:
        return Line("header", begin, close)
    if _BREAK.match(line) or (_UNDERLINE.match(line) and previous == "text"):
        return Line("markup", begin, close)  # `_look_back` makes a heading of what an underline stands under
    if previous == "blank" and line.startswith(("    ", "\t")) and not _in_list(before):
        return Line("code", start, close)
    if _MARKUP.match(line):
        return Line("markup", begin, close)
    if (found := _DEFINITION.match(line)) and previous in ("text", "term", "definition"):
        return Line("definition", start + found.end(), close)
    if not marked and (level := _plain_heading(text, raw, i, before)):
        return Line("heading", begin, close, level)
    if found := _ITEM.match(line):
        return Line("item", start + found.end(), close, len(found[1].expandtabs(4)))
    return Line("text", begin, close)


def _look_back(text: str, lines: list[Line]) -> None:
    """Changes what the line before is by the last one: a heading by its underline, a term by its definition."""
    if len(lines) < 2 or lines[-2].kind != "text":
        return
    above, last = lines[-2], lines[-1]
    alone = len(lines) == 2 or lines[-3].kind != "text"
    shown = text[last.start : last.end]
    if last.kind == "markup" and _UNDERLINE.match(shown) and alone:
        lines[-2] = Line("heading", above.start, above.end, 1 if shown.startswith("=") else 2)
    elif last.kind == "definition":
        lines[-2] = Line("term", above.start, above.end)


def _in_list(before: list[Line]) -> bool:
    """Whether the last line that is not blank belongs to a list."""
    for line in reversed(before):
        if line.kind == "item":
            return True
        if line.kind not in ("blank", "text"):
            return False
    return False


def _plain_heading(text: str, raw: list[tuple[int, int]], i: int, before: list[Line]) -> int:
    """The level of a heading without marks, from 1; 0 where a line is none."""
    line = text[slice(*raw[i])].strip()
    numbered = _NUMBERED.match(line)
    said = line[numbered.end() :] if numbered else line
    first = not any(each.kind != "blank" for each in before)
    if (
        len(said.split()) > _MOST_HEADING_WORDS
        or not (said[:1].isupper() or said[:1].isdigit())
        or not any(letter.isalpha() for letter in said)
        or (said[-1] in ".:;,!?" and not _ENDS_IN_SHORT.search(said))
        or _KEYED.match(said)
        or "|" in said
        or "\t" in said
    ):
        return 0
    following = [text[slice(*each)].strip() for each in raw[i + 1 : i + 3]]
    alone = (not before or before[-1].kind == "blank") and following[:1] in ([""], [])
    if numbered:
        after = next((each for each in following if each), "")
        if not after or _NUMBERED.match(after) and not after.startswith(f"{numbered[1]}."):
            return 0
        return 2 + numbered[1].count(".")
    if not alone or not any(following):
        return 0
    return 1 if first else 2
