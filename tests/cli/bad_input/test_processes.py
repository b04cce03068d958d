"""Bad input through real processes: nothing else on stderr, whatever the libraries beneath have to say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from helpers.bad_input import contents


def _code(before: str) -> str:
    return f"import sys\n{before}\nfrom memlayers.cli import main\nmain()"


@pytest.fixture
def process(warm_python: Any) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`process(*arguments, before="")` runs `memlayers` in a process of its own, `before` before it."""

    def run(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = warm_python.run(_code(before), *arguments)
        return done

    return run


def _fresh_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One in which nothing is imported yet."""
    return subprocess.run(
        [sys.executable, "-c", _code(""), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def _one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    lines = done.stderr.splitlines()
    assert done.returncode == code and len(lines) == 1 and lines[0].startswith("memlayers: "), done.stderr
    return lines[0]


def test_a_backbone_of_another_kind_in_a_process(process: Callable[..., Any], teaching: list[object], bert: Path):
    assert str(bert) in _one_line(process(*teaching, "--backbone", bert), 2)


def test_a_name_that_is_not_at_hand_offline_in_a_process(process: Callable[..., Any], teaching: list[object]):
    line = _one_line(process(*teaching, "--backbone", "nobody/no-such-model"), 2)
    assert "nobody/no-such-model" in line


def test_a_damaged_memory_in_a_process(memory: Path):
    weights = load_file(memory / "adapter_model.safetensors")
    save_file({k: w for k, w in weights.items() if "pool" not in k}, memory / "adapter_model.safetensors")
    assert "damaged" in _one_line(_fresh_process("ask", memory, "Who?"), 2)


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_memory_beyond_the_limit_of_a_file_in_a_process(
    process: Callable[..., Any], teaching: list[object], tmp_path: Path
):
    # 64 * 64 slots of 32 float32 take 512 KiB.
    before = contents(tmp_path)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    line = _one_line(process(*teaching, "--sub-keys", 64, before=limit), 1)
    assert str(tmp_path / "memory") in line and "free some space" in line
    assert contents(tmp_path) == before


@pytest.fixture
def full_disk(tmp_path: Path) -> Any:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a file system here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_in_a_process(process: Callable[..., Any], teaching: list[object], full_disk: Path):
    line = _one_line(process(*teaching, "--sub-keys", 64, "--out", full_disk / "memory"), 1)
    assert str(full_disk / "memory") in line and "free some space" in line
    assert list(full_disk.iterdir()) == []


def test_a_disk_that_is_full_at_a_checkpoint_in_a_process(
    process: Callable[..., Any], teaching: list[object], full_disk: Path
):
    flags = ["--sub-keys", 64, "--checkpoint-seconds", 0, "--batch-size", 1]
    line = _one_line(process(*teaching, *flags, "--out", full_disk / "memory"), 1)
    assert "free some space" in line
    assert list(full_disk.iterdir()) == []
