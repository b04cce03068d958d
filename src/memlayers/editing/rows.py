"""Writing chosen rows of a value pool: a few steps of Adam on answers, or back to what the bare backbone says."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memlayers.editing.projection import Projection
from memlayers.kernels import kernels_for
from memlayers.kernels.storage import read_rows
from memlayers.pool.value_pool import FactoredGradient, ValuePool
from memlayers.pool.weights_file import digest_after

BETAS, EPS = (0.9, 0.99), 1e-8
"""Adam's, as in teaching."""
_LONGER = 4.0  # times at most that a step is made longer for what its projection takes out


class RowWriter:
    """Adam over some rows of a value pool. All other rows stay as they are, to the bit.

    Args:
        pool: its parameter must record gradients while losses are computed (`recording`).
        rows: distinct slots, int64 ascending.
        rate: Adam's learning rate, in units of the values.
        projection: what each step is multiplied by, for the facts beside it; None for nothing.
    """

    def __init__(self, pool: ValuePool, rows: Tensor, rate: float, projection: Projection | None = None) -> None:
        self.pool, self.rate, self.steps, self.projection = pool, rate, 0, projection
        self.rows = rows.to(pool.parameter.device)
        self.values = read_rows(pool.table, self.rows)  # in float32, whatever the pool's own dtype
        self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)

    def step(self, loss: Tensor) -> None:
        """Moves the rows by one step down the loss; not at all where the loss reaches none of them."""
        if not loss.requires_grad or not len(self.rows):
            return
        (gradient,) = torch.autograd.grad(loss, self.pool.parameter)
        assert isinstance(gradient, FactoredGradient)
        inverted = gradient.inverted()
        place = torch.searchsorted(self.rows, inverted.rows).clamp_max(len(self.rows) - 1)
        picked = (self.rows[place] == inverted.rows).nonzero().squeeze(-1)
        sums = kernels_for(self.rows.device).row_gradients(gradient.entries, inverted, picked) * gradient.factor
        if not bool(sums.isfinite().all()):
            return
        self.steps += 1
        first, second = BETAS
        self.mean.mul_(first)[place[picked]] += (1 - first) * sums
        self.square.mul_(second)[place[picked]] += (1 - second) * sums.square()
        root = (self.square / (1 - second**self.steps)).sqrt_().add_(EPS)
        step = self.rate / (1 - first**self.steps) * self.mean / root
        if self.projection is not None:  # longer, so that the loss falls as far by it
            whole, step = step, self.projection(step)
            before, left = (float((sums * each[place[picked]]).sum()) for each in (whole, step))
            step *= min(max(before / left, 1.0), _LONGER) if left > 0 else 1.0
        self.values -= step
        self.pool.write(self.rows, self.values)


@torch.no_grad()
def clear_rows(pool: ValuePool, rows: Tensor) -> None:
    """Has these rows be zero: what reads them is given nothing by them."""
    values = pool.table.values
    values[rows.to(values.device)] = 0


class Kept(NamedTuple):
    """Rows of a pool as they were, in its own storage.

    Attributes:
        rows: distinct slots, int64.
        values: [n, d], the pool's dtype.
        scales: of an int8 pool, [n].
    """

    rows: Tensor
    values: Tensor
    scales: Tensor | None

    @classmethod
    def of(cls, pool: ValuePool, rows: Tensor) -> Kept:
        """Copies the rows out."""
        table = pool.table
        rows = rows.to(table.values.device)
        return cls(rows, table.values[rows].clone(), None if table.scales is None else table.scales[rows].clone())

    @torch.no_grad()
    def put_back(self, pool: ValuePool) -> None:
        """Writes them where they were, bit for bit."""
        table = pool.table
        table.values[self.rows] = self.values
        if table.scales is not None and self.scales is not None:
            table.scales[self.rows] = self.scales

    def changed(self, pool: ValuePool) -> Kept:
        """Those of the rows whose bits are others now."""
        now = Kept.of(pool, self.rows)
        width = self.values.element_size()
        kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
        differs = (now.values.view(kind) != self.values.view(kind)).any(-1)
        if self.scales is not None and now.scales is not None:
            differs |= now.scales != self.scales
        return Kept(self.rows[differs], self.values[differs], None if self.scales is None else self.scales[differs])

    def digest_after(self, before: str) -> str:
        """The pool's digest after these rows came to be what they are here; `before` is that before."""
        return digest_after(before, self.rows, self.values, self.scales)

    def joined(self, other: Kept) -> Kept:
        """These rows and those of another that these lack."""
        new = ~torch.isin(other.rows, self.rows)
        scales = None
        if self.scales is not None and other.scales is not None:
            scales = torch.cat([self.scales, other.scales[new]])
        return Kept(torch.cat([self.rows, other.rows[new]]), torch.cat([self.values, other.values[new]]), scales)

    def movement(self, pool: ValuePool) -> Tensor:
        """By how much each row has moved, the 2-norm, float32 [n]."""
        old = self.values.float() if self.scales is None else self.values.float() * self.scales[:, None]
        moved: Tensor = (read_rows(pool.table, self.rows).float() - old).norm(dim=-1)
        return moved
