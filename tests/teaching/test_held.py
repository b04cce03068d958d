"""Which facts are held, and what those that are not are shown further."""

from __future__ import annotations

from pathlib import Path

from helpers.teaching import ANSWERS, FACTS, Configure, teach
from memlayers.data.encoding import Encoded
from memlayers.inference.record import read_teaching
from memlayers.teaching.held import Checked, further_batches, still_wrong

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


def test_an_epoch_shows_what_is_wrong_its_subjects_others_and_half_as_many_more() -> None:
    batches = further_batches(EXAMPLES, SUBJECTS, {0: [2, 1], 7: [0]}, 3, "seed")
    shown = [pair for batch in batches for pair in batch]
    assert [len(batch) for batch in batches] == [3, 1]
    assert {(0, 2), (7, 0)} <= set(shown)
    others = [fact for fact, _ in shown if fact not in (0, 7)]
    assert 1 in others and len(others) == 2  # of the same subject, and one of the rest; "" is no subject
    assert batches == further_batches(EXAMPLES, SUBJECTS, {0: [2, 1], 7: [0]}, 3, "seed")


def test_a_wording_is_shown_until_it_is_right_and_the_next_one_then() -> None:
    wrong = {0: [2, 1], 7: [0]}
    assert still_wrong(wrong, {(0, 2): False, (7, 0): True, (1, 0): False}) == {0: [1, 2]}
    assert still_wrong(wrong, {(0, 2): True, (7, 0): False}) == {0: [1], 7: [0]}
    assert still_wrong({0: [1]}, {(0, 1): True}) == {}


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
