"""The optimizer's state in the host's memory."""

from __future__ import annotations

import pytest
import torch

from helpers.pool import DIM, SETTINGS, SLOTS, make_pool, make_reads, take_steps
from memlayers.kernels.storage import read_rows
from memlayers.pool.row_adamw import RowAdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("bits", [32, 8])
def test_host_state_moves_the_pool_as_device_state_does(dtype: torch.dtype, bits: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("memlayers.pool.offload.STAGE_BYTES", 4 * DIM * 3)  # three rows a piece
    pools = [make_pool(dtype) for _ in range(2)]
    for pool, place in zip(pools, ("device", "host"), strict=True):
        take_steps(
            RowAdamW([pool.parameter], semantics="lazy", state_bits=bits, state_device=place, **SETTINGS),
            pool,
            make_reads(20),
        )
    assert torch.equal(read_rows(pools[0].table, torch.arange(SLOTS)), read_rows(pools[1].table, torch.arange(SLOTS)))
