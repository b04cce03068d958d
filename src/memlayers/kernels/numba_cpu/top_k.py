"""The compiled top-k of the CPU backend: the k best of each half by one scan, then the staircase of their sums.

See `reference.product_key_top_k`. In a file of its own, with decorators of its own, because it calls nothing in
`loops`: numba's compile cache notices a change of this file only.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from memlayers.kernels.numba_cpu.compilation import cached_jit

# As in `loops`.
_jit = cached_jit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
_inlined: Any = numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}, inline="always")


@_inlined
def _insert(best: Any, index: Any, filled: int, score: Any, i: Any) -> None:
    """Puts a score into the descending `best`, the lower index first among equals; the last of `filled` goes."""
    at = filled - 1
    while at > 0 and (best[at - 1] < score or (best[at - 1] == score and index[at - 1] > i)):
        best[at], index[at] = best[at - 1], index[at - 1]
        at -= 1
    best[at], index[at] = score, i


@_inlined
def _best_of(row: Any, k: int, best: Any, index: Any, largest: Any, found: Any, where: Any) -> None:
    """The k best of `row` [m], best first; among equals the lower index.

    `largest` [g] takes the largest of each of g groups, every g-th element: that vectorises. At least k elements are no
    smaller than the k-th largest of these, so what is smaller cannot be among the k best. What is left, about k and a
    half, goes to `found` and `where` [m + 1], and is sorted.
    """
    m, groups = row.shape[0], largest.shape[0]
    candidates = 0
    if m >= 2 * groups:
        whole = m // groups
        lanes = row[: whole * groups].reshape(whole, groups)
        for g in range(groups):
            largest[g] = row[g]
        for t in range(1, whole):
            for g in range(groups):
                largest[g] = lanes[t, g] if lanes[t, g] > largest[g] else largest[g]
        for g in range(m - whole * groups):
            rest = row[whole * groups + g]
            largest[g] = rest if rest > largest[g] else largest[g]
        threshold = largest.dtype.type(np.inf)
        for g in range(groups):  # the k-th largest has fewer than k above it; counting has no branch to predict
            above = 0
            for other in range(groups):
                above += largest[other] > largest[g]
            if above < k and largest[g] < threshold:
                threshold = largest[g]
        for g in range(groups):
            if largest[g] >= threshold:
                for i in range(g, m, groups):
                    found[candidates], where[candidates] = row[i], i
                    candidates += row[i] >= threshold
    if candidates < k:  # a short row, or NaN among the scores
        candidates = m
        for i in range(m):
            found[i], where[i] = row[i], i
    for i in range(k):
        _insert(best, index, i + 1, found[i], where[i])
    for i in range(k, candidates):
        if found[i] > best[k - 1] or (found[i] == best[k - 1] and where[i] < index[k - 1]):
            _insert(best, index, k, found[i], where[i])


@_jit
def top_k_kernel(
    flat_a: Any, begins_a: Any, flat_b: Any, begins_b: Any, k: int, m: int, scores: Any, slots: Any, begin: int,
    end: int,
) -> None:  # fmt: skip
    """See `reference.product_key_top_k`; row t of a half begins at begins[t] of its flat scores."""
    best_a, best_b = np.empty(k, dtype=flat_a.dtype), np.empty(k, dtype=flat_a.dtype)
    index_a, index_b = np.empty(k, dtype=np.int64), np.empty(k, dtype=np.int64)
    largest = np.empty((2 * k + 15) // 16 * 16, dtype=flat_a.dtype)
    found, where = np.empty(m + 1, dtype=flat_a.dtype), np.empty(m + 1, dtype=np.int64)
    for t in range(begin, end):
        _best_of(flat_a[begins_a[t] : begins_a[t] + m], k, best_a, index_a, largest, found, where)
        _best_of(flat_b[begins_b[t] : begins_b[t] + m], k, best_b, index_b, largest, found, where)
        best, slot = scores[t], slots[t]
        filled = 0
        for i in range(k):
            for j in range(k // (i + 1)):  # only the staircase (i + 1)(j + 1) <= k can win
                score = best_a[i] + best_b[j]
                if filled < k:
                    filled += 1
                elif score <= best[k - 1]:
                    break  # the rest of this row of the staircase is no better
                at = filled - 1  # behind its equals: the order of the halves decides among them
                while at > 0 and best[at - 1] < score:
                    best[at], slot[at] = best[at - 1], slot[at - 1]
                    at -= 1
                best[at], slot[at] = score, index_a[i] * m + index_b[j]
