"""Saves a memory whose pool is split over processes as one adapter folder, which any number of processes can load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from memlayers.pool.columns import Columns
from memlayers.pool.value_pool import ValuePool
from memlayers.utils.files import atomic_file

WEIGHTS_FILE: Final = "adapter_model.safetensors"
ROWS_AT_ONCE: Final = 64 * 2**20  # bytes of rows that are put together at a time
COPIED_AT_ONCE: Final = 2**20
_WIDTHS: Final = ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64")
"""safetensors' own order of dtypes, by their widths."""
_NAMES: Final = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8",
}  # fmt: skip


def save_split(model: Any, adapter: str, pool: ValuePool, columns: Columns, folder: Path) -> None:
    """Writes one adapter folder; every process takes part, the first writes.

    peft writes all but the values. Then the rows come together some at a time, and go straight to the file.

    Args:
        model: the PEFT model.
        adapter: name of the memory.
        pool: its pool.
        columns: what this process holds of it.
        folder: where to.
    """
    state = model.state_dict()  # rows that an optimizer moves late are moved now
    (name,) = (key for key in state if key.endswith(f"memlayers_pool.{adapter}.{pool.values_name}"))
    values = pool.table.values

    def rows() -> Iterator[Tensor]:
        some = max(1, ROWS_AT_ONCE // (columns.dim * values.element_size()))
        return (columns.whole(each) for each in values.split(some))

    if columns.rank:
        for _ in rows():
            pass
        return
    del state[name]
    model.save_pretrained(str(folder), selected_adapters=[adapter], state_dict=state)
    saved_as = name.replace(f".{adapter}.", ".")
    insert_tensor(folder / WEIGHTS_FILE, saved_as, values.dtype, (pool.slots, pool.dim), rows)


def insert_tensor(
    path: Path, name: str, dtype: torch.dtype, shape: tuple[int, int], pieces: Callable[[], Iterator[Tensor]]
) -> None:
    """Adds a tensor to a safetensors file, at its place; written aside piece by piece, never whole in memory.

    Format: https://github.com/huggingface/safetensors#format, little-endian. The bytes are those that safetensors
    itself writes: wide dtypes first, and of one dtype by name.

    Args:
        path: of the file.
        name: of the tensor.
        dtype: of its elements.
        shape: of the whole.
        pieces: what it consists of, in order.
    """
    length, kind = torch.Size(shape).numel() * dtype.itemsize, _NAMES[dtype]
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata = header.pop("__metadata__", None)
        others = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        before = [each for each in others if (-_WIDTHS.index(each[1]["dtype"]), each[0]) < (-_WIDTHS.index(kind), name)]
        begin = max((entry["data_offsets"][1] for _, entry in before), default=0)
        after = others[len(before) :]
        for _, entry in after:
            entry["data_offsets"] = [offset + length for offset in entry["data_offsets"]]
        own = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, begin + length]}
        ordered = dict([*before, (name, own), *after])
        text = json.dumps(
            {"__metadata__": metadata, **ordered} if metadata else ordered, separators=(",", ":")
        ).encode()
        text += b" " * (-len(text) % 8)
        with atomic_file(path) as new:
            new.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, begin, COPIED_AT_ONCE):
                new.write(file.read(min(COPIED_AT_ONCE, begin - start)))
            for piece in pieces():
                new.write(piece.contiguous().cpu().view(torch.uint8).numpy().data)
            shutil.copyfileobj(file, new)
