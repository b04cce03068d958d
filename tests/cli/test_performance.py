"""`memlayers plan`."""

from __future__ import annotations

import pytest

from helpers.cli import Command


def test_plan_breaks_no_word_and_keeps_its_command_on_one_line(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = command("plan", "--backbone", "qwen2.5-7b", "--slots", "500000")
    assert code == 0
    recommended = out.split("Recommended:\n")[1]
    assert recommended.startswith("memlayers teach --backbone Qwen/") and recommended.count("\n") == 1
    prose = out[out.index("Weights:") : out.index("\nRecommended:")]
    assert max(map(len, prose.splitlines())) <= 60 and "bitsandbytes" in prose and "fragmentation" in prose
