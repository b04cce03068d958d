"""The CPU backend: numba kernels on plain threads, nothing allocated but their results and one row of scratch a thread.

Meanings, shapes and formats are those of `reference`, which every function here is tested against. Threads are started
per call (0.1 ms) rather than taken from numba's pool: that pool is the process's, may not be entered twice at a time,
and spins beside torch's own. Work is split by rows or tokens, and each is summed by one thread in a fixed order: the
same input gives the same bits on any number of threads.

The gradients of a log stay where autograd left them: the kernels find a token's row by its address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from memlayers.kernels import reference
from memlayers.kernels.interface import STATE_BLOCK, AdamW, Inverted, LogEntry, RowState, Schedule, Table

# Sums may be reordered and multiply-adds fused, so that loops vectorise; NaN and infinity keep their meaning.
_jit: Any = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
# The optimizer's arithmetic is rounded operation by operation, as torch's is, whichever kernel does it.
_jit_exact: Any = numba.njit(nogil=True, cache=True, error_model="numpy")
_inlined: Any = numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}, inline="always")


# -- the interface ----------------------------------------------------------------------------------------------


def product_key_top_k(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `reference.product_key_top_k`: one scan of each half against the k-th best so far, then the staircase."""
    if k > scores_a.shape[-1] or scores_a.dtype not in (torch.float32, torch.float64):
        return reference.product_key_top_k(scores_a, scores_b, k)
    shape = scores_a.shape[:-1]
    a, b = (_rows_of(scores) for scores in (scores_a, scores_b))
    best = torch.empty(*shape, k, dtype=scores_a.dtype)
    slots = torch.empty(*shape, k, dtype=torch.int64)
    if best.numel():
        arguments = (*a, *b, k, scores_a.shape[-1], best.numpy().reshape(-1, k), slots.numpy().reshape(-1, k))
        _in_threads(_top_k_kernel, len(a[1]), *arguments, least=128)
    return best, slots


