"""Documents as text: what is read of a file, and on which page each character stands."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from memlayers.data.facts import Source
from memlayers.sources.lines import unwrapped
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath

PLAIN: Final = (".txt", ".text")
MARKDOWN: Final = (".md", ".markdown")
HTML: Final = (".html", ".htm", ".xhtml")
KINDS: Final = (*PLAIN, *MARKDOWN, *HTML, ".pdf", ".docx")
"""The names that documents end in."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document's text.

    Attributes:
        name: of the file, as it was given.
        text: all of it; spans of characters are counted in it.
        page_starts: where each page begins, in characters, ascending; empty where there are no pages.
    """

    name: str
    text: str
    page_starts: tuple[int, ...] = ()

    def source(self, start: int, end: int) -> Source:
        """Where the characters from `start` to `end`, exclusive, stand, with what they say."""
        page = bisect_right(self.page_starts, start) if self.page_starts else None
        return Source(self.name, self.text[start:end], start=start, end=end, page=page)


def read_document(path: StrPath, encoding: str | None = None) -> Document:
    """Reads .txt, .md, .html, .pdf or .docx as text; the same file gives the same text on every machine.

    A sentence that is wrapped over several lines stands on one in the text: a line of it is a heading, a list item, a
    row of a table, or a paragraph. HTML, DOCX become Markdown: `#` headings, `-` items, pipe tables.

    Args:
        path: the file.
        encoding: of a text or an HTML page that is not UTF-8, and does not say what it is.

    Raises:
        InputError: missing, empty, damaged, encrypted, binary, without text, not UTF-8, an unknown kind of file, or one
            whose reader is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in KINDS:
        remedy = "save it as .docx" if suffix in (".doc", ".odt", ".rtf") else f"use {', '.join(KINDS)}"
        raise InputError(f"{path}: unknown kind of document {suffix!r}; {remedy}")
    from memlayers.sources import readers

    data = readers.read_bytes(path)
    pages: tuple[str, ...]
    if suffix == ".pdf":
        pages = tuple(unwrapped(page, plain=True) for page in readers.pdf_pages(path, data))
    elif suffix == ".docx":
        pages = (readers.docx_text(path, data),)
    elif suffix in HTML:
        pages = (readers.html_text(path, readers.decoded(path, data, encoding, readers.declared_encoding(data))),)
    else:
        pages = (unwrapped(readers.decoded(path, data, encoding), plain=suffix in PLAIN),)
    text, starts = "", []
    for page in pages:
        starts.append(len(text))
        text += page if page.endswith("\n") else page + "\n"
    if not text.strip():
        raise InputError(f"{path}: holds no text; give a document with something in it")
    return Document(str(path), text, tuple(starts) if suffix == ".pdf" else ())
