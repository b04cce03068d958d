"""The command `memlayers` itself: its commands, what it imports, wrong usage, exit codes, Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memlayers
from helpers.cli import FACTS, Command, all_commands, run_python
from memlayers.data.facts import Fact


def test_the_commands_are_those_of_the_readme():
    verbs = {"demo", "teach", "ask", "eval", "report", "facts make", "facts check", "facts convert"}
    assert verbs <= set(all_commands())


def test_help_without_a_command(command: Command):
    code, out, err = command("--help")
    assert code == 0 and "teach" in out and "facts" in out
    assert "teach" in "".join(command()[1:])


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['memlayers', '--help']\nfrom memlayers.cli import main\n"
        "try:\n    main()\nfinally:\n    print('modules:', *sys.modules)"
    )
    done = run_python(code)
    assert done.returncode == 0 and "teach" in done.stdout
    loaded = set(done.stdout.rpartition("modules:")[2].split())
    assert "memlayers.cli" in loaded
    assert not {"torch", "transformers", "peft", "accelerate", "matplotlib"} & loaded


def test_the_module_is_a_command_too():
    done = subprocess.run(
        [sys.executable, "-m", "memlayers.cli", "facts", "make", "list"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "sensor" in done.stdout


@pytest.mark.parametrize("arguments", [["teach"], ["eval"], ["nonsense"], ["teach", "--no-such-flag"], ["demo"]])
def test_wrong_usage_is_2(arguments: list[str], command: Command):
    code, _, err = command(*arguments)
    assert code == 2 and err and "Traceback" not in err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (None, 0, ""),
        (memlayers.WorkError("it failed"), 1, "memlayers: it failed\n"),
        (memlayers.InputError("it is\nwrong"), 2, "memlayers: it is wrong\n"),
        (KeyboardInterrupt(), 130, "memlayers: interrupted\n"),
    ],
)
def test_exit_codes(
    raised: BaseException | None, code: int, said: str, command: Command, monkeypatch: pytest.MonkeyPatch
):
    def stored_facts(_: Path) -> list[Fact]:
        if raised is not None:
            raise raised
        return FACTS

    monkeypatch.setattr("memlayers.inference.folder.stored_facts", stored_facts)
    assert command("list", "anywhere")[::2] == (code, said)


def test_ctrl_c_is_130_and_one_line(command: Command, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from memlayers.teaching import teach

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(teach, "teach_facts", interrupt)
    assert command("teach", "--facts", facts, "--out", tmp_path / "m") == (130, "", "memlayers: interrupted\n")


def test_of_a_launchers_processes_the_first_one_runs_what_is_not_shared(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert command("list", tmp_path) == (0, "", "")
    monkeypatch.setenv("RANK", "0")
    code, _, err = command("list", tmp_path)
    assert code == 2 and err.startswith(f"memlayers: {tmp_path}")
    assert not {"WORLD_SIZE", "RANK", "LOCAL_RANK"} & set(os.environ)
