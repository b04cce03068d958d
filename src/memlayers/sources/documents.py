"""Documents as text: what is read of a file, and on which page each character stands."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from memlayers.data.facts import Source


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
