"""Read logs of several processes, put together: the gradient of a value pool over a batch that they share.

What travels is what was logged, a few numbers per token: which slots, with which weights, and one vector. Never a row.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memlayers.kernels.interface import LogEntry
from memlayers.pool.factored_gradient import FactoredGradient
from memlayers.pool.value_pool import ValuePool
from memlayers.utils.ranks import broadcast_tensors, gather_tensors


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


# -- under DistributedDataParallel ------------------------------------------------------------------------------------


def active_ddp() -> Any:
    """The `DistributedDataParallel` whose forward is under way; None for none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel._get_active_ddp_module()


def shared_parameter(pool: ValuePool, ddp: Any) -> Tensor | None:
    """The pool's parameter, for the reads of a forward within DDP: in its backward the read logs are gathered.

    The gradient is then the processes' mean, as DDP makes it of the others. As DDP does with what it knows, the first
    time gives all processes the first one's values. A pool that the processes split by columns has all their reads in
    its log as it is.

    Args:
        pool: the pool; None comes back where DDP does not leave it alone (`ValuePool.share_reads`).
        ddp: the wrapper. In its `no_sync` nothing is gathered: what a backward leaves then, a later one brings along.
    """
    if pool.anchor is None:
        return None
    whole = pool.columns is None
    if whole and (pool.shared_by is None or pool.shared_by() is not ddp):
        if pool.before_read is not None:
            pool.before_read(None)
        values = [each for name, each in (*pool.named_parameters(), *pool.named_buffers()) if name != "anchor"]
        broadcast_tensors(values, group=ddp.process_group)
        pool.shared_by = weakref.ref(ddp)
    group = ddp.process_group if whole and ddp.require_backward_grad_sync else None
    shared: Tensor = _Shared.apply(pool.parameter, pool.anchor, pool, group)
    return shared


class _Shared(torch.autograd.Function):
    """The identity; backward gathers the log of all reads that come together here."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, anchor: Tensor, pool: ValuePool, group: Any) -> Tensor:
        ctx.pool, ctx.group, ctx.like = pool, group, anchor.detach()
        ctx.set_materialize_grads(False)
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Tensor | None, ...]:
        pool, parameter = ctx.pool, ctx.pool.parameter
        if ctx.group is not None:
            if parameter.grad is not None:  # of backwards in `no_sync`
                gradient, parameter.grad = parameter.grad + gradient, None
            found = gather_tensors(log_tensors(gradient, pool.slots), parameter.device, ctx.group)
            entries = [entry for log in found for entry in log_entries(log)]
            gradient = FactoredGradient(pool, parameter.detach(), entries, 1 / len(found))
        return gradient, torch.zeros_like(ctx.like), None, None
