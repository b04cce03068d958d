"""What text reads, and slots that its reads keep at zero.

Addressing is fixed before a value is written, so which slots a text reads is known before teaching. Slots that general
text reads most can be left out of writing (design/recipe.md, "rows that general text reads most"): what such text adds
up to is then mostly zeros, also where no gate keeps it from reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memlayers.encoding import padded_batches
from memlayers.errors import InputError
from memlayers.tuner.model import memory_layers, set_gate_enabled, value_pool


@dataclass(frozen=True, slots=True)
class SeenRead:
    """What one memory layer read in one forward.

    Attributes:
        layer: its place among the memory layers, from 0.
        tokens: which tokens of the forward read, int64 [n], counted through the batch; None for all of them.
        indices: the slots, int64 [n, r].
        weights: with which weight each, float32 [n, r].
    """

    layer: int
    tokens: Tensor | None
    indices: Tensor
    weights: Tensor


@contextmanager
def watched_reads(model: Any, adapter: str) -> Iterator[list[SeenRead]]:
    """A context in which every read of the pool is appended to the list it gives; empty the list as you like."""
    layers, pool = memory_layers(model, adapter), value_pool(model, adapter)
    seen: list[SeenRead] = []
    at = 0

    def enter(number: int) -> Any:
        def note(*_: Any) -> None:
            nonlocal at
            at = number

        return note

    def record(_: Any, arguments: tuple[Any, ...]) -> None:
        indices, weights = arguments[:2]
        tokens = layers[at].watch.decided.get(adapter)
        seen.append(SeenRead(at, tokens, indices.detach().long(), weights.detach().float()))

    hooks = [layer.register_forward_pre_hook(enter(number)) for number, layer in enumerate(layers)]
    hooks.append(pool.register_forward_pre_hook(record))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def gates_off(model: Any) -> Iterator[None]:
    """A context in which every token reads; afterwards each layer's gate is in force or not, as it was."""
    before = [(layer, layer.gate_enabled) for layer in memory_layers(model)]
    set_gate_enabled(model, False)
    try:
        yield
    finally:
        for layer, enabled in before:
            layer.gate_enabled = enabled


@torch.inference_mode()
def count_reads(
    model: Any, adapter: str, sequences: Sequence[Sequence[int]], *, batch_tokens: int = 4096, progress: Any = None
) -> Tensor:
    """How often each slot is read when all of the sequences' tokens read, over all memory layers.

    Args:
        model: a PEFT model with a memory whose addressing is fixed.
        adapter: name of the memory.
        sequences: token ids, at least one sequence.
        batch_tokens: padded tokens per forward.
        progress: called with the number of sequences done after each batch.

    Returns:
        int64 [slots], on the CPU.
    """
    trunk = model.get_base_model().base_model
    device = next(model.parameters()).device
    slots = value_pool(model, adapter).slots
    reads = torch.zeros(slots, dtype=torch.int64)
    with gates_off(model), watched_reads(model, adapter) as seen:
        for chosen, ids, mask in padded_batches(sequences, batch_tokens):
            trunk(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False)
            for read in seen:
                reads += torch.bincount(read.indices.cpu()[mask.flatten()].flatten(), minlength=slots)
            seen.clear()
            if progress is not None:
                progress(len(chosen))
    return reads


@torch.no_grad()
def protect_slots(model: Any, adapter: str, reads: Tensor, share: float) -> int:
    """Keeps at zero the slots that were read most: so many that they are `share` of all slots.

    A slot that was not read at all is never protected, so fewer are where the text was short. Of slots that were read
    alike, the lower numbers come first.

    Args:
        model: a PEFT model whose memory was built with `MemoryConfig(protectable=True)`; nothing is written yet.
        adapter: name of the memory.
        reads: per slot, see `count_reads`.
        share: 0 to 1.

    Returns:
        How many slots are protected.

    Raises:
        InputError: the memory has no room for the marks.
    """
    protected = value_pool(model, adapter).protected
    if protected is None:
        raise InputError(f"the memory {adapter!r} cannot protect slots: build it with MemoryConfig(protectable=True)")
    most = reads.argsort(descending=True, stable=True)[: int(share * len(reads))]
    most = most[reads[most] > 0].to(protected.device)
    protected.zero_()
    protected[most] = True
    return len(most)
