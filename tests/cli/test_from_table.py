"""`memlayers facts from-table`."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.cli import Command
from memlayers import read_facts

TABLE = "name,price,colour\nA,1,red\nB,2,\nA,1,green\n"


def test_from_table_writes_what_the_library_finds(command: Command, tmp_path: Path):
    from memlayers.sources.tables import from_table

    path, out = tmp_path / "t.csv", tmp_path / "new" / "facts.jsonl"
    path.write_text(TABLE)
    code, said, err = command("facts", "from-table", path, "--subject", "name", "--out", out, "--quiet")
    assert (code, err) == (0, "")
    assert said == (
        f"2 facts in {out}\n5 cells read of {path}\n2 left out: different values for one subject\n"
        "1 left out: empty cell\n"
        "  different values for one subject: row 2, column colour: 'red'\n"
        "  different values for one subject: row 4, column colour: 'green'\n"
    )
    assert read_facts(out, strict=True) == from_table(path, subject="name").facts
    assert command("facts", "check", out)[0] == 0


def test_from_table_json_columns_and_wordings(command: Command, tmp_path: Path):
    path, out = tmp_path / "t.csv", tmp_path / "facts.jsonl"
    path.write_bytes((TABLE + "K\xf6ln,3,red\n").encode("cp1252"))
    (tmp_path / "w.yaml").write_text("relations: {price: {questions: ['Was kostet {subject}?']}}\n")
    code, said, err = command(
        "facts", "from-table", path, "--subject", "name", "--columns", "price, colour", "--out", out, "--json",
        "--wordings", tmp_path / "w.yaml", "--encoding", "cp1252",
    )  # fmt: skip
    assert (code, err) == (0, "")
    told = json.loads(said)
    assert told["facts"] == 4 and told["cells"] == 7 and told["left_out"]["empty cell"] == 1
    assert told["out"] == str(out) and told["table"] == str(path)
    assert "Was kostet Köln?" in read_facts(out)[-2].questions + read_facts(out)[-1].questions
