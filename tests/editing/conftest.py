"""Fixtures of the tests of editing: a taught memory, and copies of it to edit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.editing import CONFIG
from memlayers.editing.memory import load_memory


@pytest.fixture
def folder(taught_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught_folder, tmp_path / "memory"))


@pytest.fixture
def opened(folder: Path) -> Any:
    with load_memory(folder, edits=CONFIG) as memory:
        yield memory
