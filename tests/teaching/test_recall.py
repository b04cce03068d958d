"""When recall counts as full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.teaching import FACTS, Configure, teach

pytestmark = pytest.mark.usefixtures("short_answers")


def test_recall_is_full_only_when_every_fact_was_asked(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    wrong = "Fay"

    def answers(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
        asked.append(questions)
        return ["?" if wrong in q else next(f.answer for f in FACTS if f.subject in q) for q in questions]

    monkeypatch.setattr("memlayers.teaching.recall.answer_questions", answers)
    report = teach(tmp_path / "memory", configure(exposures=6, recall_sample=3)).report
    assert report.exposures == 6 and report.recall < 1  # it never stopped early
    assert {len(questions) for questions in asked} == {3}
    assert {point.recall for point in report.curve} <= {2 / 3, 5 / 6}  # the sample missed, or all six asked
    wrong = "nobody"
    report = teach(tmp_path / "other", configure(exposures=6, recall_sample=3)).report
    assert report.exposures == report.recall == 1
