"""Calibration: fixes the memory layers' addressing from what their inputs look like on the frozen backbone.

The mean and covariance of each memory layer's input whiten its queries, so that every direction in which inputs differ
tells slots apart; without it a few outlier dimensions would make all queries alike (raw cosine 0.999 with the v0.2
reference recipe). The RMS of the frozen MLP's output becomes the unit of the layer's values, so that one learning rate
carries over between layers and backbones (docs/method.md, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memlayers.inference.capture import LayerFeatures
from memlayers.pool.product_keys import whitening
from memlayers.tuner.handle import MemoryHandle
from memlayers.tuner.model import memory_layers


@torch.no_grad()
def calibrate(memory: MemoryHandle, features: Sequence[Sequence[LayerFeatures]]) -> None:
    """Fixes where each memory layer reads: whitened queries (docs/method.md, 1), and the unit of its values.

    Args:
        memory: a memory of the addressed recipe.
        features: for each kind of text (facts, general), one entry per memory layer; the kinds count alike.
    """
    for number, layer in enumerate(memory_layers(memory.model, memory.adapter)):
        kinds = [kind[number] for kind in features]
        moments = [kind.moments or _moments(kind.inputs) for kind in kinds]
        mean = torch.stack([mean for mean, _ in moments]).mean(0)
        second = torch.stack([second for _, second in moments]).mean(0)
        covariance = second - torch.outer(mean, mean)
        query: Any = layer.memlayers_query[memory.adapter]
        seed = layer.memlayers_config[memory.adapter].seed * 1_000 + number
        projection = whitening(mean, covariance, query.projection.shape[1], seed)
        scale = (sum(kind.output_rms**2 for kind in kinds) / len(kinds)) ** 0.5
        layer.set_addressing(memory.adapter, mean.to(query.mean), projection.to(query.projection), scale)


def _moments(inputs: Tensor, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """Mean [d] and mean outer product [d, d] of rows [n, d], in float64."""
    dim = inputs.shape[1]
    total, second = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    for rows in inputs.split(chunk):
        rows = rows.double()
        total += rows.sum(0)
        second += rows.T @ rows
    return total / len(inputs), second / len(inputs)
