"""The compiled loops of the CPU backend, but for the top-k: rows in and out of storage, reads, the log, the optimizer.

Longer than other files because numba's compile cache notices a change of the file that a function is in, but not of the
files that it calls into: whatever a cached loop inlines has to stand beside it, or old machine code would be run.
Meanings, shapes and formats are those of `reference` and `storage`. Every loop works on items [begin, end): see
the package's `_in_threads`.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from memlayers.kernels import storage
from memlayers.kernels.interface import STATE_BLOCK
from memlayers.kernels.numba_cpu.compilation import cached_jit

# Sums may be reordered and multiply-adds fused, so that loops vectorise; NaN and infinity keep their meaning.
_jit = cached_jit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
# The optimizer's arithmetic is rounded operation by operation, as torch's is, whichever kernel does it.
_jit_exact = cached_jit(nogil=True, error_model="numpy")
_inlined: Any = numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}, inline="always")


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
    """`source` [d] into row `row` of a table; see `storage.write_rows`."""


@overload(_store, inline="always")
def _store_compiled(values: Any, scales: Any, row: Any, source: Any, key: Any) -> Any:
    if values.dtype == types.int8:

        def store_int8(values: Any, scales: Any, row: Any, source: Any, key: Any) -> None:
            scale = _largest(source, 0, source.shape[0]) / np.float32(127)
            scales[row] = scale
            divisor = max(scale, np.float32(storage.TINY))
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
            tiny, slack = np.float32(storage.TINY), np.float32(storage.CODE_SLACK)
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
def row_gradients_kernel(
    offsets: Any, tokens: Any, weights: Any, addresses: Any, like: Any, picked: Any, sums: Any, begin: int, end: int
) -> None:
    """See `reference.row_gradients`."""
    for i in range(begin, end):
        u = picked[i]
        _reduce(offsets[u], offsets[u + 1], tokens, weights, addresses, like, sums[i])


@_jit
def square_norm_kernel(
    offsets: Any, tokens: Any, weights: Any, addresses: Any, like: Any, d: int, squares: Any, begin: int, end: int
) -> None:
    """Squares [u] in float64: each row's gradient is summed by `_reduce`, and only its squared norm is kept."""
    g = np.empty(d, dtype=weights.dtype)
    for u in range(begin, end):
        _reduce(offsets[u], offsets[u + 1], tokens, weights, addresses, like, g)
        total = np.float64(0)
        for j in range(d):
            total += np.float64(g[j]) * np.float64(g[j])
        squares[u] = total


@_jit_exact
def adamw_kernel(
    values: Any, scales: Any, exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, master: Any,
    places: Any, rows: Any, offsets: Any, tokens: Any, weights: Any, addresses: Any, like: Any, picked: Any,
    step_size: Any, root: Any, scalars: Any, key: int, begin: int, end: int,
) -> None:  # fmt: skip
    """See `reference.adamw_rows`; `scalars` are decay, 1 - beta1, beta2, 1 - beta2, eps and the factor."""
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
def drift_kernel(
    values: Any, scales: Any, exp_avg: Any, exp_avg_sq: Any, mean_scale: Any, square_scale: Any, master: Any,
    places: Any, rows: Any, since: Any, moving_until: Any, step_size: Any, root: Any, decay: Any, scalars: Any,
    key: int, begin: int, end: int,
) -> None:  # fmt: skip
    """See `reference.drift_rows`; `scalars` are 1 - beta1, beta2 and eps."""
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
def stale_kernel(flat: Any, caught_up: Any, now: int, rows: Any, since: Any) -> int:
    """See `reference.stale_rows`: fills `rows` and `since`, and returns how many entries were filled."""
    count = 0
    for i in range(flat.shape[0]):
        row = flat[i]
        if caught_up[row] < now:
            rows[count], since[count] = row, caught_up[row]
            caught_up[row] = now
            count += 1
    return count


@_jit
def weighted_sum_kernel(values: Any, scales: Any, indices: Any, weights: Any, out: Any, begin: int, end: int) -> None:
    """See `reference.weighted_sum`."""
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
def weight_gradient_kernel(
    values: Any, scales: Any, indices: Any, gradient: Any, out: Any, begin: int, end: int
) -> None:
    """See `reference.weight_gradient`."""
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
def collect_kernel(
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
def invert_kernel(slots: Any, tokens: Any, weights: Any) -> Any:
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


@_jit
def add_one_kernel(values: Any, rows: Any, begin: int, end: int) -> None:
    """See `add_one_to_rows`."""
    for i in range(begin, end):
        row = values[rows[i]]
        for j in range(row.shape[0]):
            row[j] += 1
