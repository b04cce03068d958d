"""Folds a vocabulary: what is left of its tokens when case, accents, width, punctuation and spaces do not count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from memlayers.data.facts import folded
from memlayers.linking.boundaries import SPACE_MARKS
from memlayers.tuner.letters import ITSELF, Letters, letters_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def vocabulary_letters(tokenizer: PreTrainedTokenizerBase) -> Letters:
    """The folded letters of each token of a vocabulary.

    Special tokens stand for themselves, and so do tokens that hold a part of a character alone: no name goes across
    the former, and a name with the latter is found where it is cut alike.

    Args:
        tokenizer: the backbone's.
    """
    found = Letters.none(len(tokenizer))
    words = [False] * (len(tokenizer) + 1)
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    hashes, widths = found.hashes.tolist(), found.widths.tolist()
    for number in range(len(tokenizer)):
        text = str(tokenizer.decode([number]))
        letters = folded(text).encode()
        if number not in special and "\ufffd" not in text and len(letters) < ITSELF:
            hashes[number], widths[number] = letters_hash(letters), len(letters)
            begins = str(tokenizer.convert_ids_to_tokens(number) or "")[:1] in SPACE_MARKS
            words[number] = begins and text.strip().islower()
    return Letters(torch.tensor(hashes), torch.tensor(widths, dtype=torch.uint8), torch.tensor(words))
