from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memlayers.kernels.interface import Table
from memlayers.kernels.reference import weighted_sum
from memlayers.kernels.storage import read_rows
from memlayers.pool.value_pool import FactoredGradient, ValuePool
from memlayers.utils.errors import WorkError

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
SLOTS, DIM = 9, 7

Reading = tuple[Tensor, Tensor]


@pytest.fixture
def read() -> Reading:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(SLOTS, (5, 6), generator=generator), torch.rand(5, 6, generator=generator)


def _pool(dtype: torch.dtype = torch.float32) -> ValuePool:
    pool = ValuePool(SLOTS, DIM, dtype)
    pool.initialise("normal", seed=0)
    return pool


def _gradient(pool: ValuePool, *reads: Reading) -> FactoredGradient:
    for indices, weights in reads:
        pool(indices, weights).square().sum().backward()
    gradient = pool.parameter.grad
    assert isinstance(gradient, FactoredGradient)
    return gradient


def _stock(pool: ValuePool, *reads: Reading) -> Tensor:
    """The gradient that torch's embedding_bag makes."""
    whole = pool.weight.detach().clone().requires_grad_()
    for indices, weights in reads:
        F.embedding_bag(indices, whole, per_sample_weights=weights, mode="sum").square().sum().backward()
    assert whole.grad is not None
    return whole.grad


# -- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("weights_learn", [False, True])
def test_reads_and_learns_as_the_reference(read: Reading, dtype: torch.dtype, weights_learn: bool) -> None:
    indices, weights = read
    pool = _pool(dtype)
    weights.requires_grad_(weights_learn)
    expected_values = pool.weight.detach().float().requires_grad_()
    expected_weights = weights.detach().clone().requires_grad_()
    expected = weighted_sum(Table(expected_values), indices, expected_weights, torch.float32)
    out = pool(indices, weights, dtype)
    assert out.dtype == dtype
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(out.float(), expected, **tolerance)
    out.float().sum().backward()
    expected.sum().backward()
    assert pool.weight.grad is not None
    torch.testing.assert_close(pool.weight.grad.to_dense().float(), expected_values.grad, **tolerance)
    if weights_learn:
        torch.testing.assert_close(weights.grad, expected_weights.grad, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_no_tokens_give_an_empty_result(dtype: torch.dtype) -> None:
    pool = _pool(dtype)
    out = pool(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2))
    assert out.shape == (0, DIM)
    out.sum().backward()
    assert isinstance(pool.parameter.grad, FactoredGradient) and pool.parameter.grad.norm_squared() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_an_unwritten_slot_adds_exactly_zero(read: Reading, dtype: torch.dtype) -> None:
    pool = ValuePool(SLOTS, DIM, dtype)
    pool.initialise("zero", seed=0)
    assert not pool(*read).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_the_normal_start_is_seeded_and_scaled(dtype: torch.dtype) -> None:
    pools = [ValuePool(400, 64, dtype) for _ in range(3)]
    for pool, seed in zip(pools, (1, 1, 2), strict=True):
        pool.initialise("normal", seed)
    values = [read_rows(pool.table, torch.arange(400)) for pool in pools]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert abs(values[0].std().item() * 8 - 1) < 0.02


def test_initialising_on_the_meta_device_does_nothing() -> None:
    with torch.device("meta"):
        pool = ValuePool(4, 3)
    pool.initialise("normal", seed=0)
    assert pool.weight.is_meta


def test_an_int8_pool_reads_its_codes_in_their_rows_units(read: Reading) -> None:
    pool = _pool(torch.int8)
    assert [name for name, _ in pool.named_parameters()] == ["scales"] and set(pool.state_dict()) == {"codes", "scales"}
    values = pool.codes.float() * pool.scales[:, None]
    torch.testing.assert_close(pool(*read), weighted_sum(Table(values), *read, torch.float32))


# -- the factored gradient, as torch's machinery treats it ---------------------------------------------------------


def test_backward_leaves_a_log_and_not_a_table(read: Reading) -> None:
    pool = _pool()
    gradient = _gradient(pool, read)
    assert (gradient.shape, gradient.dtype) == (pool.weight.shape, torch.float32)
    (entry,) = gradient.entries
    assert torch.equal(entry.indices.long(), read[0]) and torch.equal(entry.weights, read[1])
    assert entry.gradient.shape == (5, DIM)
    assert "reads=30" in repr(gradient)


def test_gradients_of_several_reads_and_backwards_add_up(read: Reading) -> None:
    pool, other = _pool(), (read[0][:2, :3].flip(0), read[1][:2, :3])
    (pool(*read).square().sum() + pool(*other).square().sum()).backward()  # two layers
    gradient = _gradient(pool, other)  # and a second micro-batch
    assert len(gradient.entries) == 3
    torch.testing.assert_close(gradient.to_dense(), _stock(pool, read, other, other))


