"""`memlayers ask`: one question, JSON, a chat."""

from __future__ import annotations

import builtins
import dataclasses
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import memlayers
from helpers.cli import FACTS, Command
from memlayers import Answer
from memlayers.data.facts import Source


def test_ask_shows_both_answers_side_by_side(command: Command, memory: Path):
    code, out, _ = command("ask", memory, FACTS[0].questions[0], "--device", "cpu")
    assert code == 0
    first, second = out.split("  with memory     ")
    assert first.startswith("  without memory  ")
    expected = memlayers.load_memory(memory, device="cpu").ask([FACTS[0].questions[0]])[0]
    assert expected.backbone != expected.memory
    assert first.removeprefix("  without memory  ").strip() == expected.backbone.strip()
    assert second.splitlines()[0].strip() == expected.memory.strip()


def test_ask_names_the_facts_and_where_they_were_found(command: Command, memory: Path, monkeypatch: pytest.MonkeyPatch):
    sources = (
        Source("a.csv", "Rome", row=2, column="birthplace"),
        Source("b.txt", "in Rome.", start=7, end=15, page=3),
    )
    facts = (replace(FACTS[0], id="ann.birthplace", sources=sources), replace(FACTS[0], id="2"))
    answer = Answer("Where was Ann born?", "Paris", "Rome", facts=facts)
    monkeypatch.setattr("memlayers.editing.memory.Memory.ask", lambda *_, **__: answer)
    expected = [
        "  (fact ann.birthplace: a.csv, row 2, column birthplace; b.txt, page 3, characters 7 to 15)",
        "  (fact 2)",
    ]
    for flags in ((), ("--abstain",)):
        code, out, _ = command("ask", memory, "Where was Ann born?", "--device", "cpu", *flags)
        assert code == 0 and out.splitlines()[2:] == expected
    answer = replace(answer, source="backbone")
    assert len(command("ask", memory, "Where was Ann born?", "--abstain", "--device", "cpu")[1].splitlines()) == 2


@pytest.mark.parametrize("flags", [(), ("--pool", "disk")])
def test_ask_json(command: Command, memory: Path, flags: tuple[str, ...]):
    code, out, _ = command("ask", memory, FACTS[0].questions[0], "--json", "--device", "cpu", *flags)
    assert code == 0
    expected = memlayers.load_memory(memory, device="cpu").ask([FACTS[0].questions[0]])[0]
    assert json.loads(out) == {
        "question": FACTS[0].questions[0], "backbone": expected.backbone, "memory": expected.memory,
        "source": expected.source, "score": pytest.approx(expected.score), "threshold": expected.threshold,
        "text": expected.text, "asked": [dataclasses.asdict(expected.asked[0])],
        "facts": json.loads(json.dumps([dataclasses.asdict(fact) for fact in expected.facts])),
    }  # fmt: skip


def test_ask_abstain_gives_one_answer_and_where_it_comes_from(command: Command, memory: Path):
    code, out, _ = command("ask", memory, FACTS[0].questions[0], "--abstain", "--device", "cpu")
    assert code == 0
    expected = memlayers.load_memory(memory, device="cpu").ask([FACTS[0].questions[0]])[0]
    answer, _, source = out.rstrip("\n").rpartition("\n  (")
    assert answer.strip() == expected.text.strip()
    assert source.startswith(f"source: {expected.source}; score {expected.score:.3f}, threshold ")


def test_a_piped_chat(command: Command, memory: Path):
    typed = "Where was Ann born?\n\n  Wo liegt Łódź?  \n".encode()
    code, out, _ = command("ask", memory, "--device", "cpu", typed=typed)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("> ")] == ["> Where was Ann born?", "> Wo liegt Łódź?"]
    assert out.count("without memory") == out.count("with memory  ") == 2


def test_a_piped_chat_in_json_is_nothing_but_json(command: Command, memory: Path):
    code, out, _ = command("ask", memory, "--json", "--device", "cpu", typed=b"Where was Ann born?\nWho?\n")
    assert code == 0
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["Where was Ann born?", "Who?"]


def test_a_name_in_another_spelling_is_found_and_told(command: Command, memory: Path):
    code, out, _ = command("ask", memory, "WHERE WAS ANN BORN?", "--device", "cpu")
    assert code == 0
    first, rest = out.split("\n", 1)
    assert first == "  (ANN taken for Ann)"
    expected = memlayers.load_memory(memory, device="cpu").ask("Where was Ann born?")
    assert rest.split("  with memory     ")[1].splitlines()[0].strip() == expected.memory
    assert "taken for" not in command("ask", memory, "WHERE WAS ANN BORN?", "--no-link", "--device", "cpu")[1]


def test_a_chat_goes_on_and_lines_of_a_pipe_stand_alone(command: Command, memory: Path):
    typed = b"Where was Ann born?\nWhere was she born?\n"
    code, out, _ = command("ask", memory, "--json", "--chat", "--device", "cpu", typed=typed)
    assert code == 0
    assert [json.loads(line)["asked"][0]["text"] for line in out.splitlines()] == ["Where was Ann born?"] * 2
    out = command("ask", memory, "--json", "--device", "cpu", typed=typed)[1]
    assert json.loads(out.splitlines()[1])["asked"][0]["text"] == "Where was she born?"


def test_a_piped_chat_that_is_not_utf8(command: Command, memory: Path):
    code, _, err = command("ask", memory, "--json", "--device", "cpu", typed=b"Who?\ncaf\xe9?\n")
    assert code == 2 and err == "memlayers: standard input:2: not UTF-8; send text in UTF-8\n"


@pytest.mark.parametrize("end", ["", EOFError])
def test_a_chat_at_a_terminal(end: Any, command: Command, memory: Path, monkeypatch: pytest.MonkeyPatch):
    lines = iter(["Where was Ann born?", end])

    def answer(prompt: str) -> str:
        line = next(lines)
        if line is EOFError:
            raise EOFError
        return str(line)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(builtins, "input", answer)
    code, out, _ = command("ask", memory, "--device", "cpu")
    assert code == 0 and out.count("without memory") == 1
