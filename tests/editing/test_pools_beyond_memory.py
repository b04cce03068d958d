"""A pool that stays in its file: asked, edited and undone as one in memory, to the bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from helpers.editing import FACTS, NEW, QUICK, model_state, same_state
from memlayers.backbones import load_backbone
from memlayers.editing.journal import digests
from memlayers.editing.memory import Memory, load_memory
from memlayers.inference.folder import WEIGHTS_FILE
from memlayers.pool.weights_file import write_weights
from memlayers.tuner import memory_handle
from memlayers.utils.errors import InputError

EDITS: list[Callable[[Memory], Any]] = [
    lambda memory: memory.update([replace(FACTS[2], answer="green")]),
    lambda memory: memory.add([NEW]),
    lambda memory: memory.forget(ids=["eve"]),
]


def _as(folder: Path, dtype: torch.dtype, *, laid_out: bool) -> None:
    """Has a folder's pool be of this dtype, and its file as memlayers or as peft lays it out."""
    tensors = load_file(folder / WEIGHTS_FILE)  # mapped, as the file is now
    (folder / WEIGHTS_FILE).unlink()
    (name,) = (name for name in tensors if name.endswith("memlayers_pool.weight"))
    if dtype == torch.int8:
        values = tensors.pop(name)
        scales = values.abs().amax(-1).clamp_min(1e-6) / 127
        tensors[name.replace("weight", "scales")] = scales
        tensors[name.replace("weight", "codes")] = (values / scales[:, None]).round().to(dtype)
    else:
        tensors[name] = tensors[name].to(dtype)
    if laid_out:
        write_weights(folder / WEIGHTS_FILE, tensors)
    else:
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = folder / "adapter_config.json"
    found = {**json.loads(config.read_text()), "pool_dtype": str(dtype).removeprefix("torch.")}
    config.write_text(json.dumps(found))


@torch.no_grad()
def _logits(memory: Memory) -> torch.Tensor:
    ids = memory.tokenizer([question for fact in [*FACTS, NEW] for question in fact.questions], padding=True)
    return memory.model(torch.tensor(ids["input_ids"])).logits


@pytest.mark.parametrize(("dtype", "laid_out"), [(torch.bfloat16, True), (torch.int8, True), (torch.float32, False)])
def test_a_mapped_pool_is_asked_edited_and_undone_as_one_in_memory(
    folder: Path, tmp_path: Path, dtype: torch.dtype, laid_out: bool
):
    _as(folder, dtype, laid_out=laid_out)
    shutil.copytree(folder, tmp_path / "mapped")
    start = (folder / WEIGHTS_FILE).read_bytes()
    with (
        load_memory(folder, edits=QUICK) as memory,
        load_memory(tmp_path / "mapped", edits=QUICK, pool="disk") as mapped,
    ):
        pool = memory_handle(mapped.model).pool
        assert pool.mapped is not None and pool.to(torch.float64) is pool and pool.table.values.dtype == dtype
        states = []
        for edit in EDITS:
            assert torch.equal(_logits(memory), _logits(mapped))
            states.append(model_state(mapped))
            edit(memory), edit(mapped)
            assert same_state(model_state(memory), mapped)
            # What is in the file is what is in the model, and what the other way to hold a pool has saved.
            assert (tmp_path / "mapped" / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()
            assert same_state(model_state(load_memory(tmp_path / "mapped", pool="disk")), mapped)
        backbone: Any = load_backbone(str(memory.model.peft_config["default"].backbone), "float32")[0]
        plain = PeftModel.from_pretrained(backbone, str(tmp_path / "mapped")).eval()  # no more than peft
        assert torch.equal(_logits(memory), _logits(Memory(plain, memory.tokenizer)))
        for state in reversed(states):
            mapped.undo()
            assert same_state(state, mapped)
    undone = (tmp_path / "mapped" / WEIGHTS_FILE).read_bytes()
    assert (undone == start) == laid_out


def test_a_save_writes_the_rows_that_changed(folder: Path):
    path = folder / WEIGHTS_FILE
    with load_memory(folder, edits=QUICK, pool="disk") as memory:
        number, before = path.stat().st_ino, path.read_bytes()
        report = memory.update([replace(FACTS[2], answer="green")])
        after = path.read_bytes()
        assert path.stat().st_ino == number and len(after) == len(before)
        pool, start = memory_handle(memory.model).pool, 8 + int.from_bytes(before[:8], "little")
        old, new = (np.frombuffer(data, np.uint8, pool.weight.nbytes, start) for data in (before, after))
        rows = (old != new).reshape(pool.slots, -1).any(-1).sum()
        assert rows == report.slots
        memory.undo()
        assert path.read_bytes() == before
    os.link(path, folder.parent / "another name")  # somebody's copy: it must not change
    with load_memory(folder, edits=QUICK) as memory:
        memory.update([replace(FACTS[2], answer="green")])
    assert (folder.parent / "another name").read_bytes() == before and path.read_bytes() != before


def test_slots_that_something_else_wrote_are_not_taken_back(folder: Path):
    with load_memory(folder, edits=QUICK) as memory:
        report = memory.update([replace(FACTS[2], answer="green")])
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    end = start + memory_handle(memory.model).pool.weight.numel() * 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    found = digests(folder)
    with load_memory(folder, edits=QUICK) as memory:
        with pytest.raises(InputError, match=f"the slots do not hold what edit {report.number} wrote"):
            memory.undo()
        assert digests(folder) == found


def test_bad_files_and_places_end_in_one_line(folder: Path):
    with pytest.raises(InputError, match="pool 'moon': give device, host or disk"):
        load_memory(folder, pool="moon", lazy=True)
    path = folder / WEIGHTS_FILE
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], whole + b"x", b"\xff" * 64 + whole[64:], b"", whole[:-1000]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged or incomplete memory \(") as told:
            load_memory(folder, pool="disk")
        assert "\n" not in str(told.value)


def test_a_pool_on_the_host_answers_alike(folder: Path):
    memory, hosted = load_memory(folder), load_memory(folder, pool="host")
    assert torch.equal(_logits(memory), _logits(hosted))
    pool = memory_handle(hosted.model).pool
    assert pool.stays and pool.mapped is None
    hosted.model.to("meta")  # as to a GPU: the pool alone stays
    assert not pool.weight.is_meta and memory_handle(hosted.model).queries[0].projection.is_meta
