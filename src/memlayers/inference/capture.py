"""Runs a model and records what its memory layers see and read. The one place that hooks a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memlayers.data.encoding import padded_batches
from memlayers.tuner.handle import gates_off, value_pool, without_memory
from memlayers.tuner.layer import MemoryLayer
from memlayers.tuner.model import memory_layers


@dataclass(frozen=True, slots=True)
class LayerFeatures:
    """What one memory layer saw on the bare backbone.

    Attributes:
        inputs: the MLP block's inputs, [n, d] in the backbone's dtype, on the CPU.
        sequence: which sequence each row came from, int64 [n].
        output_rms: root mean square of the MLP block's outputs on the same tokens.
    """

    inputs: Tensor
    sequence: Tensor
    output_rms: float


class _Seen(Exception):
    """Ends a forward whose rest is not needed."""


@torch.inference_mode()
def collect_features(
    model: Any,
    adapter: str,
    sequences: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 4096,
    progress: Any = None,
) -> list[LayerFeatures]:
    """Runs the bare backbone over sequences and keeps the inputs of its memory layers.

    Args:
        model: a PEFT model with a memory.
        adapter: name of the memory.
        sequences: token ids, at least one sequence, of any lengths.
        batch_tokens: padded tokens per forward.
        progress: called with the number of sequences done after each batch.

    Returns:
        One entry per memory layer, in layer order; rows in the order of the sequences' lengths.
    """
    layers = memory_layers(model, adapter)
    trunk = model.get_base_model().base_model  # without the language-model head: nobody reads logits here
    device = next(model.parameters()).device
    seen: list[list[Tensor]] = [[] for _ in layers]
    squares = [0.0 for _ in layers]
    owners: list[Tensor] = []
    mask = torch.empty(0)

    def recorder(number: int) -> Any:
        def record(layer: MemoryLayer, arguments: tuple[Any, ...], output: Any) -> None:
            kept = mask.reshape(-1).bool()
            out = output[0] if isinstance(output, tuple) else output
            seen[number].append(arguments[0].reshape(-1, layer.dim)[kept].cpu())
            squares[number] += out.reshape(-1, layer.dim)[kept].double().square().mean(-1).sum().item()
            if number == len(layers) - 1:
                raise _Seen  # what the layers above do is nobody's business here

        return record

    hooks = [layer.register_forward_hook(recorder(number)) for number, layer in enumerate(layers)]
    try:
        with without_memory(model):
            for chosen, ids, real in padded_batches(sequences, batch_tokens):
                mask = real.to(device)
                owners.append(torch.tensor(chosen).repeat_interleave(real.sum(1)))
                with suppress(_Seen):
                    trunk(input_ids=ids.to(device), attention_mask=mask.long(), use_cache=False)
                if progress is not None:
                    progress(len(chosen))
    finally:
        for hook in hooks:
            hook.remove()
    sequence = torch.cat(owners)
    return [
        LayerFeatures(torch.cat(inputs), sequence, (total / len(sequence)) ** 0.5)
        for inputs, total in zip(seen, squares, strict=True)
    ]


@torch.inference_mode()
def prompt_states(
    model: Any, adapter: str, prompts: Sequence[Sequence[int]], *, batch_tokens: int = 4096, progress: Any = None
) -> Tensor:
    """The first memory layer's input at each prompt's last token, on the bare backbone: [n, d], on the CPU."""
    layer = memory_layers(model, adapter)[0]
    trunk = model.get_base_model().base_model
    device = next(model.parameters()).device
    states = torch.empty(len(prompts), layer.dim)
    chosen: list[int] = []

    def record(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        last = torch.tensor([len(prompts[i]) - 1 for i in chosen], device=arguments[0].device)
        states[chosen] = arguments[0][torch.arange(len(chosen), device=last.device), last].float().cpu()
        raise _Seen

    hook = layer.register_forward_hook(record)
    try:
        with without_memory(model):
            for chosen, ids, real in padded_batches(prompts, batch_tokens):
                with suppress(_Seen):
                    trunk(input_ids=ids.to(device), attention_mask=real.long().to(device), use_cache=False)
                if progress is not None:
                    progress(len(chosen))
    finally:
        hook.remove()
    return states


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


class _Read(Exception):
    """Ends a forward whose rest is not needed."""


@torch.no_grad()
def slots_read(
    model: Any, adapter: str, sequences: Sequence[Sequence[int]], owners: Sequence[int], *, batch_tokens: int = 4096
) -> list[tuple[Tensor, Tensor]]:
    """Which slots are read for some sequences, by all memory layers, through the gate.

    Args:
        model: a PEFT model with a memory.
        adapter: name of the memory.
        sequences: token ids.
        owners: whose each sequence is, from 0, ascending.
        batch_tokens: padded tokens per forward.

    Returns:
        For each owner the distinct slots, int64 ascending, and how often each was read, int64.
    """
    pool = value_pool(model, adapter)
    layers = memory_layers(model, adapter)
    trunk = model.get_base_model().base_model
    device = next(model.parameters()).device
    found: list[list[Tensor]] = [[] for _ in range(max(owners, default=-1) + 1)]
    seen: list[Tensor] = []

    def record(_: Any, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])
        if len(seen) == len(layers):
            raise _Read  # the last memory layer: what comes above reads nothing

    hook = pool.register_forward_pre_hook(record)
    try:
        for chosen, ids, mask in padded_batches(sequences, batch_tokens):
            ids, mask, longest = ids.to(device), mask.to(device), ids.shape[1]
            seen.clear()
            with suppress(_Read):
                trunk(input_ids=ids, attention_mask=mask.long(), use_cache=False)
            if not seen:
                continue
            opened = layers[0].watch.decided[adapter]
            opened = torch.arange(ids.numel(), device=device) if opened is None else opened
            real = mask.view(-1)[opened]
            owner = torch.tensor([owners[i] for i in chosen], device=device)[opened[real] // longest]
            keys = torch.cat([(owner[:, None] * pool.slots + read[real].long()).flatten() for read in seen])
            for number, part in _by_owner(keys.sort().values, pool.slots):
                found[number].append(part)
    finally:
        hook.remove()
    counted = (torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64) for parts in found)
    return [torch.unique(slots, return_counts=True) for slots in counted]


def _by_owner(keys: Tensor, slots: int) -> list[tuple[int, Tensor]]:
    """Ascending owner * slots + slot -> the slots of each owner, on the CPU."""
    owners, sizes = torch.unique_consecutive(keys // slots, return_counts=True)
    parts = (keys % slots).cpu().split(sizes.tolist())
    return list(zip(owners.tolist(), parts, strict=True))
