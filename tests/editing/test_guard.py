"""What an edit would change beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.editing import CONFIG, FACTS, NEW, answers_of, model_state, right_answers, same_state
from memlayers.editing.journal import digests, read_journal
from memlayers.editing.memory import load_memory
from memlayers.editing.report import EditRefused


def test_an_edit_that_would_change_others_is_refused_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = digests(folder)
    with load_memory(folder, edits=replace(CONFIG, repairs=0)) as memory:
        state = model_state(memory)
        monkeypatch.setattr("memlayers.editing.guard.lost_by", lambda _, asked: asked[:1])
        for edit in (lambda: memory.add([NEW]), lambda: memory.forget(ids=["eve"])):
            with pytest.raises(EditRefused, match="refused, as it would change the answer of 1 of") as told:
                edit()
            assert len(told.value.report.changed) == 1
            assert same_state(state, memory)
        assert list(memory.facts) == FACTS
    assert digests(folder) == before and not read_journal(folder)[0]


def test_a_neighbour_that_an_edit_breaks_is_taught_again(folder: Path):
    # All rows and a crude rate: the edit alone breaks others.
    with load_memory(folder, edits=replace(CONFIG, slots="all", rate=4.0, repairs=8)) as memory:
        report = memory.update([replace(FACTS[1], answer="green")])
        rest = [*FACTS[:1], *FACTS[2:]]
        assert report.repaired
        assert answers_of(memory, rest) == right_answers(rest)
