"""Saving edits: a full disk, or a kill at any step, leaves a whole memory."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.editing import CONFIG, FACTS, NEW, model_state, same_state
from memlayers.editing.journal import digests, read_journal
from memlayers.editing.memory import Memory, load_memory
from memlayers.inference.folder import WEIGHTS_FILE, stored_facts
from memlayers.tuner import memory_handle
from memlayers.utils import folder_change
from memlayers.utils.errors import WorkError
from memlayers.utils.folder_change import is_changing, recover_folder


def test_a_full_disk_leaves_model_and_folder_as_they_were(
    opened: Memory, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before, state = digests(folder), model_state(opened)
    with monkeypatch.context() as patch:
        patch.setattr("memlayers.editing.saving.save_file", full)
        with pytest.raises(WorkError, match="No space left"):
            opened.forget(ids=["bob"])
    assert digests(folder) == before and same_state(state, opened) and list(opened.facts) == FACTS
    assert not list(folder.glob(".*"))
    opened.forget(ids=["bob"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_kill_at_any_step_of_saving_leaves_the_old_memory_or_the_new_one(folder: Path):
    memory = load_memory(folder, edits=CONFIG, autosave=False)
    memory.add([NEW])
    original = shutil.copytree(folder, folder.parent / "original")
    old, states = digests(folder), Counter[str]()
    weights, new = (folder / WEIGHTS_FILE).read_bytes(), b""
    for step in range(1, 500):
        finished = _killed_while_saving(memory, step)
        lock = folder.parent / ".memory.memlayers-lock"
        assert lock.exists() or finished
        states["half written"] += is_changing(folder) and (folder / WEIGHTS_FILE).read_bytes() != weights
        recover_folder(folder)  # what opening does first
        records, notice = read_journal(folder)
        facts = stored_facts(folder)
        assert notice is None
        if digests(folder) == old:
            assert (facts, records) == (FACTS, [])
            assert (folder / WEIGHTS_FILE).read_bytes() == weights
            states["old"] += 1
        else:
            assert facts == [*FACTS, NEW]
            assert records[-1].after == digests(folder)
            new = new or (folder / WEIGHTS_FILE).read_bytes()
            assert (folder / WEIGHTS_FILE).read_bytes() == new
            states["new"] += 1
            shutil.rmtree(folder)
            shutil.copytree(original, folder)
        if finished:
            break
    assert finished and states["old"] > 5 and states["half written"] > 5
    saved = memory_handle(memory.model).tensors
    memory.save()
    loaded = load_file(folder / WEIGHTS_FILE)  # as any reader of safetensors has it
    assert loaded.keys() == saved.keys() and all(torch.equal(loaded[name], saved[name]) for name in saved)
    memory.close()


def _killed_while_saving(memory: Memory, step: int) -> bool:
    """Saves in a process that dies at its `step`-th file operation; whether it came to the end before."""
    child = os.fork()
    if child == 0:
        left = step
        names = ("open", "os.", "shutil.", "ctypes.")

        def die(event: str, _: Any) -> None:
            nonlocal left
            if event.startswith(names):
                left -= 1
                if left == 0:
                    os._exit(1)

        def overwrite(*piece: Any) -> None:
            if next(pieces) % 8 == 0:
                die("os.pwrite", None)
            original(*piece)

        pieces, original = itertools.count(), folder_change._overwrite
        folder_change._overwrite = overwrite
        sys.addaudithook(die)
        memory.save()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
