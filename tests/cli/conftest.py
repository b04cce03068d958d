"""Fixtures of the command line's tests."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator

import pytest
from transformers.utils import logging

from memlayers import cli


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
