"""Taking edits back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.editing import CONFIG, FACTS, NEW, answers_of, model_state, right_answers, same_state
from memlayers.editing.journal import digests, read_journal
from memlayers.editing.memory import Memory, load_memory
from memlayers.utils.errors import InputError


def test_everything_is_undone_bit_for_bit(opened: Memory, folder: Path):
    start, states, hashes = model_state(opened), [], []
    edits: list[Callable[[], Any]] = [
        lambda: opened.update([replace(FACTS[2], answer="green")]),
        lambda: opened.add([NEW]),
        lambda: opened.forget(ids=["eve", "ada"]),
    ]
    for edit in edits:
        states.append(model_state(opened))
        hashes.append(digests(folder))
        edit()
    for state, found in zip(reversed(states), reversed(hashes), strict=True):
        opened.undo()
        assert digests(folder) == found
        assert same_state(state, opened)
    assert same_state(start, opened)
    assert list(opened.facts) == FACTS
    assert [record.kind for record in read_journal(folder)[0]] == ["update", "add", "forget", "undo", "undo", "undo"]
    with pytest.raises(InputError, match="no edit to take back"):
        opened.undo()


def test_an_undo_after_the_memory_was_opened_anew(folder: Path):
    before = digests(folder)
    with load_memory(folder, edits=CONFIG) as memory:
        memory.forget(ids=["cid"])
    with load_memory(folder, edits=CONFIG) as memory:
        memory.undo()
        assert answers_of(memory, FACTS) == right_answers(FACTS)
    assert digests(folder) == before


def test_edits_saved_together_are_undone_one_by_one(folder: Path):
    start = digests(folder)
    with load_memory(folder, edits=CONFIG, autosave=False) as memory:
        memory.add([NEW])
        middle = model_state(memory)
        memory.forget(ids=["gus"])
        assert digests(folder) == start
    assert len(read_journal(folder)[0]) == 2
    with load_memory(folder, edits=CONFIG) as memory:
        memory.undo()
        assert same_state(middle, memory)
        memory.undo()
    assert digests(folder) == start


def test_something_else_that_changed_the_memory_stops_undo(opened: Memory, folder: Path):
    opened.forget(ids=["bob"])
    opened.close()
    path = folder / "facts.jsonl"
    path.write_text(path.read_text() + "\n")
    with (
        load_memory(folder) as memory,
        pytest.raises(InputError, match="something else changed this memory since edit 1"),
    ):
        memory.undo()
