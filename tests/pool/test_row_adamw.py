"""RowAdamW against torch's AdamW, dense and lazy."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.optim import AdamW

from helpers.pool import DIM, SETTINGS, SLOTS, backward, make_pool, make_reads, take_steps
from memlayers.pool.row_adamw import RowAdamW
from memlayers.utils.errors import InputError

# -- torch's AdamW over the whole pool, to the last digit -----------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance", "weight_decay", "steps"),
    [
        (torch.float64, 1e-12, 0.1, 500),  # nor do the digits part over many steps
        (torch.float64, 1e-12, 0.0, 300),
        (torch.float32, 1e-6, 0.1, 300),
        (torch.float32, 1e-6, 0.0, 300),
    ],
    ids=str,
)
def test_dense_semantics_is_adamw_over_the_whole_pool(
    dtype: torch.dtype, tolerance: float, weight_decay: float, steps: int
):
    pool = make_pool(dtype)
    whole = torch.nn.Parameter(pool.weight.detach().clone())
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": weight_decay}
    ours, theirs = RowAdamW([pool.parameter], semantics="dense", **settings), AdamW([whole], foreach=False, **settings)
    for step, (indices, weights, direction) in enumerate(make_reads(steps, dtype)):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + step % 7) / 7  # a schedule
        (pool(indices, weights) * direction).sum().backward()
        (F.embedding_bag(indices, whole, per_sample_weights=weights, mode="sum") * direction).sum().backward()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        if step % 150 == 0:  # what the next read would see, without saving
            late = torch.arange(SLOTS)[:, None]
            seen = pool(late, torch.ones(SLOTS, 1, dtype=dtype)).detach()
            assert (seen - whole.detach()).abs().max().item() <= tolerance
    ours.flush()
    assert (pool.weight - whole).abs().max().item() <= tolerance


def test_dense_semantics_saves_what_would_be_read():
    pool, reads = make_pool(), make_reads(30)
    optimizer = RowAdamW([pool.parameter], semantics="dense", **SETTINGS)
    take_steps(optimizer, pool, reads)
    stored = pool.weight.detach().clone()
    saved = pool.state_dict()["weight"]
    read = pool(torch.arange(SLOTS)[:, None], torch.ones(SLOTS, 1)).detach()
    assert torch.equal(saved, read)
    assert not torch.equal(stored, saved)  # rows had been left behind


def test_an_optimizer_that_goes_leaves_its_pool_up_to_date():
    pool, reads = make_pool(), make_reads(30)
    optimizer = RowAdamW([pool.parameter], semantics="dense", **SETTINGS)
    take_steps(optimizer, pool, reads)
    stored, gone = pool.weight.detach().clone(), weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None  # the pool does not hold it
    assert not torch.equal(stored, pool.weight)
    left = pool.weight.detach().clone()
    assert torch.equal(pool.state_dict()["weight"], left)


def test_a_second_optimizer_takes_the_pool_over_up_to_date():
    pools, reads = [make_pool(), make_pool()], make_reads(30)
    dense = [RowAdamW([pool.parameter], semantics="dense", **SETTINGS) for pool in pools]
    for pool, optimizer in zip(pools, dense, strict=True):
        take_steps(optimizer, pool, reads)
    dense[1].flush()
    take_steps(RowAdamW([pools[0].parameter], **SETTINGS), pools[0], reads[:1])
    others = [row for row in range(SLOTS) if row not in reads[0][0]]
    assert torch.equal(pools[0].weight[others], pools[1].weight[others])


@pytest.mark.parametrize("wrong", [{"state_bits": 8}, {"state_device": "host"}, {"rounding": "stochastic"}])
def test_dense_semantics_refuses_a_lossy_state(wrong: dict[str, Any]):
    with pytest.raises(InputError, match="to the last digit"):
        RowAdamW([make_pool().parameter], semantics="dense", **wrong)


# -- lazy semantics -------------------------------------------------------------------------------------------------


def test_lazy_rows_move_as_adamw_moves_a_parameter_of_their_own():
    """Each row is its own AdamW over the steps in which it had a gradient."""
    pool, reads = make_pool(torch.float64), make_reads(60, torch.float64)
    start = pool.weight.detach().clone()
    optimizer = RowAdamW([pool.parameter], semantics="lazy", weight_decay=0.1, **SETTINGS)
    take_steps(optimizer, pool, reads)
    for row in (0, SLOTS // 2, SLOTS - 1):
        alone = torch.nn.Parameter(start[row].clone())
        theirs = AdamW([alone], foreach=False, weight_decay=0.1, **SETTINGS)
        for indices, weights, direction in reads:
            weight = (weights * (indices == row)).sum(-1)
            if (indices == row).any():
                alone.grad = weight @ direction
                theirs.step()
        assert (pool.weight[row] - alone).abs().max().item() <= 1e-13


def test_rows_without_gradient_do_not_move_and_have_no_state():
    pool = make_pool(init="zero")
    optimizer = RowAdamW([pool.parameter], **SETTINGS)
    read = (torch.tensor([[1, 3], [5, 7]]), torch.ones(2, 2), torch.tensor([[1.0] * DIM, [0.0] * DIM]))
    take_steps(optimizer, pool, [read] * 3)
    assert pool.weight.any(-1).nonzero().flatten().tolist() == [1, 3]  # 5 and 7 were read by a token without gradient
    assert optimizer.state_dict()["state"][0]["rows"].tolist() == [1, 3]
    assert optimizer.state_dict()["state"][0]["exp_avg.0"].shape == (2, DIM)


def test_a_row_first_touched_late_takes_one_learning_rate():
    pool = make_pool(init="zero")
    optimizer = RowAdamW([pool.parameter], lr=0.01, semantics="lazy")
    ones = torch.ones(1, DIM)
    take_steps(optimizer, pool, [(torch.tensor([[0]]), torch.ones(1, 1), ones)] * 500)
    take_steps(optimizer, pool, [(torch.tensor([[1]]), torch.ones(1, 1), ones)])
    assert torch.allclose(pool.weight[1], torch.full((DIM,), -0.01), rtol=1e-5)  # a global count: -0.032


# -- what else has a gradient, and every way a gradient comes about -------------------------------------------------


@pytest.mark.parametrize("state_device", ["device", "host"])
def test_other_parameters_get_torchs_adamw(state_device: str):
    ours, theirs = (torch.nn.Linear(4, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = {**SETTINGS, "weight_decay": 0.1}
    optimizers = (RowAdamW(ours.parameters(), state_device=state_device, **settings),
                  AdamW(theirs.parameters(), fused=True, **settings))  # fmt: skip
    for step in range(9):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("semantics", ["lazy", "dense"])
def test_accumulated_and_shared_reads_are_one_gradient(semantics: str):
    """Two micro-batches of two reads each (two layers on one pool) move the pool as their concatenation does."""
    first, second = (make_pool(torch.float64) for _ in range(2))
    reads = make_reads(24, torch.float64)
    one, other = (RowAdamW([pool.parameter], semantics=semantics, **SETTINGS) for pool in (first, second))
    for start in range(0, len(reads), 4):
        four = reads[start : start + 4]
        for pair in (four[:2], four[2:]):
            sum((first(i, w) * d).sum() for i, w, d in pair).backward()
        backward(second, tuple(torch.cat(parts) for parts in zip(*four, strict=True)))  # type: ignore[arg-type]
        for optimizer in (one, other):
            optimizer.step()
            optimizer.zero_grad()
    assert (first.state_dict()["weight"] - second.state_dict()["weight"]).abs().max().item() <= 1e-12


@pytest.mark.parametrize("largest", [0.5, 1e9])
def test_clipping_by_global_norm_sees_the_pool(largest: float):
    pool = make_pool()
    whole = torch.nn.Parameter(pool.weight.detach().clone())
    beside, twin = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    ours = RowAdamW([pool.parameter, beside], **SETTINGS)
    theirs = AdamW([whole, twin], foreach=False, weight_decay=0, **SETTINGS)
    (indices, weights, direction) = make_reads(1)[0]
    ((pool(indices, weights) * direction).sum() + 2 * beside.sum()).backward()
    bag = F.embedding_bag(indices, whole, per_sample_weights=weights, mode="sum")
    ((bag * direction).sum() + 2 * twin.sum()).backward()
    norms = [torch.nn.utils.clip_grad_norm_(group, largest) for group in ([pool.parameter, beside], [whole, twin])]
    torch.testing.assert_close(norms[0], norms[1])
    ours.step()
    theirs.step()
    torch.testing.assert_close(pool.weight, whole)
    torch.testing.assert_close(beside, twin)


def test_a_gradient_made_dense_under_way_is_refused():
    pool = make_pool()
    optimizer = RowAdamW([pool.parameter], **SETTINGS)
    take_steps(optimizer, pool, make_reads(1))
    pool.parameter.grad = torch.ones_like(pool.parameter)
    with pytest.raises(InputError, match="needs its read log"):
        optimizer.step()


def test_a_closure_runs_with_gradients_on():
    pool, read = make_pool(), make_reads(1)[0]
    optimizer = RowAdamW([pool.parameter], **SETTINGS)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (pool(*read[:2]) - 1).square().sum()
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


@pytest.mark.parametrize(
    "setting",
    [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1.0}, {"weight_decay": -0.1}, {"semantics": "sparse"},
     {"state_bits": 16}, {"state_device": "cuda"}, {"rounding": "up"}],
)  # fmt: skip
def test_settings_out_of_range_are_input_errors(setting: dict[str, object]):
    with pytest.raises(InputError, match="at least 0|take "):
        RowAdamW([make_pool().parameter], **{"lr": 0.1, **setting})  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"state_device": "host"}, {"semantics": "dense"}, {"state_bits": 8}], ids=str)
def test_a_pool_on_the_gpu_learns_as_one_on_the_cpu(options: dict[str, Any]):
    here, there = make_pool(), make_pool().cuda()
    for pool in (here, there):
        take_steps(RowAdamW([pool.parameter], **SETTINGS, **options), pool,
             [tuple(part.to(pool.parameter.device) for part in read) for read in make_reads(20)])  # type: ignore[misc]  # fmt: skip
    torch.testing.assert_close(here.state_dict()["weight"], there.state_dict()["weight"].cpu(), rtol=1e-4, atol=1e-5)
