from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from memlayers.kernels.interface import Table
from memlayers.pool.mapped_rows import MappedRows
from memlayers.pool.weights_file import (
    digest_after,
    digest_of_table,
    patch_weights,
    read_tensor,
    write_weights,
)
from memlayers.pool.weights_layout import POOL_DIGEST, weights_digest
from memlayers.utils.folder_change import folder_change
from memlayers.utils.tensor_file import read_tensor_file

POOL, REST = "model.layers.2.mlp.memlayers_pool.", "model.layers.2.mlp."


def _tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    """An odd pool, and all kinds of tensors beside it."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-99, 99, (9, 5), generator=generator).to(dtype)
    pool = {"weight": values} if dtype != torch.int8 else {"codes": values, "scales": torch.rand(9)}
    others = {
        "memlayers_pool.protected": torch.rand(9) < 0.5, "memlayers_query.scale": torch.tensor(0.5),
        "memlayers_query.projection": torch.rand(4, 6).T, "memlayers_relations.keys": torch.rand(3, 7).half(),
        "memlayers_subjects.fingerprints": torch.arange(10).view(5, 2)[:1, 0], "memlayers_out.bias": torch.empty(0),
    }  # fmt: skip
    return {f"{POOL}{name}": each for name, each in pool.items()} | {f"{REST}{k}": v for k, v in others.items()}


def _equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    same = (found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in expected.items())
    return found.keys() == expected.keys() and all(same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_what_is_written_is_read_mapped_and_changed_in_place(tmp_path: Path, dtype: torch.dtype):
    path, tensors = tmp_path / "weights", _tensors(dtype)
    write_weights(path, tensors)
    assert _equal(load_file(path), tensors)  # as any reader of safetensors has it
    file = read_tensor_file(path)
    assert _equal({name: read_tensor(file, name) for name in file.tensors}, tensors)
    mapped = MappedRows(file)
    assert _equal(mapped.tensors, {n: t for n, t in tensors.items() if n in mapped.tensors}) and mapped.tensors
    values, scales = tensors.get(f"{POOL}weight", tensors.get(f"{POOL}codes")), tensors.get(f"{POOL}scales")
    assert values is not None
    digest = file.metadata[POOL_DIGEST]
    assert digest == digest_of_table(Table(values, scales)) and file.head % 4096 == 0

    rows = torch.tensor([8, 0, 1])
    values[rows] += 1
    for name, each in mapped.tensors.items():  # private: the file does not see it
        each[rows] = tensors[name][rows]
    tensors[f"{REST}memlayers_subjects.fingerprints"] = torch.arange(300)
    digest = digest_after(digest, rows, values[rows], None if scales is None else scales[rows])
    before, number = weights_digest(path), path.stat().st_ino
    patch = patch_weights(path, tensors, rows, digest)
    assert patch is not None and weights_digest(path) == before
    assert len({place for place, _ in patch.patch.pieces}) == len(patch.patch.pieces)
    with folder_change(tmp_path) as change:
        change.patches["weights"] = patch.patch
    assert _equal(load_file(path), tensors) and path.stat().st_ino == number
    assert weights_digest(path) == patch.digest != before
    mapped.fetch(rows)
    mapped.drop_written(rows, path)
    assert _equal(mapped.tensors, {n: t for n, t in tensors.items() if n in mapped.tensors})
    assert not patch_weights(path, tensors, rows[:0], digest).patch.pieces  # type: ignore[union-attr]
    write_weights(tmp_path / "whole", tensors, digest)
    assert (tmp_path / "whole").read_bytes() == path.read_bytes()
    os.link(path, tmp_path / "second name")
    assert patch_weights(path, tensors, rows, digest) is None
    assert patch_weights(tmp_path / "whole", {**tensors, "one more": rows}, rows, digest) is None


def test_rows_that_are_one_vector_are_written_without_a_copy_of_them_all(tmp_path: Path):
    rows = torch.arange(3.0).expand(1000, 3)
    write_weights(tmp_path / "weights", {f"{POOL}weight": rows})
    assert torch.equal(load_file(tmp_path / "weights")[f"{POOL}weight"], rows)
