"""Boundary flags: what each token of a vocabulary says about a mention beside it.

A stored surface form may be found inside a longer name: "Wolves" in "Wolves Road", or in "the Grey Wolves". The tokens
beside the mention tell. Which flags each token has is made from the tokenizer (linking/boundaries.py).
"""

from __future__ import annotations

from enum import IntFlag

import torch
import torch.nn.functional as F
from torch import Tensor


class Boundary(IntFlag):
    """Flags of one token, stored as uint8; the values are part of the file format.

    The first four say what the token is: the rest of a word, or the beginning of a word with such a first character.
    Other tokens (punctuation, line ends, special tokens) have none of them. The next two say what it tells.
    """

    WORD_PART = 1
    CAPITAL = 2
    DIGIT = 4
    LOWERCASE = 8
    CONTINUES = 16
    """Right after a mention: the mention continues, it is the beginning of a longer name."""
    PRECEDES = 32
    """Of a word right before a mention, or of the mention's own first token where that is the rest of a word: the
    mention is only a suffix of a longer name."""
    WORD = WORD_PART | CAPITAL | DIGIT | LOWERCASE
    UPPER = 64
    """It has letters, all of them capitals."""


def flags_of(flags: Tensor, ids: Tensor) -> Tensor:
    """The flags of token ids of any shape, uint8; the last entry stands for all ids beyond, and for no token (-1)."""
    last = len(flags) - 1
    return flags[torch.where(ids < 0, last, ids).clamp_max(last)]


def shouted(flags: Tensor, mention: Tensor, beside: Tensor) -> Tensor:
    """Whether both a token of a mention and a token beside it are written in capitals: a capital then says nothing.

    Args:
        flags: of the vocabulary, uint8 [v + 1].
        mention: token ids of any shape.
        beside: token ids of the same shape.

    Returns:
        bool of that shape.
    """
    return (flags_of(flags, mention) & flags_of(flags, beside) & Boundary.UPPER) != 0


def preceding(flags: Tensor, ids: Tensor, first: Tensor | None = None) -> Tensor:
    """The token to ask whether a mention that starts at a given token is a suffix of a longer name.

    That is the token itself, where it is the rest of a word; otherwise the first token of the word before it, where
    that begins with a capital and does not begin a sentence (where any word has a capital).

    Args:
        flags: of the vocabulary, uint8 [v + 1].
        ids: token ids, int64 [b, t].
        first: where the text of each token begins, int64 [b, t]; None where each row is one text.

    Returns:
        For each possible start the position to look at for `Boundary.PRECEDES`, int64 [b, t]; -1 where there is none.
    """
    kinds = flags_of(flags, ids)
    position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    part, word = kinds & Boundary.WORD_PART != 0, kinds & Boundary.WORD != 0
    after_word = F.pad(word[:, :-1], (1, 0))
    word_start = torch.where(part, 0, position).cummax(1).values  # of the word that each token belongs to
    if first is not None:
        word_start = torch.maximum(word_start, first)
        after_word = after_word & (position > first)
    previous = F.pad(word_start[:, :-1], (1, 0))
    capital = (kinds & Boundary.CAPITAL != 0).gather(1, previous) & after_word.gather(1, previous)
    before = torch.where(after_word & word & capital, previous, -1)
    return torch.where(part & after_word, position, before)
