"""Means, differences, perplexity and AUROC with their 95 % intervals (docs/evaluation.md). numpy only.

Percentile bootstrap: 2,000 resamples of the items, seeded (Efron and Tibshirani 1993, section 13.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from memlayers.utils.errors import InputError

_RESAMPLES = 2000
_DRAWN_AT_ONCE = 4_000_000  # indices: bounds the memory of a bootstrap to some 64 MB
_Z95 = 1.959963984540054

Floats: TypeAlias = npt.NDArray[np.float64]
_Values: TypeAlias = Sequence[float] | npt.NDArray[np.generic]


class Estimate(NamedTuple):
    """A mean over `n` items with its 95 % interval."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def mean_interval(values: _Values, seed: int = 0) -> Estimate:
    """Mean and 95 % interval by percentile bootstrap.

    A proportion of exactly 0 or 1 (every value 0, or every value 1) has nothing to resample: it gets the
    Wilson score interval (Wilson 1927) instead, which is not empty.

    Args:
        values: [n] numbers or booleans, at least one, finite.
        seed: of the resampling.

    Raises:
        InputError: no values, or one that is not finite.
    """
    array = _finite(values)
    n, mean = array.size, float(array.mean())
    if _is_constant(array) and mean in (0.0, 1.0):
        margin = _wilson_margin(n)
        return Estimate(mean, 0.0 if mean == 0.0 else 1.0 - margin, margin if mean == 0.0 else 1.0, n)
    low, high = _bootstrap_interval(array, seed)
    return Estimate(mean, low, high, n)


def paired_difference(before: _Values, after: _Values, seed: int = 0) -> Estimate:
    """Mean of `after - before` over the same items, and its 95 % interval by paired bootstrap.

    If 0/1 scores all moved alike (usually: not one changed), there is nothing to resample; the interval
    then allows for the share of differently moving items that Wilson's interval does not exclude, at its
    worst.

    Args:
        before: [n] scores of the items.
        after: [n] scores of the same items in the same order.
        seed: of the resampling.

    Raises:
        InputError: different lengths, no values, or one that is not finite.
    """
    first, second = _finite(before), _finite(after)
    if first.size != second.size:
        raise InputError(f"{first.size} scores before and {second.size} after; pair the same items")
    differences = second - first
    n, mean = differences.size, float(differences.mean())
    if _is_constant(differences) and bool(np.isin([first, second], (0.0, 1.0)).all()):
        margin = _wilson_margin(n) * (1.0 + abs(mean))  # from all +1, an item that moved otherwise may be a -1
        return Estimate(mean, max(mean - margin, -1.0), min(mean + margin, 1.0), n)
    low, high = _bootstrap_interval(differences, seed)
    return Estimate(mean, low, high, n)


def perplexity(total_nll: float, tokens: int) -> float:
    """exp(total negative log-likelihood in nats / tokens scored); infinite when beyond float64.

    Raises:
        InputError: no tokens.
    """
    if tokens <= 0:
        raise InputError(f"perplexity over {tokens} tokens; give a text of at least two tokens")
    try:
        return math.exp(total_nll / tokens)
    except OverflowError:
        return math.inf


def auroc(positives: _Values, negatives: _Values) -> float:
    """Chance that a random positive scores above a random negative, ties counting half.

    Mann-Whitney U by mid-ranks.

    Args:
        positives: [p] scores of the positive items.
        negatives: [q] scores of the negative items.

    Raises:
        InputError: an empty side or a NaN.
    """
    above, below = np.asarray(positives, np.float64).ravel(), np.asarray(negatives, np.float64).ravel()
    if above.size == 0 or below.size == 0:
        raise InputError("AUROC needs scores of positives and of negatives; one side is empty")
    scores = np.concatenate((above, below))
    if np.isnan(scores).any():
        raise InputError("AUROC of a NaN score; look for it where the scores are made")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(count) - (count - 1) / 2.0
    rank_sum = float(mid_rank[place[: above.size]].sum())
    return (rank_sum - above.size * (above.size + 1) / 2.0) / (above.size * below.size)


def auroc_interval(positives: _Values, negatives: _Values, seed: int = 0, resamples: int = 500) -> Estimate:
    """AUROC and its 95 % interval by percentile bootstrap over both sides; n counts both.

    Args:
        positives: [p] scores of the positive items, finite.
        negatives: [q] scores of the negative items.
        seed: of the resampling.
        resamples: how many; each costs a sort.

    Raises:
        InputError: an empty side, or a score that is not finite.
    """
    above, below = _finite(positives), _finite(negatives)
    rng = np.random.default_rng(seed)
    drawn = [auroc(rng.choice(above, above.size), rng.choice(below, below.size)) for _ in range(resamples)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(auroc(above, below), float(low), float(high), above.size + below.size)


def _finite(values: _Values) -> Floats:
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0:
        raise InputError("an interval over no values; give at least one")
    if not np.isfinite(array).all():
        raise InputError("an interval over a value that is not finite; look for it where the values are made")
    return array


def _is_constant(array: Floats) -> bool:
    return bool((array == array[0]).all())


def _wilson_margin(n: int) -> float:
    """Upper end of the Wilson 95 % interval of 0 successes in n: z^2 / (n + z^2)."""
    return _Z95**2 / (n + _Z95**2)


def _bootstrap_interval(array: Floats, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    n = array.size
    rows = max(1, min(_RESAMPLES, _DRAWN_AT_ONCE // n))
    means = np.empty(_RESAMPLES)
    for start in range(0, _RESAMPLES, rows):
        stop = min(start + rows, _RESAMPLES)
        means[start:stop] = array[rng.integers(0, n, size=(stop - start, n))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
