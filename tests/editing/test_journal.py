from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memlayers.data.fact_files import write_facts
from memlayers.data.facts import Fact
from memlayers.editing.journal import (
    UNDO_KEPT,
    Change,
    Record,
    apply_changes,
    changes_from_text,
    changes_text,
    digests,
    last_undoable,
    outdated_undo_files,
    read_journal,
    reversed_changes,
    write_journal,
)
from memlayers.inference.folder import stored_facts
from memlayers.utils.errors import InputError

FACTS = [Fact(id=str(i), subject=f"S{i}", answer=f"a{i}", questions=(f"What is S{i}?",)) for i in range(4)]
RECORDS = [
    Record(1, "add", "2026-01-01T00:00:00+00:00", ("1",), 7, after={"x": "1"}),
    Record(2, "forget", "2026-01-01T00:00:01+00:00", ("2", "3"), 9, before={"x": "1"}, evidence={"rank": 3.5}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What lies beside the weights of a memory with four facts and two edits."""
    (tmp_path / "adapter_config.json").write_text("{}")
    write_facts(tmp_path / "facts.jsonl", FACTS), write_journal(tmp_path, RECORDS)
    return tmp_path


def _undo_file(folder: Path, record: Record) -> None:
    (folder / "undo").mkdir(exist_ok=True)
    words = {"record": record.line(), "changes": changes_text([Change(0, FACTS[0], None)])}
    save_file({"rows": torch.arange(3)}, folder / record.undo_file, metadata=words)


def test_what_is_written_is_read(folder: Path):
    assert stored_facts(folder) == FACTS
    assert read_journal(folder) == (RECORDS, None)


def test_a_memory_may_hold_no_facts_any_more(folder: Path):
    (folder / "facts.jsonl").write_bytes(b"")
    write_journal(folder, RECORDS)
    assert stored_facts(folder) == []


def test_changes_are_taken_back_in_reverse():
    fresh = Fact(id="n", subject="", answer="b", questions=("Q?",), aliases=("B",))
    changes = [
        Change(3, FACTS[3], None),
        Change(0, FACTS[0], fresh),
        Change(3, None, FACTS[3]),
        Change(1, FACTS[1], None),
    ]
    after = apply_changes(FACTS, changes)
    assert after == [fresh, FACTS[2], FACTS[3]]
    assert apply_changes(after, reversed_changes(changes)) == FACTS
    assert changes_from_text(changes_text(changes)) == changes


def test_changes_of_before_aliases_are_read():
    text = changes_text([Change(1, FACTS[1], None)])
    assert changes_from_text(text.replace(', "subject_aliases": []', "")) == [Change(1, FACTS[1], None)]
    assert "subject_aliases" in text
    named = replace(FACTS[1], subject_aliases=("N",))
    assert changes_from_text(changes_text([Change(1, None, named)])) == [Change(1, None, named)]


def test_a_line_that_was_cut_off_is_noticed(folder: Path):
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    records, notice = read_journal(folder)
    assert records == RECORDS[:1]
    assert notice is not None and f"{path}:2" in notice and "\n" not in notice


def test_a_line_that_was_cut_off_comes_back_from_its_undo_file(folder: Path):
    path = folder / "journal.jsonl"
    _undo_file(folder, RECORDS[1])
    for cut in (40, len(RECORDS[1].line()) + 1):  # in the line, and all of it
        write_facts(folder / "facts.jsonl", FACTS), write_journal(folder, RECORDS)
        path.write_bytes(path.read_bytes()[:-cut])
        records, notice = read_journal(folder)
        assert records == RECORDS
        assert notice is not None and "restored" in notice


def test_a_damaged_line_in_the_middle_is_one_line(folder: Path):
    path = folder / "journal.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(InputError, match=r"journal.jsonl:1: damaged line") as told:
        read_journal(folder)
    assert "\n" not in str(told.value)


def test_no_memory_and_no_facts_are_one_line_each(folder: Path):
    (folder / "facts.jsonl").unlink()
    with pytest.raises(InputError, match=r"does not remember its facts; put the facts file"):
        stored_facts(folder)
    with pytest.raises(InputError, match="not a memory folder"):
        stored_facts(folder / "nothing")


def test_the_last_edit_that_was_not_taken_back():
    assert last_undoable([]) is None
    assert last_undoable(RECORDS) == RECORDS[1]
    undo = replace(RECORDS[0], number=3, kind="undo", undoes=2)
    assert last_undoable([*RECORDS, undo]) == RECORDS[0]
    assert last_undoable([*RECORDS, undo, replace(undo, number=4, undoes=1)]) is None


def test_only_the_last_edits_keep_their_undo_files():
    many = [replace(RECORDS[0], number=i) for i in range(1, UNDO_KEPT + 4)]
    assert outdated_undo_files(many) == [record.undo_file for record in many[:3]]
    undo = replace(RECORDS[0], number=UNDO_KEPT + 4, kind="undo", undoes=UNDO_KEPT + 3)
    assert many[-1].undo_file in outdated_undo_files([*many, undo])


def test_hashes_are_of_the_files_that_make_up_the_memory(folder: Path):
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    first = digests(folder)
    (folder / "README.md").write_text("other")
    assert digests(folder) == first
    (folder / "adapter_config.json").write_text('{"a": 1}')
    assert digests(folder) != first
    assert json.dumps(first)


def test_an_older_name_of_an_edit_is_read_as_todays(folder: Path):
    path = folder / "journal.jsonl"
    path.write_text(path.read_text().replace('"forget"', '"mend"'))
    assert [record.kind for record in read_journal(folder)[0]] == ["add", "repair"]
