from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memlayers.utils import environment as environment_module
from memlayers.utils.environment import environment


def test_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["memlayers", "demo", "--out", "a b"])
    found = environment("cpu")
    keys = ["commit", "python", "memlayers", "torch", "transformers", "peft", "numpy", "platform", "cpu"]
    assert list(found) == [*keys, "cores", "device", "date", "command"]
    assert found["command"] == "memlayers demo --out 'a b'"
    assert found["date"].endswith("+00:00") and found["cores"] >= 1 and found["device"] == "cpu"
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    json.dumps(found, allow_nan=False)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_is_that_of_the_checkout_that_tracks_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    source = tmp_path / "package" / "results.py"
    source.parent.mkdir()
    source.write_text("1")
    monkeypatch.setattr(environment_module, "__file__", str(source))
    git("init")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "--no-verify", "-m", "one")
    assert environment("cpu")["commit"] is None  # somebody else's repository
    git("add", ".")
    git("commit", "--no-verify", "-m", "two")
    assert environment("cpu")["commit"] == git("rev-parse", "HEAD")
    source.write_text("2")
    assert environment("cpu")["commit"] == git("rev-parse", "HEAD") + "-dirty"
