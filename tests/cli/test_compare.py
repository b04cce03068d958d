"""`memlayers compare` from the command line: what reaches the comparison, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memlayers.comparison import run

Command = Callable[..., tuple[int, str, str]]


def test_options_reach_the_comparison(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(run, "run_comparison", lambda *given, **options: seen.append(given) or given[0] / "compare.md")
    code, out, _ = command(
        "compare", "--backbone", "smollm2", "--methods", "memory,rag", "--facts-limit", "7", "--questions", "5",
        "--updates", "0", "--seed", "7", "--exposures", "9", "--out", str(tmp_path / "out"), "-q",
    )  # fmt: skip
    assert (code, out) == (0, f"the page is {tmp_path}/out/compare.md\n")
    ((_, methods, materials, config, bounds),) = seen
    assert methods == ["bare", "memory", "rag-1", "rag-5"]
    assert (config.backbone, config.seed, config.exposures) == ("smollm2", 7, 9)
    assert (bounds.facts, bounds.questions, bounds.phrasings, bounds.updates) == (7, 5, 2, 0)
    assert len(materials.facts) == 500 and len(materials.known) == 2222 and materials.untaught and materials.text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--methods", "soup"], "no method 'soup' to compare; take some of memory"),
        (["--facts", "/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
        (["--text", "/nowhere.txt"], "/nowhere.txt: no such file"),
        (["--exposures", "0"], "exposures is 0"),
    ],
)
def test_bad_input_is_one_line(command: Command, tmp_path: Path, arguments: list[str], told: str) -> None:
    code, _, err = command("compare", *arguments, "--out", str(tmp_path / "out"))
    assert code == 2 and err.startswith(f"memlayers: {told}") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
