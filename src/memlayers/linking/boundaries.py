"""The boundary flags of a tokenizer's vocabulary: what each token says about a mention beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memlayers.tuner.boundary_flags import Boundary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
SPACE_MARKS = ("Ġ", "▁", " ")  # how vocabularies write a word's leading space


def vocabulary_flags(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The `Boundary` flags of each token of a vocabulary.

    A mention continues in the rest of its word, and in a word with a capital or a digit. It is a suffix of a longer
    name after the beginning of its word, and after a word with a capital (a year before a name seldom belongs to it).

    Args:
        tokenizer: the backbone's.

    Returns:
        uint8 [v + 1]; the last entry, for no token, has none.
    """
    flags = torch.zeros(len(tokenizer) + 1, dtype=torch.uint8)
    for number in range(len(tokenizer)):
        text = str(tokenizer.decode([number]))
        start = text.lstrip()[:1]
        if not start.isalnum():
            continue
        if str(tokenizer.convert_ids_to_tokens(number) or "")[:1] not in SPACE_MARKS:
            flags[number] = Boundary.WORD_PART | Boundary.CONTINUES | Boundary.PRECEDES
        elif start.isdigit():
            flags[number] = Boundary.DIGIT | Boundary.CONTINUES
        elif start.isupper():
            flags[number] = Boundary.CAPITAL | Boundary.CONTINUES | Boundary.PRECEDES
        else:
            flags[number] = Boundary.LOWERCASE
        if text.isupper():
            flags[number] |= Boundary.UPPER
    return flags
