"""Rows that are updated in host memory: gradients go there and values come back in pieces, transfers overlapped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
