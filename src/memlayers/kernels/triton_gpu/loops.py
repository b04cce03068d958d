"""The compiled loops of the GPU backend, but for the top-k: reads, the log's rows, and the optimizer's steps.

Meanings and shapes are those of `memlayers.kernels.reference`. A program owns a token's output, or one tile of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from memlayers.kernels.triton_gpu.storage import (
    BLOCK,
    jit,
    load_mean,
    load_square,
    load_values,
    rounded,
    store_mean,
    store_square,
    store_values,
)


def _jit_for_any(*names: str) -> Callable[[Callable[..., Any]], Any]:
    """`jit` that compiles nothing anew for special values of these arguments: they change from step to step."""
    return functools.partial(triton.jit, do_not_specialize=names)


@jit
def _columns(tile: tl.tensor, d: tl.tensor, BLOCKS: tl.constexpr) -> tl.tensor:
    """The columns of a tile [BLOCKS, 128], which of them are inside d, its blocks [BLOCKS], and which of them are."""
    block = tile * BLOCKS + tl.arange(0, BLOCKS)
    columns = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    return columns, columns < d, block, block * BLOCK < d


@jit
def _sum_reads(
    begin: tl.tensor, end: tl.tensor, reads: tl.tensor, weights: tl.tensor, like: tl.tensor, columns: tl.tensor,
    d: tl.tensor, BLOCKS: tl.constexpr, ALIGNED: tl.constexpr, UNROLL: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A tile of one row's gradient, float32 [BLOCKS, 128]: its readers one by one, UNROLL of them on the way."""
    total = tl.zeros((BLOCKS, BLOCK), tl.float32)
    for first in range(begin, end, UNROLL):
        for j in tl.static_range(UNROLL):
            live = first + j < end
            weight = tl.load(weights + first + j, mask=live, other=0).to(tl.float32)
            pointer = tl.load(reads + first + j, mask=live, other=0).to(like.dtype)
            if ALIGNED:
                pointer = tl.multiple_of(pointer, 16)
            width = tl.where(live, d, 0)
            total += weight * tl.load(pointer + columns, mask=columns < width, other=0).to(tl.float32)
    return total


# -- kernels ----------------------------------------------------------------------------------------------------


