"""The state of the row-wise optimizer: moments, and a float32 master where asked, of the rows ever touched.

It grows in chunks, so that growing copies nothing: a row keeps the place it got when it was first touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memlayers.kernels.interface import STATE_BLOCK, RowState, Table
from memlayers.kernels.storage import read_rows

CHUNK_BYTES = 64 * 2**20  # of one float32 moment


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How the state of a pool of `slots` rows of `width` values is kept.

    Attributes:
        slots: rows of the pool.
        width: d.
        dtype: of moments and master, float32 or float64.
        bits: 32 (`dtype` as it is) or 8 (block-quantised moments).
        master: keep a copy of the touched rows in `dtype`.
        device: where all of it lies.
        chunk_width: d, where `width` is what a process holds of it: chunks then have the same rows however many
            processes there are.
    """

    slots: int
    width: int
    dtype: torch.dtype
    bits: int
    master: bool
    device: torch.device
    chunk_width: int | None = None

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk: a power of two."""
        return int(min(1 << (CHUNK_BYTES // (4 * (self.chunk_width or self.width))).bit_length() - 1, self.slots)) or 1

    def empty_chunk(self, rows: int) -> RowState:
        """Zero moments; the master is filled in when a row gets its place."""
        blocks = -(-self.width // STATE_BLOCK)

        def zeros(columns: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(rows, columns, dtype=dtype, device=self.device)

        master = zeros(self.width, self.dtype) if self.master else None
        if self.bits == 8:
            return RowState(
                zeros(self.width, torch.int8), zeros(self.width, torch.uint8),
                zeros(blocks, torch.float32), zeros(blocks, torch.float32), master,
            )  # fmt: skip
        return RowState(zeros(self.width, self.dtype), zeros(self.width, self.dtype), None, None, master)


@dataclass(slots=True)
class TouchedRows:
    """The state of the rows touched so far, each at its place.

    Attributes:
        format: how it is kept.
        place: of each slot of the pool, int32 [slots]; -1 where it was never touched.
        rows: of each place, int64 [touched].
        steps: steps in which the row of each place had a gradient, int64 [touched] (lazy semantics), or the last one
            (dense semantics).
        chunks: the state itself.
    """

    format: RowFormat
    place: Tensor = field(init=False)
    rows: Tensor = field(init=False)
    steps: Tensor = field(init=False)
    chunks: list[RowState] = field(init=False)

    def __post_init__(self) -> None:
        self.place = torch.full((self.format.slots,), -1, dtype=torch.int32, device=self.format.device)
        self.rows = torch.zeros(0, dtype=torch.int64, device=self.format.device)
        self.steps = torch.zeros(0, dtype=torch.int64, device=self.format.device)
        self.chunks = []

    def places_of(self, rows: Tensor, table: Table) -> Tensor:
        """The places of some rows, made where they have none.

        Args:
            rows: distinct slots, int64 [q], on the state's device.
            table: which a new row's master is copied from; any device.

        Returns:
            int64 [q].
        """
        places = self.place[rows].long()
        new = places < 0
        count = int(new.sum())
        if count:
            known = len(self.rows)
            fresh = torch.arange(known, known + count, device=self.format.device)
            places[new] = fresh
            self._append(rows[new], fresh)
            if self.format.master:
                for chunk, picked, at in self.by_chunk(fresh):
                    assert chunk.master is not None
                    wanted = self.rows[fresh[picked]].to(table.values.device)
                    chunk.master[at] = read_rows(table, wanted).to(chunk.master)
        return places

    def by_chunk(self, places: Tensor) -> Iterator[tuple[RowState, Tensor, Tensor]]:
        """Splits places [q] by chunk: the chunk, which of the q lie in it, int64 [c], and where, int64 [c]."""
        size = self.format.chunk_rows
        if len(self.chunks) <= 1:
            if len(places):
                yield self.chunks[0], torch.arange(len(places), device=places.device), places
            return
        numbers = torch.arange(len(self.chunks), device=places.device)
        lies_in = places // size == numbers[:, None]  # [chunks, q]
        counts = lies_in.sum(1).tolist()  # a GPU is waited for here and one line on, not once a chunk
        for number, picked in enumerate(lies_in.nonzero()[:, 1].split(counts)):
            if len(picked):
                yield self.chunks[number], picked, places[picked] - number * size

    def tensors(self) -> dict[str, Tensor]:
        """Everything as flat tensors, cut to the rows touched; views where they can be."""
        found = {"rows": self.rows, "row_steps": self.steps}
        for number, chunk in enumerate(self.chunks):
            used = min(self.format.chunk_rows, len(self.rows) - number * self.format.chunk_rows)
            for name, value in chunk._asdict().items():
                if value is not None:
                    found[f"{name}.{number}"] = value[:used]
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `tensors` returned, bit for bit; copies it."""
        self._append(tensors["rows"].to(self.format.device), None)
        self.steps.copy_(tensors["row_steps"])
        for number, chunk in enumerate(self.chunks):
            for name, value in chunk._asdict().items():
                if value is not None:
                    stored = tensors[f"{name}.{number}"]
                    value[: len(stored)].copy_(stored)

    def _append(self, rows: Tensor, fresh: Tensor | None) -> None:
        if fresh is None:
            fresh = torch.arange(len(rows), device=self.format.device)
        self.place[rows] = fresh.int()
        self.rows = torch.cat([self.rows, rows])
        self.steps = torch.cat([self.steps, torch.zeros_like(rows)])
        size = self.format.chunk_rows
        while len(self.chunks) * size < len(self.rows):
            left = self.format.slots - len(self.chunks) * size
            self.chunks.append(self.format.empty_chunk(min(size, left)))
