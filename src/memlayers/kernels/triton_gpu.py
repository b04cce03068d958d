"""The GPU backend: Triton kernels for CUDA and ROCm, without atomics and without a row gradient in memory.

Meanings, shapes and formats are those of `reference`, which every function here is tested against. A program owns a
token's output or a row of the table, or one tile of d columns of it, and sums in a fixed order: the same input gives
the same bits. Any d: the last tile is masked. float64, which no GPU table should be, goes to `reference`.

The gradients of a log stay where autograd left them: the kernels find a token's row by its address. With
TRITON_INTERPRET=1 all of this runs on CPU tensors. There a cast to bfloat16 truncates, which is one of two reasons for
rounding by hand; the other is that stochastic rounding has to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from memlayers.kernels import reference
from memlayers.kernels.interface import STATE_BLOCK, AdamW, Inverted, LogEntry, RowState, Schedule, Table

READS_IN_FLIGHT = 8  # rows of the table that a program has under way at a time
GRADIENTS_IN_FLIGHT = 4  # rows of the log; most slots have few readers
LONGEST_TILE = 1024

_BLOCK = tl.constexpr(STATE_BLOCK)
_SLACK = tl.constexpr(reference.CODE_SLACK)
_TINY = tl.constexpr(2.0**-126)  # the least normal float32: GPUs may flush what is smaller, and 0 / 0 must not come up
_LOWEST = tl.constexpr(-(2**63))  # below the key of any score


def _jit(kernel: Callable[..., Any]) -> Any:
    return triton.jit(kernel)


def _jit_for_any(*names: str) -> Callable[[Callable[..., Any]], Any]:
    """`_jit` that compiles nothing anew for special values of these arguments: they change from step to step."""
    return functools.partial(triton.jit, do_not_specialize=names)


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
            _top_k_kernel, a.shape[0] * a.shape[1], a, b, scores, slots, a.shape[1], *a.stride()[:2], *b.stride()[:2],
            k, m, ranked, M=length, K=triton.next_power_of_2(ranked), num_warps=max(1, min(8, length // 1024)),
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
            _weighted_sum_kernel, n * tiles, values, table.scales, indices.contiguous(), weights.contiguous(), out,
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
            _weight_gradient_kernel, n * groups, values, table.scales, indices.contiguous(), gradient.contiguous(), out,
            d, r, groups, BLOCKS=blocks, READS=reads, num_warps=4,
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
        _alive_kernel, len(alive), rows.addresses, rows.like, alive, rows.width,
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
            _row_gradients_kernel, len(picked) * tiles, *segments.arguments, picked, sums, width, tiles,
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
        _square_norm_kernel, squares.numel(), *segments.arguments, squares, log[0].gradient.shape[1], tiles,
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
        _adamw_kernel, len(picked) * tiles, *table, *state, places, *segments.arguments, inverted.rows, picked,
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
            _decay_kernel, len(rows) * tiles, values, rows, since, decay, now, values.shape[1], tiles,
            BLOCKS=blocks, num_warps=_warps(blocks, values),
        )  # fmt: skip
        return
    d = table.values.shape[1]
    blocks, tiles = _tiles(d, whole=table.scales is not None)
    _launch(
        _drift_kernel, len(rows) * tiles, *table, *state, places, rows, since, moving_until, step_size, root, decay,
        now, 1 - schedule.beta1, schedule.beta2, schedule.eps, _key(noise), d, tiles,
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


# -- a tile in and out of storage -------------------------------------------------------------------------------


@_jit
def _bfloat16(x: tl.tensor, extra: tl.tensor) -> tl.tensor:
    """float32 `x` plus `extra` units of the last of its 32 bits, cut to bfloat16; NaN stays NaN."""
    bits = (x.to(tl.uint32, bitcast=True) + extra) >> 16
    return tl.where(x == x, bits, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@_jit
def _nearest_bfloat16(x: tl.tensor) -> tl.tensor:
    """To the nearest, ties to even."""
    return _bfloat16(x, ((x.to(tl.uint32, bitcast=True) >> 16) & 1) + 0x7FFF)


@_jit
def _rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """float32 `x` in a floating dtype."""
    if dtype == tl.bfloat16:
        result = _nearest_bfloat16(x)
    else:
        result = x.to(dtype)
    return result


@_jit
def _hash_bits(places: tl.tensor, key: tl.tensor) -> tl.tensor:
    """See `reference.hash_bits`; uint32."""
    x = places.to(tl.uint32) ^ key.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 16)) * tl.full((), 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@_jit
def _whole(x: tl.tensor) -> tl.tensor:
    """The nearest whole number, ties to even, for |x| < 2^22: what lies behind the point is shifted out."""
    return (x + 12582912.0) - 12582912.0


@_jit
def _magnitude(x: tl.tensor) -> tl.tensor:
    """|x|, infinite where x is NaN: a maximum passes over NaN, and a scale must not hide it."""
    return tl.where(x == x, tl.abs(x), float("inf"))


@_jit
def _load_values(values: tl.tensor, scales: tl.tensor, row: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """See `reference.read_rows`; a tile, float32."""
    x = tl.load(values + at, mask=inside, other=0).to(tl.float32)
    if scales is not None:
        x = x * tl.load(scales + row)
    return x


@_jit
def _store_values(
    values: tl.tensor, scales: tl.tensor, row: tl.tensor, at: tl.tensor, inside: tl.tensor, x: tl.tensor,
    key: tl.tensor, NOISY: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """See `reference.write_rows`; `at` is also the element's place in the hash. An int8 tile is a whole row."""
    if scales is not None:
        scale = tl.div_rn(tl.max(tl.max(_magnitude(x), 1), 0), 127.0)
        codes = _whole(x / tl.maximum(scale, _TINY))
        tl.store(scales + row, scale)
        tl.store(values + at, tl.minimum(tl.maximum(codes, -127.0), 127.0).to(tl.int8), mask=inside)
    elif NOISY and values.dtype.element_ty == tl.bfloat16:
        tl.store(values + at, _bfloat16(x, _hash_bits(at, key) >> 16), mask=inside)
    else:
        tl.store(values + at, _rounded(x, values.dtype.element_ty), mask=inside)


