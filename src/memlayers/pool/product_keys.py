"""Product keys: seeded sub-keys, whitening of the queries, and the exact top-k of the product set.

Lample et al. 2019 (arXiv 1907.05242), section 3.1; docs/method.md, "Calibration", for whitening.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.kernels import kernels_for, operators

EIGENVALUE_FLOOR = 1e-4  # of the largest; below it lies noise that whitening would blow up


def product_key_top_k(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The exact k best of the m * m slots, slot i * m + j scoring a_i + b_j.

    Ties are resolved as in `kernels.reference.product_key_top_k_exhaustive`, whose result this always equals.

    Args:
        scores_a: [n, h, m], floating; differentiable.
        scores_b: [n, h, m].
        k: slots per head, at most m.

    Returns:
        scores [n, h, k], best first, and slot indices [n, h, k], int64.
    """
    kernels = operators if torch.compiler.is_compiling() else kernels_for(scores_a.device)
    scores, slots = kernels.product_key_top_k(scores_a.detach(), scores_b.detach(), k)
    if torch.is_grad_enabled() and (scores_a.requires_grad or scores_b.requires_grad):
        sub_keys = scores_a.shape[-1]
        scores = scores_a.gather(-1, slots // sub_keys) + scores_b.gather(-1, slots % sub_keys)
    return scores, slots


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
    `EIGENVALUE_FLOOR` of the largest and R a seeded random rotation (docs/method.md, "Calibration"). With fewer
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
