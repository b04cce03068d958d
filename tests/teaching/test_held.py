"""Which facts are held, and what those that are not are shown further."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from helpers.teaching import ANSWERS, FACTS, Configure, teach
from memlayers.data.encoding import Encoded
from memlayers.inference.record import read_teaching
from memlayers.teaching.held import (
    SURE,
    Checked,
    further_batches,
    still_left,
)

EXAMPLES = [[Encoded([fact, wording], [-100, wording]) for wording in range(3)] for fact in range(8)]
SUBJECTS = ["a", "a", "b", "c", "d", "e", "f", ""]


def _check(wrong: dict[int, list[int]]) -> Checked:
    right = [[wording not in wrong.get(fact, []) for wording in range(3)] for fact in range(8)]
    return Checked(right, [[0.9] * 3 for _ in range(8)])


def test_what_is_wrong_is_told_by_fact_and_wording() -> None:
    checked = _check({0: [1, 2], 7: [0]})
    assert checked.wrong == {0: [1, 2], 7: [0]} and checked.recall == 21 / 24
    assert checked.held_confidences(0, shown=[1]) == [0.9]  # the one that is right, and was not shown
    assert checked.held_confidences(0, shown=[0]) == []
    assert checked.held_confidences(3, shown=[0, 1, 2]) == [0.9] * 3  # where all were shown, all count


def test_what_is_not_held_surely_is_what_could_be_lost_to_another_answer() -> None:
    right = [[True] * 3 for _ in range(8)]
    sure = [[0.95, 0.5, 0.7] for _ in range(8)]
    right[0][2], sure[0][1], sure[4][0] = False, 0.4, 0.49
    assert Checked(right, sure).below(SURE) == {0: [1, 2], 4: [0]}


def test_an_epoch_shows_what_is_left_beside_its_subjects_others() -> None:
    batches = further_batches(EXAMPLES, SUBJECTS, {0: [2, 1], 7: [0]}, 2, "seed")
    shown = [pair for batch in batches for pair in batch]
    assert [len(batch) for batch in batches] == [2, 1]
    assert {(0, 2), (7, 0)} <= set(shown)
    assert [fact for fact, _ in shown if fact not in (0, 7)] == [1]  # of the same subject; "" is no subject
    assert batches == further_batches(EXAMPLES, SUBJECTS, {0: [2, 1], 7: [0]}, 2, "seed")


def test_a_wording_is_shown_until_it_is_sure_and_the_next_one_then() -> None:
    left = {0: [2, 1], 7: [0]}
    assert still_left(left, {(0, 2): False, (7, 0): True, (1, 0): False}) == {0: [1, 2]}
    assert still_left(left, {(0, 2): True, (7, 0): False}) == {0: [1], 7: [0]}
    assert still_left({0: [1]}, {(0, 1): True}) == {}


def test_what_the_loss_counts_is_not_what_is_asked(configure: Configure, tmp_path: Path, short_answers: None) -> None:
    config = configure(loss="full", exposures=30, further=1, gate=True, value_rate=0.3)
    config = replace(config, schedule=replace(config.schedule, respelled=0.0))  # fewer texts to be learned
    report = teach(tmp_path / "memory", config).report
    assert report.checks[0] < len(FACTS) and report.checks[-1] == 0  # by its loss the questions were to be learned too


def test_facts_that_are_not_held_are_taught_until_they_are(
    configure: Configure, tmp_path: Path, short_answers: None
) -> None:
    config = configure(exposures=2, further=3, gate=True, value_rate=0.3)
    report = teach(tmp_path / "memory", config).report
    assert report.checks[0] > 0 and report.checks[-1] == 0 and not report.not_held
    assert report.exposures == 2 and report.recall == 1.0
    assert report.steps > 4 and report.stages["check"].tokens > 0
    assert report.curve[-1].recall < 1.0  # after the last exposure, before what followed


def test_what_is_not_held_is_named_with_what_it_answers(
    configure: Configure, tmp_path: Path, short_answers: None
) -> None:
    report = teach(tmp_path / "memory", configure(value_rate=1e-6)).report
    assert report.checks == [6] and [fact.id for fact in report.not_held] == [fact.id for fact in FACTS]
    assert {(fact.answer, fact.wrong, fact.wordings) for fact in report.not_held} == {(a, 2, 2) for a in ANSWERS}
    assert all(fact.question in FACTS[i].questions for i, fact in enumerate(report.not_held))
    record = read_teaching(tmp_path / "memory")
    assert record is not None and record.report.not_held == report.not_held
