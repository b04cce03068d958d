"""Rows that are updated in host memory: gradients go there and values come back in pieces, transfers overlapped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from memlayers.kernels import kernels_for
from memlayers.kernels.interface import AdamW, Inverted, LogEntry, RowState, Table
from memlayers.pool.factored_gradient import FactoredGradient
from memlayers.pool.row_state import TouchedRows
from memlayers.pool.value_pool import ValuePool

STAGE_BYTES = 8 * 2**20  # of the gradients of one piece


def staged(
    count: int,
    width: int,
    device: torch.device,
    *,
    fetch: Callable[[Tensor], Tensor],
    update: Callable[[Tensor, Tensor], Tensor],
    store: Callable[[Tensor, Tensor], None],
) -> None:
    """Updates `count` rows on the host, a piece at a time.

    While the host updates one piece, the device reduces the gradients of the next and copies them over, on a stream of
    their own. On a CPU the same pieces follow each other.

    Args:
        count: rows, numbered from 0.
        width: values of a row.
        device: where gradients are made and values go.
        fetch: row numbers, int64 [q] on `device` -> gradients [q, width] there.
        update: row numbers, int64 [q] on the host, gradients [q, width] there -> new values [q, width].
        store: row numbers, int64 [q] on `device`, new values [q, width] there.
    """
    piece = max(1, STAGE_BYTES // (4 * width))
    pieces = [torch.arange(start, min(start + piece, count)) for start in range(0, count, piece)]
    if device.type != "cuda":
        for picked in pieces:
            there = picked.to(device)
            store(there, update(picked, fetch(there).cpu()).to(device))
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    coming: list[tuple[Tensor, Tensor, Tensor, torch.cuda.Event]] = []
    for number in range(len(pieces) + 1):
        if number < len(pieces):
            with torch.cuda.stream(stream):
                there = pieces[number].to(device, non_blocking=True)
                gradients = fetch(there)
                here = torch.empty(gradients.shape, dtype=gradients.dtype, pin_memory=True)
                here.copy_(gradients, non_blocking=True)
                gradients.record_stream(stream)
                arrived = torch.cuda.Event()
                arrived.record(stream)
            coming.append((pieces[number], there, here, arrived))
        if number:
            picked, there, here, arrived = coming.pop(0)
            arrived.synchronize()
            values = update(picked, here).pin_memory()
            with torch.cuda.stream(stream):
                store(there, values.to(device, non_blocking=True))
    torch.cuda.current_stream(device).wait_stream(stream)


def step_on_host(
    pool: ValuePool, gradient: FactoredGradient, inverted: Inverted, touched: TouchedRows, places: Tensor, adamw: AdamW
) -> None:
    """One AdamW step of the rows in a log, with state and master in host memory; the pool may lie on a GPU.

    Args:
        pool: whose rows move.
        gradient: the log.
        inverted: the log by row, u rows.
        touched: the rows' state, on the host, with a master.
        places: where in `touched` each of the rows lies, int64 [u].
        adamw: the step's numbers, of u rows.
    """
    kernels, threads = kernels_for(inverted.rows.device), torch.get_num_threads()

    def update(picked: Tensor, sums: Tensor) -> Tensor:
        """Steps the rows `picked` on the host: gradients [q, d] -> new values [q, d]."""
        values = torch.empty_like(sums)
        log = [LogEntry(picked[:, None], sums.new_ones(len(sums), 1), sums)]
        for chunk, inner, at in touched.by_chunk(places[picked]):
            assert chunk.master is not None
            table, state = Table(chunk.master), chunk._replace(master=None)
            alone = Inverted(at, torch.arange(len(inner) + 1), inner, sums.new_ones(len(inner)))

            def step(
                some: Tensor, table: Table = table, state: RowState = state, which: Tensor = picked[inner],
                at: Tensor = at, alone: Inverted = alone,
            ) -> None:  # fmt: skip
                part = adamw._replace(step_size=adamw.step_size[which[some]], root=adamw.root[which[some]])
                kernels_for(sums.device).adamw_rows(
                    table, state, at[some], log, alone, some, part, gradient.factor, None
                )

            list(workers.map(step, torch.arange(len(inner)).tensor_split(min(threads, len(inner)))))
            values[inner] = chunk.master[at]
        return values

    with ThreadPoolExecutor(threads) as workers:  # rows are independent, and the kernels let go of the GIL
        staged(
            len(inverted.rows), pool.width, inverted.rows.device,
            fetch=lambda picked: kernels.row_gradients(gradient.entries, inverted, picked),
            update=update,
            store=lambda picked, values: pool.write(inverted.rows[picked], values),
        )  # fmt: skip
