"""Scores given answers by one forward pass: their logits, and whether greedy decoding would write them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.data.encoding import IGNORED_LABEL, Encoded, collate, pad_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AnswerLogits(NamedTuple):
    """What a model predicts where some sequences have their answers.

    Attributes:
        logits: float32 [n, vocabulary], in the order of the sequences.
        labels: int64 [n].
        sequence: which sequence each belongs to, int64 [n].
    """

    logits: Tensor
    labels: Tensor
    sequence: Tensor

    def right(self, sequences: int) -> Tensor:
        """Per sequence, whether greedy decoding would write its answer and end: bool [sequences].

        Greedy decoding writes it exactly where every one of its tokens is the likeliest after the ones before.
        """
        wrong = self.logits.argmax(-1) != self.labels
        return torch.bincount(self.sequence, wrong.float(), sequences) == 0

    def log_probability(self, sequences: int) -> Tensor:
        """Per sequence, the log-probability of its answer and end: float32 [sequences]."""
        each = -F.cross_entropy(self.logits, self.labels, reduction="none")
        return torch.bincount(self.sequence, each, sequences)

    def first(self) -> Tensor:
        """The places, in `logits`, of each sequence's first answer token."""
        return F.pad(self.sequence[1:] != self.sequence[:-1], (1, 0), value=True).nonzero().squeeze(-1)


def answer_logits(model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Encoded]) -> AnswerLogits:
    """One forward over some sequences, at least one; the head is only applied where one of them has an answer."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in collate(examples, pad_token_id(tokenizer)).items()}
    labels = F.pad(inputs.pop("labels")[:, 1:], (0, 1), value=IGNORED_LABEL)  # at the position that predicts it
    counted = labels != IGNORED_LABEL
    if "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters:
        kept = counted.any(0).nonzero().squeeze(-1)
        labels, counted = labels[:, kept], counted[:, kept]
        inputs["logits_to_keep"] = kept
    logits = model(**inputs, use_cache=False).logits
    return AnswerLogits(logits[counted].float(), labels[counted], counted.nonzero()[:, 0])


@torch.no_grad()
def answered(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Encoded],
    batch_size: int = 64,
    progress: Any = None,
) -> Tensor:
    """Whether greedy decoding writes each sequence's answer: bool [n]. One forward where generation takes many.

    `progress` is called with the number of sequences done after each batch.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    right = torch.zeros(len(examples), dtype=torch.bool)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        right[chosen] = answer_logits(model, tokenizer, [examples[i] for i in chosen]).right(len(chosen)).cpu()
        if progress is not None:
            progress(len(chosen))
    return right
