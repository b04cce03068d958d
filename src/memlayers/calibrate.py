"""Calibration: what the memory layers' inputs look like on the frozen backbone, and addressing fixed from it.

design/recipe.md (B): the mean and covariance of each memory layer's input whiten its queries, so that every direction
in which inputs differ tells slots apart; without it a few outlier dimensions would make all queries alike (raw cosine
0.999 in the seed's diagnosis). The RMS of the frozen MLP's output becomes the unit of the layer's values, so that one
learning rate carries over between layers and backbones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memlayers.encoding import padded_batches
from memlayers.generate import without_memory
from memlayers.product_keys import whitening
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


@torch.no_grad()
def calibrate(model: Any, adapter: str, features: Sequence[Sequence[LayerFeatures]]) -> None:
    """Fixes where each memory layer reads: whitened queries (design/recipe.md, B.1-2), and the unit of its values.

    Args:
        model: a PEFT model with a memory of the addressed recipe.
        adapter: name of the memory.
        features: for each kind of text (facts, general), one entry per memory layer; the kinds count alike.
    """
    for number, layer in enumerate(memory_layers(model, adapter)):
        kinds = [kind[number] for kind in features]
        moments = [_moments(kind.inputs) for kind in kinds]
        mean = torch.stack([mean for mean, _ in moments]).mean(0)
        second = torch.stack([second for _, second in moments]).mean(0)
        covariance = second - torch.outer(mean, mean)
        query: Any = layer.memlayers_query[adapter]
        seed = layer.memlayers_config[adapter].seed * 1_000 + number
        projection = whitening(mean, covariance, query.projection.shape[1], seed)
        scale = (sum(kind.output_rms**2 for kind in kinds) / len(kinds)) ** 0.5
        layer.set_addressing(adapter, mean.to(query.mean), projection.to(query.projection), scale)


def _moments(inputs: Tensor, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """Mean [d] and mean outer product [d, d] of rows [n, d], in float64."""
    dim = inputs.shape[1]
    total, second = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    for rows in inputs.split(chunk):
        rows = rows.double()
        total += rows.sum(0)
        second += rows.T @ rows
    return total / len(inputs), second / len(inputs)
