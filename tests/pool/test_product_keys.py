from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memlayers.kernels.reference import product_key_top_k_exhaustive, product_scores
from memlayers.pool.product_keys import make_sub_keys, product_key_top_k, whitening


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "h", "m", "k"),
    [(5, 4, 16, 8), (1, 1, 1, 1), (7, 3, 13, 5), (3, 2, 8, 8), (2, 1, 33, 32), (0, 2, 9, 4), (64, 4, 50, 8)],
)
def test_equals_exhaustive_search(n: int, h: int, m: int, k: int, dtype: torch.dtype) -> None:
    a, b = _normal(n, h, m, dtype=dtype), _normal(n, h, m, seed=1, dtype=dtype)
    scores, indices = product_key_top_k(a, b, k)
    expected_scores, expected_indices = product_key_top_k_exhaustive(a, b, k)
    assert torch.equal(indices, expected_indices)
    weights, expected = scores.softmax(-1), expected_scores.softmax(-1)
    assert (expected * (expected / weights).log()).sum() == 0  # KL of the two reads
    assert torch.equal(scores, product_scores(a, b).gather(-1, indices))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), m=st.integers(1, 12))
def test_equals_exhaustive_search_among_ties(data: st.DataObject, m: int) -> None:
    k = data.draw(st.integers(1, m))
    levels = st.lists(st.integers(-2, 2), min_size=2 * m, max_size=2 * m)
    a, b = torch.tensor(data.draw(levels), dtype=torch.float32).view(2, 1, m), torch.zeros(2, 1, m)
    b[1, 0] = torch.tensor(data.draw(levels), dtype=torch.float32)[:m]
    for got, expected in zip(product_key_top_k(a, b, k), product_key_top_k_exhaustive(a, b, k), strict=True):
        assert torch.equal(got, expected)


def test_all_scores_equal_takes_the_first_slots() -> None:
    scores, indices = product_key_top_k(torch.zeros(1, 1, 64), torch.zeros(1, 1, 64), 4)
    assert indices.flatten().tolist() == [0, 1, 2, 3] and not scores.any()


def test_gradient_flows_to_the_winning_scores() -> None:
    a, b = _normal(1, 1, 6).requires_grad_(), _normal(1, 1, 6, seed=1).requires_grad_()
    scores, indices = product_key_top_k(a, b, 3)
    scores.sum().backward()
    assert a.grad is not None
    expected = torch.bincount(indices.flatten() // 6, minlength=6).float()
    assert torch.equal(a.grad.flatten(), expected)


def test_sub_keys_are_seeded_unit_directions() -> None:
    keys = make_sub_keys(3, 10, 8, seed=5)
    assert keys.shape == (2, 3, 10, 8)
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(2, 3, 10))
    assert torch.equal(keys, make_sub_keys(3, 10, 8, seed=5))
    assert not torch.equal(keys, make_sub_keys(3, 10, 8, seed=6))
    assert make_sub_keys(1, 2, 4, seed=0, dtype=torch.bfloat16).dtype == torch.bfloat16


def _samples(dim: int) -> torch.Tensor:
    """Correlated inputs with an offset and two outlier dimensions."""
    mixing = torch.eye(dim, dtype=torch.float64) + _normal(dim, dim, seed=1, dtype=torch.float64) / 10
    scale = torch.where(torch.arange(dim) < 2, 10.0, 1.0)
    return _normal(4000, dim, dtype=torch.float64) @ mixing * scale + 5.0


@pytest.mark.parametrize("out_features", [24, 16, 36])
def test_whitening_gives_every_coordinate_unit_variance(out_features: int) -> None:
    x = _samples(24)
    projection = whitening(x.mean(0), x.T.cov(), out_features, seed=3)
    assert projection.shape == (24, out_features) and projection.dtype == torch.float32
    query = (x - x.mean(0)) @ projection.double()
    torch.testing.assert_close(query.var(0), torch.ones(out_features).double(), rtol=0.02, atol=0)
    if out_features <= 24:  # and no two coordinates say the same
        torch.testing.assert_close(query.T.cov(), torch.eye(out_features).double(), rtol=0, atol=0.02)
    else:
        assert query.T.corrcoef().fill_diagonal_(0).abs().max() < 0.9


def test_whitening_clamps_small_eigenvalues() -> None:
    covariance = torch.diag(torch.tensor([1.0, 1e-12, 0.0, 0.0]))
    norms = whitening(torch.zeros(4), covariance, 4, seed=0).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 100.0, 100.0, 100.0]))


def test_whitening_survives_no_variance_at_all_and_is_seeded() -> None:
    assert whitening(torch.zeros(3), torch.zeros(3, 3), 3, seed=0).isfinite().all()
    covariance = torch.eye(4)
    assert torch.equal(
        whitening(torch.zeros(4), covariance, 4, seed=1), whitening(torch.zeros(4), covariance, 4, seed=1)
    )
    assert not torch.equal(
        whitening(torch.zeros(4), covariance, 4, seed=1), whitening(torch.zeros(4), covariance, 4, seed=2)
    )