def weighted_sum(table: Table, indices: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """See `reference.weighted_sum`. torch's embedding_bag where it sums in full precision: it prefetches rows."""
    values = table.values
    if values.dtype in (torch.float32, torch.float64):
        return F.embedding_bag(indices, values, per_sample_weights=weights.to(values), mode="sum").to(dtype)
    if values.dtype == torch.float16:
        return reference.weighted_sum(table, indices, weights, dtype)
    out = torch.empty(len(indices), values.shape[1])
    arguments = (*_table(table), indices.contiguous().numpy(), weights.float().contiguous().numpy(), out.numpy())
    _in_threads(_weighted_sum_kernel, len(indices), *arguments)
    return out.to(dtype)


def weight_gradient(table: Table, indices: Tensor, gradient: Tensor) -> Tensor:
    """See `reference.weight_gradient`."""
    if table.values.dtype == torch.float16:
        return reference.weight_gradient(table, indices, gradient)
    compute = torch.promote_types(torch.float32, table.values.dtype if table.scales is None else torch.float32)
    out = torch.empty(indices.shape, dtype=compute)
    rows = gradient.to(compute).contiguous().numpy()
    _in_threads(_weight_gradient_kernel, len(indices), *_table(table), indices.contiguous().numpy(), rows, out.numpy())
    return out


def invert(log: Sequence[LogEntry]) -> Inverted:
    """See `reference.invert`: a radix sort of the reads by slot."""
    log = _uniform(log)
    reads = sum(entry.indices.numel() for entry in log)
    slots, tokens = np.empty(reads, dtype=np.int64), np.empty(reads, dtype=np.int64)
    dtype = log[0].weights.dtype if log else torch.float32
    weights = torch.empty(reads, dtype=dtype)
    filled = start = 0
    for entry, (addresses, like, d) in zip(log, map(_addresses, log), strict=True):
        filled = _collect_kernel(
            entry.indices.contiguous().numpy(), entry.weights.contiguous().numpy(), addresses, like, d, start,
            slots, tokens, weights.numpy(), filled,
        )  # fmt: skip
        start += len(addresses)
    rows, offsets, sorted_tokens, sorted_weights = _invert_kernel(
        slots[:filled], tokens[:filled], weights.numpy()[:filled]
    )
    return Inverted(*map(torch.from_numpy, (rows, offsets, sorted_tokens, sorted_weights)))


def row_gradients(log: Sequence[LogEntry], inverted: Inverted, picked: Tensor) -> Tensor:
    """See `reference.row_gradients`."""
    log = _uniform(log)
    sums = torch.empty(len(picked), log[0].gradient.shape[1] if log else 0, dtype=inverted.weights.dtype)
    if sums.numel():
        arguments = (*_segments(log, inverted), picked.numpy(), sums.numpy())
        _in_threads(_row_gradients_kernel, len(picked), *arguments)
    return sums


def square_norm(log: Sequence[LogEntry], inverted: Inverted) -> Tensor:
    """See `reference.square_norm`."""
    log = _uniform(log)
    squares = torch.zeros(len(inverted.rows), dtype=torch.float64)
    if len(squares):
        width = log[0].gradient.shape[1]
        _in_threads(_square_norm_kernel, len(squares), *_segments(log, inverted), width, squares.numpy())
    return squares.sum()


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
    """See `reference.adamw_rows`: reduced, stepped and written back while the row is in the cache."""
    if table.values.dtype == torch.float16:
        reference.adamw_rows(table, state, places, log, inverted, picked, adamw, factor, noise)
        return
    if not len(picked):
        return
    log = _uniform(log)
    compute = _compute_dtype(state)
    scalars = (adamw.decay, 1 - adamw.beta1, adamw.beta2, 1 - adamw.beta2, adamw.eps, factor)
    arguments = (
        *_table(table), *_state(state, compute), places.numpy(), inverted.rows.numpy(), *_segments(log, inverted),
        picked.numpy(), adamw.step_size.numpy().astype(compute), adamw.root.numpy().astype(compute),
        np.array(scalars, dtype=compute), _key(noise),
    )  # fmt: skip
    _in_threads(_adamw_kernel, len(picked), *arguments)


def stale_rows(indices: Tensor, caught_up: Tensor, now: int) -> tuple[Tensor, Tensor]:
    """See `reference.stale_rows`; in the order of their first reads."""
    flat = indices.flatten()
    rows, since = np.empty(len(flat), dtype=np.int64), np.empty(len(flat), dtype=np.int64)
    count = _stale_kernel(flat.numpy(), caught_up.numpy(), now, rows, since)
    return torch.from_numpy(rows[:count].copy()), torch.from_numpy(since[:count].copy())


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
    """See `reference.drift_rows`."""
    if table.values.dtype == torch.float16 or state is None:  # without state there is decay only, which is rare
        reference.drift_rows(table, state, places, rows, since, moving_until, schedule, noise)
        return
    if not len(rows):
        return
    compute = _compute_dtype(state)
    scalars = np.array((1 - schedule.beta1, schedule.beta2, schedule.eps), dtype=compute)
    steps = (each.numpy().astype(compute) for each in (schedule.step_size, schedule.root, schedule.decay))
    arguments = (
        *_table(table), *_state(state, compute), places.numpy(), rows.numpy(), since.numpy(),
        moving_until.numpy(), *steps, scalars, _key(noise),
    )  # fmt: skip
    _in_threads(_drift_kernel, len(rows), *arguments)


# -- from torch to numba ----------------------------------------------------------------------------------------


def _in_threads(kernel: Callable[..., None], n: int, *arguments: Any, least: int = 8) -> None:
    """Runs kernel(*arguments, begin, end) over [0, n), a thread a part, no part smaller than `least`."""
    parts = max(1, min(torch.get_num_threads(), n // least))
    bounds = [n * i // parts for i in range(parts + 1)]
    errors: list[BaseException] = []

    def run(begin: int, end: int) -> None:
        try:
            kernel(*arguments, begin, end)
        except BaseException as error:  # a thread's own traceback would go to stderr and be forgotten
            errors.append(error)

    threads = [threading.Thread(target=run, args=each) for each in zip(bounds[1:-1], bounds[2:], strict=True)]
    for thread in threads:
        thread.start()
    run(bounds[0], bounds[1])
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _array(tensor: Tensor) -> Any:
    """Numpy has no bfloat16: its bits, as uint16."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def _table(table: Table) -> tuple[Any, Any]:
    scales = np.zeros(0, dtype=np.float32) if table.scales is None else table.scales.detach().numpy()
    return _array(table.values), scales


def _compute_dtype(state: RowState) -> Any:
    return np.float64 if state.exp_avg.dtype == torch.float64 else np.float32


def _state(state: RowState, compute: Any) -> tuple[Any, ...]:
    """The arrays of a state; what it lacks is an empty one."""
    no_scale, no_master = np.zeros((0, 0), dtype=np.float32), np.zeros((0, 0), dtype=compute)
    scales = (state.exp_avg_scale, state.exp_avg_sq_scale)
    return (
        state.exp_avg.numpy(),
        state.exp_avg_sq.numpy(),
        *(no_scale if scale is None else scale.numpy() for scale in scales),
        no_master if state.master is None else state.master.numpy(),
    )


def _key(noise: int | None) -> int:
    return -1 if noise is None else noise & 0xFFFFFFFF


def _rows_of(scores: Tensor) -> tuple[Any, Any]:
    """Scores [..., m] as a flat array and where in it each row begins: einsum leaves its result permuted."""
    scores = scores.detach()
    if scores.stride(-1) != 1:
        scores = scores.contiguous()
    span = 1 + sum((size - 1) * stride for size, stride in zip(scores.shape, scores.stride(), strict=True))
    flat = scores.as_strided((span if scores.numel() else 0,), (1,))
    begins = np.zeros((1,), dtype=np.int64)
    for size, stride in zip(scores.shape[:-1], scores.stride()[:-1], strict=True):
        begins = (begins[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
    return flat.numpy(), begins


def _uniform(log: Sequence[LogEntry]) -> Sequence[LogEntry]:
    """The log with gradients that the kernels can read: of one dtype, with contiguous rows. Nearly always as it is."""
    dtypes = {entry.gradient.dtype for entry in log}
    readable = len(dtypes) <= 1 and not dtypes & {torch.float16}
    if readable and all(entry.gradient.stride(-1) == 1 for entry in log):
        return log
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return [entry._replace(gradient=entry.gradient.to(dtype).contiguous()) for entry in log]


def _addresses(entry: LogEntry) -> tuple[Any, Any, int]:
    """The address of each token's gradient, an empty array of the gradients' dtype, and their width."""
    gradient = entry.gradient
    stride = gradient.stride(0) * gradient.element_size()
    addresses = gradient.data_ptr() + np.arange(len(gradient), dtype=np.int64) * stride
    return addresses, _array(gradient[:0]), gradient.shape[1]


def _segments(log: Sequence[LogEntry], inverted: Inverted) -> tuple[Any, ...]:
    """What the reduction of a row needs: offsets, tokens, weights, addresses, and an empty array of the dtype."""
    found = [_addresses(entry) for entry in log]
    addresses = np.concatenate([each[0] for each in found])
    return inverted.offsets.numpy(), inverted.tokens.numpy(), inverted.weights.numpy(), addresses, found[0][1]


# -- scalars ----------------------------------------------------------------------------------------------------


@intrinsic
def _float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 of 32 bits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), build


@intrinsic
def _bits_of_float(typing: Any, value: Any) -> Any:
    """The 32 bits of a float32."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), build


@intrinsic
def _pointer(typing: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to elements of `like`'s dtype."""
    pointer = types.CPointer(like.dtype)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, like), build


def _number(x: Any) -> Any:
    """A stored element as a number: bfloat16 bits are the upper half of a float32's."""
    raise NotImplementedError  # compiled code takes the overload


@overload(_number, inline="always")
def _number_compiled(x: Any) -> Any:
    if x == types.uint16:

        def widen(x: Any) -> Any:
            return _float_of_bits(np.uint32(np.uint32(x) << np.uint32(16)))

        return widen

    def same(x: Any) -> Any:
        return x

    return same


# -- a row in and out of storage --------------------------------------------------------------------------------


def _load(values: Any, scales: Any, row: Any, out: Any) -> None:
    """Row `row` of a table into `out` [d]."""


@overload(_load, inline="always")
def _load_compiled(values: Any, scales: Any, row: Any, out: Any) -> Any:
    if values.dtype == types.int8:

        def load(values: Any, scales: Any, row: Any, out: Any) -> None:
            scale = scales[row]
            for j in range(out.shape[0]):
                out[j] = values[row, j] * scale

        return load

    def load_float(values: Any, scales: Any, row: Any, out: Any) -> None:
        for j in range(out.shape[0]):
            out[j] = _number(values[row, j])

    return load_float


def _store(values: Any, scales: Any, row: Any, source: Any, key: Any) -> None:
    """`source` [d] into row `row` of a table; see `reference.write_rows`."""


@overload(_store, inline="always")
def _store_compiled(values: Any, scales: Any, row: Any, source: Any, key: Any) -> Any:
    if values.dtype == types.int8:

        def store_int8(values: Any, scales: Any, row: Any, source: Any, key: Any) -> None:
            scale = _largest(source, 0, source.shape[0]) / np.float32(127)
            scales[row] = scale
            divisor = max(scale, np.float32(reference.TINY))
            for j in range(source.shape[0]):
                unit = np.float32(source[j]) / divisor
                unit = unit if unit > np.float32(-127) else np.float32(-127)
                values[row, j] = np.int8(np.rint(unit if unit < np.float32(127) else np.float32(127)))

        return store_int8
    if values.dtype == types.uint16:

        def store_bfloat16(values: Any, scales: Any, row: Any, source: Any, key: Any) -> None:
            d = source.shape[0]
            for j in range(d):
                bits = _bits_of_float(np.float32(source[j]))
                if key >= 0:
                    extra = np.uint32(_hash(np.uint32(row * d + j), np.uint32(key)) >> np.uint32(16))
                else:  # to the nearest, ties to even
                    extra = np.uint32(np.uint32(0x7FFF) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1)))
                if source[j] != source[j]:
                    bits, extra = np.uint32(0x7FC00000), np.uint32(0)
                values[row, j] = np.uint16(np.uint32(bits + extra) >> np.uint32(16))

        return store_bfloat16

    def store_float(values: Any, scales: Any, row: Any, source: Any, key: Any) -> None:
        for j in range(source.shape[0]):
            values[row, j] = source[j]

    return store_float


@_inlined
def _largest(source: Any, begin: Any, end: Any) -> Any:
    """The largest magnitude, float32, by its bits: they are in the order of the numbers, and NaN is above them all."""
    largest = np.uint32(0)
    for j in range(begin, end):
        bits = np.uint32(_bits_of_float(np.float32(source[j])) & np.uint32(0x7FFFFFFF))
        largest = bits if bits > largest else largest
    return _float_of_bits(largest)


@_inlined
def _hash(place: Any, key: Any) -> Any:
    x = np.uint32(place ^ key)
    x = np.uint32(np.uint32(x ^ np.uint32(x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(np.uint32(x ^ np.uint32(x >> np.uint32(16))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


def _load_moments(exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, at: Any, m: Any, v: Any) -> None:
    """The moments at place `at` into `m` and `v` [d]."""


@overload(_load_moments, inline="always")
def _load_moments_compiled(
    exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, at: Any, m: Any, v: Any
) -> Any:
    if exp_avg.dtype == types.int8:

        def load_codes(
            exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, at: Any, m: Any, v: Any
        ) -> None:
            d = m.shape[0]
            for block in range(mean_scale.shape[1]):
                mean_unit, square_unit = mean_scale[at, block], square_scale[at, block]
                for j in range(block * STATE_BLOCK, min(d, (block + 1) * STATE_BLOCK)):
                    code = np.float32(exp_avg[at, j]) / np.float32(127)
                    m[j] = code * abs(code) * mean_unit
                    code = np.float32(exp_avg_sq[at, j]) / np.float32(255)
                    v[j] = (code * code) * (code * code) * square_unit

        return load_codes

    def load_float(exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, at: Any, m: Any, v: Any) -> None:
        for j in range(m.shape[0]):
            m[j] = exp_avg[at, j]
            v[j] = exp_avg_sq[at, j]

    return load_float


def _store_moments(exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, at: Any, m: Any, v: Any) -> None:
    """`m` and `v` [d] into place `at` of the moments."""


@overload(_store_moments, inline="always")
def _store_moments_compiled(
    exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, at: Any, m: Any, v: Any
) -> Any:
    if exp_avg.dtype == types.int8:

        def store_codes(
            exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, at: Any, m: Any, v: Any
        ) -> None:
            d = m.shape[0]
            tiny, slack = np.float32(reference.TINY), np.float32(reference.CODE_SLACK)
            for block in range(mean_scale.shape[1]):
                begin, end = block * STATE_BLOCK, min(d, (block + 1) * STATE_BLOCK)
                mean_unit, square_unit = _largest(m, begin, end), _largest(v, begin, end)
                mean_scale[at, block], square_scale[at, block] = mean_unit, square_unit
                mean_unit, square_unit = max(mean_unit, tiny), max(square_unit, tiny)
                for j in range(begin, end):
                    unit = np.float32(abs(m[j])) / mean_unit
                    code = np.rint(np.float32(127) * np.sqrt(unit if unit < np.float32(1) else np.float32(1)))
                    exp_avg[at, j] = np.int8(code if m[j] >= 0 else -code)
                for j in range(begin, end):
                    unit = np.float32(v[j]) / square_unit
                    code = np.ceil(np.float32(255) * np.sqrt(np.sqrt(unit)) - slack)
                    code = code if code < np.float32(255) else np.float32(255)
                    code = code if code > np.float32(1) else np.float32(1)
                    exp_avg_sq[at, j] = np.uint8(np.int32(code if unit > np.float32(0) else np.float32(0)))

        return store_codes

    def store_float(exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, at: Any, m: Any, v: Any) -> None:
        for j in range(m.shape[0]):
            exp_avg[at, j] = m[j]
            exp_avg_sq[at, j] = v[j]

    return store_float


# -- kernels ----------------------------------------------------------------------------------------------------


@_inlined
def _reduce(begin: Any, end: Any, tokens: Any, weights: Any, addresses: Any, like: Any, out: Any) -> None:
    """Sum of weight * gradient over the reads [begin, end) into `out` [d], in the order of the reads."""
    d = out.shape[0]
    row = numba.carray(_pointer(addresses[tokens[begin]], like), d)
    weight = weights[begin]
    for j in range(d):
        out[j] = weight * _number(row[j])
    at = begin + 1
    while at + 2 <= end:  # two at a time: half the passes over the sum
        row = numba.carray(_pointer(addresses[tokens[at]], like), d)
        other = numba.carray(_pointer(addresses[tokens[at + 1]], like), d)
        weight, other_weight = weights[at], weights[at + 1]
        for j in range(d):
            out[j] += weight * _number(row[j]) + other_weight * _number(other[j])
        at += 2
    if at < end:
        row = numba.carray(_pointer(addresses[tokens[at]], like), d)
        weight = weights[at]
        for j in range(d):
            out[j] += weight * _number(row[j])


@_jit_exact
def _row_gradients_kernel(
    offsets: Any, tokens: Any, weights: Any, addresses: Any, like: Any, picked: Any, sums: Any, begin: int, end: int
) -> None:
    for i in range(begin, end):
        u = picked[i]
        _reduce(offsets[u], offsets[u + 1], tokens, weights, addresses, like, sums[i])


@_jit
def _square_norm_kernel(
    offsets: Any, tokens: Any, weights: Any, addresses: Any, like: Any, d: int, squares: Any, begin: int, end: int
) -> None:
    g = np.empty(d, dtype=weights.dtype)
    for u in range(begin, end):
        _reduce(offsets[u], offsets[u + 1], tokens, weights, addresses, like, g)
        total = np.float64(0)
        for j in range(d):
            total += np.float64(g[j]) * np.float64(g[j])
        squares[u] = total


@_jit_exact
def _adamw_kernel(
    values: Any, scales: Any, exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, master: Any,
    places: Any, rows: Any, offsets: Any, tokens: Any, weights: Any, addresses: Any, like: Any, picked: Any,
    step_size: Any, root: Any, scalars: Any, key: int, begin: int, end: int,
) -> None:  # fmt: skip
    d = values.shape[1]
    g, w = np.empty(d, dtype=step_size.dtype), np.empty(d, dtype=step_size.dtype)
    m, v = np.empty(d, dtype=step_size.dtype), np.empty(d, dtype=step_size.dtype)
    decay, take, keep_square, take_square, eps, factor = (
        scalars[0], scalars[1], scalars[2], scalars[3], scalars[4], scalars[5],
    )  # fmt: skip
    has_master = master.shape[0] > 0
    for i in range(begin, end):
        u, at = picked[i], places[i]
        row = rows[u]
        _reduce(offsets[u], offsets[u + 1], tokens, weights, addresses, like, g)
        _load_moments(exp_avg, exp_avg_sq, mean_scale, square_scale, at, m, v)
        if has_master:
            for j in range(d):
                w[j] = master[at, j]
        else:
            _load(values, scales, row, w)
        size, bias = step_size[i], root[i]
        for j in range(d):
            gradient = g[j] * factor
            m[j] += (gradient - m[j]) * take
            v[j] = v[j] * keep_square + take_square * gradient * gradient
            w[j] = w[j] * decay - size * m[j] / (np.sqrt(v[j]) / bias + eps)
        _store_moments(exp_avg, exp_avg_sq, mean_scale, square_scale, at, m, v)
        if has_master:
            for j in range(d):
                master[at, j] = w[j]
        _store(values, scales, row, w, -1 if has_master else key)


@_jit_exact
def _drift_kernel(
    values: Any, scales: Any, exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, master: Any,
    places: Any, rows: Any, since: Any, moving_until: Any, step_size: Any, root: Any, decay: Any, scalars: Any,
    key: int, begin: int, end: int,
) -> None:  # fmt: skip
    d = values.shape[1]
    w, m, v = np.empty(d, step_size.dtype), np.empty(d, step_size.dtype), np.empty(d, step_size.dtype)
    take, keep_square, eps = scalars[0], scalars[1], scalars[2]
    has_master = master.shape[0] > 0
    now = decay.shape[0] - 1
    for i in range(begin, end):
        at, row = places[i], rows[i]
        if since[i] >= now:
            continue
        _load_moments(exp_avg, exp_avg_sq, mean_scale, square_scale, at, m, v)
        if has_master:
            for j in range(d):
                w[j] = master[at, j]
        else:
            _load(values, scales, row, w)
        for step in range(since[i] + 1, now + 1):
            shrink, size, bias = decay[step], step_size[step], root[step]
            if step <= moving_until[i]:
                for j in range(d):
                    m[j] += (0 - m[j]) * take
                    v[j] = v[j] * keep_square
                    w[j] = w[j] * shrink - size * m[j] / (np.sqrt(v[j]) / bias + eps)
            else:
                for j in range(d):
                    m[j] += (0 - m[j]) * take
                    v[j] = v[j] * keep_square
                    w[j] = w[j] * shrink
        _store_moments(exp_avg, exp_avg_sq, mean_scale, square_scale, at, m, v)
        if has_master:
            for j in range(d):
                master[at, j] = w[j]
        _store(values, scales, row, w, -1 if has_master else key)


@_jit
def _stale_kernel(flat: Any, caught_up: Any, now: int, rows: Any, since: Any) -> int:
    count = 0
    for i in range(flat.shape[0]):
        row = flat[i]
        if caught_up[row] < now:
            rows[count], since[count] = row, caught_up[row]
            caught_up[row] = now
            count += 1
    return count


@_jit
def _weighted_sum_kernel(values: Any, scales: Any, indices: Any, weights: Any, out: Any, begin: int, end: int) -> None:
    d, reads = values.shape[1], indices.shape[1]
    scaled = scales.shape[0] > 0
    for t in range(begin, end):
        total = out[t]
        for j in range(d):
            total[j] = 0
        for i in range(reads):
            row = indices[t, i]
            weight = weights[t, i] * scales[row] if scaled else weights[t, i]
            for j in range(d):
                total[j] += weight * _number(values[row, j])


@_jit
def _weight_gradient_kernel(
    values: Any, scales: Any, indices: Any, gradient: Any, out: Any, begin: int, end: int
) -> None:
    d = values.shape[1]
    scaled = scales.shape[0] > 0
    for t in range(begin, end):
        for i in range(indices.shape[1]):
            row = indices[t, i]
            total = out.dtype.type(0)
            for j in range(d):
                total += _number(values[row, j]) * gradient[t, j]
            out[t, i] = total * scales[row] if scaled else total


@_jit
def _collect_kernel(
    indices: Any, entry_weights: Any, addresses: Any, like: Any, d: int, start: int,
    slots: Any, tokens: Any, weights: Any, filled: int,
) -> int:  # fmt: skip
    """Appends an entry's reads, but for tokens whose whole gradient is zero; returns how many there are now."""
    for t in range(indices.shape[0]):
        row = numba.carray(_pointer(addresses[t], like), d)
        alive = False
        for j in range(d):
            if _number(row[j]) != 0:
                alive = True
                break
        if alive:
            for i in range(indices.shape[1]):
                slots[filled], tokens[filled], weights[filled] = indices[t, i], start + t, entry_weights[t, i]
                filled += 1
    return filled


@_jit
def _invert_kernel(slots: Any, tokens: Any, weights: Any) -> Any:
    """Sorts the reads by slot, least significant digit first, which keeps the tokens of a slot in order."""
    n = slots.shape[0]
    largest = np.int64(0)
    for i in range(n):
        largest = max(largest, slots[i])
    order, spare = np.arange(n), np.empty(n, dtype=np.int64)
    shift = 0
    while shift == 0 or (largest >> shift) > 0:
        begins = np.zeros(2049, dtype=np.int64)
        for i in range(n):
            begins[((slots[i] >> shift) & 2047) + 1] += 1
        for digit in range(2048):
            begins[digit + 1] += begins[digit]
        for i in range(n):
            digit = (slots[order[i]] >> shift) & 2047
            spare[begins[digit]] = order[i]
            begins[digit] += 1
        order, spare = spare, order
        shift += 11
    rows, offsets = np.empty(n, dtype=np.int64), np.empty(n + 1, dtype=np.int64)
    sorted_weights = np.empty(n, dtype=weights.dtype)
    u = 0
    for i in range(n):
        read = order[i]
        spare[i], sorted_weights[i] = tokens[read], weights[read]
        if u == 0 or rows[u - 1] != slots[read]:
            rows[u], offsets[u] = slots[read], i
            u += 1
    offsets[u] = n
    return rows[:u].copy(), offsets[: u + 1].copy(), spare, sorted_weights


@_inlined
def _insert(best: Any, index: Any, filled: int, score: Any, i: Any) -> None:
    """Puts a score into the descending `best`, the lower index first among equals; the last of `filled` goes."""
    at = filled - 1
    while at > 0 and (best[at - 1] < score or (best[at - 1] == score and index[at - 1] > i)):
        best[at], index[at] = best[at - 1], index[at - 1]
        at -= 1
    best[at], index[at] = score, i


@_inlined
def _best_of(row: Any, k: int, best: Any, index: Any, largest: Any, found: Any, where: Any) -> None:
    """The k best of `row` [m], best first; among equals the lower index.

    `largest` [g] takes the largest of each of g groups, every g-th element: that vectorises. At least k elements are no
    smaller than the k-th largest of these, so what is smaller cannot be among the k best. What is left, about k and a
    half, goes to `found` and `where` [m + 1], and is sorted.
    """
    m, groups = row.shape[0], largest.shape[0]
    candidates = 0
    if m >= 2 * groups:
        whole = m // groups
        lanes = row[: whole * groups].reshape(whole, groups)
        for g in range(groups):
            largest[g] = row[g]
        for t in range(1, whole):
            for g in range(groups):
                largest[g] = lanes[t, g] if lanes[t, g] > largest[g] else largest[g]
        for g in range(m - whole * groups):
            rest = row[whole * groups + g]
            largest[g] = rest if rest > largest[g] else largest[g]
        threshold = largest.dtype.type(np.inf)
        for g in range(groups):  # the k-th largest has fewer than k above it; counting has no branch to guess
            above = 0
            for other in range(groups):
                above += largest[other] > largest[g]
            if above < k and largest[g] < threshold:
                threshold = largest[g]
        for g in range(groups):
            if largest[g] >= threshold:
                for i in range(g, m, groups):
                    found[candidates], where[candidates] = row[i], i
                    candidates += row[i] >= threshold
    if candidates < k:  # a short row, or NaN among the scores
        candidates = m
        for i in range(m):
            found[i], where[i] = row[i], i
    for i in range(k):
        _insert(best, index, i + 1, found[i], where[i])
    for i in range(k, candidates):
        if found[i] > best[k - 1] or (found[i] == best[k - 1] and where[i] < index[k - 1]):
            _insert(best, index, k, found[i], where[i])


@_jit
def _top_k_kernel(
    flat_a: Any, begins_a: Any, flat_b: Any, begins_b: Any, k: int, m: int, scores: Any, slots: Any, begin: int,
    end: int,
) -> None:  # fmt: skip
    best_a, best_b = np.empty(k, dtype=flat_a.dtype), np.empty(k, dtype=flat_a.dtype)
    index_a, index_b = np.empty(k, dtype=np.int64), np.empty(k, dtype=np.int64)
    largest = np.empty((2 * k + 15) // 16 * 16, dtype=flat_a.dtype)
    found, where = np.empty(m + 1, dtype=flat_a.dtype), np.empty(m + 1, dtype=np.int64)
    for t in range(begin, end):
        _best_of(flat_a[begins_a[t] : begins_a[t] + m], k, best_a, index_a, largest, found, where)
        _best_of(flat_b[begins_b[t] : begins_b[t] + m], k, best_b, index_b, largest, found, where)
        best, slot = scores[t], slots[t]
        filled = 0
        for i in range(k):
            for j in range(k // (i + 1)):  # only the staircase (i + 1)(j + 1) <= k can win
                score = best_a[i] + best_b[j]
                if filled < k:
                    filled += 1
                elif score <= best[k - 1]:
                    break  # the rest of this row of the staircase is no better
                at = filled - 1  # behind its equals: the order of the halves decides among them
                while at > 0 and best[at - 1] < score:
                    best[at], slot[at] = best[at - 1], slot[at - 1]
                    at -= 1
                best[at], slot[at] = score, index_a[i] * m + index_b[j]


def add_one_to_rows(table: Tensor, rows: Tensor) -> None:
    """Adds 1 to some rows in place: what the bench holds the optimizer's step against.

    Args:
        table: float32 [slots, d].
        rows: distinct slots, int64 [q].
    """
    _in_threads(_add_one_kernel, len(rows), table.numpy(), rows.numpy())


@_jit
def _add_one_kernel(values: Any, rows: Any, begin: int, end: int) -> None:
    for i in range(begin, end):
        row = values[rows[i]]
        for j in range(row.shape[0]):
            row[j] += 1
