"""What a pass shows: facts, phrasings, mixed-in texts, packs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.teaching import FACTS, Configure, teach
from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import IGNORED_LABEL
from memlayers.data.facts import Fact
from memlayers.teaching.teacher import Teacher

pytestmark = pytest.mark.usefixtures("short_answers")


def _run(config: TeachConfig, tmp_path: Path, facts: list[Fact] = FACTS) -> Teacher:
    run = Teacher(facts, config, tmp_path / "work", quiet=True)
    run.setup()
    return run


def _sequences(run: Teacher, number: int) -> list[tuple[int, ...]]:
    return [tuple(example.input_ids) for batch in run.schedule.batches(number) for example in batch]


def test_a_pass_shows_each_fact_once_and_its_phrasings_in_turn(configure: Configure, tmp_path: Path) -> None:
    run = _run(configure(batch_size=4), tmp_path)
    assert [len(batch) for batch in run.schedule.batches(0)] in ([4, 2], [2, 4])
    passes = [set(_sequences(run, number)) for number in range(3)]
    for shown in passes:
        assert len(shown) == 6
        for phrasings in run._encoded:
            assert sum(tuple(example.input_ids) in shown for example in phrasings) == 1
    assert passes[0] == passes[2] and not passes[0] & passes[1]
    assert _sequences(run, 1) == _sequences(_run(configure(batch_size=4), tmp_path), 1)
    assert _sequences(run, 1) != _sequences(_run(configure(batch_size=4, seed=2), tmp_path), 1)


def test_later_passes_show_some_wordings_respelled(configure: Configure, tmp_path: Path) -> None:
    facts = [replace(fact, subject_aliases=(f"Code {fact.subject}",)) for fact in FACTS]
    config = configure(gate=True, gate_subjects=True)
    every = replace(config, schedule=replace(config.schedule, respelled=1.0))
    run, plain = _run(every, tmp_path, facts), _run(config, tmp_path, facts)
    assert run.schedule.batches(0) == plain.schedule.batches(0)  # the first shows all as they are
    shown = [run.tokenizer.decode(ids) for number in range(1, 8) for ids in _sequences(run, number)]
    as_they_are = {run.tokenizer.decode(one.input_ids) for wordings in run._encoded for one in wordings}
    assert len(shown) == 7 * len(FACTS) and not as_they_are & set(shown)
    assert any("Code Ada" in text for text in shown) and any("ADA" in text for text in shown)
    assert _sequences(run, 3) == _sequences(_run(every, tmp_path, facts), 3)


def test_anchors_and_fluency_are_mixed_into_every_pass(configure: Configure, tmp_path: Path) -> None:
    anchors, fluency = tmp_path / "anchors.jsonl", tmp_path / "fluency.txt"
    anchors.write_text("".join(json.dumps({"question": f"Who is {n}?", "answers": ["he"]}) + "\n" for n in "xyz"))
    fluency.write_text("A river runs.\n\nA ship sails.")
    run = _run(configure(anchors=str(anchors), fluency=str(fluency)), tmp_path)
    plain = set(_sequences(_run(configure(), tmp_path), 0))
    for number in range(2):
        assert len(_sequences(run, number)) == 6 + 3 + 2
    mixed = [e for batch in run.schedule.batches(0) for e in batch if tuple(e.input_ids) not in plain]
    texts = sorted(run.tokenizer.decode(example.input_ids) for example in mixed)
    assert texts[:2] == ["<|im_start|>user\nWho is x?<|im_end|>\n<|im_start|>assistant\nhe<|im_end|>", texts[1]]
    assert texts[-2:] == ["A river runs.", "A ship sails."]
    for example in mixed:  # questions count with their answers, running text with every token
        counted = [label for label in example.labels if label != IGNORED_LABEL]
        is_text = "user" not in run.tokenizer.decode(example.input_ids)
        assert counted == (example.input_ids if is_text else example.input_ids[-len(counted) :])
        assert (len(counted) == len(example.input_ids)) == is_text
    assert run.schedule.epoch_steps[0] == 4  # exposures count passes: the mixture does not change them


def test_a_pass_has_the_packs_that_its_own_order_makes(configure: Configure, tmp_path: Path) -> None:
    long = [replace(fact, questions=(f"{fact.questions[0]} {'Say it. ' * i}",)) for i, fact in enumerate(FACTS)]
    config = configure(pack=110, batch_size=1, exposures=6, stop_at_recall=2.0)
    run = _run(config, tmp_path, long)
    sizes = [len(run.schedule.batches(number)) for number in range(6)]
    assert len(set(sizes)) > 1 and sum(run.schedule.epoch_steps) == sum(sizes)
    report = teach(tmp_path / "packed", config, long).report
    assert (report.steps, report.exposures) == (sum(sizes), 6.0)
    assert [point.exposures for point in report.curve] == [1, 2, 3, 4, 5, 6]


def test_full_loss_and_packs(configure: Configure, tmp_path: Path) -> None:
    full = [example for batch in _run(configure(loss="full"), tmp_path).schedule.batches(0) for example in batch]
    assert all(example.labels == example.input_ids for example in full)
    packs = [example for batch in _run(configure(pack=180), tmp_path).schedule.batches(0) for example in batch]
    assert len(packs) < 6 and max(len(example.input_ids) for example in packs) <= 180
    assert sum(len(e.input_ids) for e in packs) == sum(len(e.input_ids) for e in full)
