from __future__ import annotations

import math

import pytest
import torch

from memlayers.inference.confidence import (
    calibrated_confidence,
    confidence_exceeded_by,
    count_wrong_answers,
    prior_entry,
)
from memlayers.tuner.subject_index import PRIOR_SIZE


def test_answers_that_strict_matching_takes_for_one_are_counted_as_one() -> None:
    counts = count_wrong_answers([["Jazz", "jazz.", " JAZZ"], ["jazz", "fado"], []])
    assert counts.dtype == torch.uint8 and counts.shape == (PRIOR_SIZE,)
    assert (counts[prior_entry("jazz")], counts[prior_entry("Fado")], counts.sum()) == (2, 1, 3)
    assert count_wrong_answers([]).sum() == 0
    assert count_wrong_answers([["jazz"]] * 300)[prior_entry("jazz")] == 255


def test_calibrated_confidence_is_bayes_rule() -> None:
    assert calibrated_confidence(0.3, 0) == pytest.approx(0.3)
    for confidence, guessed in ((0.9, 3), (0.5, 9), (1e-6, 1)):
        odds = confidence / (1 - confidence) / (1 + guessed)
        assert calibrated_confidence(confidence, guessed) == pytest.approx(odds / (1 + odds))
    assert (calibrated_confidence(0.0, 5), calibrated_confidence(1.0, 5)) == (0.0, 1.0)


@pytest.mark.parametrize("answers", [100, 1000])
def test_the_fitted_confidence_is_exceeded_by_the_share_asked_for_and_errs_less_than_the_quantile(answers: int) -> None:
    share, generator = 0.006, torch.Generator().manual_seed(0)
    true = math.log(1 / share)  # of log-odds that fall off as exp(-x)
    draws = torch.empty(200, answers, dtype=torch.float64).exponential_(generator=generator)
    fitted = torch.tensor([confidence_exceeded_by(share, each.sigmoid().tolist()) for each in draws]).double().logit()
    plain = draws.quantile(1 - share, dim=1)
    assert fitted.mean() == pytest.approx(true, abs=0.15)
    assert (fitted - true).square().mean().sqrt() < 0.8 * (plain - true).square().mean().sqrt()


def test_few_or_equal_or_certain_answers_settle_something_finite() -> None:
    assert confidence_exceeded_by(0.006, []) == 0.0
    assert confidence_exceeded_by(0.006, [0.4]) == pytest.approx(0.4)
    assert confidence_exceeded_by(0.006, [0.7] * 9) == pytest.approx(0.7)
    assert 0.5 < confidence_exceeded_by(0.006, [0.0, 0.5, 1.0]) <= 1.0
