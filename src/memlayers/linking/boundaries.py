"""The boundary flags of a tokenizer's vocabulary: what each token says about a mention beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memlayers.linking.linker import HYPHENS
from memlayers.tuner.boundary_flags import Boundary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
SPACE_MARKS = ("Ġ", "▁", " ")  # how vocabularies write a word's leading space


def vocabulary_flags(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The `Boundary` flags of each token of a vocabulary.

    A mention continues in the rest of its word, and in a word with a capital or a digit. It is a suffix of a longer
    name after the beginning of its word, and after a word with a capital (a year before a name seldom belongs to it).
    A hyphen without spaces joins words, and so does WikiText's " @-@ ".

    Args:
        tokenizer: the backbone's.

    Returns:
        uint8 [v + 1]; the last entry, for no token, has none.
    """
    flags = torch.zeros(len(tokenizer) + 1, dtype=torch.uint8)
    for number in range(len(tokenizer)):
        text = str(tokenizer.decode([number]))
        spaced = str(tokenizer.convert_ids_to_tokens(number) or "")[:1] in SPACE_MARKS
        flags[number] = int(_flags(text, spaced=spaced))
    return flags


def _flags(text: str, *, spaced: bool) -> Boundary:
    """The flags of a token with this text, which has a space before it or not."""
    stripped = text.strip()
    if stripped == "@":
        return Boundary.HYPHEN | Boundary.UPPER
    hyphen = Boundary.HYPHEN if stripped[:1] in HYPHENS and not spaced else Boundary(0)
    if hyphen and len(text) == 1:
        return hyphen
    start = stripped[1:2] if hyphen else stripped[:1]
    if not start.isalnum():
        return Boundary(0)
    kind = Boundary.DIGIT if start.isdigit() else Boundary.CAPITAL if start.isupper() else Boundary(0)
    upper = Boundary.UPPER if text.isupper() else Boundary(0)
    if not spaced and not hyphen:
        return Boundary.WORD_PART | Boundary.CONTINUES | Boundary.PRECEDES | kind | upper
    says = {Boundary.DIGIT: Boundary.CONTINUES, Boundary.CAPITAL: Boundary.CONTINUES | Boundary.PRECEDES}
    return hyphen | upper | (kind | says[kind] if kind else Boundary.LOWERCASE)
