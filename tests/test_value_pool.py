from __future__ import annotations

import pytest
import torch

from memlayers.kernels.reference import weighted_sum
from memlayers.value_pool import ValuePool

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture
def read() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(9, (5, 6), generator=generator), torch.rand(5, 6, generator=generator)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("weights_learn", [False, True])
def test_reads_and_learns_as_the_reference(
    read: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype, weights_learn: bool
) -> None:
    indices, weights = read
    pool = ValuePool(9, 7, dtype)
    pool.initialise("normal", seed=0)
    weights.requires_grad_(weights_learn)
    expected_values = pool.weight.detach().float().requires_grad_()
    expected_weights = weights.detach().clone().requires_grad_()
    expected = weighted_sum(expected_values, indices, expected_weights)
    out = pool(indices, weights)
    assert out.dtype == dtype
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(out.float(), expected, **tolerance)
    out.float().sum().backward()
    expected.sum().backward()
    assert pool.weight.grad is not None
    torch.testing.assert_close(pool.weight.grad.float(), expected_values.grad, **tolerance)
    if weights_learn:
        torch.testing.assert_close(weights.grad, expected_weights.grad, **tolerance)


def test_no_tokens_give_an_empty_result() -> None:
    pool = ValuePool(4, 3)
    assert pool(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2)).shape == (0, 3)


def test_an_unwritten_slot_adds_exactly_zero(read: tuple[torch.Tensor, torch.Tensor]) -> None:
    pool = ValuePool(9, 7)
    pool.initialise("zero", seed=0)
    assert not pool(*read).any()


def test_the_normal_start_is_seeded_and_scaled() -> None:
    pools = [ValuePool(400, 64) for _ in range(3)]
    for pool, seed in zip(pools, (1, 1, 2), strict=True):
        pool.initialise("normal", seed)
    assert torch.equal(pools[0].weight, pools[1].weight)
    assert not torch.equal(pools[0].weight, pools[2].weight)
    assert abs(pools[0].weight.std().item() * 8 - 1) < 0.02


def test_initialising_on_the_meta_device_does_nothing() -> None:
    with torch.device("meta"):
        pool = ValuePool(4, 3)
    pool.initialise("normal", seed=0)
    assert pool.weight.is_meta
