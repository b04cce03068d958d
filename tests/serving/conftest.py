"""Fixtures of the tests of serving: memories on the tiny backbone, opened as they are served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from helpers.editing import CONFIG, QUICK
from helpers.serving import running, trust
from memlayers.serving.app import create_app
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


@pytest.fixture(scope="module")
def api(taught_folder: Path, tmp_path_factory: pytest.TempPathFactory, short_answers: None) -> Iterator[TestClient]:
    """A client of the facts' API, for one module; its tests take back what they edit."""
    folder = shutil.copytree(taught_folder, tmp_path_factory.mktemp("served") / "codes")
    opened = open_memories([folder], device="cpu", dtype="float32", edits=QUICK)
    with TestClient(create_app(opened), raise_server_exceptions=False) as client:
        yield client
    close_memories(opened.values())


@pytest.fixture(scope="module")
def shared_memories(
    taught_folder: Path, tmp_path_factory: pytest.TempPathFactory, short_answers: None
) -> Iterator[dict[str, Served]]:
    """Two memories on one backbone, "codes" and "more"; for tests that edit neither. A module may have its own."""
    folder = tmp_path_factory.mktemp("served")
    folders = [Path(shutil.copytree(taught_folder, folder / name)) for name in ("codes", "more")]
    opened = open_memories(folders, device="cpu", dtype="float32", edits=CONFIG)
    trust(opened)
    yield opened
    close_memories(opened.values())


@pytest.fixture(scope="module")
def address(shared_memories: dict[str, Served]) -> Iterator[str]:
    """The address of a server of the module's memories."""
    with running(shared_memories) as found:
        yield found
