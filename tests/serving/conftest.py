"""Fixtures of the tests of serving: memories on the tiny backbone, opened as they are served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from helpers.editing import CONFIG
from memlayers.serving.error_objects import error_response
from memlayers.serving.facts_api import include_in
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
    opened = open_memories([folder], device="cpu", dtype="float32", edits=CONFIG)
    app = FastAPI()
    app.state.memories = opened
    include_in(app)
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, lambda _, error: error_response(error))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
    close_memories(opened.values())
