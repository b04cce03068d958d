"""What a safetensors file says of itself: which tensors it holds, and where. No torch.

The format: 8 bytes with the length of a header, the header in JSON, padded with spaces, and the tensors' bytes without
gaps, in any order (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from memlayers.utils.files import StrPath

ITEM_BYTES: Final = MappingProxyType(
    {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1}
    | {"U8": 1, "BOOL": 1}
)
"""Bytes of an element, by the format's names of dtypes."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor is in a file.

    Attributes:
        dtype: by the format's name.
        shape: of it.
        start: its first byte, counted from the beginning of the file.
        stop: the byte behind its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a file's header says.

    Attributes:
        path: of the file.
        tensors: by name, in the order in which their bytes lie.
        metadata: texts by name.
        head: bytes before the tensors.
        size: of the file, in bytes.
    """

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    head: int
    size: int


def read_metadata(path: StrPath) -> dict[str, str]:
    """The metadata of a file; whether its tensors are all there is not looked at.

    Raises:
        ValueError: it is no such file, or damaged.
        OSError: it cannot be read.
    """
    found: dict[str, str] = _read_header(path)[0].get("__metadata__", {})
    return found


def read_tensor_file(path: StrPath) -> TensorFile:
    """Reads a file's header, and checks it against the file's size.

    Raises:
        ValueError: it is no such file, damaged, or cut off.
        OSError: it cannot be read.
    """
    header, head, size = _read_header(path)
    metadata = header.pop("__metadata__", {})
    try:
        tensors = [(name, _stored(entry, head)) for name, entry in header.items()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError("its header is damaged") from None
    tensors.sort(key=lambda each: (each[1].start, each[1].stop))
    end = head
    for name, each in tensors:
        if each.start != end or each.stop - each.start != math.prod(each.shape) * ITEM_BYTES[each.dtype]:
            raise ValueError(f"its header is damaged: {name} is not where it should be")
        end = each.stop
    if end != size:
        raise ValueError(f"it has {size:,} bytes and should have {end:,}")
    return TensorFile(Path(path), dict(tensors), metadata, head, size)


def _read_header(path: StrPath) -> tuple[dict[str, Any], int, int]:
    """The header, the bytes it takes with its length, and the file's size."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("its header is cut off or damaged")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise ValueError("its header is damaged") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is damaged")
    return header, 8 + length, size


def _stored(entry: dict[str, Any], head: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    if entry["dtype"] not in ITEM_BYTES:
        raise ValueError(entry["dtype"])
    return StoredTensor(entry["dtype"], tuple(map(int, entry["shape"])), head + start, head + stop)
