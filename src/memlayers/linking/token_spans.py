"""Where a name stands in a tokenized text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _whole(name: str) -> str:
    """A pattern of the name, but for places within a word."""
    return rf"(?<!\w){re.escape(name)}(?!\w)"


def name_span(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], name: str, question: str = ""
) -> tuple[int, int] | None:
    """Start and end, exclusive, of the shortest run of tokens whose text holds the name; None where none does.

    Of several places the first one that is a word of its own, or else the first, counts; within the question, where the
    text holds that (a chat template has words of its own).
    """

    def held(start: int, end: int) -> str:
        return str(tokenizer.decode(list(ids[start:end])))

    text = held(0, len(ids))
    begins = max(0, text.rfind(question))
    places = [found.start() for found in re.finditer(re.escape(name), text)]
    whole = {found.start() for found in re.finditer(_whole(name), text)}
    if not places:
        return None
    place = min(places, key=lambda start: (start < begins, start not in whole, start))
    before = places.index(place)
    end = _first(len(ids), lambda e: held(0, e).count(name) > before)
    return end - _first(end, lambda n: name in held(end - n, end)), end


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The least number from 1 to `most` for which `holds`; it holds for `most`, and from the least on."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
