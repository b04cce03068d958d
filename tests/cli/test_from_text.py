"""`memlayers facts from-text`."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.cli import Command
from memlayers import read_facts

TEXT = """Tarn Ltd. Staff Handbook

1. Safety
The fire warden is Neil Abara. We like tea. The motto of the yard is simple.

- Assembly point: the gravel yard
- Password: n/a
"""


def test_facts_of_a_text(command: Command, tmp_path: Path):
    (tmp_path / "a.txt").write_text(TEXT)
    out = tmp_path / "new" / "facts.jsonl"
    code, said, err = command("facts", "from-text", tmp_path / "a.txt", "--out", out)
    assert (code, err) == (0, "")
    assert said == (
        f"2 facts in {out}\n5 passages read in 1 document\n2 left out: no rule matched\n1 left out: no value\n"
    )
    facts = read_facts(out, strict=True)
    assert [(fact.id, fact.answer) for fact in facts] == [
        ("tarn-ltd.fire-warden", "Neil Abara"), ("tarn-ltd.assembly-point", "the gravel yard"),
    ]  # fmt: skip
    source = facts[0].sources[0]
    assert source.evidence == "The fire warden is Neil Abara." and source.document == str(tmp_path / "a.txt")


def test_facts_of_texts_as_json(command: Command, tmp_path: Path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.md").write_text("# Ferrow Boatyard\n\nThe fire warden is Ann Lee.\n")
    out = tmp_path / "facts.jsonl"
    code, said, err = command("facts", "from-text", tmp_path / "a.txt", tmp_path / "b.md", "--out", out, "--json")
    assert (code, err) == (0, "")
    found = json.loads(said)
    assert found["facts"] == 3 and found["passages"] == 6 and found["out"] == str(out)
    assert found["left_out"] == {"no rule matched": 2, "no value": 1}
    assert found["passages_left_out"][0]["text"] == "We like tea."


def test_subject_wordings_and_length_are_the_users(command: Command, tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("Price: 4 pounds\nColour: très bleu clair\n".encode("cp1252"))
    (tmp_path / "own.yaml").write_text('relations:\n  price:\n    questions: ["How dear is {subject}?"]\n')
    out = tmp_path / "facts.jsonl"
    flags = ["--subject", "Aerolamp", "--wordings", tmp_path / "own.yaml", "--encoding", "cp1252", "--most-words", 2]
    assert command("facts", "from-text", tmp_path / "a.txt", "--out", out, *flags)[0] == 0
    (fact,) = read_facts(out)
    assert fact.questions == ("How dear is Aerolamp?",) and fact.answer == "4 pounds"
