"""Folded letters: the hash by which a surface form is known, whatever its case, accents, punctuation or tokens.

Each token of a vocabulary has the hash of its letters and digits, folded (linking/folding.py makes the table), and how
many there are. The hash of a run of tokens is the polynomial of all its letters, so "Saint-Denis", "saint denis" and
"SAINT DENIS" are one, however a tokenizer cuts them. It comes from one running sum per text, in int64, which wraps
around, the same on a CPU and on a GPU. Tokens that are no text, or only a part of a letter, stand for themselves: a
table without letters compares tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST_FORM: Final = 32
"""Tokens of a fingerprint; of a longer surface form the last ones count."""

ITSELF: Final = 255
"""The width of a token that stands for itself."""

# Odd 64-bit constants (of splitmix64, Steele et al. 2014); int64 arithmetic wraps around, on a CPU and on a GPU.
MULTIPLIERS: Final = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
_WRAP: Final = 2**64
_BASE: Final = MULTIPLIERS[2] % _WRAP
_INVERSE: Final = pow(_BASE, -1, _WRAP)


class Letters(NamedTuple):
    """The folded letters of a vocabulary.

    Attributes:
        hashes: of each token's letters, int64 [v + 1]; the last entry stands for all ids beyond.
        widths: how many bytes of letters each token has, uint8 [v + 1]; `ITSELF` for one that stands for itself.
        words: which tokens are a whole word in lower case, bool [v + 1]. Alone such a token stands for itself: "will"
            is no mention of "Will", and "jazz" is one of "jazz".
    """

    hashes: Tensor
    widths: Tensor
    words: Tensor

    @classmethod
    def none(cls, vocabulary: int) -> Letters:
        """A table in which every token stands for itself."""
        return cls(
            torch.zeros(vocabulary + 1, dtype=torch.int64),
            torch.full((vocabulary + 1,), ITSELF, dtype=torch.uint8),
            torch.zeros(vocabulary + 1, dtype=torch.bool),
        )

    def runs(self, ids: Tensor, latest: int | None = None) -> tuple[Tensor, Tensor]:
        """Hashes of the runs of 1 to `LONGEST_FORM` tokens that end at each of the latest tokens.

        Args:
            ids: token ids, int64 [b, t].
            latest: how many of the last tokens are asked about; None for all t.

        Returns:
            int64 [b, latest, LONGEST_FORM]; and which of these are runs, bool of the same shape: they lie within the
            row, and begin and end with a token that has letters.
        """
        latest = ids.shape[1] if latest is None else latest
        last = len(self.widths) - 1
        known = torch.where(ids < 0, last, ids).clamp_max(last)
        width = self.widths[known].long()
        itself = width == ITSELF
        width = torch.where(itself, 1, width)
        mixed = _mixed(ids)
        letters = torch.where(itself, mixed, self.hashes[known])
        up, down = (
            _powers(base, ids.device)[width].cumprod(1) for base in (_BASE, _INVERSE)
        )  # BASE^(+-letters so far)
        sums = F.pad((letters * down).cumsum(1), (LONGEST_FORM, 0))  # of the letters before each token, and its own
        has = F.pad(width > 0, (LONGEST_FORM - 1, 0), value=False)
        before = sums[:, :-1].unfold(1, LONGEST_FORM, 1)  # [b, t, LONGEST_FORM], a view; the longest run first
        starts = has.unfold(1, LONGEST_FORM, 1)
        new = slice(ids.shape[1] - latest, None)
        whole = sums[:, LONGEST_FORM:][:, new]
        hashes = (whole[..., None] - before[:, new].flip(-1)) * up[:, new, None]
        alone = torch.where(self.words[known][:, new], mixed[:, new], hashes[..., 0])
        hashes = torch.cat([alone[..., None], hashes[..., 1:]], -1)
        return hashes, starts[:, new].flip(-1) & (width > 0)[:, new, None]

    def fingerprint(self, form: Sequence[int]) -> int:
        """The 64-bit hash of a surface form, token ids; of its last `LONGEST_FORM` ones where it is longer."""
        kept = list(form)[-LONGEST_FORM:]
        device = self.widths.device
        hashes, runs = self.runs(torch.tensor([kept], device=device), 1)
        longest = int((runs[0, 0] * torch.arange(1, LONGEST_FORM + 1, device=device)).amax())
        return int(hashes[0, 0, max(longest, 1) - 1])

    def in_text(self, ids: Sequence[int]) -> Tensor:
        """The hashes of all runs of a text, int64 [t, LONGEST_FORM]; 0 for what is none."""
        hashes, runs = self.runs(torch.tensor([list(ids)], device=self.widths.device))
        return torch.where(runs, hashes, 0)[0]


def letters_hash(letters: bytes) -> int:
    """The polynomial of some letters, as a signed 64-bit number."""
    value = 0
    for each in letters:
        value = (value * _BASE + each + 1) % _WRAP
    return _signed(value)


def _mixed(ids: Tensor) -> Tensor:
    """A hash of each token id; of no token, below 0, as of none."""
    first, second, _ = MULTIPLIERS
    mixed = (ids + 1) * first
    mixed = (mixed ^ (mixed >> 29)) * second
    return mixed ^ (mixed >> 32)


def _powers(base: int, device: torch.device) -> Tensor:
    """The powers 0 to 254 of a base, int64; made where they are used, as numbers would have to be sent there."""
    return F.pad(torch.full((ITSELF - 1,), _signed(base), dtype=torch.int64, device=device).cumprod(0), (1, 0), value=1)


def _signed(value: int) -> int:
    return (value + 2**63) % _WRAP - 2**63
