"""Bad input: facts, questions and general text, to teach and to write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.bad_input import FACTS, Refused, write_rows
from memlayers import cli


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("f.jsonl", b'{"question": "a?", "answers": ["b"]}\n{"question": \n', ":2: malformed JSON"),
        ("f.jsonl", b"[1, 2]\n", ":1: the row is a list"),
        (
            "f.jsonl",
            b'{"subject": "s", "questions": "q?", "answer": "a"}\n',
            ":1: questions is a string; make it",
        ),
        ("f.jsonl", b'{"subject": "s", "questions": ["q?"], "answer": 7}\n', ":1: answer is a number, not a string"),
        ("f.jsonl", b'{"subject": "s", "questions": ["q?"]}\n', ":1: missing field 'answer'"),
        ("f.jsonl", b'{"question": "q?", "answers": ["a"], "tone": "x"}\n', ":1: unknown field 'tone'"),
        ("f.jsonl", b"", "the file is empty"),
        ("f.jsonl", b"\n \n", "the file is empty"),
        ("f.jsonl", b'{"question": "a?", "answers": ["b"]}\n{"question": "caf\xe9?"}\n', ":2: not UTF-8"),
        ("f.csv", b"question,answer\nq?\n", ":2: "),
        ("f.csv", b"one,two\nq?,a\n", ":1: "),
        ("f.txt", b"q?,a\n", "unknown kind of file '.txt'"),
    ],
)
@pytest.mark.parametrize("command", ["teach", "eval", "check"])
def test_a_malformed_facts_file(
    name: str, data: bytes, said: str, command: str, refused: Refused, teaching: list[object], tmp_path: Path
):
    path = tmp_path / name
    path.write_bytes(data)
    arguments = {
        "teach": [*teaching, "--facts", path],
        "eval": ["eval", tmp_path, "--facts", path, "--out", tmp_path / "scores.json"],
        "check": ["facts", "check", path],
    }
    line = refused(*arguments[command])
    assert line.startswith(f"{path}:") and said in line and "; " in line


@pytest.mark.parametrize("flag", ["--facts", "--general-text", "--anchors", "--fluency", "--config"])
def test_a_missing_file_or_a_folder_in_its_place(flag: str, refused: Refused, teaching: list[object], tmp_path: Path):
    assert "no such file" in refused(*teaching, flag, tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a directory" in refused(*teaching, flag, tmp_path / "folder.jsonl")


def test_contradictory_facts_are_refused_by_both_lines(refused: Refused, teaching: list[object], tmp_path: Path):
    other = {"id": "c", "subject": "Ann", "questions": ["where was Ann born"], "answer": "Paris"}
    path = write_rows(tmp_path / "contradictory.jsonl", [*FACTS, other])
    line = refused(*teaching, "--facts", path)
    assert line.startswith(f"{path}:3: ") and "line 1" in line and "'Paris'" in line and "'Rome'" in line


def test_a_name_of_two_subjects_is_refused_by_both_lines(refused: Refused, teaching: list[object], tmp_path: Path):
    path = write_rows(tmp_path / "shared.jsonl", [FACTS[0], {**FACTS[1], "subject_aliases": ["Robert", "ANN"]}])
    line = refused(*teaching, "--facts", path)
    assert line == f"{path}:2: 'ANN' is a name of 'Bob' here and of 'Ann' on line 1; leave it to one of them"


@pytest.mark.parametrize("alias", ["", "word " * 100, "bob"])
@pytest.mark.parametrize("command", ["teach", "check"])
def test_a_subjects_alias_that_is_no_name(
    alias: str, command: str, refused: Refused, teaching: list[object], tmp_path: Path
):
    path = write_rows(tmp_path / "named.jsonl", [FACTS[0], {**FACTS[1], "subject_aliases": [alias]}])
    arguments = {"teach": [*teaching, "--facts", path], "check": ["facts", "check", path]}
    assert refused(*arguments[command]).startswith(f"{path}:2: subject_aliases[0]")


def test_facts_check_shows_names_of_two_subjects_and_exits_2(tmp_path: Path, capsys, monkeypatch):
    path = write_rows(tmp_path / "facts.jsonl", [FACTS[0], {**FACTS[1], "subject_aliases": ["ann"]}])
    monkeypatch.setattr(sys, "argv", ["memlayers", "facts", "check", str(path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    out = capsys.readouterr().out
    assert "name of two subjects, line 2: 'ann' is a name of 'Ann', 'Bob'" in out


def test_facts_check_shows_contradictions_and_exits_2(tmp_path: Path, capsys, monkeypatch):
    rows = [{"question": "q?", "answers": ["a"]}, {"question": "Q", "answers": ["b"]}]
    path = write_rows(tmp_path / "facts.jsonl", rows)
    monkeypatch.setattr(sys, "argv", ["memlayers", "facts", "check", str(path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    out = capsys.readouterr().out
    assert "1 refused" in out and "contradiction, lines 1, 2: 'q?' is answered 'a', 'b'" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fix", "out.csv"], "not a name that facts are read by"),
        (["--fix", "out.jsonl", "--html", "out.jsonl"], "page and facts cannot go into one file"),
        (["--html", "."], "not a regular file"),
        (["--documents", "facts.jsonl"], "no fact is from it; give the documents that the facts' sources name"),
        (["--memory", "nowhere"], "not a memory folder"),
        (["--backbone", "pockett"], "did you mean 'pocket'?"),
    ],
)
def test_facts_check_with_flags_that_cannot_be(
    flags: list[str], said: str, refused: Refused, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert said in refused("facts", "check", facts, *flags)


def test_facts_of_which_none_is_left(refused: Refused, tmp_path: Path):
    rows = [{"question": "q?", "answers": ["a"]}, {"question": "Q", "answers": ["b"]}]
    path = write_rows(tmp_path / "facts.jsonl", rows)
    line = refused("facts", "check", path, "--fix", tmp_path / "out.jsonl", "--quiet", code=1)
    assert line.startswith(f"{tmp_path / 'out.jsonl'}: no fact is left, so nothing was written; ")


LONG = "Where was Ann born? " * 40


def test_a_question_to_teach_longer_than_the_context(refused: Refused, teaching: list[object], tmp_path: Path):
    path = write_rows(tmp_path / "long.jsonl", [{"question": LONG, "answers": ["Rome"]}])
    line = refused(*teaching, "--facts", path)
    assert "Where was Ann born?" in line and "context holds 192" in line and line.endswith("shorten it")


def test_a_question_to_ask_longer_than_the_context(refused: Refused, memory: Path, tmp_path: Path):
    assert "context holds 192" in refused("ask", memory, LONG, "--device", "cpu")
    path = write_rows(tmp_path / "long.jsonl", [{"question": LONG, "answers": ["Rome"]}])
    flags = ["--out", tmp_path / "scores.json", "--device", "cpu", "--quiet"]
    assert "context holds 192" in refused("eval", memory, "--qa", path, *flags)


def test_an_answer_that_fits_the_context_only_just_is_generated(chat_backbone: Path, tmp_path: Path):
    # GPT-2's positions end with its context: it would fail beyond, where a rotary backbone would ramble.
    from memlayers.inference.generation import answer_questions

    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 400}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes)).eval()
    tokenizer = AutoTokenizer.from_pretrained(chat_backbone)
    assert len(answer_questions(model, tokenizer, ["Where was she born?" * 2, "Who?"])) == 2


@pytest.mark.parametrize("question", ["", "  "])
def test_an_empty_question(question: str, refused: Refused, memory: Path):
    assert "question is empty" in refused("ask", memory, question)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("g.txt", "\n\n", "is empty"),
        ("g.jsonl", "no json\n", ":1: not JSON"),
        ("g.jsonl", '{"text": "a"}\n{"passage": "b"}\n', ":2: neither"),
        ("g.jsonl", '{"question": "q?", "answers": 5}\n', ":1: neither"),
        ("g.jsonl", '{"question": "q?", "answers": [" "]}\n', ":1: neither"),
    ],
)
def test_malformed_general_text(
    name: str, text: str, said: str, refused: Refused, teaching: list[object], tmp_path: Path
):
    path = tmp_path / name
    path.write_text(text)
    line = refused(*teaching, "--general-text", path)
    assert line.startswith(f"{path}:") and said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "unknown family 'nothing'; known families: "),
        (["sensor_calibration", "--n", "99999999"], "99,999,999 asked for"),
        (["sensor_calibration", "--n", "-1"], "-1 facts"),
        (["sensor_calibration", "--n", "0"], "no facts to write"),
    ],
)
def test_facts_make(arguments: list[str], said: str, refused: Refused, tmp_path: Path):
    assert said in refused("facts", "make", *arguments, "--out", tmp_path / "f.jsonl")


def test_facts_make_writes_neither_file_where_one_cannot_be(refused: Refused, tmp_path: Path):
    assert "no place to write" in refused("facts", "make", "sensor_calibration")
    made = ["facts", "make", "sensor_calibration", "--n", 3, "--out", tmp_path / "f.jsonl"]
    assert refused(*made, "--fakes", "/dev/null/x.jsonl").startswith("/dev/null/x.jsonl: ")
    assert "one file" in refused(*made, "--fakes", tmp_path / "f.jsonl")


def test_facts_are_not_written_where_no_reader_would_take_them(refused: Refused, facts: Path, tmp_path: Path):
    assert ".jsonl" in refused("facts", "make", "sensor_calibration", "--n", 3, "--out", tmp_path / "facts.txt")
    assert ".jsonl" in refused("facts", "convert", facts, tmp_path / "facts.txt")
