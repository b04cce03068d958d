"""Product keys: seeded sub-keys, whitening of the queries, and the exact top-k of the product set.

Lample et al. 2019 (arXiv 1907.05242), section 3.1; design/recipe.md (B) for whitening; design/hot-path.md
for the staircase.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EIGENVALUE_FLOOR = 1e-4  # of the largest; below it lies noise that whitening would blow up


def product_key_top_k(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The exact k best of the m * m slots, slot i * m + j scoring a_i + b_j.

    The pair of the i-th best first half and the j-th best second half (from 0) is beaten by the (i+1)(j+1)
    - 1 pairs that are no worse in both halves, so only the staircase (i+1)(j+1) <= k can win: 20 of 64
    pairs at k = 8. Ties are resolved as in `kernels.reference.product_key_top_k_exhaustive`, whose result
    this always equals.

    Args:
        scores_a: [n, h, m], floating; differentiable.
        scores_b: [n, h, m].
        k: slots per head, at most m.

    Returns:
        scores [n, h, k], best first, and slot indices [n, h, k], int64.
    """
    sub_keys = scores_a.shape[-1]
    top_a, index_a = _top_k(scores_a, k)
    top_b, index_b = _top_k(scores_b, k)
    stairs = [(i, j) for i in range(k) for j in range(k // (i + 1))]
    rows, columns = torch.tensor(stairs, device=scores_a.device).T
    candidates = top_a[..., rows] + top_b[..., columns]  # [n, h, stairs]
    order = torch.sort(candidates.detach(), dim=-1, descending=True, stable=True).indices[..., :k]
    slots = index_a[..., rows] * sub_keys + index_b[..., columns]
    return candidates.gather(-1, order), slots.gather(-1, order)


def _top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk along the last dimension, with ties going to the lower index, which torch leaves open."""
    flat = scores.detach().flatten(0, -2)
    best, index = flat.topk(min(k + 1, flat.shape[-1]))  # one more than asked, to see a tie at the border
    tied = (best[:, 1:] == best[:, :-1]).any(-1).nonzero().squeeze(-1)
    index = index[:, :k]
    if tied.numel():  # rare: a stable sort costs five times the topk
        ranked = torch.sort(flat[tied], dim=-1, descending=True, stable=True).indices
        index = index.index_copy(0, tied, ranked[:, :k])
    index = index.view(*scores.shape[:-1], k)
    return scores.gather(-1, index), index


def make_sub_keys(heads: int, sub_keys: int, half_dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random directions for both halves of the product keys.

    Args:
        heads: number of heads; each has sub-keys of its own.
        sub_keys: sub-keys per half, m.
        half_dim: width of one half of a key.
        seed: same seed, same bits.
        dtype: of the result.

    Returns:
        [2, heads, sub_keys, half_dim], each row of unit norm.
    """
    normal = torch.randn(2, heads, sub_keys, half_dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(normal, dim=-1).to(dtype)


def whitening(mean: Tensor, covariance: Tensor, out_features: int, seed: int) -> Tensor:
    """The projection W of the query q = (x - mean) W that makes every coordinate of q equally informative.

    W = U diag(lambda^-1/2) R, with covariance = U diag(lambda) U^T, lambda clamped from below at
    `EIGENVALUE_FLOOR` of the largest and R a seeded random rotation (design/recipe.md, B.2). With fewer
    outputs than inputs the first columns of R are kept; with more, R is followed by random directions, so
    that each coordinate still has unit variance and no head is left without information.

    Args:
        mean: [d], of the layer's inputs.
        covariance: [d, d], of the same inputs; symmetric.
        out_features: width of the query, heads * key_dim.
        seed: same seed, same bits on one machine.

    Returns:
        [d, out_features], float32.
    """
    dim = mean.shape[0]
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.to(torch.float64))
    floor = (eigenvalues[-1] * EIGENVALUE_FLOOR).clamp_min(1e-12)  # finite even where nothing varies
    generator = torch.Generator().manual_seed(seed)
    mixing = _random_rotation(dim, generator)[:, :out_features]
    if out_features > dim:
        spread = torch.randn(dim, out_features, generator=generator, dtype=torch.float64)
        mixing = mixing @ F.normalize(spread, dim=0)
    scaled: Tensor = eigenvectors * eigenvalues.clamp_min(floor).rsqrt()
    return (scaled @ mixing.to(scaled.device)).to(torch.float32)


def _random_rotation(dim: int, generator: torch.Generator) -> Tensor:
    orthogonal, triangular = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    uniform: Tensor = orthogonal * triangular.diagonal().sign()  # over the orthogonal group; QR alone is not
    return uniform
