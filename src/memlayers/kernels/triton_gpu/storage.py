"""Triton's side of `memlayers.kernels.storage`: a tile of a row in and out of its stored format, and rounding by hand.

A tile is [BLOCKS, 128]: some blocks of a row's columns, masked at the end of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from memlayers.kernels import storage
from memlayers.kernels.interface import STATE_BLOCK

BLOCK = tl.constexpr(STATE_BLOCK)
_SLACK = tl.constexpr(storage.CODE_SLACK)
_TINY = tl.constexpr(storage.TINY)  # GPUs may flush what is smaller to zero, and 0 / 0 must not come up


def jit(kernel: Callable[..., Any]) -> Any:
    """`triton.jit`, typed."""
    return triton.jit(kernel)


@jit
def _bfloat16(x: tl.tensor, extra: tl.tensor) -> tl.tensor:
    """float32 `x` plus `extra` units of the last of its 32 bits, cut to bfloat16; NaN stays NaN."""
    bits = (x.to(tl.uint32, bitcast=True) + extra) >> 16
    return tl.where(x == x, bits, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@jit
def _nearest_bfloat16(x: tl.tensor) -> tl.tensor:
    """To the nearest, ties to even."""
    return _bfloat16(x, ((x.to(tl.uint32, bitcast=True) >> 16) & 1) + 0x7FFF)


@jit
def rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """float32 `x` in a floating dtype."""
    if dtype == tl.bfloat16:
        result = _nearest_bfloat16(x)
    else:
        result = x.to(dtype)
    return result


@jit
def _hash_bits(places: tl.tensor, key: tl.tensor) -> tl.tensor:
    """See `kernels.storage.hash_bits`; uint32."""
    x = places.to(tl.uint32) ^ key.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 16)) * tl.full((), 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@jit
def _whole(x: tl.tensor) -> tl.tensor:
    """The nearest whole number, ties to even, for |x| < 2^22: what lies behind the point is shifted out."""
    return (x + 12582912.0) - 12582912.0


@jit
def _magnitude(x: tl.tensor) -> tl.tensor:
    """|x|, infinite where x is NaN: a maximum passes over NaN, and a scale must not hide it."""
    return tl.where(x == x, tl.abs(x), float("inf"))


@jit
def load_values(values: tl.tensor, scales: tl.tensor, row: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """See `kernels.storage.read_rows`; a tile, float32."""
    x = tl.load(values + at, mask=inside, other=0).to(tl.float32)
    if scales is not None:
        x = x * tl.load(scales + row)
    return x


@jit
def store_values(
    values: tl.tensor, scales: tl.tensor, row: tl.tensor, at: tl.tensor, inside: tl.tensor, x: tl.tensor,
    key: tl.tensor, NOISY: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """See `kernels.storage.write_rows`; `at` is also the element's place in the hash. An int8 tile is a whole row."""
    if scales is not None:
        scale = tl.div_rn(tl.max(tl.max(_magnitude(x), 1), 0), 127.0)
        codes = _whole(x / tl.maximum(scale, _TINY))
        tl.store(scales + row, scale)
        tl.store(values + at, tl.minimum(tl.maximum(codes, -127.0), 127.0).to(tl.int8), mask=inside)
    elif NOISY and values.dtype.element_ty == tl.bfloat16:
        tl.store(values + at, _bfloat16(x, _hash_bits(at, key) >> 16), mask=inside)
    else:
        tl.store(values + at, rounded(x, values.dtype.element_ty), mask=inside)


@jit
def load_mean(
    codes: tl.tensor, scale: tl.tensor, at: tl.tensor, inside: tl.tensor, block: tl.tensor, real: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """See `kernels.storage.decode_mean`; a tile, float32."""
    x = tl.load(codes + at, mask=inside, other=0).to(tl.float32)
    if scale is not None:
        unit = x / 127.0
        x = unit * tl.abs(unit) * tl.load(scale + block, mask=real, other=0)[:, None]
    return x


@jit
def load_square(
    codes: tl.tensor, scale: tl.tensor, at: tl.tensor, inside: tl.tensor, block: tl.tensor, real: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """See `kernels.storage.decode_square`; a tile, float32."""
    x = tl.load(codes + at, mask=inside, other=0).to(tl.float32)
    if scale is not None:
        unit = x / 255.0
        unit = unit * unit
        x = unit * unit * tl.load(scale + block, mask=real, other=0)[:, None]
    return x


@jit
def store_mean(
    codes: tl.tensor, scale: tl.tensor, at: tl.tensor, inside: tl.tensor, block: tl.tensor, real: tl.tensor,
    x: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """See `kernels.storage.encode_mean`."""
    if scale is not None:
        largest = tl.max(_magnitude(x), 1)  # [BLOCKS]
        unit = tl.minimum(tl.abs(x) / tl.maximum(largest, _TINY)[:, None], 1.0)
        code = _whole(127.0 * tl.sqrt(unit))
        tl.store(scale + block, largest, mask=real)
        tl.store(codes + at, tl.where(x < 0, -code, code).to(tl.int8), mask=inside)
    else:
        tl.store(codes + at, x, mask=inside)


@jit
def store_square(
    codes: tl.tensor, scale: tl.tensor, at: tl.tensor, inside: tl.tensor, block: tl.tensor, real: tl.tensor,
    x: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """See `kernels.storage.encode_square`."""
    if scale is not None:
        largest = tl.max(_magnitude(x), 1)  # [BLOCKS]
        unit = tl.minimum(x / tl.maximum(largest, _TINY)[:, None], 1.0)
        code = tl.minimum(tl.ceil(255.0 * tl.sqrt(tl.sqrt(unit)) - _SLACK), 255.0)
        code = tl.where(unit > 0, tl.maximum(code, 1.0), 0.0)  # a GPU's square root may flush what is tiny to zero
        tl.store(scale + block, largest, mask=real)
        tl.store(codes + at, code.to(tl.uint8), mask=inside)
    else:
        tl.store(codes + at, x, mask=inside)
