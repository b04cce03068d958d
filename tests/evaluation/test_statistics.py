from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayers.evaluation.statistics import auroc, mean_interval, paired_difference, perplexity
from memlayers.utils.errors import InputError


def test_wilson_at_the_ends():
    # Wilson 95 % for 10 of 10: low = n / (n + z^2) = 10 / 13.8415
    assert mean_interval([True] * 10) == pytest.approx((1.0, 10 / 13.841458820694124, 1.0, 10))
    assert mean_interval([0] * 10) == pytest.approx((0.0, 0.0, 1 - 10 / 13.841458820694124, 10))


def test_bootstrap_of_a_proportion_agrees_with_the_binomial():
    estimate = mean_interval([1] * 900 + [0] * 100, seed=137)
    half = 1.96 * math.sqrt(0.9 * 0.1 / 1000)
    assert estimate.value == 0.9 and estimate.n == 1000
    assert estimate.ci_low == pytest.approx(0.9 - half, abs=0.004)
    assert estimate.ci_high == pytest.approx(0.9 + half, abs=0.004)


def test_bootstrap_is_seeded():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_bootstrap_in_blocks_covers_every_resample(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = mean_interval(values, seed=3)
    monkeypatch.setattr("memlayers.evaluation.statistics._DRAWN_AT_ONCE", 50 * 7)
    assert mean_interval(values, seed=3) == pytest.approx(whole)


def test_paired_difference_is_narrower_than_the_scores():
    rng = np.random.default_rng(0)
    before = rng.normal(size=400)
    after = before + 0.1 + 0.01 * rng.normal(size=400)
    estimate = paired_difference(before, after)
    assert estimate.value == pytest.approx((after - before).mean())
    assert estimate.ci_low < estimate.value < estimate.ci_high
    assert estimate.ci_high - estimate.ci_low < 0.01


def test_paired_difference_of_unchanged_scores_is_not_certain():
    margin = 1.959963984540054**2 / (100 + 1.959963984540054**2)
    assert paired_difference([1, 0] * 50, [1, 0] * 50) == pytest.approx((0.0, -margin, margin, 100))
    assert paired_difference([0] * 100, [1] * 100) == pytest.approx((1.0, 1 - 2 * margin, 1.0, 100))


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_no_interval_over_nothing_or_over_nan(values: list[float]):
    with pytest.raises(InputError):
        mean_interval(values)


def test_pairs_must_pair():
    with pytest.raises(InputError, match="pair the same items"):
        paired_difference([1, 0], [1])


def test_perplexity():
    assert perplexity(3 * math.log(8.309), 3) == pytest.approx(8.309)
    assert perplexity(1e6, 1) == math.inf
    with pytest.raises(InputError):
        perplexity(0.0, 0)


scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(scores, scores)
def test_auroc_is_the_share_of_ordered_pairs(positives: list[float], negatives: list[float]):
    pairs = [(p > q) + 0.5 * (p == q) for p, q in itertools.product(positives, negatives)]
    assert auroc(positives, negatives) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_by_hand_and_at_infinity():
    assert auroc([2, 3], [1, 2]) == 0.875
    assert auroc([math.inf], [-math.inf, 0.0]) == 1.0
    with pytest.raises(InputError):
        auroc([], [1.0])
    with pytest.raises(InputError):
        auroc([math.nan], [1.0])
