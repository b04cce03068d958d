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

    The first four say what the token is: the rest of a word, or the beginning of a word; and its first character (of
    the rest of a word only a capital or a digit). Other tokens (punctuation, line ends, special tokens) have none of
    them. The next two say what it tells.
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
    HYPHEN = 128
    """It joins what is before it and behind it: a hyphen without a space before it. With one of the first four, a word
    behind the hyphen is part of the token. With UPPER it is the "@" that WikiText has around a hyphen: " @-@ "."""


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
    that begins with a capital and does not begin a sentence (where any word has a capital), or a hyphen joins the two.

    Args:
        flags: of the vocabulary, uint8 [v + 1].
        ids: token ids, int64 [b, t].
        first: where the text of each token begins, int64 [b, t]; None where each row is one text.

    Returns:
        For each possible start the position to look at for `Boundary.PRECEDES`, int64 [b, t]; -1 where there is none.
    """
    kinds = flags_of(flags, ids)
    position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    part, word, hyphen = (kinds & each != 0 for each in (Boundary.WORD_PART, Boundary.WORD, Boundary.HYPHEN))
    after_word = _behind(word, False)
    if first is not None:
        after_word = after_word & (position > first)
    # Of the tokens before each one: the latest word, hyphen, and token of any other kind.
    latest_word, latest_hyphen, latest_other = (
        _behind(torch.where(each, position, -1).cummax(1).values, -1)
        for each in (word, _alone(kinds), ~(word | hyphen))
    )
    joined = (latest_word > latest_other) & ((latest_hyphen > latest_word) | hyphen)
    joined = _may_be_joined(kinds) & (joined | (_after_wide(kinds) & (latest_hyphen == position - 2)))
    if first is not None:
        joined = joined & (latest_word >= first)
    begin = torch.where(word & ~(part & after_word), position, 0).cummax(1).values  # of the word of each token
    previous = torch.where(joined, begin.gather(1, latest_word.clamp_min(0)), _behind(begin, 0))
    within = (after_word | joined).gather(1, previous)  # the sentence: a capital of its first word tells nothing
    capital = (kinds & Boundary.CAPITAL != 0).gather(1, previous)
    before = torch.where((joined | (after_word & word & within)) & capital, previous, -1)
    return torch.where(part & after_word, position, before)


def hyphenated(flags: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What hyphens join with the words before them: "-upon-Avon", "-based".

    Args:
        flags: of the vocabulary, uint8 [v + 1].
        ids: token ids, int64 [b, t].

    Returns:
        Which tokens belong to the word or the hyphens right before them, bool [b, t]. And of each token behind a hyphen
        that says that a mention before that hyphen continues, the hyphen's position, int64 [b, t]; -1 of others.
    """
    kinds = flags_of(flags, ids)
    position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    part, word, hyphen = (kinds & each != 0 for each in (Boundary.WORD_PART, Boundary.WORD, Boundary.HYPHEN))
    behind, plain = _may_be_joined(kinds) & (_behind(hyphen, False) | hyphen), _plain(kinds)
    dash = plain & _behind(plain, False)
    own = torch.where(hyphen & word, position, -1)
    latest = torch.where(_alone(kinds), position, own).cummax(1).values
    names = (kinds & (Boundary.CAPITAL | Boundary.DIGIT) != 0) & (kinds & Boundary.CONTINUES != 0)
    return (hyphen | part | behind) & ~dash, torch.where(behind & names, latest, -1)


def _may_be_joined(kinds: Tensor) -> Tensor:
    """Which tokens are words that hyphens right before them would join, by their flags, bool [b, t].

    Such a word has no space before it, or WikiText's hyphen, which ends with "@".
    """
    unspaced = kinds & (Boundary.WORD_PART | Boundary.HYPHEN) != 0
    return (kinds & Boundary.WORD != 0) & (unspaced | _after_wide(kinds))


def _after_wide(kinds: Tensor) -> Tensor:
    """Which tokens are right behind an "@", by their flags, bool [b, t]."""
    wide = int(Boundary.HYPHEN | Boundary.UPPER)  # torch.compile compares tensors with plain numbers only
    return _behind(kinds & (wide | Boundary.WORD) == wide, False)


def _plain(kinds: Tensor) -> Tensor:
    """Which tokens are hyphens and nothing else, by their flags, bool [b, t]."""
    return kinds & (Boundary.HYPHEN | Boundary.UPPER | Boundary.WORD) == int(Boundary.HYPHEN)


def _alone(kinds: Tensor) -> Tensor:
    """As `_plain`, but not beside another one: two hyphens are a dash, which joins nothing."""
    plain = _plain(kinds)
    return plain & ~_behind(plain, False) & ~F.pad(plain[:, 1:], (0, 1), value=False)


def _behind(each: Tensor, first: float) -> Tensor:
    """What was right before each token, [b, t]; `first` for the first one."""
    return F.pad(each[:, :-1], (1, 0), value=first)