@jit
def weighted_sum_kernel(
    values: tl.tensor, scales: tl.tensor, indices: tl.tensor, weights: tl.tensor, out: tl.tensor, d: tl.tensor,
    r: tl.tensor, tiles: tl.tensor, BLOCKS: tl.constexpr, UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    """See `reference.weighted_sum`: a program per token and tile."""
    token = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * BLOCKS * BLOCK + tl.arange(0, BLOCKS * BLOCK)
    inside = columns < d
    total = tl.zeros((BLOCKS * BLOCK,), tl.float32)
    for first in range(0, r, UNROLL):
        for j in tl.static_range(UNROLL):
            live = first + j < r
            read = token * r + first + j
            row = tl.load(indices + read, mask=live, other=0).to(tl.int64)
            weight = tl.load(weights + read, mask=live, other=0).to(tl.float32)
            if scales is not None:
                weight = weight * tl.load(scales + row)
            width = tl.where(live, d, 0)
            total += weight * tl.load(values + row * d + columns, mask=columns < width, other=0).to(tl.float32)
    tl.store(out + token * d + columns, rounded(total, out.dtype.element_ty), mask=inside)


@jit
def weight_gradient_kernel(
    values: tl.tensor, scales: tl.tensor, indices: tl.tensor, gradient: tl.tensor, out: tl.tensor, d: tl.tensor,
    r: tl.tensor, groups: tl.tensor, BLOCKS: tl.constexpr, READS: tl.constexpr,
) -> None:  # fmt: skip
    """See `reference.weight_gradient`: a program per token and READS of its reads, over all columns."""
    token = (tl.program_id(0) // groups).to(tl.int64)
    read = tl.program_id(0) % groups * READS + tl.arange(0, READS)
    live = read < r
    rows = tl.load(indices + token * r + read, mask=live, other=0).to(tl.int64)
    total = tl.zeros((READS, BLOCKS * BLOCK), tl.float32)
    for first in range(0, d, BLOCKS * BLOCK):
        columns = first + tl.arange(0, BLOCKS * BLOCK)
        inside = columns < d
        of_output = tl.load(gradient + token * d + columns, mask=inside, other=0).to(tl.float32)
        at = rows[:, None] * d + columns[None, :]
        value = tl.load(values + at, mask=live[:, None] & inside[None, :], other=0).to(tl.float32)
        total += value * of_output[None, :]
    result = tl.sum(total, 1)  # [READS]
    if scales is not None:
        result = result * tl.load(scales + rows, mask=live, other=0)
    tl.store(out + token * r + read, result, mask=live)


@jit
def alive_kernel(
    addresses: tl.tensor, like: tl.tensor, alive: tl.tensor, d: tl.tensor, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    """Whether any of a token's gradient is not zero: a program per token."""
    pointer = tl.load(addresses + tl.program_id(0)).to(like.dtype)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    found = tl.zeros((BLOCKS * BLOCK,), tl.int32)
    for first in range(0, d, BLOCKS * BLOCK):
        columns = first + tl.arange(0, BLOCKS * BLOCK)
        found |= (tl.load(pointer + columns, mask=columns < d, other=0).to(tl.float32) != 0).to(tl.int32)
    tl.store(alive + tl.program_id(0), tl.max(found, 0).to(tl.uint8))


@jit
def row_gradients_kernel(
    offsets: tl.tensor, reads: tl.tensor, weights: tl.tensor, like: tl.tensor, picked: tl.tensor, sums: tl.tensor,
    d: tl.tensor, tiles: tl.tensor, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr, UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    """See `reference.row_gradients`: a program per row and tile."""
    i = (tl.program_id(0) // tiles).to(tl.int64)
    columns, inside, part, real = _columns(tl.program_id(0) % tiles, d, BLOCKS)
    u = tl.load(picked + i)
    begin, end = tl.load(offsets + u), tl.load(offsets + u + 1)
    total = _sum_reads(begin, end, reads, weights, like, columns, d, BLOCKS, ALIGNED, UNROLL)
    tl.store(sums + i * d + columns, total, mask=inside)


@jit
def square_norm_kernel(
    offsets: tl.tensor, reads: tl.tensor, weights: tl.tensor, like: tl.tensor, squares: tl.tensor, d: tl.tensor,
    tiles: tl.tensor, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr, UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    """The squared norm of each tile of each row's gradient: a program per row and tile."""
    u = (tl.program_id(0) // tiles).to(tl.int64)
    columns, inside, part, real = _columns(tl.program_id(0) % tiles, d, BLOCKS)
    begin, end = tl.load(offsets + u), tl.load(offsets + u + 1)
    total = _sum_reads(begin, end, reads, weights, like, columns, d, BLOCKS, ALIGNED, UNROLL)
    tl.store(squares + tl.program_id(0), tl.sum(tl.sum(total * total, 1), 0))


@_jit_for_any("key")
def adamw_kernel(
    values: tl.tensor, scales: tl.tensor, exp_avg: tl.tensor, exp_avg_sq: tl.tensor, exp_avg_scale: tl.tensor,
    exp_avg_sq_scale: tl.tensor, master: tl.tensor, places: tl.tensor, offsets: tl.tensor, reads: tl.tensor,
    weights: tl.tensor, like: tl.tensor, rows: tl.tensor, picked: tl.tensor, step_size: tl.tensor, root: tl.tensor,
    factor: tl.tensor, decay: tl.tensor, rest1: tl.tensor, beta2: tl.tensor, rest2: tl.tensor, eps: tl.tensor,
    key: tl.tensor, d: tl.tensor, tiles: tl.tensor, NOISY: tl.constexpr, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr,
    UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    """See `reference.adamw_rows`: a program per row and tile."""
    i = (tl.program_id(0) // tiles).to(tl.int64)
    columns, inside, part, real = _columns(tl.program_id(0) % tiles, d, BLOCKS)
    u, place = tl.load(picked + i), tl.load(places + i)
    row = tl.load(rows + u)
    at, home, block = row * d + columns, place * d + columns, place * tl.cdiv(d, BLOCK) + part
    # On the way before the reduction, which waits for a chain of loads.
    mean = load_mean(exp_avg, exp_avg_scale, home, inside, block, real)
    square = load_square(exp_avg_sq, exp_avg_sq_scale, home, inside, block, real)
    if master is not None:
        x = tl.load(master + home, mask=inside, other=0)
    else:
        x = load_values(values, scales, row, at, inside)
    begin, end = tl.load(offsets + u), tl.load(offsets + u + 1)
    gradient = factor * _sum_reads(begin, end, reads, weights, like, columns, d, BLOCKS, ALIGNED, UNROLL)
    mean = mean + (gradient - mean) * rest1
    square = square * beta2 + rest2 * gradient * gradient
    size, bias = tl.load(step_size + i).to(tl.float32), tl.load(root + i).to(tl.float32)
    x = x * decay - tl.div_rn(size * mean, tl.div_rn(tl.sqrt_rn(square), bias) + eps)
    tl.debug_barrier()  # scales that every thread has read are overwritten by one
    store_mean(exp_avg, exp_avg_scale, home, inside, block, real, mean)
    store_square(exp_avg_sq, exp_avg_sq_scale, home, inside, block, real, square)
    if master is not None:
        tl.store(master + home, x, mask=inside)
    store_values(values, scales, row, at, inside, x, key, NOISY)


@_jit_for_any("key", "now")
def drift_kernel(
    values: tl.tensor, scales: tl.tensor, exp_avg: tl.tensor, exp_avg_sq: tl.tensor, exp_avg_scale: tl.tensor,
    exp_avg_sq_scale: tl.tensor, master: tl.tensor, places: tl.tensor, rows: tl.tensor, since: tl.tensor,
    moving_until: tl.tensor, step_size: tl.tensor, root: tl.tensor, decay: tl.tensor, now: tl.tensor, rest1: tl.tensor,
    beta2: tl.tensor, eps: tl.tensor, key: tl.tensor, d: tl.tensor, tiles: tl.tensor, NOISY: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    """See `reference.drift_rows`, with state: a program per row and tile."""
    i = (tl.program_id(0) // tiles).to(tl.int64)
    columns, inside, part, real = _columns(tl.program_id(0) % tiles, d, BLOCKS)
    row, place, begin = tl.load(rows + i), tl.load(places + i), tl.load(since + i) + 1
    at, home, block = row * d + columns, place * d + columns, place * tl.cdiv(d, BLOCK) + part
    if begin <= now:
        mean = load_mean(exp_avg, exp_avg_scale, home, inside, block, real)
        square = load_square(exp_avg_sq, exp_avg_sq_scale, home, inside, block, real)
        if master is not None:
            x = tl.load(master + home, mask=inside, other=0)
        else:
            x = load_values(values, scales, row, at, inside)
        still = tl.maximum(tl.minimum(tl.load(moving_until + i), now) + 1, begin)
        for step in range(begin, still):
            mean = mean - mean * rest1
            square = square * beta2
            size, bias = tl.load(step_size + step), tl.load(root + step)
            move = tl.div_rn(size * mean, tl.div_rn(tl.sqrt_rn(square), bias) + eps)
            x = x * tl.load(decay + step) - move
        for step in range(still, now + 1):
            mean = mean - mean * rest1
            square = square * beta2
            x = x * tl.load(decay + step)
        tl.debug_barrier()  # as in `adamw_kernel`
        store_mean(exp_avg, exp_avg_scale, home, inside, block, real, mean)
        store_square(exp_avg_sq, exp_avg_sq_scale, home, inside, block, real, square)
        if master is not None:
            tl.store(master + home, x, mask=inside)
        store_values(values, scales, row, at, inside, x, key, NOISY)


@_jit_for_any("now")
def decay_kernel(
    values: tl.tensor, rows: tl.tensor, since: tl.tensor, decay: tl.tensor, now: tl.tensor, d: tl.tensor,
    tiles: tl.tensor, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    """See `reference.drift_rows`, without state: a program per row and tile."""
    i = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * BLOCKS * BLOCK + tl.arange(0, BLOCKS * BLOCK)
    pointers = values + tl.load(rows + i) * d + columns
    x = tl.load(pointers, mask=columns < d, other=0)
    for step in range(tl.load(since + i) + 1, now + 1):  # in the table's precision, so that halves make a whole
        x = rounded(x.to(tl.float32) * tl.load(decay + step), values.dtype.element_ty)
    tl.store(pointers, x, mask=columns < d)