@_jit
def _load_mean(
    codes: tl.tensor, scale: tl.tensor, at: tl.tensor, inside: tl.tensor, block: tl.tensor, real: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """See `reference.decode_mean`; a tile, float32."""
    x = tl.load(codes + at, mask=inside, other=0).to(tl.float32)
    if scale is not None:
        unit = x / 127.0
        x = unit * tl.abs(unit) * tl.load(scale + block, mask=real, other=0)[:, None]
    return x


@_jit
def _load_square(
    codes: tl.tensor, scale: tl.tensor, at: tl.tensor, inside: tl.tensor, block: tl.tensor, real: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """See `reference.decode_square`; a tile, float32."""
    x = tl.load(codes + at, mask=inside, other=0).to(tl.float32)
    if scale is not None:
        unit = x / 255.0
        unit = unit * unit
        x = unit * unit * tl.load(scale + block, mask=real, other=0)[:, None]
    return x


@_jit
def _store_mean(
    codes: tl.tensor, scale: tl.tensor, at: tl.tensor, inside: tl.tensor, block: tl.tensor, real: tl.tensor,
    x: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """See `reference.encode_mean`."""
    if scale is not None:
        largest = tl.max(_magnitude(x), 1)  # [BLOCKS]
        unit = tl.minimum(tl.abs(x) / tl.maximum(largest, _TINY)[:, None], 1.0)
        code = _whole(127.0 * tl.sqrt(unit))
        tl.store(scale + block, largest, mask=real)
        tl.store(codes + at, tl.where(x < 0, -code, code).to(tl.int8), mask=inside)
    else:
        tl.store(codes + at, x, mask=inside)


@_jit
def _store_square(
    codes: tl.tensor, scale: tl.tensor, at: tl.tensor, inside: tl.tensor, block: tl.tensor, real: tl.tensor,
    x: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """See `reference.encode_square`."""
    if scale is not None:
        largest = tl.max(_magnitude(x), 1)  # [BLOCKS]
        unit = tl.minimum(x / tl.maximum(largest, _TINY)[:, None], 1.0)
        code = tl.minimum(tl.ceil(255.0 * tl.sqrt(tl.sqrt(unit)) - _SLACK), 255.0)
        code = tl.where(unit > 0, tl.maximum(code, 1.0), 0.0)  # a GPU's square root may flush what is tiny to zero
        tl.store(scale + block, largest, mask=real)
        tl.store(codes + at, code.to(tl.uint8), mask=inside)
    else:
        tl.store(codes + at, x, mask=inside)


@_jit
def _columns(tile: tl.tensor, d: tl.tensor, BLOCKS: tl.constexpr) -> tl.tensor:
    """The columns of a tile [BLOCKS, 128], which of them are inside d, its blocks [BLOCKS], and which of them are."""
    block = tile * BLOCKS + tl.arange(0, BLOCKS)
    columns = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    return columns, columns < d, block, block * _BLOCK < d


@_jit
def _sum_reads(
    begin: tl.tensor, end: tl.tensor, reads: tl.tensor, weights: tl.tensor, like: tl.tensor, columns: tl.tensor,
    d: tl.tensor, BLOCKS: tl.constexpr, ALIGNED: tl.constexpr, UNROLL: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A tile of one row's gradient, float32 [BLOCKS, 128]: its readers one by one, UNROLL of them on the way."""
    total = tl.zeros((BLOCKS, _BLOCK), tl.float32)
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


@_jit
def _weighted_sum_kernel(
    values: tl.tensor, scales: tl.tensor, indices: tl.tensor, weights: tl.tensor, out: tl.tensor, d: tl.tensor,
    r: tl.tensor, tiles: tl.tensor, BLOCKS: tl.constexpr, UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    token = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * BLOCKS * _BLOCK + tl.arange(0, BLOCKS * _BLOCK)
    inside = columns < d
    total = tl.zeros((BLOCKS * _BLOCK,), tl.float32)
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
    tl.store(out + token * d + columns, _rounded(total, out.dtype.element_ty), mask=inside)


@_jit
def _weight_gradient_kernel(
    values: tl.tensor, scales: tl.tensor, indices: tl.tensor, gradient: tl.tensor, out: tl.tensor, d: tl.tensor,
    r: tl.tensor, groups: tl.tensor, BLOCKS: tl.constexpr, READS: tl.constexpr,
) -> None:  # fmt: skip
    token = (tl.program_id(0) // groups).to(tl.int64)
    read = tl.program_id(0) % groups * READS + tl.arange(0, READS)
    live = read < r
    rows = tl.load(indices + token * r + read, mask=live, other=0).to(tl.int64)
    total = tl.zeros((READS, BLOCKS * _BLOCK), tl.float32)
    for first in range(0, d, BLOCKS * _BLOCK):
        columns = first + tl.arange(0, BLOCKS * _BLOCK)
        inside = columns < d
        of_output = tl.load(gradient + token * d + columns, mask=inside, other=0).to(tl.float32)
        at = rows[:, None] * d + columns[None, :]
        value = tl.load(values + at, mask=live[:, None] & inside[None, :], other=0).to(tl.float32)
        total += value * of_output[None, :]
    result = tl.sum(total, 1)  # [READS]
    if scales is not None:
        result = result * tl.load(scales + rows, mask=live, other=0)
    tl.store(out + token * r + read, result, mask=live)


@_jit
def _alive_kernel(
    addresses: tl.tensor, like: tl.tensor, alive: tl.tensor, d: tl.tensor, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    pointer = tl.load(addresses + tl.program_id(0)).to(like.dtype)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    found = tl.zeros((BLOCKS * _BLOCK,), tl.int32)
    for first in range(0, d, BLOCKS * _BLOCK):
        columns = first + tl.arange(0, BLOCKS * _BLOCK)
        found |= (tl.load(pointer + columns, mask=columns < d, other=0).to(tl.float32) != 0).to(tl.int32)
    tl.store(alive + tl.program_id(0), tl.max(found, 0).to(tl.uint8))


@_jit
def _row_gradients_kernel(
    offsets: tl.tensor, reads: tl.tensor, weights: tl.tensor, like: tl.tensor, picked: tl.tensor, sums: tl.tensor,
    d: tl.tensor, tiles: tl.tensor, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr, UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    i = (tl.program_id(0) // tiles).to(tl.int64)
    columns, inside, part, real = _columns(tl.program_id(0) % tiles, d, BLOCKS)
    u = tl.load(picked + i)
    begin, end = tl.load(offsets + u), tl.load(offsets + u + 1)
    total = _sum_reads(begin, end, reads, weights, like, columns, d, BLOCKS, ALIGNED, UNROLL)
    tl.store(sums + i * d + columns, total, mask=inside)


@_jit
def _square_norm_kernel(
    offsets: tl.tensor, reads: tl.tensor, weights: tl.tensor, like: tl.tensor, squares: tl.tensor, d: tl.tensor,
    tiles: tl.tensor, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr, UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    u = (tl.program_id(0) // tiles).to(tl.int64)
    columns, inside, part, real = _columns(tl.program_id(0) % tiles, d, BLOCKS)
    begin, end = tl.load(offsets + u), tl.load(offsets + u + 1)
    total = _sum_reads(begin, end, reads, weights, like, columns, d, BLOCKS, ALIGNED, UNROLL)
    tl.store(squares + tl.program_id(0), tl.sum(tl.sum(total * total, 1), 0))


@_jit_for_any("key")
def _adamw_kernel(
    values: tl.tensor, scales: tl.tensor, exp_avg: tl.tensor, exp_avg_sq: tl.tensor, exp_avg_scale: tl.tensor,
    exp_avg_sq_scale: tl.tensor, master: tl.tensor, places: tl.tensor, offsets: tl.tensor, reads: tl.tensor,
    weights: tl.tensor, like: tl.tensor, rows: tl.tensor, picked: tl.tensor, step_size: tl.tensor, root: tl.tensor,
    factor: tl.tensor, decay: tl.tensor, rest1: tl.tensor, beta2: tl.tensor, rest2: tl.tensor, eps: tl.tensor,
    key: tl.tensor, d: tl.tensor, tiles: tl.tensor, NOISY: tl.constexpr, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr,
    UNROLL: tl.constexpr,
) -> None:  # fmt: skip
    i = (tl.program_id(0) // tiles).to(tl.int64)
    columns, inside, part, real = _columns(tl.program_id(0) % tiles, d, BLOCKS)
    u, place = tl.load(picked + i), tl.load(places + i)
    row = tl.load(rows + u)
    at, home, block = row * d + columns, place * d + columns, place * tl.cdiv(d, _BLOCK) + part
    # On the way before the reduction, which waits for a chain of loads.
    mean = _load_mean(exp_avg, exp_avg_scale, home, inside, block, real)
    square = _load_square(exp_avg_sq, exp_avg_sq_scale, home, inside, block, real)
    if master is not None:
        x = tl.load(master + home, mask=inside, other=0)
    else:
        x = _load_values(values, scales, row, at, inside)
    begin, end = tl.load(offsets + u), tl.load(offsets + u + 1)
    gradient = factor * _sum_reads(begin, end, reads, weights, like, columns, d, BLOCKS, ALIGNED, UNROLL)
    mean = mean + (gradient - mean) * rest1
    square = square * beta2 + rest2 * gradient * gradient
    size, bias = tl.load(step_size + i).to(tl.float32), tl.load(root + i).to(tl.float32)
    x = x * decay - tl.div_rn(size * mean, tl.div_rn(tl.sqrt_rn(square), bias) + eps)
    tl.debug_barrier()  # scales that every thread has read are overwritten by one
    _store_mean(exp_avg, exp_avg_scale, home, inside, block, real, mean)
    _store_square(exp_avg_sq, exp_avg_sq_scale, home, inside, block, real, square)
    if master is not None:
        tl.store(master + home, x, mask=inside)
    _store_values(values, scales, row, at, inside, x, key, NOISY)


@_jit_for_any("key", "now")
def _drift_kernel(
    values: tl.tensor, scales: tl.tensor, exp_avg: tl.tensor, exp_avg_sq: tl.tensor, exp_avg_scale: tl.tensor,
    exp_avg_sq_scale: tl.tensor, master: tl.tensor, places: tl.tensor, rows: tl.tensor, since: tl.tensor,
    moving_until: tl.tensor, step_size: tl.tensor, root: tl.tensor, decay: tl.tensor, now: tl.tensor, rest1: tl.tensor,
    beta2: tl.tensor, eps: tl.tensor, key: tl.tensor, d: tl.tensor, tiles: tl.tensor, NOISY: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    i = (tl.program_id(0) // tiles).to(tl.int64)
    columns, inside, part, real = _columns(tl.program_id(0) % tiles, d, BLOCKS)
    row, place, begin = tl.load(rows + i), tl.load(places + i), tl.load(since + i) + 1
    at, home, block = row * d + columns, place * d + columns, place * tl.cdiv(d, _BLOCK) + part
    if begin <= now:
        mean = _load_mean(exp_avg, exp_avg_scale, home, inside, block, real)
        square = _load_square(exp_avg_sq, exp_avg_sq_scale, home, inside, block, real)
        if master is not None:
            x = tl.load(master + home, mask=inside, other=0)
        else:
            x = _load_values(values, scales, row, at, inside)
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
        tl.debug_barrier()  # as in `_adamw_kernel`
        _store_mean(exp_avg, exp_avg_scale, home, inside, block, real, mean)
        _store_square(exp_avg_sq, exp_avg_sq_scale, home, inside, block, real, square)
        if master is not None:
            tl.store(master + home, x, mask=inside)
        _store_values(values, scales, row, at, inside, x, key, NOISY)


@_jit_for_any("now")
def _decay_kernel(
    values: tl.tensor, rows: tl.tensor, since: tl.tensor, decay: tl.tensor, now: tl.tensor, d: tl.tensor,
    tiles: tl.tensor, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    i = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * BLOCKS * _BLOCK + tl.arange(0, BLOCKS * _BLOCK)
    pointers = values + tl.load(rows + i) * d + columns
    x = tl.load(pointers, mask=columns < d, other=0)
    for step in range(tl.load(since + i) + 1, now + 1):  # in the table's precision, so that halves make a whole
        x = _rounded(x.to(tl.float32) * tl.load(decay + step), values.dtype.element_ty)
    tl.store(pointers, x, mask=columns < d)


# -- the product set --------------------------------------------------------------------------------------------


@_jit
def _ranking(scores: tl.tensor, index: tl.tensor) -> tl.tensor:
    """int64 keys, all different, whose order is that of float32 scores and, among equals, of falling index.

    As in torch's sort, -0 equals 0, and NaN is above all.
    """
    scores = tl.where(scores == 0, 0.0, scores)
    bits = tl.where(scores == scores, scores.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats are ordered by falling bits
    return (bits.to(tl.int64) << 32) + (0x7FFFFFFF - index).to(tl.int64)


@_jit
def _score_of(ranking: tl.tensor) -> tl.tensor:
    bits = (ranking >> 32).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@_jit
def _index_of(ranking: tl.tensor) -> tl.tensor:
    return 0x7FFFFFFF - (ranking & 0x7FFFFFFF)


@_jit
def _top_k_kernel(
    scores_a: tl.tensor, scores_b: tl.tensor, scores: tl.tensor, slots: tl.tensor, inner: tl.tensor, outer_a: tl.tensor,
    inner_a: tl.tensor, outer_b: tl.tensor, inner_b: tl.tensor, k: tl.tensor, m: tl.tensor, ranked: tl.tensor,
    M: tl.constexpr, K: tl.constexpr,
) -> None:  # fmt: skip
    i, j = (tl.program_id(0) // inner).to(tl.int64), tl.program_id(0) % inner
    index, rank = tl.arange(0, M), tl.arange(0, K)
    a = tl.load(scores_a + i * outer_a + j * inner_a + index, mask=index < m, other=0).to(tl.float32)
    b = tl.load(scores_b + i * outer_b + j * inner_b + index, mask=index < m, other=0).to(tl.float32)
    left_a = tl.where(index < m, _ranking(a, index), _LOWEST)
    left_b = tl.where(index < m, _ranking(b, index), _LOWEST)
    best_a, best_b = tl.full((K,), _LOWEST, tl.int64), tl.full((K,), _LOWEST, tl.int64)
    for t in range(ranked):
        of_a, of_b = tl.max(left_a, 0), tl.max(left_b, 0)
        best_a, best_b = tl.where(rank == t, of_a, best_a), tl.where(rank == t, of_b, best_b)
        left_a, left_b = tl.where(left_a == of_a, _LOWEST, left_a), tl.where(left_b == of_b, _LOWEST, left_b)
    # Stair i has the pairs (i, 0), (i, 1), ... of falling score. Its head is the first that is not taken yet, and the
    # best pair of all is some stair's head, of equal ones the first stair's. So no pair off the staircase is taken.
    score_a = _score_of(best_a)
    next_b = tl.where(rank < K, tl.max(best_b, 0), _LOWEST)  # [K], the head's second half
    taken = tl.zeros((K,), tl.int32)
    for t in range(k):
        sums = _rounded(score_a + _score_of(next_b), scores.dtype.element_ty).to(tl.float32)
        heads = tl.where((rank < ranked) & (taken < ranked), _ranking(sums, rank), _LOWEST)
        best = tl.max(heads, 0)
        won = rank == _index_of(best)
        of_a, of_b = tl.max(tl.where(won, best_a, _LOWEST), 0), tl.max(tl.where(won, next_b, _LOWEST), 0)
        at = tl.program_id(0).to(tl.int64) * k + t
        tl.store(scores + at, _rounded(_score_of(best), scores.dtype.element_ty))
        tl.store(slots + at, _index_of(of_a) * m + _index_of(of_b))
        count = tl.sum(tl.where(won, taken, 0), 0) + 1
        taken = tl.where(won, count, taken)
        next_b = tl.where(won, tl.max(tl.where(rank == count, best_b, _LOWEST), 0), next_b)
