"""What a kernel backend works on and what it offers; the three backends are modules with these functions.

`reference` (plain torch) is the oracle of `numba_cpu` and `triton_gpu`. Shapes throughout: n tokens, r slots read per
token, d the width of a value, u distinct slots in a log, p reads in it, q of the u slots that one call works on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

STATE_BLOCK = 128
"""Elements of a row of 8-bit state that share one scale; the last block of a row may be shorter."""


class Table(NamedTuple):
    """The storage of a value pool.

    Attributes:
        values: [slots, d], contiguous; float64, float32, bfloat16, float16, or int8.
        scales: of an int8 table: one row's unit, float32 [slots]; the value is code * scale. None otherwise.
    """

    values: Tensor
    scales: Tensor | None = None


class LogEntry(NamedTuple):
    """The gradient that one read sends back to the table, factored: row i gets sum w_i * gradient over its readers.

    Attributes:
        indices: slots, int32 or int64 [n, r].
        weights: [n, r], float32 (float64 in a float64 table).
        gradient: of the loss with respect to what was read, [n, d], any floating dtype, contiguous rows.
        process: whose tokens these are, where several processes' reads are in one log.
    """

    indices: Tensor
    weights: Tensor
    gradient: Tensor
    process: int = 0


class Inverted(NamedTuple):
    """The inverted log: which tokens read each slot. Tokens are numbered through all entries of the log.

    Attributes:
        rows: the distinct slots, int64 [u], ascending.
        offsets: reads of row i are offsets[i] to offsets[i + 1], int64 [u + 1].
        tokens: int64 [p], of one row in ascending order.
        weights: [p].
        prepared: what a backend worked out from the same log for itself; None where it did not.
    """

    rows: Tensor
    offsets: Tensor
    tokens: Tensor
    weights: Tensor
    prepared: Any = None


class RowState(NamedTuple):
    """A piece of the row-wise optimizer's state: c rows.

    Attributes:
        exp_avg: first moment, float32 or float64 [c, d]; or int8 codes, see `storage.decode_mean`.
        exp_avg_sq: second moment, of the same shape and dtype; or uint8 codes, see `storage.decode_square`.
        exp_avg_scale: of codes: float32 [c, blocks], blocks of `STATE_BLOCK` elements; None otherwise.
        exp_avg_sq_scale: of codes, of the same shape and dtype; None otherwise.
        master: the rows in float32 [c, d], where the table is coarser; None otherwise.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    exp_avg_scale: Tensor | None = None
    exp_avg_sq_scale: Tensor | None = None
    master: Tensor | None = None


class AdamW(NamedTuple):
    """One step's numbers (Loshchilov and Hutter 2019, algorithm 2), q rows.

    Attributes:
        step_size: lr / (1 - beta1^t), float64 [q].
        root: sqrt(1 - beta2^t), float64 [q].
        decay: 1 - lr * weight_decay.
        beta1: decay of the first moment.
        beta2: decay of the second.
        eps: added to the root of the bias-corrected second moment.
    """

    step_size: Tensor
    root: Tensor
    decay: float
    beta1: float
    beta2: float
    eps: float


class Schedule(NamedTuple):
    """A stretch of a run's steps, by which rows without a gradient are caught up; entry t is its t-th step, from 1.

    Steps are counted from the stretch's own beginning wherever it is used; entry 0 is not looked at.

    Attributes:
        step_size: float64 [steps + 1], lr / (1 - beta1^t).
        root: float64 [steps + 1], sqrt(1 - beta2^t).
        decay: float64 [steps + 1], 1 - lr * weight_decay.
        beta1: decay of the first moment.
        beta2: decay of the second.
        eps: as in `AdamW`.
    """

    step_size: Tensor
    root: Tensor
    decay: Tensor
    beta1: float
    beta2: float
    eps: float


class Kernels(Protocol):
    """The functions of a backend. All are deterministic: the same input gives the same bits."""

    def product_key_top_k(self, scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The exact k best of the product set, see `reference.product_key_top_k_exhaustive`."""

    def weighted_sum(self, table: Table, indices: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """sum_i w_i V_i, see `reference.weighted_sum`."""

    def weight_gradient(self, table: Table, indices: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of `weighted_sum` with respect to the weights."""

    def invert(self, log: Sequence[LogEntry]) -> Inverted:
        """Which tokens read each slot; tokens whose whole gradient is zero are left out."""

    def row_gradients(self, log: Sequence[LogEntry], inverted: Inverted, picked: Tensor) -> Tensor:
        """The gradients of the rows `picked` (positions in `inverted.rows`)."""

    def square_norm(self, log: Sequence[LogEntry], inverted: Inverted) -> Tensor:
        """The squared norm of the whole table's gradient."""

    def adamw_rows(
        self,
        table: Table,
        state: RowState,
        places: Tensor,
        log: Sequence[LogEntry],
        inverted: Inverted,
        picked: Tensor,
        adamw: AdamW,
        factor: float,
        noise: int | None,
    ) -> None:
        """Segment-reduce and one AdamW step, row by row, in place."""

    def stale_rows(self, indices: Tensor, caught_up: Tensor, now: int) -> tuple[Tensor, Tensor]:
        """The distinct slots in `indices` that are behind, and the steps they are at; marks them as caught up."""

    def drift_rows(
        self,
        table: Table,
        state: RowState | None,
        places: Tensor,
        rows: Tensor,
        since: Tensor,
        moving_until: Tensor,
        schedule: Schedule,
        noise: int | None,
    ) -> None:
        """The steps that rows missed because they had no gradient, in place."""
