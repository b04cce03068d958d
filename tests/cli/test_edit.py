"""list, journal, add, update, forget, repair, undo from the shell: one fact without a file, and what is printed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.editing import CONFIG
from memlayers import Fact, TeachConfig, teach_facts, write_facts
from memlayers.editing.journal import digests
from memlayers.inference.folder import stored_facts

Command = Callable[..., tuple[int, str, str]]
FACTS = [
    Fact(f"{name.lower()}-{relation}", name, answer, (f"What is the {relation} of {name}?",), relation)
    for name, relation, answer in [
        ("Ada", "code", "red"), ("Ada", "food", "lime"), ("Bob Orr", "code", "blue\nand green"),
    ]
]  # fmt: skip
NEW = ["--subject", "Cid", "--relation", "code", "--question", "What is the code of Cid?", "--question", "Cid's code?"]


@pytest.fixture(scope="module")
def taught(chat_backbone: Path, general_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of three facts behind a gate that knows its subjects; treat as read-only."""
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(general_file), sub_keys=24, heads=2, top_k=4, key_dim=8,
        gate_threshold=-1e9, gate_steps=20, exposures=60, batch_size=7, value_rate=1.0, warmup=1, recall_sample=14,
        dtype="float32", device="cpu", seed=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("taught") / "memory"
    teach_facts(FACTS, folder, config, quiet=True)
    return folder


@pytest.fixture
def memory(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("memlayers.editing.config.EditConfig", lambda **given: replace(CONFIG, **given))
    return Path(shutil.copytree(taught, tmp_path / "memory"))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a backbone fails."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("a backbone was loaded")

    monkeypatch.setattr("memlayers.backbones.load_backbone", fail)
    monkeypatch.setattr("memlayers.inference.loading.load_adapter", fail)


def test_list_is_aligned_and_one_line_a_fact(command: Command, taught: Path):
    code, out, _ = command("list", taught)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3
    assert len({line.index("What is the") for line in lines}) == 1
    assert lines[2].endswith(r"blue\nand green")


def test_list_is_filtered(command: Command, taught: Path):
    assert [line.split()[0] for line in command("list", taught, "--subject", "ADA")[1].splitlines()] == [
        "ada-code",
        "ada-food",
    ]
    assert [line.split()[0] for line in command("list", taught, "--grep", "And Green")[1].splitlines()] == ["bob"]
    found = command("list", taught, "--grep", "food", "--json")[1].splitlines()
    assert [json.loads(line)["id"] for line in found] == ["ada-food"]
    code, out, err = command("list", taught, "--grep", "nothing of the kind")
    assert (code, out) == (0, "") and err == f"memlayers: {taught}: no stored fact is like that\n"
    code, out, err = command("journal", taught)
    assert (code, out) == (0, "") and err == f"memlayers: {taught}: no edits yet\n"


def test_a_fact_is_added_updated_and_forgotten_without_a_file(command: Command, memory: Path):
    before = digests(memory)
    flags = ["--device", "cpu", "--quiet"]
    code, out, err = command("add", memory, *NEW, "--answer", "teal", "--alias", "a teal", *flags)
    assert (code, err) == (0, "")
    assert "edit 1 (add): 1 facts" in out and "Cid: What is the code of Cid? teal" in out
    added = stored_facts(memory)[-1]
    assert (added.subject, added.relation, added.answers) == ("Cid", "code", ("teal", "a teal"))
    assert added.questions == ("What is the code of Cid?", "Cid's code?")
    code, out, _ = command("update", memory, "--subject", "Cid", "--answer", "pink", *flags)
    assert code == 0 and stored_facts(memory)[-1].answer == "pink"
    assert stored_facts(memory)[-1].questions == added.questions
    lines = command("journal", memory)[1].splitlines()
    assert lines[0].split() == ["edit", "time", "what", "facts"] and len(lines) == 3
    assert lines[1].endswith("Cid, code") and lines[2].split()[3] == "update"
    code, out, _ = command("forget", memory, "--question", "cid's code", *flags)
    assert code == 0 and "edit 3 (forget): 1 facts" in out and stored_facts(memory) == FACTS
    code, out, _ = command("undo", memory, *flags)
    assert code == 0 and "Cid: What is the code of Cid? pink (back)" in out
    code, out, _ = command("undo", memory, *flags)
    assert code == 0 and "teal (back to its answer)" in out
    assert "teal (gone again)" in command("undo", memory, *flags)[1]
    assert digests(memory) == before
    lines = command("journal", memory)[1].splitlines()
    assert [line.split()[0] for line in lines] == ["edit", "1", "2", "3", "4", "5", "6"]
    assert "undo of 3" in lines[4]
    assert json.loads(command("journal", memory, "--json")[1].splitlines()[2])["kind"] == "forget"


def test_aliases_are_added_listed_removed_and_taken_back(command: Command, memory: Path):
    before, flags = digests(memory), ["--device", "cpu", "--quiet"]
    code, out, err = command("alias", "list", memory)
    assert (code, out, err) == (0, "", f"memlayers: {memory}: no aliases\n")
    code, out, err = command("alias", "add", memory, "Ada", "Lovelace", "The Countess", *flags)
    assert (code, err) == (0, "") and "edit 1 (alias): 2 facts, 0 slots" in out
    assert "  Ada: + Lovelace\n  Ada: + The Countess\n" in out
    assert command("alias", "list", memory) == (0, "Ada  Lovelace\nAda  The Countess\n", "")
    assert command("alias", "list", memory, "--subject", "ada", "--json")[1] == (
        '{"subject": "Ada", "aliases": ["Lovelace", "The Countess"]}\n'
    )
    assert (
        command("alias", "list", memory, "--subject", "Bob Orr")[2] == f"memlayers: {memory}: no aliases of 'Bob Orr'\n"
    )
    listed = json.loads(command("list", memory, "--grep", "lovelace", "--json")[1].splitlines()[0])
    assert listed["subject_aliases"] == ["Lovelace", "The Countess"]
    code, out, _ = command("alias", "remove", memory, "Ada", "lovelace", *flags)
    assert code == 0 and "edit 2 (alias): 2 facts, 0 slots" in out and "  Ada: - Lovelace\n" in out
    assert command("alias", "list", memory)[1] == "Ada  The Countess\n"
    assert "Ada: What is the code of Ada? red (back to its names)" in command("undo", memory, *flags)[1]
    assert command("alias", "list", memory)[1] == "Ada  Lovelace\nAda  The Countess\n"
    assert command("undo", memory, *flags)[0] == 0 and digests(memory) == before
    lines = command("journal", memory)[1].splitlines()
    assert [line.split()[3] for line in lines[1:]] == ["alias", "alias", "undo", "undo"]


def test_the_model_card_and_the_tokenizer_stay_through_edits(command: Command, memory: Path):
    from transformers import AutoTokenizer

    card = (memory / "README.md").read_bytes()
    flags = ["--device", "cpu", "--quiet"]
    assert command("forget", memory, "--subject", "Ada", "--relation", "food", *flags)[0] == 0
    assert [fact.id for fact in stored_facts(memory)] == ["ada-code", "bob orr-code"]
    assert (memory / "README.md").read_bytes() == card
    assert AutoTokenizer.from_pretrained(memory).encode("What is") == AutoTokenizer.from_pretrained(
        json.loads((memory / "adapter_config.json").read_text())["backbone"]
    ).encode("What is")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["undo"], "no edit to take back"),
        (["forget", "--subject", "ada"], "no stored fact is about 'ada'; did you mean 'Ada'?"),
        (["forget", "--ids", "ada-cod"], "did you mean 'ada-code'?"),
        (["forget", "--relation", "code"], "--relation alone names no fact"),
        (["forget", "--subject", "Ada", "--relation", "height"], "is not stored"),
        (["forget"], "nothing to forget: give --facts, --ids, --subject or --question"),
        (["update", "--subject", "Ada", "--answer", "x"], "2 stored facts are about 'Ada': say which with --relation"),
        (["update", "--subject", "adda", "--answer", "x"], "did you mean 'Ada'?"),
        (["update", "--question", "Who?", "--answer", "x"], "is not stored"),
        (["add"], "no fact to write: give --facts FILE, or --question and --answer"),
        (["add", "--question", "Who?"], "--question alone is no fact: give --answer too"),
        (["add", "--answer", "x"], "--answer alone is no fact: give --question too"),
        (["add", "--question", " ", "--answer", "x"], "questions[0] is empty"),
        (["add", "--question", "What is the code of Ada", "--answer", "x"], "update that one, or forget it first"),
        (["add", "--facts", "f.jsonl", "--answer", "x"], "--facts and --answer are two ways to say it"),
        (["alias add", "ada", "Lovelace"], "no stored fact is about 'ada'; did you mean 'Ada'?"),
        (["alias add", "Ada", "bob orr"], "'bob orr' would be a name of 'Ada' and of 'Bob Orr'"),
        (["alias add", "Ada", ""], "holds no letter and no digit; give a name"),
        (["alias add", "Ada", "word " * 100], "has 100 words and 500 characters; give a name of at most 20 words"),
        (["alias add", "Ada", "Lovelace", "LOVELACE"], "'LOVELACE' is an alias of 'Ada' already"),
        (["alias remove", "Ada", "Lovelace"], "'Lovelace' is no alias of 'Ada'; `memlayers alias list` shows"),
    ],
)
def test_what_needs_no_model_is_refused_without_one(
    arguments: list[str], said: str, command: Command, taught: Path, no_model: None
):
    verb, *flags = arguments
    before = digests(taught)
    code, out, err = command(*verb.split(), taught, *flags)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
    assert digests(taught) == before


