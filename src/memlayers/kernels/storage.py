"""How rows and moments are stored, in plain torch: int8 tables, stochastic rounding to bfloat16, moments of 8 bits.

The oracle of the fast backends' own reading and writing. Shapes: q rows, d the width of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.kernels.interface import STATE_BLOCK, RowState, Table

CODE_SLACK = 2.0**-10  # of a code of a second moment: more than a square root's last bits, on any device
TINY = 2.0**-126  # the least normal float32, which no device flushes to zero


def read_rows(table: Table, rows: Tensor) -> Tensor:
    """Rows of a table in float32 (float64 where the table is), [..., d] for rows [...]."""
    values = table.values[rows]
    if table.scales is not None:
        return values.float() * table.scales[rows][..., None]
    return values.to(torch.promote_types(values.dtype, torch.float32))


def write_rows(
    table: Table, rows: Tensor, values: Tensor, noise: int | None = None, largest: Tensor | None = None
) -> None:
    """Writes rows into a table, rounded to its format.

    int8: a row's scale is its largest magnitude over 127. bfloat16 with `noise`: up or down at random, so that the
    expectation is the value itself; the random bits are a hash of the key and of the element's place.

    Args:
        table: of d columns.
        rows: slots, int64 [q], distinct.
        values: [q, d].
        noise: key of the stochastic rounding; None rounds to nearest.
        largest: magnitude of each row [q], where the table holds only some of its columns; None for that of `values`.
    """
    if table.scales is not None:
        scales = (values.abs().amax(-1) if largest is None else largest).float() / 127
        codes = (values.float() / scales.clamp_min(TINY)[:, None]).round().clamp(-127, 127)
        table.values[rows], table.scales[rows] = codes.to(torch.int8), scales
    elif noise is not None and table.values.dtype == torch.bfloat16:
        bits = values.float().contiguous().view(torch.int32).long() & 0xFFFFFFFF
        columns = torch.arange(values.shape[1], device=values.device)
        places = (rows[:, None] * values.shape[1] + columns) & 0xFFFFFFFF
        rounded = (bits + (hash_bits(places, noise) >> 16)) >> 16
        halves = torch.where(rounded > 0x7FFF, rounded - 0x10000, rounded).short().view(torch.bfloat16)
        table.values[rows] = torch.where(values.isnan(), values.to(torch.bfloat16), halves)
    else:
        table.values[rows] = values.to(table.values.dtype)


def hash_bits(places: Tensor, key: int) -> Tensor:
    """32 well-mixed bits per place (Steele and Vigna 2021's 32-bit finaliser): int64 in [0, 2^32)."""
    mask = 0xFFFFFFFF
    x = (places ^ (key & mask)) & mask
    for multiplier in (0x7FEB352D, 0x846CA68B):
        x = ((x ^ (x >> 16)) * multiplier) & mask
    return x ^ (x >> 16)


def decode_mean(state: RowState, places: Tensor) -> Tensor:
    """First moments [q, d]. 8 bits: sign * (|code| / 127)^2 * the block's scale, finer towards zero."""
    stored = state.exp_avg[places]
    if state.exp_avg_scale is None:
        return stored
    codes = stored.float() / 127
    return codes * codes.abs() * _per_element(state.exp_avg_scale[places], stored.shape[1])


def encode_mean(state: RowState, places: Tensor, mean: Tensor) -> None:
    """Stores first moments [q, d]; 8 bits round to the nearest code."""
    if state.exp_avg_scale is None:
        state.exp_avg[places] = mean
        return
    scale, unit = _block_units(mean.abs())
    state.exp_avg_scale[places] = scale
    state.exp_avg[places] = (mean.sign() * (127 * unit.sqrt()).round()).to(torch.int8)


def decode_square(state: RowState, places: Tensor) -> Tensor:
    """Second moments [q, d]. 8 bits: (code / 255)^4 * the block's scale, ten decades deep."""
    stored = state.exp_avg_sq[places]
    if state.exp_avg_sq_scale is None:
        return stored
    codes = stored.float() / 255
    return (codes * codes).square() * _per_element(state.exp_avg_sq_scale[places], stored.shape[1])


def encode_square(state: RowState, places: Tensor, square: Tensor) -> None:
    """Stores second moments [q, d]; 8 bits round up, since a moment rounded to zero would make a giant step.

    A moment that lies on a code keeps it whatever its last bits are (`CODE_SLACK`): stored again and again, it would
    otherwise creep upwards.
    """
    if state.exp_avg_sq_scale is None:
        state.exp_avg_sq[places] = square
        return
    scale, unit = _block_units(square)
    state.exp_avg_sq_scale[places] = scale
    codes = (255 * unit.sqrt().sqrt() - CODE_SLACK).ceil().clamp(0, 255)
    state.exp_avg_sq[places] = torch.where(unit > 0, codes.clamp_min(1), 0).to(torch.uint8)


def _block_units(magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude of each block [q, blocks], and the magnitudes [q, d] in units of it."""
    q, d = magnitudes.shape
    blocks = -(-d // STATE_BLOCK)
    padded = F.pad(magnitudes, (0, -d % STATE_BLOCK)).view(q, blocks, STATE_BLOCK)
    scale = padded.amax(-1)
    return scale, (padded / scale.clamp_min(TINY)[..., None]).clamp_max(1).flatten(1)[:, :d]


def _per_element(scale: Tensor, d: int) -> Tensor:
    return scale.repeat_interleave(STATE_BLOCK, 1)[:, :d]