def test_gradients_add_up_across_factors(read: Reading) -> None:
    pool = _pool()
    gradient = _gradient(pool, read)
    expected = _stock(pool, read)
    torch.testing.assert_close((gradient * 3 + gradient / 2).to_dense(), 3.5 * expected)
    gradient.mul_(0.0)
    gradient += gradient * 1.0
    assert not gradient.to_dense().any()
    pool.zero_grad()
    halved = _gradient(pool, read)
    halved.div_(torch.tensor(2.0))
    torch.testing.assert_close(_gradient(pool, read).to_dense(), 1.5 * expected)


def test_norm_copy_and_zero_work_on_the_log(read: Reading) -> None:
    pool = _pool()
    gradient = _gradient(pool, read)
    expected = _stock(pool, read)
    torch.testing.assert_close(torch.linalg.vector_norm(gradient), expected.norm())
    torch.testing.assert_close(torch._foreach_norm([gradient])[0], expected.norm())
    torch.testing.assert_close(torch.linalg.vector_norm(gradient, torch.inf), expected.abs().max())  # the dense one
    copied = gradient.detach().clone()
    assert isinstance(copied, FactoredGradient)
    torch._foreach_mul_([gradient, other := torch.ones(2)], torch.tensor(0.5))
    torch.testing.assert_close(gradient.to_dense(), expected / 2)
    assert other.tolist() == [0.5, 0.5]
    torch.testing.assert_close(copied.to_dense(), expected)
    optimizer = torch.optim.SGD([pool.parameter], lr=1.0)
    optimizer.zero_grad(set_to_none=False)
    assert pool.parameter.grad is gradient and gradient.entries == ()
    assert gradient.norm_squared() == 0


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.AdamW(p, lr=0.1, fused=True), lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adagrad(p, lr=0.1),
])  # fmt: skip
def test_any_torch_optimizer_sees_the_dense_gradient(read: Reading, make: Any) -> None:
    pool = _pool()
    whole = torch.nn.Parameter(pool.weight.detach().clone())
    ours, theirs = make([pool.parameter]), make([whole])
    for _ in range(3):
        _gradient(pool, read)
        F.embedding_bag(read[0], whole, per_sample_weights=read[1], mode="sum").square().sum().backward()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(pool.weight, whole)


def test_an_int8_pool_refuses_other_optimizers(read: Reading) -> None:
    pool = _pool(torch.int8)
    _gradient(pool, read)
    with pytest.raises(WorkError, match="RowAdamW only"):
        torch.optim.AdamW([pool.parameter], lr=0.1, fused=True).step()


def test_what_no_log_can_say_makes_the_gradient_dense_and_an_int8_pool_refuses_it(read: Reading) -> None:
    gradient = _gradient(pool := _pool(), read)
    gradient.add_(torch.ones(SLOTS, DIM))
    torch.testing.assert_close(gradient.to_dense(), _stock(pool, read) + 1)
    with pytest.raises(WorkError, match="RowAdamW only"):
        _gradient(_pool(torch.int8), read).add_(torch.ones(SLOTS))


@pytest.mark.parametrize("bad", [None, float("inf")])
def test_the_gradient_scaler_unscales_the_log(read: Reading, bad: float | None) -> None:
    pool, beside = _pool(), torch.nn.Parameter(torch.ones(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD([pool.parameter, beside], lr=1.0)
    before = pool.weight.detach().clone()
    loss = pool(*read).square().sum() + beside.sum()
    scaler.scale(loss * (bad or 1.0)).backward()
    scaler.unscale_(optimizer)
    if bad is None:
        gradient = pool.parameter.grad
        assert isinstance(gradient, FactoredGradient)
        torch.testing.assert_close(gradient.to_dense(), _stock(pool, read))
        torch.testing.assert_close(beside.grad, torch.ones(2))
    scaler.step(optimizer)
    assert torch.equal(pool.weight, before) == (bad is not None)


def test_gradient_checkpointing_logs_a_read_once(read: Reading) -> None:
    pool = _pool()
    scale = torch.ones((), requires_grad=True)
    out = checkpoint(lambda s: pool(read[0], read[1] * s).square(), scale, use_reentrant=False)
    out.sum().backward()
    gradient = pool.parameter.grad
    assert isinstance(gradient, FactoredGradient) and len(gradient.entries) == 1
    torch.testing.assert_close(gradient.to_dense(), _stock(pool, read))


def test_two_pools_do_not_touch(read: Reading) -> None:
    first, second = _pool(), _pool()
    _gradient(first, read)
    assert second.parameter.grad is None


def test_a_copy_of_a_pool_is_nobodys(read: Reading) -> None:
    pool, seen = _pool(), []
    pool.before_read = seen.append
    twin = copy.deepcopy(pool)
    twin(*read)
    assert not seen and torch.equal(twin.weight, pool.weight)
    pool(*read)
    assert len(seen) == 1
    pool.state_dict()
    assert seen[1:] == [None]
