"""The state that RowAdamW keeps for a row: its formats, saving and resuming."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from helpers.pool import DIM, SETTINGS, SLOTS, make_pool, make_reads, take_steps
from memlayers.kernels.storage import read_rows
from memlayers.pool.row_adamw import RowAdamW
from memlayers.pool.value_pool import ValuePool
from memlayers.utils.errors import InputError

# -- state formats --------------------------------------------------------------------------------------------------


def test_eight_bit_state_descends_nearly_as_well():
    """A quadratic bowl over 300 columns: the loss left after 150 steps."""
    left = {}
    for bits in (32, 8):
        pool = make_pool(dim=300)
        optimizer = RowAdamW([pool.parameter], lr=0.02, state_bits=bits)
        indices, weights, goal = torch.arange(SLOTS)[:, None], torch.ones(SLOTS, 1), torch.full((SLOTS, 300), 0.5)
        start = (pool(indices, weights) - goal).square().mean().item()
        for _ in range(150):
            (pool(indices, weights) - goal).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        left[bits] = (pool(indices, weights) - goal).square().mean().item() / start
        if bits == 8:
            kept = optimizer.state_dict()["state"][0]
            assert (kept["exp_avg.0"].dtype, kept["exp_avg_sq.0"].dtype) == (torch.int8, torch.uint8)
    assert left[32] < 1e-3 and left[8] < 1e-2


@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_a_bfloat16_pool_learns_from_updates_below_its_resolution(rounding: str):
    pool = ValuePool(1, 64, torch.bfloat16)
    torch.nn.init.ones_(pool.weight)
    optimizer = RowAdamW([pool.parameter], lr=1e-4, semantics="lazy", rounding=rounding)
    for _ in range(100):
        pool(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert abs(pool.weight.float().mean().item() - 0.99) < 2e-3  # to nearest alone it would stay 1
    assert ("master.0" in optimizer.state_dict()["state"][0]) == (rounding == "master")


def test_an_int8_pool_follows_its_master():
    exact, coarse = make_pool(init="zero"), make_pool(torch.int8, init="zero")
    reads = make_reads(40)
    for pool in (exact, coarse):
        take_steps(RowAdamW([pool.parameter], **SETTINGS), pool, reads)
    rows = torch.arange(SLOTS)
    values = read_rows(coarse.table, rows)
    step = values.abs().amax(-1, keepdim=True) / 127
    assert ((values - exact.weight).abs() <= 0.51 * step + 1e-6).all()


# -- saving and resuming --------------------------------------------------------------------------------------------


FORMATS: dict[str, dict[str, Any]] = {
    "lazy": {"semantics": "lazy"},
    "dense": {"semantics": "dense", "weight_decay": 0.05},
    "8 bits": {"state_bits": 8},
    "stochastic": {"rounding": "stochastic"},
    "host": {"state_device": "host"},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("small_chunks", [False, True])
def test_resuming_equals_an_uninterrupted_run(
    name: str, dtype: torch.dtype, small_chunks: bool, monkeypatch: pytest.MonkeyPatch
):
    if small_chunks:
        monkeypatch.setattr("memlayers.pool.row_state.CHUNK_BYTES", 4 * DIM * 8)  # eight rows a chunk
    reads = make_reads(30)
    whole, first, second = (make_pool(dtype) for _ in range(3))
    uninterrupted = RowAdamW([whole.parameter], **{**SETTINGS, **FORMATS[name]})
    take_steps(uninterrupted, whole, reads)

    optimizer = RowAdamW([first.parameter], **{**SETTINGS, **FORMATS[name]})
    take_steps(optimizer, first, reads[:13])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    saved = first.state_dict()
    file.seek(0)

    second.load_state_dict(saved)
    restored = RowAdamW([second.parameter], **{**SETTINGS, "lr": 1.0, **FORMATS[name]})
    restored.load_state_dict(torch.load(file, weights_only=True))
    again, before = restored.state_dict()["state"][0], optimizer.state_dict()["state"][0]
    assert again.keys() == before.keys()
    assert all(torch.equal(again[key], before[key]) and again[key].dtype == before[key].dtype for key in before)
    take_steps(restored, second, reads[13:])
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_a_loaded_state_is_a_copy():
    pool = make_pool()
    optimizer = RowAdamW([pool.parameter], **SETTINGS)
    take_steps(optimizer, pool, make_reads(3))
    saved = optimizer.state_dict()
    kept = saved["state"][0]["exp_avg.0"].clone()
    other = make_pool()
    restored = RowAdamW([other.parameter], **SETTINGS)
    restored.load_state_dict(saved)
    take_steps(restored, other, make_reads(3, seed=5))
    assert torch.equal(saved["state"][0]["exp_avg.0"], kept)


def test_the_state_has_a_step_tensor():
    pool = make_pool()
    optimizer = RowAdamW([pool.parameter], **SETTINGS)
    take_steps(optimizer, pool, make_reads(3))
    assert optimizer.state_dict()["state"][0]["step"].item() == 3


@pytest.mark.parametrize(
    ("saved_with", "loaded_with", "message"),
    [
        ({"state_bits": 8}, {}, "another state_bits"),
        ({}, {"state_device": "host"}, "another state_bits, rounding or state_device"),
        ({"semantics": "dense"}, {"semantics": "lazy"}, "semantics='lazy'"),
        ({"semantics": "lazy"}, {"semantics": "dense"}, "semantics='dense'"),
    ],
)
def test_another_format_is_refused(saved_with: dict[str, Any], loaded_with: dict[str, Any], message: str):
    pool = make_pool()
    optimizer = RowAdamW([pool.parameter], **SETTINGS, **saved_with)
    take_steps(optimizer, pool, make_reads(2))
    with pytest.raises(InputError, match=message):
        RowAdamW([make_pool().parameter], **SETTINGS, **loaded_with).load_state_dict(optimizer.state_dict())
