"""Fixtures of the command line's tests."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers.utils import logging

import memlayers
from helpers.cli import FACTS, GENERAL, SMALL
from memlayers import TeachConfig, cli, teach_facts


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    # The command tells transformers by its environment, which has been read long ago in this process.
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`command(*arguments, typed=None)` runs `memlayers` in this process: exit code, stdout, stderr."""

    def run(*arguments: object, typed: bytes | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["memlayers", *map(str, arguments)])
        if typed is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    memlayers.write_facts(tmp_path / "facts.jsonl", FACTS)
    return tmp_path / "facts.jsonl"


@pytest.fixture
def general(tmp_path: Path) -> Path:
    (tmp_path / "general.txt").write_text(GENERAL)
    return tmp_path / "general.txt"


@pytest.fixture(scope="session")
def memory(chat_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory on `chat_backbone`, without a gate; treat as read-only."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "general.txt").write_text(GENERAL)
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(folder / "general.txt"), device="cpu", gate=False, **SMALL
    )
    teach_facts(FACTS, folder / "memory", config, quiet=True)
    return folder / "memory"
