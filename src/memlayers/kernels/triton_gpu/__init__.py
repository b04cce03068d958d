"""The GPU backend: Triton kernels for CUDA and ROCm, without atomics and without a row gradient in memory.

This file holds the interface and the way from torch to Triton; `loops`, `top_k` and `storage` hold the compiled code.
Meanings, shapes and formats are those of `reference`, which every function here is tested against. A program owns a
token's output or a row of the table, or one tile of d columns of it, and sums in a fixed order: the same input gives
the same bits. Any d: the last tile is masked. float64, which no GPU table should be, goes to `reference`.

The gradients of a log stay where autograd left them: the kernels find a token's row by its address. With
TRITON_INTERPRET=1 all of this runs on CPU tensors. There a cast to bfloat16 truncates, which is one of two reasons for
rounding by hand; the other is that stochastic rounding has to.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from memlayers.kernels import reference
from memlayers.kernels.interface import STATE_BLOCK, AdamW, Inverted, LogEntry, RowState, Schedule, Table
from memlayers.kernels.triton_gpu import loops, top_k

READS_IN_FLIGHT = 8  # rows of the table that a program has under way at a time
GRADIENTS_IN_FLIGHT = 4  # rows of the log; most slots have few readers
LONGEST_TILE = 1024


# -- the interface ----------------------------------------------------------------------------------------------


def product_key_top_k(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `reference.product_key_top_k`: k rounds of maximum in each half, then k rounds over the stairs' heads."""
    dtype, m = torch.promote_types(scores_a.dtype, scores_b.dtype), scores_a.shape[-1]
    if dtype == torch.float64:
        return reference.product_key_top_k(scores_a, scores_b, k)
    scores = torch.empty(*scores_a.shape[:-1], k, dtype=dtype, device=scores_a.device)
    slots = torch.empty(*scores_a.shape[:-1], k, dtype=torch.int64, device=scores_a.device)
    if scores.numel():
        a, b = (_in_three_dimensions(each.detach().to(dtype)) for each in (scores_a, scores_b))
        length, ranked = triton.next_power_of_2(m), min(k, m)
        _launch(
            top_k.top_k_kernel, a.shape[0] * a.shape[1], a, b, scores, slots, a.shape[1], *a.stride()[:2],
            *b.stride()[:2], k, m, ranked, M=length, K=triton.next_power_of_2(ranked),
            num_warps=max(1, min(8, length // 1024)),
        )  # fmt: skip
    return scores, slots


def weighted_sum(table: Table, indices: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """See `reference.weighted_sum`: a program per token and tile, eight rows in flight."""
    values = table.values
    if torch.float64 in (values.dtype, dtype):
        return reference.weighted_sum(table, indices, weights, dtype)
    (n, r), d = indices.shape, values.shape[1]
    out = torch.empty(n, d, dtype=dtype, device=values.device)
    if out.numel():
        blocks, tiles = _tiles(d)
        _launch(
            loops.weighted_sum_kernel, n * tiles, values, table.scales, indices.contiguous(), weights.contiguous(), out,
            d, r, tiles, BLOCKS=blocks, UNROLL=min(READS_IN_FLIGHT, triton.next_power_of_2(max(r, 1))),
            num_warps=_warps(blocks, values),
        )  # fmt: skip
    return out


def weight_gradient(table: Table, indices: Tensor, gradient: Tensor) -> Tensor:
    """See `reference.weight_gradient`: a program per token and eight of its reads, over all columns."""
    values = table.values
    if values.dtype == torch.float64:
        return reference.weight_gradient(table, indices, gradient)
    (n, r), d = indices.shape, values.shape[1]
    out = torch.empty(n, r, device=values.device)
    if out.numel():
        blocks, reads = min(4, _tiles(d)[0]), min(READS_IN_FLIGHT, triton.next_power_of_2(r))
        groups = triton.cdiv(r, reads)
        _launch(
            loops.weight_gradient_kernel, n * groups, values, table.scales, indices.contiguous(), gradient.contiguous(),
            out, d, r, groups, BLOCKS=blocks, READS=reads, num_warps=4,
        )  # fmt: skip
    return out


def invert(log: Sequence[LogEntry]) -> Inverted:
    """See `reference.invert`: one stable sort of all reads. Waits for the GPU twice, to know u and p."""
    if not log or not sum(entry.indices.numel() for entry in log):
        return reference.invert(log)
    device, starts = log[0].gradient.device, [0]
    for entry in log:
        starts.append(starts[-1] + len(entry.indices))
    rows = _token_rows(log)
    alive = torch.empty(starts[-1], dtype=torch.uint8, device=device)
    _launch(
        loops.alive_kernel, len(alive), rows.addresses, rows.like, alive, rows.width,
        ALIGNED=rows.aligned, BLOCKS=_tiles(rows.width)[0], num_warps=4,
    )  # fmt: skip
    tokens = torch.cat([
        torch.arange(start, start + len(entry.indices), device=device).repeat_interleave(entry.indices.shape[1])
        for start, entry in zip(starts, log, strict=False)
    ])  # fmt: skip
    slots = torch.cat([entry.indices.flatten() for entry in log])
    weights = torch.cat([entry.weights.flatten() for entry in log])
    reads = alive[tokens].nonzero().squeeze(1)  # [p]
    sorted_slots, order = torch.sort(slots[reads], stable=True)
    distinct, counts = torch.unique_consecutive(sorted_slots, return_counts=True)
    reads = reads[order]
    of_reads = tokens[reads]
    prepared = rows._replace(addresses=rows.addresses[of_reads])  # once a step, however many chunks of state it has
    return Inverted(distinct.long(), F.pad(counts.cumsum(0), (1, 0)), of_reads, weights[reads], prepared)


def row_gradients(log: Sequence[LogEntry], inverted: Inverted, picked: Tensor) -> Tensor:
    """See `reference.row_gradients`: a program per row and tile."""
    if inverted.weights.dtype == torch.float64:
        return reference.row_gradients(log, inverted, picked)
    width = log[0].gradient.shape[1] if log else 0
    sums = torch.empty(len(picked), width, device=picked.device)
    if sums.numel():
        segments = _segments(log, inverted)
        blocks, tiles = _tiles(width)
        _launch(
            loops.row_gradients_kernel, len(picked) * tiles, *segments.arguments, picked, sums, width, tiles,
            ALIGNED=segments.aligned, BLOCKS=blocks, UNROLL=GRADIENTS_IN_FLIGHT,
            num_warps=_warps(blocks, segments.like),
        )  # fmt: skip
    return sums


def square_norm(log: Sequence[LogEntry], inverted: Inverted) -> Tensor:
    """See `reference.square_norm`: squares are summed in float32 within a tile, tiles in float64."""
    if inverted.weights.dtype == torch.float64:
        return reference.square_norm(log, inverted)
    if not len(inverted.rows):
        return torch.zeros((), dtype=torch.float64, device=inverted.rows.device)
    segments = _segments(log, inverted)
    blocks, tiles = _tiles(log[0].gradient.shape[1])
    squares = torch.empty(len(inverted.rows), tiles, device=inverted.rows.device)
    _launch(
        loops.square_norm_kernel, squares.numel(), *segments.arguments, squares, log[0].gradient.shape[1], tiles,
        ALIGNED=segments.aligned, BLOCKS=blocks, UNROLL=GRADIENTS_IN_FLIGHT,
        num_warps=_warps(blocks, segments.like),
    )  # fmt: skip
    return squares.sum(dtype=torch.float64)


def adamw_rows(
    table: Table,
    state: RowState,
    places: Tensor,
    log: Sequence[LogEntry],
    inverted: Inverted,
    picked: Tensor,
    adamw: AdamW,
    factor: float,
    noise: int | None,
) -> None:
    """See `reference.adamw_rows`: a program per row and tile reduces, steps and writes back in registers."""
    if torch.float64 in (table.values.dtype, state.exp_avg.dtype, inverted.weights.dtype):
        reference.adamw_rows(table, state, places, log, inverted, picked, adamw, factor, noise)
        return
    if not len(picked):
        return
    segments = _segments(log, inverted)
    d = table.values.shape[1]
    blocks, tiles = _tiles(d, whole=table.scales is not None)
    scalars = (factor, adamw.decay, 1 - adamw.beta1, adamw.beta2, 1 - adamw.beta2, adamw.eps)
    _launch(
        loops.adamw_kernel, len(picked) * tiles, *table, *state, places, *segments.arguments, inverted.rows, picked,
        adamw.step_size, adamw.root, *scalars, _key(noise), d, tiles,
        NOISY=noise is not None and state.master is None, ALIGNED=segments.aligned, BLOCKS=blocks,
        UNROLL=GRADIENTS_IN_FLIGHT, num_warps=max(1, min(16, blocks // 2)),
    )  # fmt: skip


def stale_rows(indices: Tensor, caught_up: Tensor, now: int) -> tuple[Tensor, Tensor]:
    """See `reference.stale_rows`; torch's own kernels do it."""
    return reference.stale_rows(indices, caught_up, now)


def drift_rows(
    table: Table,
    state: RowState | None,
    places: Tensor,
    rows: Tensor,
    since: Tensor,
    moving_until: Tensor,
    schedule: Schedule,
    noise: int | None,
) -> None:
    """See `reference.drift_rows`: all missed steps of a tile in registers. A row that missed none is not written."""
    if torch.float64 in (table.values.dtype, None if state is None else state.exp_avg.dtype):
        reference.drift_rows(table, state, places, rows, since, moving_until, schedule, noise)
        return
    if not len(rows):
        return
    now = len(schedule.decay) - 1
    step_size, root, decay = (each.to(rows.device, torch.float32) for each in schedule[:3])
    if state is None:
        values = table.values if table.scales is None else table.scales[:, None]  # an int8 row shrinks by its scale
        blocks, tiles = _tiles(values.shape[1])
        _launch(
            loops.decay_kernel, len(rows) * tiles, values, rows, since, decay, now, values.shape[1], tiles,
            BLOCKS=blocks, num_warps=_warps(blocks, values),
        )  # fmt: skip
        return
    d = table.values.shape[1]
    blocks, tiles = _tiles(d, whole=table.scales is not None)
    _launch(
        loops.drift_kernel, len(rows) * tiles, *table, *state, places, rows, since, moving_until, step_size, root,
        decay, now, 1 - schedule.beta1, schedule.beta2, schedule.eps, _key(noise), d, tiles,
        NOISY=noise is not None and state.master is None, BLOCKS=blocks, num_warps=max(1, min(16, blocks // 2)),
    )  # fmt: skip


# -- from torch to Triton ---------------------------------------------------------------------------------------


class _TokenRows(NamedTuple):
    """Where the gradient of each token of a log, or of each of its reads, lies.

    Attributes:
        addresses: int64 [tokens] or [p].
        like: an empty tensor of the gradients' dtype.
        width: their number of columns.
        aligned: whether all addresses are multiples of 16, so that loads may be 16 bytes wide.
        kept: the tensors pointed into; whoever launches a kernel on the addresses holds on to them until then.
    """

    addresses: Tensor
    like: Tensor
    width: int
    aligned: bool
    kept: tuple[Tensor, ...]


class _Segments(NamedTuple):
    """What the reduction of a row needs: `arguments` in the order in which kernels take them; see `_TokenRows`."""

    arguments: tuple[Tensor, ...]
    like: Tensor
    aligned: bool
    kept: tuple[Tensor, ...]


def _launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Runs a kernel on the device of its first argument, which need not be torch's current one."""
    assert all(each.is_contiguous() for each in arguments[2:] if isinstance(each, Tensor))  # top-k knows its strides
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*arguments, **constants)


def _tiles(d: int, whole: bool = False) -> tuple[int, int]:
    """Blocks of `STATE_BLOCK` columns in a tile, a power of two, and tiles in a row of d columns.

    Args:
        d: width of a row.
        whole: one tile a row, for int8 tables: their rows have to be known to the end before they are rounded.
    """
    if whole or d <= LONGEST_TILE // 2:
        return triton.next_power_of_2(triton.cdiv(d, STATE_BLOCK)), 1
    # Of the two longest tiles that which wastes less on the mask: 3584 is 7 x 512, 4096 is 4 x 1024.
    tile = min((LONGEST_TILE, LONGEST_TILE // 2), key=lambda tile: triton.cdiv(d, tile) * tile)
    return tile // STATE_BLOCK, triton.cdiv(d, tile)


def _warps(blocks: int, like: Tensor) -> int:
    """So many warps that each of 32 threads loads 16 bytes of a tile of `like`'s dtype."""
    return max(1, blocks * STATE_BLOCK * like.element_size() // 512)


def _key(noise: int | None) -> int:
    """The key of stochastic rounding as a signed 32-bit number, so that Triton compiles one kernel for all keys."""
    return (((noise or 0) + 2**31) & 0xFFFFFFFF) - 2**31


def _in_three_dimensions(scores: Tensor) -> Tensor:
    """Scores [..., m] as [outer, inner, m], copied only if need be: einsum leaves [n, h, m] permuted."""
    m = scores.shape[-1]
    scores = scores.reshape(-1, scores.shape[-2] if scores.dim() > 1 else 1, m)
    return scores if scores.stride(-1) == 1 or m == 1 else scores.contiguous()


def _token_rows(log: Sequence[LogEntry]) -> _TokenRows:
    """The addresses of a log's gradients, computed on the device from three numbers an entry."""
    dtype = functools.reduce(torch.promote_types, {entry.gradient.dtype for entry in log})
    dtype = torch.float32 if dtype == torch.float64 else dtype
    kept = []
    for entry in log:
        gradient = entry.gradient.detach().to(dtype)
        kept.append(gradient if gradient.stride(-1) == 1 or gradient.shape[-1] == 1 else gradient.contiguous())
    like = kept[0].new_empty(0)
    entries, start = [], 0
    for gradient in kept:
        stride = gradient.stride(0) * gradient.element_size()
        entries.append((gradient.data_ptr() - start * stride, stride, len(gradient)))
        start += len(gradient)
    numbers = torch.tensor(entries).to(like.device, non_blocking=True)  # [entries, 3], int64
    origin, strides, _ = numbers.repeat_interleave(numbers[:, 2], 0, output_size=start).unbind(1)
    addresses = origin + torch.arange(start, device=like.device) * strides
    aligned = all(
        gradient.data_ptr() % 16 == 0 and stride % 16 == 0
        for gradient, (_, stride, n) in zip(kept, entries, strict=True)
        if n
    )
    return _TokenRows(addresses, like, kept[0].shape[1], aligned, tuple(kept))


def _segments(log: Sequence[LogEntry], inverted: Inverted) -> _Segments:
    reads = inverted.prepared
    if reads is None:
        rows = _token_rows(log)
        reads = rows._replace(addresses=rows.addresses[inverted.tokens])  # [p]
    arguments = (inverted.offsets, reads.addresses, inverted.weights, reads.like)
    return _Segments(arguments, reads.like, reads.aligned, reads.kept)
