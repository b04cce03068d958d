"""Finds where a name stands in a tokenized text: its mention span."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def whole_word(name: str) -> str:
    """A regular expression that matches the name, but not within a word."""
    return rf"(?<!\w){re.escape(name)}(?!\w)"


def mention_span(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], name: str, question: str = ""
) -> tuple[int, int] | None:
    """The mention span of a name: start and end, exclusive, of the fewest tokens whose text holds it.

    Of several mentions the first that is a word of its own counts, or else the first; within the question, where the
    text holds that (a chat template has words of its own).

    Args:
        tokenizer: the backbone's.
        ids: token ids of the text.
        name: what is looked for.
        question: the part of the text to prefer.

    Returns:
        The span; None where the text does not hold the name.
    """

    def text_of(start: int, end: int) -> str:
        return str(tokenizer.decode(list(ids[start:end])))

    text = text_of(0, len(ids))
    begins = max(0, text.rfind(question))
    places = [found.start() for found in re.finditer(re.escape(name), text)]
    whole = {found.start() for found in re.finditer(whole_word(name), text)}
    if not places:
        return None
    place = min(places, key=lambda start: (start < begins, start not in whole, start))
    before = places.index(place)
    end = _first(len(ids), lambda e: text_of(0, e).count(name) > before)
    return end - _first(end, lambda n: name in text_of(end - n, end)), end


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The least number from 1 to `most` for which `holds`; it holds for `most`, and from the least on."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
