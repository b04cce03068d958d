"""Fixtures of the tests of serving: memories on the tiny backbone, opened as they are served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.editing import CONFIG
from memlayers.serving.memories import close_memories, open_memories
from memlayers.serving.served import Served


@pytest.fixture
def served_folder(taught_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught_folder, tmp_path / "codes"))


@pytest.fixture
def memories(served_folder: Path, short_answers: None) -> Iterator[dict[str, Served]]:
    opened = open_memories([served_folder], device="cpu", dtype="float32", edits=CONFIG)
    yield opened
    close_memories(opened.values())
