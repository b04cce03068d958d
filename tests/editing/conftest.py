"""Fixtures of the tests of editing: a taught memory, and copies of it to edit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.editing import CONFIG, FACTS
from memlayers.config.teach import TeachConfig
from memlayers.editing.memory import load_memory
from memlayers.teaching.teach import teach_facts


@pytest.fixture(scope="session")
def taught_folder(chat_backbone: Path, general_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of seven facts behind a gate that knows its subjects, on the tiny backbone."""
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(general_file), sub_keys=24, heads=2, top_k=4, key_dim=8,
        gate_threshold=-1e9, gate_steps=20, exposures=120, batch_size=7, value_rate=1.0, warmup=1, recall_sample=14,
        dtype="float32", device="cpu", seed=1,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("taught") / "memory"
    taught = teach_facts(FACTS, out, config, quiet=True)
    assert taught.report.recall == 1.0
    return out


@pytest.fixture
def folder(taught_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught_folder, tmp_path / "memory"))


@pytest.fixture
def opened(folder: Path) -> Any:
    with load_memory(folder, edits=CONFIG) as memory:
        yield memory
