"""One step of several processes: each does some of its passes; then all know the losses and the gradient of all.

A pass is one forward and backward over some neighbouring sequences of the batch. What the passes give is put together
in their order, whoever did them, so a step of any number of processes has the bits of one process that does the same
passes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memlayers.pool.factored_gradient import FactoredGradient
from memlayers.pool.gathering import log_entries, log_tensors
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner.handle import MemoryHandle
from memlayers.utils.ranks import Ranks


class Passes(NamedTuple):
    """What the passes of a step found, in their order.

    Attributes:
        losses: of each pass, its share of the batch's mean.
        sure: of each sequence whether its answer was sure.
    """

    losses: list[float]
    sure: list[bool]

    @classmethod
    def of(cls, own: Sequence[tuple[Tensor, Tensor]]) -> Passes:
        """Read from the device in one go.

        Args:
            own: of each pass its loss, a scalar, and of its sequences whether the answer is sure, bool [sequences].
        """
        if not own:
            return cls([], [])
        losses, sure = zip(*own, strict=True)
        found = torch.cat([torch.stack(losses).double(), torch.cat(sure).double()]).tolist()
        return cls(found[: len(losses)], [bool(each) for each in found[len(losses) :]])


def share_passes(ranks: Ranks, pool: ValuePool, own: Passes) -> Passes:
    """What all processes found, given what this one did. The pool's gradient becomes the log of all their reads.

    Where they split the pool it is that already, of each one's columns.
    """
    if ranks.size == 1:
        return own
    parameter, gradient = pool.parameter, pool.parameter.grad if pool.columns is None else None
    device = parameter.device
    beside = [
        torch.tensor(own.losses, dtype=torch.float64, device=device),
        torch.tensor(own.sure, dtype=torch.bool, device=device),
        torch.tensor(gradient is not None, device=device),
    ]
    found = ranks.gather_tensors([*beside, *log_tensors(gradient, pool.slots)], device)
    if any(bool(some) for _, _, some, *_ in found):
        entries = [entry for _, _, _, *log in found for entry in log_entries(log)]
        parameter.grad = FactoredGradient(pool, parameter.detach(), entries)
    return Passes(
        [loss for losses, *_ in found for loss in losses.tolist()],
        [bool(sure) for _, each, *_ in found for sure in each.tolist()],
    )


def read_nothing(memory: MemoryHandle, dtype: torch.dtype) -> None:
    """A pass over no sequence, for a process that has none left where the others have: they split the pool.

    Args:
        memory: whose layers read in a pass, forward and backward.
        dtype: of what is read, the backbone's.
    """
    config, pool = memory.config, memory.pool
    weights = torch.zeros(0, config.shape.heads * config.top_k, device=pool.parameter.device)
    indices = weights.long()
    weights.requires_grad_(bool(config.trainable_addressing))  # backward sends what it sends elsewhere
    reads = [pool(indices, weights, dtype) for _ in memory.layers]
    torch.stack([read.sum() for read in reads]).sum().backward()


def take_gradients(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of one pass, taken away from their parameters."""
    taken = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return taken


def share_gradients(ranks: Ranks, parameters: Sequence[Tensor], own: Sequence[Sequence[Tensor | None]]) -> None:
    """Gives parameters other than the pool the sum of all passes' gradients, added up in the order of the passes.

    A sum of each process's own sum, as all-reduce makes it, would have other bits than one process's.

    Args:
        ranks: the processes.
        parameters: what learns beside the pool.
        own: for each pass of this process, `take_gradients`.
    """
    if ranks.size == 1 or not parameters:
        return
    there = ranks.gather([[gradient is not None for gradient in each] for each in own])
    for number, parameter in enumerate(parameters):
        for rank, passes in enumerate(there):
            for place, each in enumerate(passes):
                if not each[number]:
                    continue
                mine = own[place][number] if rank == ranks.rank else None
                piece = torch.empty_like(parameter) if mine is None else mine.contiguous()
                ranks.broadcast([piece], rank)
                parameter.grad = piece if parameter.grad is None else parameter.grad.add_(piece)
