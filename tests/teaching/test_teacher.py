"""The loop: rates, accumulated gradients, steps that are not finite, the watch."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.teaching import FACTS, Configure, pool_values, teach
from memlayers.config.sections import ScheduleConfig
from memlayers.data.encoding import Encoded
from memlayers.inference.capture import LayerFeatures
from memlayers.teaching.teacher import Teacher
from memlayers.tuner import memory_handle
from memlayers.utils.errors import WorkError

pytestmark = pytest.mark.usefixtures("short_answers")


def test_the_rate_falls_and_begins_anew_at_half_for_what_is_not_held(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors, step = [], Teacher.step

    def watched(run: Teacher, *arguments: Any) -> bool:
        done = step(run, *arguments)
        factors.append(run.optimizer.param_groups[0]["lr"] / run._rates[0])
        return done

    monkeypatch.setattr(Teacher, "step", watched)
    config = configure(exposures=5, further=1, value_rate=1e-6, gate=True)  # so little that nothing is learned
    config = replace(config, schedule=replace(config.schedule, further_epochs=4))
    report = teach(tmp_path / "memory", config).report
    assert report.exposures == len(report.curve) == 5 and report.checks == [6, 6]
    falls = [1 - i / 10 for i in range(10)] + [0.5 * (1 - epoch / 4) for epoch in range(4) for _ in range(2)]
    assert factors == pytest.approx(falls) and report.steps == len(falls)


@pytest.mark.parametrize("accumulation", [2, 4, 100])
def test_accumulation_gives_the_same_update(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    def plain(name: str, groups: Any, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups)  # moves by the gradient itself, where Adam would blow up rounding

    forwards: list[int] = []
    loss = Teacher._loss

    def counting(run: Teacher, batch: list[Encoded]) -> tuple[Tensor, Tensor]:
        forwards.append(len(batch))
        return loss(run, batch)

    monkeypatch.setattr("memlayers.teaching.setup.make_optimizer", plain)
    monkeypatch.setattr(Teacher, "_loss", counting)
    whole = pool_values(teach(tmp_path / "whole", configure(batch_size=6)).model)
    assert forwards == [6]
    split = pool_values(teach(tmp_path / "split", configure(batch_size=6, accumulation=accumulation)).model)
    assert forwards[1:] == {2: [3, 3], 4: [2, 2, 2], 100: [1] * 6}[accumulation]
    assert whole.abs().max() > 0
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


def _spoil_loss(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool], value: float = math.inf) -> None:
    """Makes the loss of the steps that `bad` picks, counted from 0, not finite."""
    loss, calls = Teacher._loss, iter(range(10_000))

    def spoilt(run: Teacher, batch: list[Encoded]) -> tuple[Tensor, Tensor]:
        result, sure = loss(run, batch)
        return result * (value if bad(next(calls)) else 1.0), sure

    monkeypatch.setattr(Teacher, "_loss", spoilt)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_changes_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    seen: list[tuple[Tensor, int]] = []
    step = Teacher.step

    def watched(run: Teacher, batch: Any, total: int) -> bool:
        finite = step(run, batch, total)
        moments = run.optimizer.state[memory_handle(run.model, "default").pool.weight]
        seen.append((pool_values(run.model), int(moments["step"])))
        return finite

    monkeypatch.setattr(Teacher, "step", watched)
    _spoil_loss(monkeypatch, lambda call: call == 1, value)
    report = teach(tmp_path / "memory", configure(exposures=2)).report
    assert (report.steps, report.skipped_steps, report.exposures) == (4, 1, 2)
    assert [count for _, count in seen] == [1, 1, 2, 3]
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[1][0], seen[2][0])


def test_one_bad_part_of_an_accumulated_batch_skips_the_whole_step(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil_loss(monkeypatch, lambda call: call == 1)
    taught = teach(tmp_path / "memory", configure(batch_size=6, accumulation=2))
    assert taught.report.skipped_steps == taught.report.steps == 1
    assert not pool_values(taught.model).any()


def test_a_gradient_that_is_not_finite_changes_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Teacher._loss

    def spoilt(run: Teacher, batch: list[Encoded]) -> tuple[Tensor, Tensor]:
        result, sure = loss(run, batch)
        result.register_hook(lambda gradient: gradient * math.nan)
        return result, sure

    monkeypatch.setattr(Teacher, "_loss", spoilt)
    taught = teach(tmp_path / "memory", configure())
    assert taught.report.skipped_steps == taught.report.steps == 2
    assert not pool_values(taught.model).any()


def test_many_bad_steps_in_a_row_end_the_work(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil_loss(monkeypatch, lambda call: call >= 1)
    with pytest.raises(WorkError, match=f"not finite for {ScheduleConfig().bad_steps} steps in a row.*value-rate"):
        teach(tmp_path / "memory", configure(exposures=20, recall_sample=1))
    assert not list(tmp_path.iterdir())


def test_a_good_step_forgives_the_bad_ones(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil_loss(monkeypatch, lambda call: call != ScheduleConfig().bad_steps - 1)  # nine bad, one good, eight bad
    report = teach(tmp_path / "memory", configure(exposures=9, recall_sample=1)).report
    assert (report.steps, report.skipped_steps) == (18, 17)


def test_the_watch_is_asked_after_each_pass_and_fills_the_curve(configure: Configure, tmp_path: Path) -> None:
    scores = [(9.0, 0.5), (8.0, 0.25)]
    asked: list[tuple[Any, Any]] = []

    def watch(model: Any, tokenizer: Any) -> tuple[float, float]:
        asked.append((model, tokenizer))
        return scores[len(asked) - 1]

    taught = teach(tmp_path / "memory", configure(exposures=2), watch=watch)
    assert [(point.perplexity, point.known_facts) for point in taught.report.curve] == scores
    assert asked == [(taught.model, taught.tokenizer)] * 2


@pytest.mark.parametrize("gate", [True, False])
def test_what_calibration_saw_is_let_go_before_teaching(configure: Configure, tmp_path: Path, gate: bool) -> None:
    teacher = Teacher(FACTS, configure(gate=gate), tmp_path / "work", quiet=True)
    teacher.setup()
    others = [each for each in gc.get_objects() if type(each) is LayerFeatures]
    teacher.calibrate()
    teacher.build_gate()
    gc.collect()
    kept = [each for each in gc.get_objects() if type(each) is LayerFeatures]
    assert all(any(each is other for other in others) for each in kept)
