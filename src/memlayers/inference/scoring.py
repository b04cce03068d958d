"""Scores given answers by one forward pass: their logits, and whether greedy decoding would write them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.backbones import takes_logits_to_keep
from memlayers.data.encoding import IGNORED_LABEL, Encoded, collate, pad_token_id
from memlayers.inference.shared_prefix import SharedPrefix, shared_prefix
from memlayers.tuner.handle import gates_off
from memlayers.utils.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AnswerLogits(NamedTuple):
    """What a model predicts where some sequences have their answers.

    Attributes:
        logits: float32 [n, vocabulary], in the order of the sequences.
        labels: int64 [n].
        sequence: which sequence each belongs to, int64 [n].
        lengths: how many each sequence has, int64 [sequences].
    """

    logits: Tensor
    labels: Tensor
    sequence: Tensor
    lengths: Tensor

    def right(self) -> Tensor:
        """Per sequence, whether greedy decoding would write its answer and end: bool [sequences].

        Greedy decoding writes it exactly where every one of its tokens is the likeliest after the ones before.
        """
        wrong = self.logits.argmax(-1) != self.labels
        return self.summed(wrong.float()) == 0

    def log_probability(self) -> Tensor:
        """Per sequence, the log-probability of its answer and end: float32 [sequences]."""
        return -self.summed(F.cross_entropy(self.logits, self.labels, reduction="none"))

    def summed(self, each: Tensor) -> Tensor:
        """Figures [n] summed over each sequence: [sequences]; in their order, the same bits on any device."""
        return torch.segment_reduce(each, "sum", lengths=self.lengths, unsafe=True)

    def first(self) -> Tensor:
        """The places, in `logits`, of each sequence's first answer token."""
        return F.pad(self.sequence[1:] != self.sequence[:-1], (1, 0), value=True).nonzero().squeeze(-1)


def answer_logits(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Encoded], prefix: SharedPrefix | None = None
) -> AnswerLogits:
    """One forward over some sequences, at least one; the head is only applied where one of them has an answer.

    Args:
        model: a backbone, with or without a memory.
        tokenizer: the backbone's.
        examples: the sequences.
        prefix: what all of them begin with, if it has been read already; none of its tokens may count.
    """
    device = next(model.parameters()).device
    beside: dict[str, Any] = {"use_cache": False}
    if prefix is not None and not all(prefix.begins(example.input_ids) for example in examples):
        prefix = None
    if prefix is not None:
        skipped = len(prefix.ids)
        examples = [Encoded(each.input_ids[skipped:], each.labels[skipped:]) for each in examples]
        beside = {"use_cache": True, "past_key_values": prefix.cache(len(examples))}
    inputs = collate(examples, pad_token_id(tokenizer))
    del inputs["attention_mask"]  # what counts comes before the padding and does not look at it
    # What counts is looked up here, in host memory: a GPU would have to be waited for.
    labels = F.pad(inputs.pop("labels")[:, 1:], (0, 1), value=IGNORED_LABEL)  # at the position that predicts it
    counted = labels != IGNORED_LABEL
    if takes_logits_to_keep(model):
        kept = counted.any(0).nonzero().squeeze(-1)
        labels, counted = labels[:, kept], counted[:, kept]
        inputs["logits_to_keep"] = kept
    sequence, column = counted.nonzero(as_tuple=True)
    places = [each.to(device) for each in (labels[sequence, column], sequence, column, counted.sum(1))]
    logits = model(**{name: each.to(device) for name, each in inputs.items()}, **beside).logits
    labels, sequence, column, lengths = places
    return AnswerLogits(logits[sequence, column].float(), labels, sequence, lengths)


def answered(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Encoded],
    batch_size: int = 64,
    progress: Any = None,
    *,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Whether greedy decoding writes each sequence's answer: bool [n]. One forward where generation takes many.

    `progress` is called with the number of sequences done after each batch; the batches are dealt to `ranks`.
    """
    found = answer_confidences(model, tokenizer, examples, batch_size, progress, ranks=ranks)
    return torch.tensor([right for right, _ in found], dtype=torch.bool)


@torch.no_grad()
def answer_confidences(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Encoded],
    batch_size: int = 64,
    progress: Any = None,
    *,
    ranks: Ranks = ALONE,
) -> list[tuple[bool, float]]:
    """Per sequence, whether greedy decoding writes its answer, and the probability of the answer and its end.

    `progress` is called with the number of sequences done after each batch; the batches are dealt to `ranks`.
    """
    # Of like length, for little padding, and with answers of like length: the head is applied where one has an answer.
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].input_ids), _counted(examples[i])))
    prefix = shared_prefix(model, [example.input_ids for example in examples])
    found: dict[int, tuple[bool, float]] = {}
    for number, start in enumerate(range(0, len(order), batch_size)):
        chosen = order[start : start + batch_size]
        if ranks.has(number):
            out = answer_logits(model, tokenizer, [examples[i] for i in chosen], prefix)
            right, sure = out.right().tolist(), out.log_probability().exp().tolist()
            found.update(zip(chosen, zip(right, sure, strict=True), strict=True))
        if progress is not None:
            progress(len(chosen))
    return ranks.gather_dealt(found)


def _counted(example: Encoded) -> int:
    return sum(label != IGNORED_LABEL for label in example.labels)


@torch.no_grad()
def answer_standing(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Encoded], *, gate: bool = True
) -> dict[str, float]:
    """How given answers stand: how near a model is to giving them.

    Args:
        model: a backbone, or a PEFT model with a memory.
        tokenizer: the backbone's.
        examples: at least one.
        gate: False reads a memory for every token.

    Returns:
        "n", how many; "given", the share that greedy decoding would write; "rank" and "probability" of the answers'
        first tokens, median and mean; "log_probability" of answer and end, the mean.
    """
    given, ranks, chances, whole = [], [], [], []
    with nullcontext() if gate else gates_off(model):
        for start in range(0, len(examples), 64):
            batch = examples[start : start + 64]
            out = answer_logits(model, tokenizer, batch)
            first = out.first()
            logits, labels = out.logits[first], out.labels[first]
            own = logits.gather(1, labels[:, None])
            ranks.append((logits > own).sum(1) + 1)
            chances.append(logits.softmax(-1).gather(1, labels[:, None])[:, 0])
            given.append(out.right())
            whole.append(out.log_probability())
    return {
        "n": len(examples),
        "given": round(float(torch.cat(given).float().mean()), 4),
        "rank": float(torch.cat(ranks).float().quantile(0.5)),
        "probability": float(torch.cat(chances).mean()),
        "log_probability": round(float(torch.cat(whole).mean()), 4),
    }
