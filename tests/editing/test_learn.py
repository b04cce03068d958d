"""Adding, updating and repairing facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file

from helpers.editing import CONFIG, FACTS, NEW, answers_of, right_answers
from memlayers.backbones import load_backbone
from memlayers.editing.journal import digests
from memlayers.editing.memory import Memory, load_memory
from memlayers.editing.report import EditRefused
from memlayers.inference.folder import stored_facts
from memlayers.inference.generation import generate_answers


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
