"""Fixtures of the tests of bad input.

Every bad input of the command line: one line on stderr, the right exit code, and nothing half-written.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from transformers import AutoTokenizer, BertConfig, BertModel
from transformers.utils import logging

from helpers.bad_input import FACTS, FLAGS, GENERAL, SMALL, Refused, contents, write_rows
from memlayers import TeachConfig, cli, read_facts, teach_facts


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    # The command tells transformers by its environment, which has been read long ago in this process.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    yield
    logging.enable_progress_bar()
    logging.set_verbosity_warning()


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused(*arguments, code=2)` runs `memlayers`, checks how it ends, and returns its one line."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable has been read long ago

    def run(*arguments: object, code: int = 2) -> str:
        before = contents(tmp_path)
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["memlayers", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        assert stopped.value.code == code, said.err
        lines = said.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("memlayers: "), said.err
        assert contents(tmp_path) == before
        return lines[0].removeprefix("memlayers: ")

    return run


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "facts.jsonl", FACTS)


@pytest.fixture
def general(tmp_path: Path) -> Path:
    path = tmp_path / "general.txt"
    path.write_text(GENERAL)
    return path


@pytest.fixture
def teaching(chat_backbone: Path, facts: Path, general: Path, tmp_path: Path) -> list[object]:
    """The arguments of a `teach` that would succeed; a flag given again replaces the first."""
    out = tmp_path / "memory"
    return ["teach", "--backbone", chat_backbone, "--facts", facts, "--general-text", general, "--out", out, *FLAGS]


@pytest.fixture(scope="session")
def taught(chat_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory on `chat_backbone`; treat as read-only."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "general.txt").write_text(GENERAL)
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(folder / "general.txt"), device="cpu", **{**SMALL, "sub_keys": 16}
    )
    teach_facts(read_facts(write_rows(folder / "facts.jsonl", FACTS)), folder / "memory", config, quiet=True)
    return folder / "memory"


@pytest.fixture
def memory(taught: Path, tmp_path: Path) -> Path:
    """A copy of `taught`, to be damaged."""
    return shutil.copytree(taught, tmp_path / "damaged")


@pytest.fixture
def bert(chat_backbone: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=400, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(chat_backbone).save_pretrained(folder)
    return folder