@pytest.mark.parametrize("verb", ["list", "journal", "add", "update", "forget", "repair", "undo", "ask", "eval", "gate",
                                  "diagnose", "lm-eval", "alias add", "alias list", "alias remove"])  # fmt: skip
def test_a_folder_that_is_not_there_is_refused_without_a_model(
    verb: str, command: Command, no_model: None, tmp_path: Path
):
    facts = tmp_path / "facts.jsonl"
    write_facts(facts, FACTS)
    needed = {
        "add": ["--facts", facts], "update": ["--facts", facts], "forget": ["--ids", "a"], "gate": ["--facts", facts],
        "eval": ["--facts", facts, "--out", tmp_path / "x.json"], "lm-eval": ["--tasks", "x"],
        "alias add": ["Ada", "Lovelace"], "alias remove": ["Ada", "Lovelace"],
    }  # fmt: skip
    code, _, err = command(*verb.split(), tmp_path / "nothere", *needed.get(verb, []))
    assert code == 2 and err.startswith(f"memlayers: {tmp_path / 'nothere'}: not a memory folder")


def test_a_memory_that_another_process_edits_is_refused_without_a_model(
    command: Command, memory: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
):
    from memlayers.utils.locks import writing_alone

    with writing_alone(memory):
        code, _, err = command("add", memory, *NEW, "--answer", "teal")
    assert code == 2 and "is editing it" in err
