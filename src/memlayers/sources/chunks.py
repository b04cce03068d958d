"""A document cut into chunks for a writer: at paragraphs and headings, with the headings that stand above each."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from memlayers.data.facts import Source
from memlayers.sources.documents import Document
from memlayers.sources.lines import lines_of

MOST_CHARACTERS: Final = 2000
"""Of a chunk: about 400 tokens of English."""
LEAST_CHARACTERS: Final = 600
"""Of a chunk that ends before a heading."""

_BLANK: Final = re.compile(r"\s*")
_ROW: Final = re.compile(r"^\|.*$", re.MULTILINE)
_SENTENCE: Final = re.compile(r"[.!?…。！？][\"”’)]*\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document that a writer reads at once.

    Attributes:
        document: the whole of it.
        start: in its text, in characters.
        end: exclusive.
        headings: that stand above its first line, the document's title first; of the rest of a table its first line.
    """

    document: Document
    start: int
    end: int
    headings: tuple[str, ...]

    @property
    def text(self) -> str:
        """What it says."""
        return self.document.text[self.start : self.end]

    @property
    def source(self) -> Source:
        """Where it stands."""
        return self.document.source(self.start, self.end)


def chunks_of(document: Document, most: int = MOST_CHARACTERS, least: int = LEAST_CHARACTERS) -> list[Chunk]:
    """Cuts a document into chunks that do not overlap; only blank space is left between them.

    Where a chunk ends depends on what stands there (a heading, or one paragraph in three, by its checksum) more than on
    what came before: a paragraph put in changes the chunks about it, and the others stay as they were.

    Args:
        document: its text may be of any length, also empty.
        most: characters of a chunk.
        least: characters that a chunk has before it ends at a heading or such a paragraph.
    """
    chunks: list[Chunk] = []
    for block, within in _blocks(document):
        inviting = within != block.headings or zlib.crc32(block.text.encode()) % 3 == 0
        for part in _parts(block, within, most):
            last = chunks[-1] if chunks else None
            if last is None or part.end - last.start > most or (inviting and last.end - last.start >= least):
                chunks.append(part)
            else:
                chunks[-1] = Chunk(document, last.start, part.end, last.headings)
            inviting = False
    return chunks


def _blocks(document: Document) -> Iterator[tuple[Chunk, tuple[str, ...]]]:
    """Each paragraph, begun by the headings right above it, and all headings that it stands under."""
    stack: list[tuple[int, str]] = []  # (level, heading) above the line
    above: tuple[str, ...] = ()
    start, end, filled = None, 0, False  # of the block that is being gathered
    for line in lines_of(document.text):
        is_heading = line.kind == "heading"
        if start is not None and filled and (is_heading or line.kind == "blank"):
            yield Chunk(document, start, end, above), tuple(heading for _, heading in stack)
            start, filled = None, False
        if line.kind == "blank":
            continue
        if is_heading:
            stack = [each for each in stack if each[0] < line.level]
        if start is None:  # with the line's marks and indent
            start = document.text.rfind("\n", 0, line.start) + 1
            above = tuple(heading for _, heading in stack)
        if is_heading:
            stack.append((line.level, document.text[line.start : line.end]))
        filled, end = filled or line.kind not in ("heading", "markup"), line.end
    if start is not None:
        yield Chunk(document, start, end, above), tuple(heading for _, heading in stack)


def _parts(block: Chunk, within: tuple[str, ...], most: int) -> Iterator[Chunk]:
    """A block in parts of at most `most` characters: at lines' ends, else at sentences', else at words'."""
    text, start, above = block.document.text, block.start, block.headings
    row = _ROW.search(text, start, block.end)
    while block.end - start > most:
        piece = text[start : start + most]
        ends = (
            piece.rfind("\n") + 1,
            max((found.end() for found in _SENTENCE.finditer(piece)), default=0),
            max(piece.rfind(" "), piece.rfind("\n")) + 1,
        )
        cut = next((each for each in ends if each > most // 2), most)
        yield Chunk(block.document, start, start + len(piece[:cut].rstrip()), above)
        blank = _BLANK.match(text, start + cut)
        start, above = blank.end() if blank else start + cut, within
        if row is not None and text[start] == "|":  # a table's rows mean nothing without its first
            above = (*within, row[0])
    if start < block.end:
        yield Chunk(block.document, start, block.end, above)
