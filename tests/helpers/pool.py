"""What the tests of the optimizers share: a small pool, and random sparse reads of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memlayers.pool.value_pool import ValuePool

SETTINGS: dict[str, Any] = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-7}
SLOTS, DIM = 40, 7
Read = tuple[Tensor, Tensor, Tensor]  # indices, weights, and what the loss multiplies the read with


def make_pool(
    dtype: torch.dtype = torch.float32, slots: int = SLOTS, dim: int = DIM, init: str = "normal"
) -> ValuePool:
    pool = ValuePool(slots, dim, dtype)
    pool.initialise(init, seed=0)
    return pool


def make_reads(steps: int, dtype: torch.dtype = torch.float32, seed: int = 1, dim: int = DIM) -> list[Read]:
    """Random sparse steps: some rows are read in nearly every one, some once in a thousand."""
    generator = torch.Generator().manual_seed(seed)
    often = torch.logspace(-3, -0.2, SLOTS)
    reads = []
    for _ in range(steps):
        rows = (torch.rand(SLOTS, generator=generator) < often).nonzero().squeeze(-1)
        rows = rows if len(rows) else torch.tensor([SLOTS - 1])
        indices = rows[torch.randint(len(rows), (4, 3), generator=generator)]
        weights = torch.rand(4, 3, generator=generator, dtype=dtype)
        reads.append((indices, weights, torch.randn(4, dim, generator=generator, dtype=dtype)))
    return reads


def backward(pool: ValuePool, read: Read) -> None:
    indices, weights, direction = read
    (pool(indices, weights) * direction).sum().backward()


def take_steps(optimizer: torch.optim.Optimizer, pool: ValuePool, reads: list[Read]) -> None:
    for read in reads:
        backward(pool, read)
        optimizer.step()
        optimizer.zero_grad()
