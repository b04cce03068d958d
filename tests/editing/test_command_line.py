"""The edits from the shell, on the memory of these tests; what is printed is in tests/cli/test_edit.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.editing import CONFIG, FACTS, NEW
from memlayers.cli import app
from memlayers.data.fact_files import write_facts
from memlayers.editing.config import EditConfig
from memlayers.editing.journal import digests
from memlayers.utils.errors import InputError, WorkError


def _run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if isinstance(done.exception, (InputError, WorkError)):
        return 2, str(done.exception)
    return done.exit_code, done.stdout


def test_the_verbs_on_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("memlayers.editing.config.EditConfig", lambda **given: replace(CONFIG, **given))
    before = digests(folder)
    facts = tmp_path / "new.jsonl"
    write_facts(facts, [NEW])
    listed = [line.split(maxsplit=2) for line in _run("list", folder)[1].splitlines()]
    assert listed[0] == ["ada", "Ada", "What is the code of Ada?  red"] and listed[1][0] == "bob"
    assert json.loads(_run("list", folder, "--json")[1].splitlines()[1])["questions"] == list(FACTS[1].questions)
    code, told = _run("add", folder, "--facts", facts)
    assert code == 0 and "edit 1 (add): 1 facts" in told and "100.0% of 2 taught phrasings" in told
    write_facts(facts, [replace(NEW, answer="teal")])
    code, told = _run("update", folder, "--facts", facts, "--slots", "kl", "--json")
    report = json.loads(told)
    assert (report["kind"], report["recalled"]) == ("update", 1.0)
    code, told = _run("forget", folder, "--ids", "gus,bob")
    assert code == 0 and "taught phrasings, after: old answer given 0% of 4" in told
    assert _run("forget", folder, "--ids", "gus") == (2, _gone("gus"))
    assert _run("forget", folder)[0] == 2
    assert _run("repair", folder)[1] == "nothing to repair: all 12 taught phrasings are answered rightly\n"
    for number in (4, 5, 6):
        assert f"edit {number} (undo)" in _run("undo", folder)[1]
    assert digests(folder) == before


def _gone(fact_id: str) -> str:
    return f"no stored fact has the id {fact_id!r} (any more); `memlayers list` shows what is stored"


def test_settings_on_the_command_line(taught_folder: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def opened(folder: Path, edits: EditConfig, **_: Any) -> Any:
        seen.append(edits)
        raise InputError("enough seen")

    monkeypatch.setattr("memlayers.editing.memory.load_memory", opened)
    assert _run("repair", taught_folder, "--slot-count", 8, "--rehearsed", 4, "--slots", "kl") == (2, "enough seen")
    assert _run("repair", taught_folder) == (2, "enough seen")
    assert seen == [EditConfig(slots="kl", slot_count=8, rehearsed=4), EditConfig()]
