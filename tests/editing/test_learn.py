"""Adding, updating and repairing facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from helpers.editing import CONFIG, FACTS, NEW, answers_of, right_answers
from memlayers.backbones import load_backbone
from memlayers.editing.edit import Edit
from memlayers.editing.journal import digests
from memlayers.editing.memory import Memory, load_memory
from memlayers.editing.report import EditRefused
from memlayers.inference.folder import stored_facts
from memlayers.inference.generation import generate_answers


def test_an_update_begins_without_what_its_own_rows_held(opened: Memory, monkeypatch: pytest.MonkeyPatch):
    """Or answer after answer would pile up in them, each needing more steps than the one before."""
    seen: list[tuple[Tensor, Tensor]] = []  # the rows that steps begin with, as they are then and were before

    def begins(edit: Edit, facts: Any, rows: Tensor, *others: Any) -> bool:
        assert edit.kept is not None and torch.equal(edit.kept.rows, rows)
        alone = edit.session.use.frequency_of(rows, edit.report.ids) == 0
        seen.append((edit.session.memory.pool.table.values[rows].clone(), edit.kept.values))
        assert alone.any() and not alone.all()
        now, before = seen[-1]
        assert torch.equal(now[~alone], before[~alone]) and before[alone].any()
        assert torch.equal(now[alone], before[alone] * 0) == (facts[0].answer == "green")
        return True

    monkeypatch.setattr("memlayers.editing.learn._teach", begins)
    monkeypatch.setattr(opened, "edits", replace(CONFIG, refuse=False, least_recall=0.0))
    opened.update([replace(FACTS[1], answer="green")])
    opened.undo()
    opened.update([replace(FACTS[1], questions=("Bob's code is?",))])  # the same answer, so what is there is wanted
    assert len(seen) == 2


def test_an_update_takes_and_the_rest_stays(opened: Memory, folder: Path):
    report = opened.update([replace(FACTS[1], answer="green", questions=("Bob's code is?",))])
    bob = opened.facts[1]
    assert bob.questions == (*FACTS[1].questions, "Bob's code is?")
    assert (report.recalled, report.asked, report.opened, report.changed) == (1.0, 3, 1.0, ())
    assert report.slots > 0 and report.neighbours > 0
    assert answers_of(opened, [bob]) == ["green"] * 3
    others = [*FACTS[:1], *FACTS[2:]]
    assert answers_of(opened, others) == right_answers(others)
    assert stored_facts(folder) == list(opened.facts)
    assert answers_of(load_memory(folder), [bob]) == ["green"] * 3


def _indexed(folder: Path) -> int:
    """How many entries the saved index of subjects has."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return next(len(value) for name, value in tensors.items() if name.endswith("memlayers_subjects.subjects"))


def test_an_added_fact_is_answered_by_plain_peft_too(opened: Memory, folder: Path, chat_backbone: Path):
    before = _indexed(folder)
    report = opened.add([NEW])
    assert (report.recalled, report.opened) == (1.0, 1.0)
    assert answers_of(opened, opened.facts) == right_answers([*FACTS, NEW])
    assert _indexed(folder) > before
    model, tokenizer = load_backbone(chat_backbone, "float32")
    loaded = PeftModel.from_pretrained(model, str(folder)).eval()
    assert [a.text for a in generate_answers(loaded, tokenizer, NEW.questions)] == ["amber", "amber"]


def test_what_is_rehearsed_beside_an_edit_is_kept(folder: Path):
    rest = [*FACTS[:1], *FACTS[2:]]
    lost = {}
    for rehearsed in (0, 14):
        crude = replace(CONFIG, slots="all", rate=4.0, neighbours=0, rehearsed=rehearsed)
        with load_memory(folder, edits=crude, autosave=False) as memory:
            memory.update([replace(FACTS[1], answer="green")])
            lost[rehearsed] = sum(a != b for a, b in zip(answers_of(memory, rest), right_answers(rest), strict=True))
            memory.close()
    assert lost[0] > 0 and lost[14] < lost[0]


def test_what_edits_overwrote_is_repaired_and_nothing_else_is_touched(folder: Path):
    before = digests(folder)
    with load_memory(folder, edits=replace(CONFIG, slots="all", rate=4.0, neighbours=0)) as careless:
        careless.update([replace(FACTS[1], answer="green")])
        facts = list(careless.facts)
    with load_memory(folder, edits=CONFIG) as memory:
        lost = {f.id for f in facts if answers_of(memory, [f]) != right_answers([f])}
        broken = digests(folder)
        report = memory.repair()
        assert lost and (report.kind, set(report.ids), report.recalled) == ("repair", lost, 1.0)
        assert answers_of(memory, facts) == right_answers(facts) and list(memory.facts) == facts
        repaired = digests(folder)
        again = memory.repair()
        assert (again.number, again.ids, again.recalled, again.asked) == (0, (), 1.0, 14)
        assert digests(folder) == repaired
        memory.undo()
        assert digests(folder) == broken
        memory.undo()
    assert digests(folder) == before


def test_an_edit_that_does_not_take_is_refused(folder: Path):
    with load_memory(folder, edits=replace(CONFIG, steps=1, rate=1e-6)) as memory:
        with pytest.raises(EditRefused, match="does not take: 0% of 2 taught phrasings"):
            memory.add([NEW])
        memory.forget(ids=["ada"])
