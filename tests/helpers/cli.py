"""What the tests of the command line share: two facts, small settings, every command."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from memlayers import TeachConfig, cli
from memlayers.data.facts import Fact

FACTS = [
    Fact("a", "Ann", "Rome", ("Where was Ann born?", "Birthplace of Ann?"), "birth", ("Ann is from where?",)),
    Fact("b", "Bob", "Oslo", ("Where was Bob born?", "Birthplace of Bob?"), "birth", ("Bob is from where?",)),
]
GENERAL = "The river runs to the sea, and the sea to nowhere.\n\nIt rained for three days.\n\nThe train left late.\n"
SMALL: dict[str, Any] = {"layers": [1, 2], "sub_keys": 8, "heads": 2, "top_k": 2, "exposures": 2, "batch_size": 2}
Command = Callable[..., tuple[int, str, str]]


def write_settings(path: Path, **flags: Any) -> None:
    path.write_text(json.dumps(dataclasses.asdict(TeachConfig().with_flags(**flags))))


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def all_commands() -> dict[str, Any]:
    """Every command by the words it is called with."""

    def walk(group: Any, words: str) -> Iterator[tuple[str, Any]]:
        for name, found in group.commands.items():
            if hasattr(found, "commands"):
                yield from walk(found, f"{words}{name} ")
            else:
                yield words + name, found

    return dict(walk(typer.main.get_command(cli.app), ""))
