"""The kernels that answering needs, as operators of torch: torch.compile puts them into a graph and looks no further.

``torch.ops.memlayers.weighted_sum`` and ``torch.ops.memlayers.product_key_top_k`` choose a backend as `kernels_for`
does and give the same bits as its functions. They have no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memlayers.kernels import kernels_for
from memlayers.kernels.interface import Table
from memlayers.utils.errors import InputError


def checked(indices: Tensor, slots: int) -> Tensor:
    """Slots as kernels take them: int32 where that is wide enough, none outside the table, past whose end they'd read.

    Args:
        indices: whole numbers, any shape.
        slots: rows of the table.

    Raises:
        InputError: an index is negative or too large. On CUDA, which is not waited for, the next synchronisation fails
            with this line instead.
    """
    if not indices.numel() or indices.is_meta:
        pass
    elif indices.is_cuda:
        torch._assert_async(((indices >= 0) & (indices < slots)).all(), _outside(slots))
    else:
        lowest, highest = torch.aminmax(indices)
        if int(lowest) < 0 or int(highest) >= slots:
            raise InputError(f"{_outside(slots)}, not {int(lowest if lowest < 0 else highest)}")
    return indices.to(torch.int32 if slots < 2**31 else torch.int64)


def _outside(slots: int) -> str:
    return f"a value pool of {slots} slots is read at indices from 0 to {slots - 1}"


def weighted_sum(table: Table, indices: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """See `interface.Kernels.weighted_sum`; indices are checked. For use within torch.compile."""
    read: Tensor = _weighted_sum(table.values, table.scales, indices, weights, dtype)
    return read


def product_key_top_k(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `interface.Kernels.product_key_top_k`. For use within torch.compile."""
    scores, slots = _product_key_top_k(scores_a, scores_b, k)
    return scores, slots


@torch.library.custom_op(
    "memlayers::weighted_sum",
    mutates_args=(),
    schema="(Tensor values, Tensor? scales, Tensor indices, Tensor weights, ScalarType dtype) -> Tensor",
)
def _weighted_sum(
    values: Tensor, scales: Tensor | None, indices: Tensor, weights: Tensor, dtype: torch.dtype
) -> Tensor:
    table = Table(values, scales)
    return kernels_for(values.device).weighted_sum(table, checked(indices, len(values)), weights, dtype).contiguous()


@_weighted_sum.register_fake
def _(values: Tensor, scales: Tensor | None, indices: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    return values.new_empty(indices.shape[0], values.shape[1], dtype=dtype)


@torch.library.custom_op(
    "memlayers::product_key_top_k",
    mutates_args=(),
    schema="(Tensor scores_a, Tensor scores_b, int k) -> (Tensor, Tensor)",
)
def _product_key_top_k(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores, slots = kernels_for(scores_a.device).product_key_top_k(scores_a, scores_b, k)
    return scores.contiguous(), slots.contiguous()


@_product_key_top_k.register_fake
def _(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*scores_a.shape[:-1], k)
    dtype = torch.promote_types(scores_a.dtype, scores_b.dtype)
    return scores_a.new_empty(shape, dtype=dtype), scores_a.new_empty(shape, dtype=torch.int64)
