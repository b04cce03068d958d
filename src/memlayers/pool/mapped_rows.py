"""A value pool that stays in its file: mapped, so that a row is read from the disk when it is first asked for."""

from __future__ import annotations

import mmap
import os
import sys

import torch
from torch import Tensor

from memlayers.pool.weights_file import dtype_of
from memlayers.pool.weights_layout import is_pool_tensor
from memlayers.utils.tensor_file import TensorFile

# Without it the system would have to promise memory for every page, and refuses a file larger than its memory.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0x40)


class MappedRows:
    """The pool's tensors of a file of weights, mapped privately: what is written stays in memory, never in the file.

    The system keeps in memory which pages it likes, and drops those that were not written when it needs room.

    Args:
        file: of weights.

    Attributes:
        tensors: the pool's, by name.

    Raises:
        ValueError: the file has no pool, or its rows lie such that they cannot be mapped.
        OSError: it cannot be mapped.
    """

    def __init__(self, file: TensorFile) -> None:
        stored = {name: each for name, each in file.tensors.items() if is_pool_tensor(name)}
        if not stored:
            raise ValueError("no value pool")
        self._identity = _identity(os.stat(file.path))
        start = min(each.start for each in stored.values()) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        size = max(each.stop for each in stored.values()) - start
        with open(file.path, "rb") as opened:
            self._map = mmap.mmap(
                opened.fileno(), size, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE,
                offset=start,
            )  # fmt: skip
        self._map.madvise(mmap.MADV_RANDOM)  # a row's neighbours are nobody's
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        self.tensors: dict[str, Tensor] = {}
        self._rows: list[tuple[int, int]] = []
        for name, each in stored.items():
            dtype = dtype_of(each)
            if (each.start - start) % dtype.itemsize:
                raise ValueError("the value pool lies such that it cannot be mapped")
            rows = whole[each.start - start : each.stop - start].view(dtype).view(each.shape)
            self.tensors[name] = rows
            self._rows.append((each.start - start, rows.stride(0) * dtype.itemsize))

    def fetch(self, rows: Tensor) -> None:
        """Has the system begin to read these rows, int64 of any shape, all at once; does not wait for it."""
        self._advise(rows, mmap.MADV_WILLNEED)

    def drop_written(self, rows: Tensor | None, file: str | os.PathLike[str]) -> None:
        """Gives back the pages of rows that were written, int64 of any shape, or of all.

        Nothing is done where `file`, which holds the same now, is not the one that is mapped any more.
        """
        if _identity(os.stat(file)) != self._identity:
            return
        if rows is None:
            self._map.madvise(mmap.MADV_DONTNEED)
        else:
            self._advise(rows, mmap.MADV_DONTNEED)

    def _advise(self, rows: Tensor, advice: int) -> None:
        page, end = mmap.PAGESIZE, len(self._map)
        advise = self._map.madvise
        for row in rows.flatten().unique().tolist():
            for start, width in self._rows:
                first = (start + row * width) // page * page
                advise(advice, first, min(start + (row + 1) * width, end) - first)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
