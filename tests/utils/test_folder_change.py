from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from memlayers.utils import folder_change as module
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.folder_change import (
    Patch,
    check_changeable,
    folder_change,
    is_changing,
    recover_folder,
    settle_folder,
)
from memlayers.utils.locks import writing_alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "undo").mkdir(parents=True)
    for name, text in (("big", "0123456789"), ("small", "old"), ("undo/1", "gone"), ("other", "stays")):
        (made / name).write_text(text)
    return made


def _contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


NEW = {"big": "01AB4567C", "small": "new", "more/2": "added", "other": "stays"}


def _change(folder: Path) -> None:
    with folder_change(folder) as change:
        change.patches["big"] = Patch([(2, b"AB"), (8, b"C")], 9)
        (change.files / "small").write_text("new")
        (change.files / "more").mkdir()
        (change.files / "more" / "2").write_text("added")
        change.removed.append("undo/1")


def test_a_change_is_carried_out_wholly_or_not_at_all(folder: Path):
    old, number = _contents(folder), (folder / "big").stat().st_ino
    with pytest.raises(KeyError), folder_change(folder) as change:
        (change.files / "small").write_text("half")
        raise KeyError
    with pytest.raises(WorkError, match="No space left on device"), folder_change(folder):
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors says it
    assert _contents(folder) == old
    _change(folder)
    assert _contents(folder) == NEW and not (folder / "undo").exists()
    assert (folder / "big").stat().st_ino == number and not is_changing(folder)


def test_a_change_that_counts_is_kept_on_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_overwrite", full)
        with pytest.warns(UserWarning, match="the next opening does it"):
            _change(folder)
        assert is_changing(folder)
        with pytest.raises(WorkError, match="No space left"):
            recover_folder(folder)
        with pytest.raises(WorkError, match="No space left"):
            _change(folder)  # one change after the other
    settle_folder(folder)
    assert _contents(folder) == NEW


def test_who_reads_waits_for_who_writes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / module._COUNTS).mkdir()
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    with writing_alone(folder), pytest.raises(InputError, match=r"folder: process \d+ is editing it"):
        settle_folder(folder)
    settle_folder(folder)
    assert not is_changing(folder)
    with pytest.raises(InputError, match="cannot be written"):
        check_changeable(folder / "big")
