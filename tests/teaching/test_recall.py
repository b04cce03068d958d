"""When recall counts as full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.teaching import FACTS, Configure, teach

pytestmark = pytest.mark.usefixtures("short_answers")


def test_recall_is_full_only_when_every_fact_was_asked(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    generated: list[list[str]] = []
    wrong = "Fay"

    def answered(model: Any, tokenizer: Any, examples: list[Any], **_: Any) -> Tensor:
        asked.append(len(examples))
        return torch.tensor([wrong not in tokenizer.decode(example.input_ids) for example in examples])

    def answers(model: Any, tokenizer: Any, questions: list[str], **_: Any) -> list[str]:
        generated.append(questions)
        return ["?" if wrong in q else next(f.answer for f in FACTS if f.subject in q) for q in questions]

    def confidences(model: Any, tokenizer: Any, examples: list[Any], **_: Any) -> list[tuple[bool, float]]:
        return [(wrong not in tokenizer.decode(example.input_ids), 1.0) for example in examples]

    monkeypatch.setattr("memlayers.teaching.recall.answered", answered)
    monkeypatch.setattr("memlayers.teaching.held.answer_confidences", confidences)
    monkeypatch.setattr("memlayers.teaching.held.answer_questions", answers)
    report = teach(tmp_path / "memory", configure(exposures=6, recall_sample=3)).report
    assert report.exposures == 6  # it never stopped early
    assert set(asked) == {3}
    assert len(generated) == 1 and len(generated[0]) >= 3  # generation is the final check
    assert {point.recall for point in report.curve} <= {2 / 3, 5 / 6}  # the sample missed, or all six asked
    wrong = "nobody"
    report = teach(tmp_path / "other", configure(exposures=6, recall_sample=3)).report
    assert report.exposures == report.recall == 1 and not report.not_held


def test_the_stages_are_told_with_what_they_took(configure: Configure, tmp_path: Path) -> None:
    report = teach(tmp_path / "memory", configure(exposures=2)).report
    assert list(report.stages) == ["calibration", "steps", "recall", "check", "final check"]
    assert all(stage.cpu_seconds > 0 for stage in report.stages.values())
    assert report.stages["steps"].tokens > 0 and report.stages["recall"].tokens > 0
