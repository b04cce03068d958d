"""What each token of a vocabulary says of a mention beside it: boundary flags."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memlayers.tuner.subject_index import CAPITAL, DIGIT, GOES_ON, LEADS, PART, SMALL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
_SPACE_MARKS = ("Ġ", "▁", " ")  # how vocabularies write a word's leading space


def token_marks(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What each token is and says of a name beside it (tuner/subject_index.py), uint8 [v + 1]; the last: none.

    A name goes on in the rest of its word, and in a word with a capital or a digit; it had begun in the beginning of
    its word, and in a word with a capital (a year before a name seldom belongs to it).
    """
    marks = torch.zeros(len(tokenizer) + 1, dtype=torch.uint8)
    for number in range(len(tokenizer)):
        start = str(tokenizer.decode([number])).lstrip()[:1]
        if not start.isalnum():
            continue
        if str(tokenizer.convert_ids_to_tokens(number) or "")[:1] not in _SPACE_MARKS:
            marks[number] = PART | GOES_ON | LEADS
        elif start.isdigit():
            marks[number] = DIGIT | GOES_ON
        else:
            marks[number] = CAPITAL | GOES_ON | LEADS if start.isupper() else SMALL
    return marks
