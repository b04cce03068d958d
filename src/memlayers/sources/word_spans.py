"""Where answers, names and figures stand in a text, in whole words. Loads no torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from memlayers.data.answers import contains_answer, normalise_answer
from memlayers.data.facts import folded

_WORD: Final = re.compile(r"[^\W_]+")
_FIGURE: Final = re.compile(r"\d[.,:/-]\d")


def holds(text: str, answer: str) -> bool:
    """Whether an answer's words stand in a text, one after the other; see `contains_answer`.

    Beside a letter of a script without capitals, which may have no spaces, a word need not end, nor need an answer
    without letters and digits.
    """
    if contains_answer(text, [answer]):
        return True
    within, said = normalise_answer(text), normalise_answer(answer)
    if not folded(said):
        return said in within
    at = within.find(said)
    while at >= 0:
        end = at + len(said)
        unspaced = not all(map(_has_case, (within[max(0, at - 1) : at], said[0], said[-1], within[end : end + 1])))
        if unspaced and stands_alone(within, at, end):
            return True
        at = within.find(said, at + 1)
    return False


def stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no word or figure goes on at either end of a span: "99 EUR" does not stand alone in "146.99 EUR"."""
    for at in (start, end):
        before, behind = text[max(0, at - 1) : at], text[at : at + 1]
        if not _parted(before, behind) or _FIGURE.search(text, max(0, at - 2), at + 2):
            return False
    return True


def names_subject(text: str, names: Sequence[str]) -> bool:
    """Whether a text has one of these names, in whole words, as the linker folds them.

    A name in a script without capitals may stand within a word.

    Args:
        text: a question.
        names: of the subject, and their forms.
    """
    for name in names:  # most stand there as they are spelled
        at = text.find(name)
        if at >= 0 and not text[at - 1 : at].isalnum() and not text[at + len(name) : at + len(name) + 1].isalnum():
            return True
    words = [folded(word) for word in _WORD.findall(unicodedata.normalize("NFC", text))]
    letters = "".join(words)
    edges = {0, *accumulate(map(len, words))}
    for name in map(folded, names):
        at = letters.find(name) if name else -1
        while at >= 0:
            end = at + len(name)
            begins = at in edges or _parted(letters[at - 1], name[0])
            if begins and (end in edges or _parted(name[-1], letters[end])):
                return True
            at = letters.find(name, at + 1)
    return False


def _parted(one: str, other: str) -> bool:
    """Whether a word may end between two characters: one is no letter and no digit, or of a script without capitals."""
    return not (one.isalnum() and other.isalnum()) or not (_has_case(one) and _has_case(other))


def _has_case(letter: str) -> bool:
    """Whether a character is of a script with capitals, or no letter."""
    return not letter.isalpha() or letter.lower() != letter.upper()
