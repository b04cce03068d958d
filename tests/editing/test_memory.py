"""A memory that is opened, asked and edited: what it says, what it refuses, and its lock."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.editing import CONFIG, FACTS, NEW, model_state, same_state
from memlayers.data.fact_files import write_facts
from memlayers.data.facts import Fact, Source
from memlayers.editing.journal import digests, read_journal
from memlayers.editing.memory import Memory, load_memory
from memlayers.inference.folder import stored_facts
from memlayers.utils.errors import InputError


def test_teaching_leaves_the_facts_with_the_memory(taught_folder: Path):
    assert stored_facts(taught_folder) == FACTS


def test_the_journal_says_what_was_done(opened: Memory, folder: Path):
    before = digests(folder)
    opened.update([replace(FACTS[3], answer="green")])
    (record,), notice = read_journal(folder)
    assert notice is None
    assert (record.number, record.kind, record.ids) == (1, "update", ("dot",))
    assert (record.before, record.after) == (before, digests(folder))
    assert record.slots > 0 and record.evidence["recalled"] == 1.0


def test_what_cannot_be_meant_is_one_line(opened: Memory):
    other = replace(NEW, id="x", questions=(FACTS[0].questions[0].upper(),))
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: opened.forget(ids=["nobody"]), "no stored fact has the id 'nobody'"),
        (lambda: opened.forget(subject="Nobody"), "no stored fact is about 'Nobody'"),
        (lambda: opened.forget(), "nothing to forget"),
        (lambda: opened.add([FACTS[0]]), "'ada' is stored already"),
        (lambda: opened.add([NEW, NEW]), "'gus' is stored already"),
        (lambda: opened.add([other]), "fact 'x' answers 'WHAT IS THE CODE OF ADA"),
        (lambda: opened.add([NEW, replace(NEW, id="y", answer="teal")]), "fact 'y' answers .* fact 'gus' with 'amber'"),
        (lambda: opened.update([NEW]), "fact 'gus' is not stored"),
        (lambda: opened.update([replace(FACTS[0], subject="Bob")]), "'ada' is about 'Ada', its update about 'Bob'"),
        (lambda: opened.update([FACTS[0], replace(FACTS[0], answer="9")]), "'ada' is updated twice"),
        (
            lambda: opened.update([replace(FACTS[0], answer="9", questions=FACTS[1].questions)]),
            "fact 'ada' answers .* fact 'bob' with 'blue'",
        ),
    ]
    before = model_state(opened)
    for case, line in cases:
        with pytest.raises(InputError, match=line) as told:
            case()
        assert "\n" not in str(told.value)
    assert same_state(before, opened) and list(opened.facts) == FACTS
    opened.forget(ids=["ada"])
    with pytest.raises(InputError, match=r"no stored fact has the id 'ada' \(any more\)"):
        opened.forget(ids=["ada"])


def test_an_update_is_found_by_subject_and_relation_or_by_a_question(opened: Memory):
    by_name = Fact("?", "Bob", "green", ("Bob's code, please?",), "code")
    by_question = Fact("??", "", "teal", ("what is the code of cid",))
    report = opened.update([by_name, by_question])
    assert report.ids == ("bob", "cid")
    assert [opened.facts[i].answer for i in (1, 2)] == ["green", "teal"]
    assert report.recalled == 1.0


def test_a_memory_that_cannot_be_edited_says_so(folder: Path, chat_backbone: Path):
    (folder / "facts.jsonl").unlink()
    with pytest.raises(InputError, match="does not remember its facts"):
        load_memory(folder).prepare()
    write_facts(folder / "facts.jsonl", FACTS)
    with load_memory(folder) as memory:  # put there by hand
        memory.prepare()
        with pytest.raises(InputError, match=f"process {os.getpid()} is editing it"):
            load_memory(folder).prepare()
    with load_memory(folder) as memory:
        memory.prepare()
    assert not list(folder.parent.glob(".*"))


def test_one_object_is_asked_and_edited(opened: Memory, folder: Path):
    assert opened.folder == folder and list(opened.facts) == FACTS and opened.notice is None
    one = opened.ask(FACTS[1].questions[0])
    assert [one] == opened.ask([FACTS[1].questions[0]]) and one.memory == "blue"
    opened.update([replace(FACTS[1], answer="green")])
    assert opened.ask(FACTS[1].questions[0]).memory == "green" and opened.facts[1].answer == "green"
    with pytest.raises(InputError, match="a question is empty"):
        opened.ask("")


def test_threads_ask_as_a_servers_handlers_do(opened: Memory):
    """Each asks with the memory, without it, and for the relation check: no thread sees another."""
    questions = [fact.questions[0] for fact in FACTS[:3]] + ["What is the weather?", FACTS[0].questions[1]]
    opened.ask(questions[0])  # loaded
    expected = [opened.ask(question) for question in questions]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert list(pool.map(opened.ask, questions)) == expected


def test_reading_takes_no_lock_and_the_first_edit_does(folder: Path):
    first, second = load_memory(folder, edits=CONFIG), load_memory(folder, edits=CONFIG)
    assert first.facts == second.facts and not list(folder.parent.glob(".*"))
    first.forget(ids=["bob"])
    with pytest.raises(InputError, match=f"process {os.getpid()} is editing it"):
        second.forget(ids=["cid"])
    first.close()
    with pytest.raises(InputError, match="memory: changed since it was opened; load it again"):
        second.forget(ids=["cid"])
    with pytest.raises(InputError, match="memory: closed; load it again to edit it"):
        first.undo()
    assert first.ask(FACTS[1].questions[0]).source != "memory" and not list(folder.parent.glob(".*"))
    with pytest.raises(InputError, match="this memory has no folder to edit"):
        Memory(first.model, first.tokenizer).undo()
    with load_memory(folder, gate=False) as ungated, pytest.raises(InputError, match="opened with its gate off"):
        ungated.undo()


def test_a_model_and_its_folder_are_a_memory(taught_folder: Path, tmp_path: Path):
    before = digests(taught_folder)
    loaded = load_memory(taught_folder)
    folder = Path(shutil.copytree(taught_folder, tmp_path / "copy"))
    with Memory(loaded.model, loaded.tokenizer, folder, edits=CONFIG) as memory:
        memory.add([NEW])
        assert memory.ask(NEW.questions[0]).memory == "amber"
        memory.undo()
    assert digests(folder) == before


def test_what_needs_no_model_is_refused_before_it_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("memlayers.inference.loading.load_adapter", load)
    same = replace(FACTS[0], id="x")
    cases: list[tuple[Callable[[Memory], Any], str]] = [
        (lambda memory: memory.undo(), "no edit to take back"),
        (lambda memory: memory.forget(ids=["bbo"]), r"'bbo' \(any more\); did you mean 'bob'\?"),
        (lambda memory: memory.forget(subject="ada"), "is about 'ada'; did you mean 'Ada'?"),
        (lambda memory: memory.forget(subject="Bobb"), "is about 'Bobb'; did you mean 'Bob'?"),
        (lambda memory: memory.forget(), "nothing to forget"),
        (lambda memory: memory.add([]), "nothing to add"),
        (lambda memory: memory.update([]), "nothing to update"),
        (lambda memory: memory.add([FACTS[0]]), "'ada' is stored already"),
        (lambda memory: memory.add([same]), "fact 'x' asks 'What is the code of Ada.', which fact 'ada' asks already"),
        (lambda memory: memory.update([replace(FACTS[0], questions=FACTS[1].questions)]), "fact 'bob' with 'blue'"),
    ]
    for case, line in cases:
        with load_memory(folder, lazy=True) as memory:
            assert list(memory.facts) == FACTS
            with pytest.raises(InputError, match=line) as told:
                case(memory)
            assert "\n" not in str(told.value)
    assert not list(folder.parent.glob(".*"))


def test_a_report_says_which_facts(opened: Memory):
    green = replace(FACTS[1], answer="green", aliases=())
    assert opened.update([green]).facts == (green,)
    assert opened.forget(ids=["bob"]).facts == (green,)
    assert opened.add([NEW]).facts == (NEW,)
    undone = [opened.undo() for _ in range(3)]
    assert [(each.undone, each.facts) for each in undone] == [
        ("add", (NEW,)), ("forget", (green,)), ("update", (FACTS[1],))
    ]  # fmt: skip


def test_sources_are_noted_without_touching_anything_else(opened: Memory, folder: Path):
    before, asked = model_state(opened), len(opened.facts)
    source = Source("notes.txt", "the code of Ada is red", start=3, end=25)
    report = opened.set_sources([replace(opened.facts[0], sources=(source,), answer="never mind")])
    assert (report.number, report.kind, report.slots, report.ids) == (1, "sources", 0, (opened.facts[0].id,))
    assert [fact.sources for fact in stored_facts(folder)] == [(source,), *[()] * (asked - 1)]
    assert opened.facts[0].answer == FACTS[0].answer and same_state(before, opened)
    assert opened.set_sources([opened.facts[0]]).number == 0  # nothing differs
    assert opened.undo().undone == "sources" and opened.facts[0].sources == ()
    with pytest.raises(InputError, match="no stored fact has the id 'nobody'"):
        opened.set_sources([replace(FACTS[0], id="nobody")])
