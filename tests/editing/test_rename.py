"""Aliases of stored subjects: the gate knows them, they are taken back, and they go with their subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.editing import CONFIG, FACTS, NEW, answers_of, model_state, right_answers, same_state
from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.editing.journal import digests, read_journal
from memlayers.editing.memory import Memory, load_memory
from memlayers.editing.report import EditRefused
from memlayers.inference.folder import stored_facts
from memlayers.teaching.teach import teach_facts
from memlayers.tuner import memory_handle, memory_layers
from memlayers.utils.errors import InputError


def _entity(memory: Memory, question: str) -> int:
    """The entity id at the end of a question; 0 where no subject was mentioned."""
    index = memory_handle(memory.model, "default").index
    assert index is not None
    return int(index.subjects_in(torch.tensor([encode_prompt(memory.tokenizer, question)]))[0, -1])


def _keys_of(memory: Memory, name: str) -> set[tuple[float, ...]]:
    """What the relation check compares with a question about this name."""
    index, check = memory_handle(memory.model, "default").index, memory_handle(memory.model, "default").relations
    assert index is not None and check is not None
    form = tuple(memory.tokenizer(name, add_special_tokens=False)["input_ids"])
    own = torch.isin(check.prints, index.entries_of({form: form})[:, 0])
    return {tuple(key.tolist()) for key in check.keys[own]}


def test_an_alias_mentions_the_subject_and_asks_for_the_same(opened: Memory, folder: Path):
    ada, unknown = _entity(opened, "What is the code of Ada?"), _entity(opened, "What is the code of Lovelace?")
    values = memory_handle(opened.model, "default").pool.parameter.detach().clone()
    assert ada and not unknown
    report = opened.add_aliases("Ada", ["Lovelace", "Élan"])
    assert (report.kind, report.ids, report.slots, report.steps) == ("alias", ("ada", "ada-2"), 0, 0)
    assert report.evidence == {"subject": "Ada", "added": ["Lovelace", "Élan"], "removed": []}
    for name in ("Lovelace", "LOVELACE", "Élan's friend"):
        assert _entity(opened, f"What is the code of {name}?") == ada
    assert not _entity(opened, "What is the code of Lovelaceson?")
    assert _keys_of(opened, "Lovelace") == _keys_of(opened, "Ada") and len(_keys_of(opened, "Ada")) == 2
    assert torch.equal(values, memory_handle(opened.model, "default").pool.parameter)
    assert answers_of(opened, FACTS) == right_answers(FACTS)
    assert opened.aliases == {"Ada": ("Lovelace", "Élan")}
    assert [fact.subject_aliases for fact in stored_facts(folder)][::6] == [("Lovelace", "Élan")] * 2
    (record,) = read_journal(folder)[0]
    assert (record.kind, record.slots, record.evidence["added"]) == ("alias", 0, ["Lovelace", "Élan"])
    with load_memory(folder) as again:
        assert again.aliases == opened.aliases and _entity(again, "What is the code of Lovelace?") == ada


def test_aliases_are_taken_back_bit_for_bit(opened: Memory, folder: Path):
    edits: list[Callable[[], Any]] = [
        lambda: opened.add_aliases("Ada", ["Lovelace"]),
        lambda: opened.add_aliases("Ada", ["Countess"]),
        lambda: opened.remove_aliases("Ada", ["lovelace"]),
        lambda: opened.forget(subject="Ada"),
    ]
    states, hashes = [], []
    for edit in edits:
        states.append(model_state(opened))
        hashes.append(digests(folder))
        edit()
    for state, found in zip(reversed(states), reversed(hashes), strict=True):
        opened.undo()
        assert digests(folder) == found and same_state(state, opened)
    assert list(opened.facts) == FACTS and opened.aliases == {}


def test_an_alias_that_is_removed_leaves_the_index_as_it_was(opened: Memory):
    state = model_state(opened)
    opened.add_aliases("Ada", ["Lovelace", "Countess"])
    opened.remove_aliases("Ada", ["Countess"])
    assert _entity(opened, "Who is Lovelace?") and not _entity(opened, "Who is Countess?")
    opened.remove_aliases("Ada", ["LOVELACE"])
    assert same_state(state, opened) and list(opened.facts) == FACTS


def test_aliases_stay_with_an_update_and_go_with_their_subject(opened: Memory):
    state = model_state(opened)
    opened.add_aliases("Bob", ["Robert"])
    opened.update([replace(FACTS[1], answer="red")])
    assert opened.aliases == {"Bob": ("Robert",)} and _entity(opened, "Who is Robert?")
    opened.update([replace(FACTS[1], subject_aliases=("Bobby",))])
    assert opened.aliases == {"Bob": ("Robert", "Bobby")}
    assert _entity(opened, "Who is Bobby?") == _entity(opened, "Who is Robert?") == _entity(opened, "Who is Bob?")
    assert _keys_of(opened, "Bobby") == _keys_of(opened, "Robert") == _keys_of(opened, "Bob")
    opened.forget(subject="Bob")
    assert opened.aliases == {} and not any(_entity(opened, f"Who is {name}?") for name in ("Bob", "Robert", "Bobby"))
    for edit in range(4):
        assert opened.undo().number == 5 + edit
    assert same_state(state, opened)


def test_a_subject_keeps_the_alias_that_a_fact_left_has(opened: Memory):
    opened.add_aliases("Ada", ["Lovelace"])
    opened.forget(ids=["ada-2"])
    assert _entity(opened, "Who is Lovelace?") == _entity(opened, "Who is Ada?") != 0
    assert _keys_of(opened, "Lovelace") == _keys_of(opened, "Ada")


def test_added_facts_bring_their_aliases_and_have_those_of_their_subject(opened: Memory):
    opened.add([replace(NEW, subject_aliases=("Augustus",))])
    assert _entity(opened, "Who is Augustus?") == _entity(opened, "Who is Gus Orr?") != 0
    more = Fact(
        "gus-2", "Gus Orr", "plum", ("What does Gus Orr eat?", "Name Gus Orr's food."), "food", (), (), ("Orr",)
    )
    opened.add([more])
    assert opened.aliases == {"Gus Orr": ("Augustus", "Orr")}
    keys = _keys_of(opened, "Gus Orr")
    assert len(keys) == 2 and keys == _keys_of(opened, "Augustus") == _keys_of(opened, "Orr")
    opened.forget(subject="Gus Orr")
    assert not _entity(opened, "Who is Augustus?") and not _entity(opened, "Who is Orr?")


def test_aliases_that_are_taught_link(chat_backbone: Path, general_file: Path, tmp_path: Path):
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(general_file), sub_keys=24, heads=2, top_k=4, key_dim=8,
        gate_threshold=-1e9, gate_steps=2, exposures=1, batch_size=7, recall_sample=2, dtype="float32", device="cpu",
        further=0,
    )  # fmt: skip
    facts = [*FACTS[:-1], replace(FACTS[-1], subject_aliases=("Lovelace",))]  # of two facts about her the second
    taught = teach_facts(facts, tmp_path / "memory", config, quiet=True)
    assert taught.aliases == {"Ada": ("Lovelace",)}
    assert _entity(taught, "What is the code of Lovelace?") == _entity(taught, "What is the code of Ada?") != 0
    assert _keys_of(taught, "Lovelace") == _keys_of(taught, "Ada") and len(_keys_of(taught, "Ada")) == 2
    with load_memory(tmp_path / "memory", edits=CONFIG) as memory:
        memory.remove_aliases("Ada", ["Lovelace"])
        assert not _entity(memory, "What is the code of Lovelace?") and not _keys_of(memory, "Lovelace")
        assert _entity(memory, "What is the code of Ada?")


def test_an_alias_that_would_lose_a_stored_answer_is_refused(opened: Memory, folder: Path):
    state, before = model_state(opened), digests(folder)
    with pytest.raises(EditRefused, match="it would change the answer of . of 6 stored facts beside it") as told:
        opened.add_aliases("Ada", ["code"])  # the last mention before an answer would be Ada's
    assert told.value.report.neighbours == 6 and "\n" not in str(told.value)
    assert same_state(state, opened) and digests(folder) == before and opened.aliases == {}
    assert not read_journal(folder)[0]


def test_an_alias_that_the_index_has_for_another_subject_is_refused(opened: Memory):
    nameless = Fact("n", "", "slate", ("What is the code of Zed Quill?", "Name Zed Quill's code."))
    opened.add([nameless])
    state = model_state(opened)
    with pytest.raises(EditRefused, match="'Zed Quill' is how the questions of another stored fact name its subject"):
        opened.add_aliases("Ada", ["Zed Quill"])
    assert same_state(state, opened)


def test_a_memory_whose_gate_knows_no_subjects_takes_no_aliases(opened: Memory):
    memory_layers(opened.model)[0].memlayers_subjects.pop("default")
    with pytest.raises(InputError, match="its gate knows no subjects"):
        opened.add_aliases("Ada", ["Lovelace"])
    assert opened.aliases == {}
