"""What a memory changes on running text: perplexity, and the share of logits that stay the same bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.backbones import context_length
from memlayers.data.encoding import plain_text_ids
from memlayers.evaluation.results import Row
from memlayers.evaluation.statistics import Estimate, mean_interval, paired_difference
from memlayers.tuner.handle import without_memory
from memlayers.utils.errors import InputError
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 256  # tokens of text that are read together
TEXT_BATCH = 8  # windows per forward


@dataclass(frozen=True, slots=True)
class TextScores:
    """A text through the bare backbone and through the memory.

    Attributes:
        nll_backbone: negative log-likelihood in nats of each predicted token, [windows, tokens - 1].
        nll_memory: the same with the memory, [windows, tokens - 1].
        identical: whether a token's logits are the same bits, bool [windows, tokens].
        largest_kl: largest Kullback-Leibler divergence from the backbone's next-token distribution, in nats.
    """

    nll_backbone: Tensor
    nll_memory: Tensor
    identical: Tensor
    largest_kl: float

    def rows(self, name: str = "") -> list[Row]:
        """Perplexity (backbone, memory, relative change), the share of identical logits, and the largest divergence.

        Args:
            name: of the text, where there are several; stands before the splits.
        """
        n = self.identical.numel()
        same = mean_interval(self.identical.float().mean(1).tolist())
        before, after = (part.double().mean(1).tolist() for part in (self.nll_backbone, self.nll_memory))
        nats = paired_difference(before, after)
        low, high = math.expm1(nats.ci_low), math.expm1(nats.ci_high)
        change = Row(
            "perplexity_change",
            split_of(name, "general_text"),
            math.expm1(nats.value),
            self.nll_memory.numel(),
            low,
            high,
        )
        return [
            Row.from_estimate("perplexity", split_of(name, "backbone"), _perplexity(self.nll_backbone)),
            Row.from_estimate("perplexity", split_of(name, "memory"), _perplexity(self.nll_memory)),
            change,
            Row("identical_logits", split_of(name, "general_text"), same.value, n, same.ci_low, same.ci_high),
            Row("largest_kl", split_of(name, "general_text"), self.largest_kl, n),
        ]


def split_of(name: str, split: str) -> str:
    """The split of a row about one of several texts or question files: "triviaqa:change"; unnamed, the bare split."""
    return f"{name}:{split}" if name else split


@torch.inference_mode()
def score_text(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int = WINDOW,
    max_tokens: int | None = None,
    quiet: bool = False,
) -> TextScores:
    """Reads a text in windows that do not overlap, with and without the memory.

    Args:
        model: a PEFT model with a memory.
        tokenizer: the backbone's.
        text: any length of at least two tokens; what does not fill a window is left out, unless nothing would remain.
        window: tokens per window.
        max_tokens: tokens that are read at most; None for all.
        quiet: no progress bar.

    Raises:
        InputError: less than two tokens.
    """
    windows = _windows(model, tokenizer, text, window, max_tokens)
    device = next(model.parameters()).device
    model.eval()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    largest = 0.0
    with progress_bar("General text", len(windows), quiet=quiet) as advance:
        for batch in windows.split(TEXT_BATCH):
            batch = batch.to(device)
            after = model(input_ids=batch, use_cache=False).logits
            with without_memory(model):
                before = model(input_ids=batch, use_cache=False).logits
            same = (before == after).all(-1)
            nll_before = _nll(before, batch)
            nll_after = nll_before if bool(same.all()) else _nll(after, batch)
            if not bool(same.all()):
                p, q = (logits[~same].float().log_softmax(-1) for logits in (before, after))
                largest = max(largest, float((p.exp() * (p - q)).sum(-1).max()))
            parts.append((nll_before.cpu(), nll_after.cpu(), same.cpu()))
            advance(len(batch))
    backbone, memory, identical = (torch.cat(part) for part in zip(*parts, strict=True))
    return TextScores(backbone, memory, identical, largest)


def perplexity_on(
    model: Any, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = WINDOW, max_tokens: int | None = None
) -> float:
    """The perplexity of the model as it is, on the same windows as `score_text`, for half the work."""
    return perplexity_estimate(model, tokenizer, text, window=window, max_tokens=max_tokens).value


@torch.inference_mode()
def perplexity_estimate(
    model: Any, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = WINDOW, max_tokens: int | None = None
) -> Estimate:
    """`perplexity_on` with its interval; n is the number of tokens predicted."""
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in _windows(model, tokenizer, text, window, max_tokens).split(TEXT_BATCH)]
    nll = torch.cat([_nll(model(input_ids=batch, use_cache=False).logits, batch) for batch in batches])
    return _perplexity(nll)


def _windows(model: Any, tokenizer: PreTrainedTokenizerBase, text: str, window: int, max_tokens: int | None) -> Tensor:
    """The text's token ids, [windows, window] int64; what does not fill a window is left out."""
    ids = plain_text_ids(tokenizer, text)[:max_tokens]
    window = min(window, len(ids), context_length(model))
    if window < 2:
        raise InputError("the text has less than two tokens: give a longer one")
    return torch.tensor(ids[: len(ids) // window * window]).view(-1, window)


def _nll(logits: Tensor, ids: Tensor) -> Tensor:
    """[windows, tokens, vocabulary], [windows, tokens] -> [windows, tokens - 1] in nats."""
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return losses.view(ids.shape[0], -1)


def _perplexity(nll: Tensor) -> Estimate:
    """Exp of the mean, its interval by bootstrap over windows; n is the number of tokens predicted."""
    mean = mean_interval(nll.double().mean(1).tolist())
    return Estimate(math.exp(mean.value), math.exp(mean.ci_low), math.exp(mean.ci_high), nll.numel())
