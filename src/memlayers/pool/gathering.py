"""Read logs of several processes, put together: the gradient of a value pool over a batch that they share.

What travels is what was logged, a few numbers per token: which slots, with which weights, and one vector. Never a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memlayers.kernels.interface import LogEntry
from memlayers.pool.factored_gradient import FactoredGradient


def log_tensors(gradient: Tensor | None, slots: int) -> list[Tensor]:
    """A log as tensors, three for each entry: slots, weights with the log's factor, gradients.

    Args:
        gradient: a read log; None for no reads.
        slots: of the pool; their numbers travel in 32 bits where that is enough.

    Raises:
        InputError: the gradient is dense.
    """
    if gradient is None:
        return []
    assert isinstance(gradient, FactoredGradient)
    narrow, factor = slots <= torch.iinfo(torch.int32).max, gradient.factor
    return [
        tensor
        for entry in gradient.entries
        for tensor in (
            entry.indices.int() if narrow else entry.indices,
            entry.weights if factor == 1 else entry.weights * factor,
            entry.gradient,
        )
    ]


def log_entries(tensors: Sequence[Tensor]) -> list[LogEntry]:
    """The entries that `log_tensors` took apart."""
    parts = zip(tensors[0::3], tensors[1::3], tensors[2::3], strict=True)
    return [LogEntry(indices.long(), weights, gradient) for indices, weights, gradient in parts]
