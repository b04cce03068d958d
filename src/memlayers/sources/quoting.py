"""Finding in a text what was quoted from it."""

from __future__ import annotations

import re
from typing import Final

_WORDS: Final = re.compile(r"[^\s*_`]+")
_BETWEEN: Final = r"[\s*_`]+"  # blank space of any kind, and Markdown's marks, which a quotation leaves out
_ALIKE: Final = {
    each: f"[{re.escape(kind)}]" for kind in ("'‘’`´", '"“”„«»', "-‐‑–—−") for each in kind
}  # by which one quotes the other


def find_quoted(
    text: str, quoted: str, start: int = 0, end: int | None = None, *, any_case: bool = False
) -> tuple[int, int] | None:
    """Where a text says some words: the first place, as whole words, from its first character to its last, exclusive.

    Spacing, Markdown's emphasis, and the kind of quotation marks and dashes may differ, and nothing else; a full stop
    at the end of the quotation may be too much.

    Args:
        text: that may say it.
        quoted: the words.
        start: from where to look, in characters.
        end: to where; None to the text's end.
        any_case: whether upper and lower case count as the same.

    Returns:
        None where the text does not say it, or nothing was quoted.
    """
    for words in (quoted, quoted.strip().rstrip(".")):
        pattern = _pattern(words)
        if pattern is None:
            return None
        found = re.compile(pattern, re.IGNORECASE if any_case else 0).search(
            text, start, len(text) if end is None else end
        )
        if found:
            return found.span()
    return None


def says(text: str, words: str) -> bool:
    """Whether a text holds some words, as whole words, in upper or lower case."""
    return find_quoted(text, words, any_case=True) is not None


def _pattern(quoted: str) -> str | None:
    words = _WORDS.findall(quoted)
    if not any(letter.isalnum() for letter in quoted):
        return None
    said = _BETWEEN.join("".join(_ALIKE.get(each, re.escape(each)) for each in word) for word in words)
    return rf"(?<!\w){said}(?!\w)" if words[0][0].isalnum() else rf"{said}(?!\w)"
