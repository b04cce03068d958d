"""Reading, writing and changing the file of a memory's weights (`weights_layout`), without a copy of the pool."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from memlayers.kernels.interface import Table
from memlayers.pool.weights_layout import POOL_DIGEST, behind_pool, header_digest, is_pool_tensor
from memlayers.utils.files import StrPath
from memlayers.utils.folder_change import Patch
from memlayers.utils.tensor_file import StoredTensor, TensorFile, read_tensor_file

DTYPES: Final = MappingProxyType(
    {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    }
)  # fmt: skip
"""torch's dtypes by the format's names."""
_NAMES: Final = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})

_CHANGED_BY_EDITS = re.compile(r"\.memlayers_(subjects|relations)\b")
_PAGE, _SPARE = 4096, 1024  # bytes: of the header; so much longer it may become
_PIECE = 1 << 26  # bytes that are copied at once
_BLOCK = 4096  # bytes that are compared at once


# -- the digest -------------------------------------------------------------------------------------------------------


def digest_of_table(table: Table) -> str:
    """The digest of a pool that is written as a whole."""
    digest = hashlib.sha256()
    for tensor in (table.scales, table.values):
        for piece in () if tensor is None else _pieces(tensor):
            digest.update(piece)
    return digest.hexdigest()


def digest_after(before: str, rows: Tensor, values: Tensor, scales: Tensor | None) -> str:
    """The digest of a pool after an edit.

    Args:
        before: the digest before it.
        rows: slots that changed, int64 [n].
        values: [n, d], as they are now, in the pool's dtype.
        scales: of an int8 pool, [n].
    """
    if not len(rows):
        return before
    digest = hashlib.sha256(bytes.fromhex(before))
    for tensor in (rows, values, scales):
        if tensor is not None:
            digest.update(_bytes(tensor))
    return digest.hexdigest()


# -- reading ----------------------------------------------------------------------------------------------------------


def read_tensor(file: TensorFile, name: str) -> Tensor:
    """Copies one tensor out of a file, to the CPU.

    Raises:
        ValueError: its dtype is none that a memory has.
        OSError: the file cannot be read.
    """
    stored = file.tensors[name]
    found = torch.empty(stored.shape, dtype=dtype_of(stored))
    with open(file.path, "rb", buffering=0) as source:
        source.seek(stored.start)
        for piece in _pieces(found):
            filled = 0
            while filled < len(piece):
                count = source.readinto(piece[filled:])
                if not count:
                    raise ValueError("it became shorter while it was read")
                filled += count
    return found


def dtype_of(stored: StoredTensor) -> torch.dtype:
    """Of a stored tensor, as torch has it.

    Raises:
        ValueError: it is none that a memory has.
    """
    if stored.dtype not in DTYPES:
        raise ValueError(f"a tensor of dtype {stored.dtype}")
    return DTYPES[stored.dtype]


# -- writing ----------------------------------------------------------------------------------------------------------


def write_weights(
    path: StrPath,
    tensors: Mapping[str, Tensor],
    digest: str | None = None,
    pieces: Mapping[str, Iterable[Tensor]] = MappingProxyType({}),
) -> None:
    """Writes a whole file, piece by piece: no tensor is copied as a whole.

    Args:
        path: of the file.
        tensors: by name; on any device.
        digest: the pool's; None to take it of the bytes that are written.
        pieces: rows of some of the tensors, in order, where `tensors` has their shapes alone.
    """
    order = _in_order(tensors)
    head = _header(order, tensors, digest or "0" * 64)
    found = hashlib.sha256()
    with open(path, "wb") as file:
        file.write(head)
        for name in order:
            for rows in pieces.get(name, [tensors[name]]):
                for piece in _pieces(rows):
                    file.write(piece)
                    if digest is None and is_pool_tensor(name):
                        found.update(piece)
        if digest is None:
            file.seek(0)
            file.write(_header(order, tensors, found.hexdigest()))


@dataclass(frozen=True, slots=True)
class WeightsPatch:
    """How an edit changes a file in place.

    Attributes:
        patch: the bytes that change.
        digest: what `weights_digest` is afterwards.
    """

    patch: Patch
    digest: str


def patch_weights(path: Path, tensors: Mapping[str, Tensor], rows: Tensor, digest: str) -> WeightsPatch | None:
    """What of a file has to change for it to hold these tensors.

    Args:
        path: of the file.
        tensors: all that it shall hold, by name.
        rows: slots of the pool that may differ from the file's, int64 [n], distinct.
        digest: the pool's digest afterwards.

    Returns:
        None where it has to be written anew: it is of another layout, holds other tensors, or has a second name (a hard
        link, somebody's copy), under which it would change too.
    """
    old = read_tensor_file(path)
    order = _in_order(tensors)
    if POOL_DIGEST not in old.metadata or not _alike(old, order, tensors) or path.stat().st_nlink > 1:
        return None
    try:
        head = _header(order, tensors, digest, old.head)
    except ValueError:
        return None
    pieces = list(_row_pieces(old, tensors, rows.cpu()))
    rest = b"".join(_bytes(tensors[name]) for name in order if not is_pool_tensor(name))
    start = behind_pool(old)
    with open(path, "rb") as file:
        pieces += _differing(file.read(old.head), head, 0)
        file.seek(start)
        pieces += _differing(file.read(), rest, start)
    found = header_digest(head)
    found.update(rest)
    return WeightsPatch(Patch(pieces, start + len(rest)), found.hexdigest())


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names as their bytes lie."""

    def place(name: str) -> tuple[object, ...]:
        size = tensors[name].element_size()
        if is_pool_tensor(name):
            return 0, -size, name  # scales before codes
        return 1, _CHANGED_BY_EDITS.search(name) is not None, -size, name

    return sorted(tensors, key=place)


def _header(order: list[str], tensors: Mapping[str, Tensor], digest: str, size: int | None = None) -> bytes:
    """The header with its length before it, padded to `size` bytes.

    Args:
        order: of the tensors' bytes.
        tensors: by name.
        digest: the pool's.
        size: None for as many as it needs, and some to spare.

    Raises:
        ValueError: it needs more than `size`.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt", POOL_DIGEST: digest}}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    if size is None:
        size = -(-(8 + len(text) + _SPARE) // _PAGE) * _PAGE
    if len(text) > size - 8:
        raise ValueError("the header has become too long")
    return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)


def _alike(old: TensorFile, order: list[str], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds tensors of these names, in this order, and a pool of this size."""
    return list(old.tensors) == order and all(
        stored.dtype == _NAMES[tensors[name].dtype] and stored.shape == tuple(tensors[name].shape)
        for name, stored in old.tensors.items()
        if is_pool_tensor(name)
    )


def _row_pieces(file: TensorFile, tensors: Mapping[str, Tensor], rows: Tensor) -> Iterator[tuple[int, bytes]]:
    """Rows of the pool, each with its place in the file; neighbours as one piece."""
    rows = rows.sort().values
    for name, stored in file.tensors.items() if len(rows) else ():
        if is_pool_tensor(name):
            data = _bytes(tensors[name].detach()[rows.to(tensors[name].device)])
            width = (stored.stop - stored.start) // stored.shape[0]
            begins = torch.cat([rows.new_zeros(1), (rows.diff() > 1).nonzero().flatten() + 1])
            ends = [*begins[1:].tolist(), len(rows)]
            for row, begin, end in zip(rows[begins].tolist(), begins.tolist(), ends, strict=True):
                yield stored.start + row * width, data[begin * width : end * width]


def _differing(old: bytes, new: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """The blocks of some bytes that change, each with its place in the file; `start` is that of the first byte."""
    for at in range(0, len(new), _BLOCK):
        if old[at : at + _BLOCK] != new[at : at + _BLOCK]:
            yield start + at, new[at : at + _BLOCK]


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, some rows at once; of a contiguous one on the CPU no copies."""
    rows = tensor.detach()
    rows = rows if rows.dim() else rows[None]
    width = max(1, rows[:1].numel() * rows.element_size())
    for piece in rows.split(max(1, _PIECE // width)):
        flat = piece.cpu().reshape(-1)
        if flat.stride(0) != 1:  # also of one element: views ask for 1
            flat = flat.clone(memory_format=torch.contiguous_format)
        yield memoryview(flat.view(torch.uint8).numpy())


def _bytes(tensor: Tensor) -> bytes:
    return b"".join(_pieces(tensor))
