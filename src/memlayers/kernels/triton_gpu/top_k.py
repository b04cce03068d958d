"""The compiled top-k of the GPU backend: the k best of each half by rounds of maximum, then of their sums.

See `memlayers.kernels.reference.product_key_top_k`. Scores and their indices travel as one whole number, so that one
maximum finds both.
"""

from __future__ import annotations

import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from memlayers.kernels.triton_gpu.storage import jit, rounded

_LOWEST = tl.constexpr(-(2**63))  # below the key of any score


@jit
def _ranking(scores: tl.tensor, index: tl.tensor) -> tl.tensor:
    """int64 keys, all different, whose order is that of float32 scores and, among equals, of falling index.

    As in torch's sort, -0 equals 0, and NaN is above all.
    """
    scores = tl.where(scores == 0, 0.0, scores)
    bits = tl.where(scores == scores, scores.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats are ordered by falling bits
    return (bits.to(tl.int64) << 32) + (0x7FFFFFFF - index).to(tl.int64)


@jit
def _score_of(ranking: tl.tensor) -> tl.tensor:
    bits = (ranking >> 32).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def _index_of(ranking: tl.tensor) -> tl.tensor:
    return 0x7FFFFFFF - (ranking & 0x7FFFFFFF)


@jit
def top_k_kernel(
    scores_a: tl.tensor, scores_b: tl.tensor, scores: tl.tensor, slots: tl.tensor, inner: tl.tensor, outer_a: tl.tensor,
    inner_a: tl.tensor, outer_b: tl.tensor, inner_b: tl.tensor, k: tl.tensor, m: tl.tensor, ranked: tl.tensor,
    M: tl.constexpr, K: tl.constexpr,
) -> None:  # fmt: skip
    """See `reference.product_key_top_k`: a program per token and head, its scores [i, j] of [outer, inner]."""
    i, j = (tl.program_id(0) // inner).to(tl.int64), tl.program_id(0) % inner
    index, rank = tl.arange(0, M), tl.arange(0, K)
    a = tl.load(scores_a + i * outer_a + j * inner_a + index, mask=index < m, other=0).to(tl.float32)
    b = tl.load(scores_b + i * outer_b + j * inner_b + index, mask=index < m, other=0).to(tl.float32)
    left_a = tl.where(index < m, _ranking(a, index), _LOWEST)
    left_b = tl.where(index < m, _ranking(b, index), _LOWEST)
    best_a, best_b = tl.full((K,), _LOWEST, tl.int64), tl.full((K,), _LOWEST, tl.int64)
    for t in range(ranked):
        of_a, of_b = tl.max(left_a, 0), tl.max(left_b, 0)
        best_a, best_b = tl.where(rank == t, of_a, best_a), tl.where(rank == t, of_b, best_b)
        left_a, left_b = tl.where(left_a == of_a, _LOWEST, left_a), tl.where(left_b == of_b, _LOWEST, left_b)
    # Stair i has the pairs (i, 0), (i, 1), ... of falling score. Its head is the first that is not taken yet, and the
    # best pair of all is some stair's head, of equal ones the first stair's. So no pair off the staircase is taken.
    score_a = _score_of(best_a)
    next_b = tl.where(rank < K, tl.max(best_b, 0), _LOWEST)  # [K], the head's second half
    taken = tl.zeros((K,), tl.int32)
    for t in range(k):
        sums = rounded(score_a + _score_of(next_b), scores.dtype.element_ty).to(tl.float32)
        heads = tl.where((rank < ranked) & (taken < ranked), _ranking(sums, rank), _LOWEST)
        best = tl.max(heads, 0)
        won = rank == _index_of(best)
        of_a, of_b = tl.max(tl.where(won, best_a, _LOWEST), 0), tl.max(tl.where(won, next_b, _LOWEST), 0)
        at = tl.program_id(0).to(tl.int64) * k + t
        tl.store(scores + at, rounded(_score_of(best), scores.dtype.element_ty))
        tl.store(slots + at, _index_of(of_a) * m + _index_of(of_b))
        count = tl.sum(tl.where(won, taken, 0), 0) + 1
        taken = tl.where(won, count, taken)
        next_b = tl.where(won, tl.max(tl.where(rank == count, best_b, _LOWEST), 0), next_b)
