"""What the tests of the kernels share: random tables, logs and states, and one step on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from memlayers.kernels import reference, storage
from memlayers.kernels.interface import STATE_BLOCK, AdamW, LogEntry, RowState, Schedule, Table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
WIDTHS = (5, 320, 1100)  # less than a block of 8-bit state, one tile, three tiles; none a multiple of a tile
SLOTS = 12
HOT = 3
FORMATS = [
    # table, bits of state, master, noise
    (torch.float32, 32, False, None),
    (torch.float32, 8, False, None),
    (torch.bfloat16, 32, True, None),
    (torch.bfloat16, 32, False, 2**31 + 5),
    (torch.bfloat16, 8, False, None),
    (torch.float16, 32, False, 7),
    (torch.int8, 32, True, None),
    (torch.int8, 8, True, None),
]


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def random_integers(high: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def random_table(d: int, dtype: torch.dtype, slots: int = SLOTS) -> Table:
    values = random_tensor(slots, d, seed=1)
    if dtype != torch.int8:
        return Table(values.to(dtype))
    table = Table(torch.empty_like(values, dtype=dtype), torch.empty(slots, device=DEVICE))
    storage.write_rows(table, torch.arange(slots, device=DEVICE), values)
    return table


def read_log(
    d: int, shapes: Sequence[tuple[int, int]] = ((4, 3), (1, 2), (0, 3), (3, 7)), dtype: Any = None
) -> list[LogEntry]:
    """Entries of several shapes, in which every token reads `HOT`, some twice, and one token's gradient is zero."""
    log = []
    for i, (n, r) in enumerate(shapes):
        indices = random_integers(SLOTS - 3, n, r, seed=i, dtype=(torch.int32, torch.int64)[i % 2])
        indices[:, 0] = HOT
        gradient = random_tensor(n, d + 8 * i, seed=10 + i).to(dtype or torch.float32)[
            :, :d
        ]  # rows further apart than d
        if n > 2:
            gradient[1] = 0
        log.append(LogEntry(indices, random_tensor(n, r, seed=20 + i), gradient))
    return log


def row_state(places: Tensor, table: Table, rows: Tensor, bits: int, master: bool) -> RowState:
    """Moments as they are after some steps, for more rows than `places` names."""
    c, d = int(places.max()) + 2, table.values.shape[1]
    blocks = -(-d // STATE_BLOCK)
    if bits == 8:
        codes = (torch.zeros(c, d, dtype=dtype, device=DEVICE) for dtype in (torch.int8, torch.uint8))
        state = RowState(*codes, *(torch.zeros(c, blocks, device=DEVICE) for _ in range(2)))
    else:
        state = RowState(*(torch.zeros(c, d, device=DEVICE) for _ in range(2)))
    everything = torch.arange(c, device=DEVICE)
    storage.encode_mean(state, everything, 0.1 * random_tensor(c, d, seed=2))
    storage.encode_square(state, everything, 0.1 * random_tensor(c, d, seed=3).square())
    if not master:
        return state
    state = state._replace(master=torch.zeros(c, d, device=DEVICE))
    assert state.master is not None
    state.master[places] = storage.read_rows(table, rows) + 1e-4 * random_tensor(len(places), d, seed=4)
    return state


def adamw_step(
    kernels: Any, d: int, form: tuple[Any, ...], split: int = 0, gradient: torch.dtype = torch.float32
) -> tuple[Table, RowState]:
    """One step of all rows but one, in two calls if `split`."""
    dtype, bits, master, noise = form
    log = read_log(d, dtype=gradient)
    inverted = reference.invert(log)
    table, picked = random_table(d, dtype), torch.arange(1, len(inverted.rows), device=DEVICE).flip(0)
    places = 2 * picked + 1
    places[[0, 1]] = places[[1, 0]]
    state = row_state(places, table, inverted.rows[picked], bits, master)
    if dtype == torch.bfloat16 and d == 5:
        table.values[inverted.rows[2]] = 0
    step_size = torch.linspace(0.01, 0.02, len(picked), dtype=torch.float64, device=DEVICE)
    root = torch.linspace(0.1, 0.9, len(picked), dtype=torch.float64, device=DEVICE)
    for part in (slice(0, split), slice(split, None)) if split else (slice(None),):
        adamw = AdamW(step_size[part], root[part], 1 - 0.01 * 0.1, 0.9, 0.999, 1e-8)
        kernels.adamw_rows(table, state, places[part], log, inverted, picked[part], adamw, 0.7, noise)
    return table, state


def drift(kernels: Any, d: int, form: tuple[Any, ...], with_state: bool = True) -> tuple[Table, RowState]:
    dtype, bits, master, noise = form
    table, rows = random_table(d, dtype), torch.tensor([7, 0, HOT, 11], device=DEVICE)
    places = torch.tensor([4, 1, 0, 6], device=DEVICE)
    state = row_state(places, table, rows, bits, master)
    since, until = (torch.tensor(each, device=DEVICE) for each in ([0, 2, 3, 5], [9, 4, 1, 6]))
    rates = torch.linspace(0.01, 0.03, 7, dtype=torch.float64, device=DEVICE)
    steps = torch.arange(7, dtype=torch.float64, device=DEVICE)
    step_size, root = rates / (1 - 0.9**steps), (1 - 0.999**steps).sqrt()
    schedule = Schedule(step_size, root, 1 - rates * 0.5, 0.9, 0.999, 1e-8)
    kernels.drift_rows(table, state if with_state else None, places, rows, since, until, schedule, noise)
    return table, state


def assert_same(ours: Table | RowState, theirs: Table | RowState) -> None:
    """float32 to a few bits; what is rounded after the sums may land on the neighbour."""
    for name, ours_part, theirs_part in zip(theirs._fields, ours, theirs, strict=True):
        if theirs_part is None:
            continue
        if theirs_part.dtype == torch.float32:
            # Moments cancel, and a small one is as exact as what it was summed from.
            torch.testing.assert_close(ours_part, theirs_part, rtol=1e-5, atol=2e-6, msg=lambda text, n=name: n + text)
            continue
        if theirs_part.is_floating_point():
            ours_part, theirs_part = (each.view(torch.int16) for each in (ours_part, theirs_part))
        apart = (ours_part.int() - theirs_part.int()).abs()
        assert apart.max() <= 1 and apart.float().mean() < 0.01, f"{name}: {apart.max()} {apart.float().mean()}"
