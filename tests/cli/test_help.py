"""What `--help` shows of every command, the version, and shell completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer.main

import memlayers
from memlayers import cli
from memlayers.config.options import option_of
from memlayers.config.teach import flag_fields

Command = Callable[..., tuple[int, str, str]]


def _walk(group: Any, words: str = "") -> Iterator[tuple[str, Any]]:
    yield words.strip(), group
    for name, found in getattr(group, "commands", {}).items():
        yield from _walk(found, f"{words}{name} ")


EVERYTHING = dict(_walk(typer.main.get_command(cli.app)))  # by the words it is called with; "" is memlayers itself


@pytest.fixture
def helped(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """`helped(words)` is the command's `--help` in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(words: str) -> str:
        code, out, err = command(*words.split(), "--help")
        assert (code, err) == (0, "")
        return out

    return run


@pytest.mark.parametrize("words", sorted(EVERYTHING))
def test_help_has_an_example_and_every_flags_whole_name_and_cites_no_file_of_the_repository(
    words: str, helped: Callable[[str], str]
):
    out = helped(words)
    assert f"Example: memlayers {words}".strip() in " ".join(out.split())
    shown = set(re.findall(r"--[a-z-]+", out))
    for parameter in EVERYTHING[words].params:
        if not parameter.hidden:
            named = {name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")}
            assert named <= shown, f"{words}: {named - shown} is cut off"
    assert max(map(len, out.splitlines())) <= 80
    assert not re.search(r"\.py\b|docs/|design/", out)  # which a user does not have


@pytest.mark.parametrize("words", ["teach", "demo", "gate"])
def test_the_settings_are_grouped(words: str, helped: Callable[[str], str]):
    out = helped(words)
    assert len(out.splitlines()) < 100
    titles = re.findall(r"^╭─ ([\w ]+) ─", out, re.MULTILINE)
    whole = ["Options", "Data", "Memory", "Gate", "Teaching", "Optimizer", "Machine", "Advanced"]
    assert titles == (["Arguments", "Options", "Data", "Gate", "Machine"] if words == "gate" else whole)
    panels = dict(zip(titles, re.split(r"^╭─ .*$", out, flags=re.MULTILINE)[1:], strict=True))
    for flag, where in flag_fields().items():
        found = option_of(where.field)
        if words != "gate" and found is not None and found.advanced:
            assert f"--{flag.replace('_', '-')} " in panels["Advanced"]


@pytest.mark.parametrize("flag", ["--gate-subjects", "--gate-relations", "--gate-threshold", "--gate-steps"])
def test_gate_takes_the_gates_own_settings(flag: str):
    of = {words: next(p for p in EVERYTHING[words].params if flag in p.opts) for words in ("teach", "gate")}
    assert of["gate"].help == of["teach"].help and of["gate"].default is None


@pytest.mark.parametrize(("flag", "choices"), [("--recipe", "addressed|dense"), ("--optimizer-bits", "32|8")])
def test_choices_are_shown(flag: str, choices: str, helped: Callable[[str], str]):
    assert re.search(rf"{flag} .*{re.escape(choices)}", helped("teach"))


def test_the_version(command: Command):
    assert command("--version") == (0, f"memlayers {memlayers.__version__}\n", "")


def test_shell_completion_can_be_installed_and_knows_commands_and_choices(helped: Callable[[str], str]):
    assert "--install-completion" in helped("")

    def completed(*words: str) -> list[str]:
        variables = {"_MEMLAYERS_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
        done = subprocess.run(
            [sys.executable, "-m", "memlayers.cli"], capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, **variables, "COMP_CWORD": str(len(words) - 1)},
        )  # fmt: skip
        return done.stdout.split()

    assert set(completed("memlayers", "r")) == {"repair", "report"}
    assert completed("memlayers", "teach", "--recipe", "d") == ["dense"]
