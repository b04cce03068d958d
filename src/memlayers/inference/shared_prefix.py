"""The tokens that all of some prompts begin with, read once: a chat template's head, a system text.

A real backbone's template is often longer than the question. Where no memory reads it, its keys and values are the same
in every prompt and whatever was taught, so they are computed once and handed to each batch as a key-value cache.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from memlayers.tuner.current import Recorder, holding
from memlayers.tuner.token_history import HistoryLayer

LEAST = 8
"""Tokens from which on sharing is worth a forward pass of its own."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Tokens, and what a backbone makes of them; made by `shared_prefix`.

    Attributes:
        ids: token ids.
    """

    ids: tuple[int, ...]
    _cache: DynamicCache

    def cache(self, rows: int) -> DynamicCache:
        """A key-value cache of these tokens for a batch of so many rows; the caller's own."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(rows)
        return cache

    def bytes(self) -> int:
        """Of the keys and values."""
        kept = [getattr(layer, name) for layer in self._cache.layers for name in ("keys", "values")]
        return sum(part.numel() * part.element_size() for part in kept)

    def mask(self, mask: Tensor) -> Tensor:
        """An attention mask [b, t] of what comes after these tokens -> the mask of both, [b, len(ids) + t]."""
        return F.pad(mask, (len(self.ids), 0), value=1)

    def begins(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt begins so, and goes on."""
        return len(prompt) > len(self.ids) and tuple(prompt[: len(self.ids)]) == self.ids


@torch.no_grad()
def shared_prefix(model: Any, prompts: Sequence[Sequence[int]]) -> SharedPrefix | None:
    """What all of some prompts begin with, read by the model as it is now.

    Args:
        model: a causal LM, with or without a memory.
        prompts: token ids.

    Returns:
        None where that is too short to be worth it, where a memory reads some of it, or where the backbone's cache is
        of a kind that cannot be handed on (sliding windows, linear attention).
    """
    common = commonprefix([list(prompt[:-1]) for prompt in prompts]) if len(prompts) > 1 else []
    if len(common) < LEAST:
        return None
    reads = _Reads()
    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config)
    with holding(recorder=reads):
        model(input_ids=torch.tensor([list(common)], device=device), past_key_values=cache, use_cache=True)
    plain = all(type(layer) in (DynamicLayer, HistoryLayer) for layer in cache.layers)
    return SharedPrefix(tuple(common), cache) if plain and not reads.any else None


class _Reads(Recorder):
    """Whether any token reads a memory."""

    any = False

    def decided(self, layer: nn.Module, adapter: str, opened: Tensor | None, tokens: int) -> None:
        """Notes it."""
        self.any = self.any or opened is None or opened.numel() > 0
