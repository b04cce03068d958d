"""The CPU backend: numba kernels on plain threads, nothing allocated but their results and one row of scratch a thread.

This file holds the interface and the way from torch to numba; `loops` and `top_k` hold the compiled code. Meanings,
shapes and formats are those of `reference`, which every function here is tested against. Threads are started per call
(0.1 ms) rather than taken from numba's pool: that pool is the process's, may not be entered twice at a time, and spins
beside torch's own. Work is split by rows or tokens, and each is summed by one thread in a fixed order: the same input
gives the same bits on any number of threads.

The gradients of a log stay where autograd left them: the kernels find a token's row by its address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.kernels import reference
from memlayers.kernels.interface import AdamW, Inverted, LogEntry, RowState, Schedule, Table
from memlayers.kernels.numba_cpu import loops, top_k

# -- the interface ----------------------------------------------------------------------------------------------


def product_key_top_k(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `reference.product_key_top_k`: one scan of each half against the k-th best so far, then the staircase."""
    if k > scores_a.shape[-1] or scores_a.dtype not in (torch.float32, torch.float64):
        return reference.product_key_top_k(scores_a, scores_b, k)
    shape = scores_a.shape[:-1]
    a, b = (_rows_of(scores) for scores in (scores_a, scores_b))
    best = torch.empty(*shape, k, dtype=scores_a.dtype)
    slots = torch.empty(*shape, k, dtype=torch.int64)
    if best.numel():
        arguments = (*a, *b, k, scores_a.shape[-1], best.numpy().reshape(-1, k), slots.numpy().reshape(-1, k))
        _in_threads(top_k.top_k_kernel, len(a[1]), *arguments, least=128)
    return best, slots


def weighted_sum(table: Table, indices: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """See `reference.weighted_sum`. torch's embedding_bag where it sums in full precision: it prefetches rows."""
    values = table.values
    if values.dtype in (torch.float32, torch.float64):
        return F.embedding_bag(indices, values, per_sample_weights=weights.to(values), mode="sum").to(dtype)
    if values.dtype == torch.float16:
        return reference.weighted_sum(table, indices, weights, dtype)
    out = torch.empty(len(indices), values.shape[1])
    arguments = (*_table(table), indices.contiguous().numpy(), weights.float().contiguous().numpy(), out.numpy())
    _in_threads(loops.weighted_sum_kernel, len(indices), *arguments)
    return out.to(dtype)


def weight_gradient(table: Table, indices: Tensor, gradient: Tensor) -> Tensor:
    """See `reference.weight_gradient`."""
    if table.values.dtype == torch.float16:
        return reference.weight_gradient(table, indices, gradient)
    compute = torch.promote_types(torch.float32, table.values.dtype if table.scales is None else torch.float32)
    out = torch.empty(indices.shape, dtype=compute)
    rows = gradient.to(compute).contiguous().numpy()
    _in_threads(
        loops.weight_gradient_kernel, len(indices), *_table(table), indices.contiguous().numpy(), rows, out.numpy()
    )
    return out


def invert(log: Sequence[LogEntry]) -> Inverted:
    """See `reference.invert`: a radix sort of the reads by slot."""
    log = _uniform(log)
    reads = sum(entry.indices.numel() for entry in log)
    slots, tokens = np.empty(reads, dtype=np.int64), np.empty(reads, dtype=np.int64)
    dtype = log[0].weights.dtype if log else torch.float32
    weights = torch.empty(reads, dtype=dtype)
    filled = start = 0
    for entry, (addresses, like, d) in zip(log, map(_addresses, log), strict=True):
        filled = loops.collect_kernel(
            entry.indices.contiguous().numpy(), entry.weights.contiguous().numpy(), addresses, like, d, start,
            slots, tokens, weights.numpy(), filled,
        )  # fmt: skip
        start += len(addresses)
    rows, offsets, sorted_tokens, sorted_weights = loops.invert_kernel(
        slots[:filled], tokens[:filled], weights.numpy()[:filled]
    )
    return Inverted(*map(torch.from_numpy, (rows, offsets, sorted_tokens, sorted_weights)))


def row_gradients(log: Sequence[LogEntry], inverted: Inverted, picked: Tensor) -> Tensor:
    """See `reference.row_gradients`."""
    log = _uniform(log)
    sums = torch.empty(len(picked), log[0].gradient.shape[1] if log else 0, dtype=inverted.weights.dtype)
    if sums.numel():
        arguments = (*_segments(log, inverted), picked.numpy(), sums.numpy())
        _in_threads(loops.row_gradients_kernel, len(picked), *arguments)
    return sums


def square_norm(log: Sequence[LogEntry], inverted: Inverted) -> Tensor:
    """See `reference.square_norm`."""
    log = _uniform(log)
    squares = torch.zeros(len(inverted.rows), dtype=torch.float64)
    if len(squares):
        width = log[0].gradient.shape[1]
        _in_threads(loops.square_norm_kernel, len(squares), *_segments(log, inverted), width, squares.numpy())
    return squares.sum()


def adamw_rows(
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
    """See `reference.adamw_rows`: reduced, stepped and written back while the row is in the cache."""
    if table.values.dtype == torch.float16:
        reference.adamw_rows(table, state, places, log, inverted, picked, adamw, factor, noise)
        return
    if not len(picked):
        return
    log = _uniform(log)
    compute = _compute_dtype(state)
    scalars = (adamw.decay, 1 - adamw.beta1, adamw.beta2, 1 - adamw.beta2, adamw.eps, factor)
    arguments = (
        *_table(table), *_state(state, compute), places.numpy(), inverted.rows.numpy(), *_segments(log, inverted),
        picked.numpy(), adamw.step_size.numpy().astype(compute), adamw.root.numpy().astype(compute),
        np.array(scalars, dtype=compute), _key(noise),
    )  # fmt: skip
    _in_threads(loops.adamw_kernel, len(picked), *arguments)


def stale_rows(indices: Tensor, caught_up: Tensor, now: int) -> tuple[Tensor, Tensor]:
    """See `reference.stale_rows`; in the order of their first reads."""
    flat = indices.flatten()
    rows, since = np.empty(len(flat), dtype=np.int64), np.empty(len(flat), dtype=np.int64)
    count = loops.stale_kernel(flat.numpy(), caught_up.numpy(), now, rows, since)
    return torch.from_numpy(rows[:count].copy()), torch.from_numpy(since[:count].copy())


def drift_rows(
    table: Table,
    state: RowState | None,
    places: Tensor,
    rows: Tensor,
    since: Tensor,
    moving_until: Tensor,
    schedule: Schedule,
    noise: int | None,
) -> None:
    """See `reference.drift_rows`."""
    if table.values.dtype == torch.float16 or state is None:  # without state there is decay only, which is rare
        reference.drift_rows(table, state, places, rows, since, moving_until, schedule, noise)
        return
    if not len(rows):
        return
    compute = _compute_dtype(state)
    scalars = np.array((1 - schedule.beta1, schedule.beta2, schedule.eps), dtype=compute)
    steps = (each.numpy().astype(compute) for each in (schedule.step_size, schedule.root, schedule.decay))
    arguments = (
        *_table(table), *_state(state, compute), places.numpy(), rows.numpy(), since.numpy(),
        moving_until.numpy(), *steps, scalars, _key(noise),
    )  # fmt: skip
    _in_threads(loops.drift_kernel, len(rows), *arguments)


def add_one_to_rows(table: Tensor, rows: Tensor) -> None:
    """Adds 1 to some rows in place: what the bench holds the optimizer's step against.

    Args:
        table: float32 [slots, d].
        rows: distinct slots, int64 [q].
    """
    _in_threads(loops.add_one_kernel, len(rows), table.numpy(), rows.numpy())


# -- from torch to numba ----------------------------------------------------------------------------------------


def _in_threads(kernel: Callable[..., None], n: int, *arguments: Any, least: int = 8) -> None:
    """Runs kernel(*arguments, begin, end) over [0, n), a thread a part, no part smaller than `least`."""
    parts = max(1, min(torch.get_num_threads(), n // least))
    bounds = [n * i // parts for i in range(parts + 1)]
    errors: list[BaseException] = []

    def run(begin: int, end: int) -> None:
        try:
            kernel(*arguments, begin, end)
        except BaseException as error:  # a thread's own traceback would go to stderr and be forgotten
            errors.append(error)

    threads = [threading.Thread(target=run, args=each) for each in zip(bounds[1:-1], bounds[2:], strict=True)]
    for thread in threads:
        thread.start()
    run(bounds[0], bounds[1])
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _array(tensor: Tensor) -> Any:
    """Numpy has no bfloat16: its bits, as uint16."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


class _Memory:
    """A contiguous tensor as numpy takes it from other libraries, alive as long as the array.

    `Tensor.numpy` would forbid its storage to be resized ever after, by which FSDP frees a parameter between its uses.
    """

    def __init__(self, tensor: Tensor, dtype: str) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "shape": tuple(tensor.shape), "typestr": dtype, "data": (tensor.data_ptr(), False), "version": 3,
        }  # fmt: skip


_DTYPES = MappingProxyType({torch.float64: "<f8", torch.float32: "<f4", torch.bfloat16: "<u2", torch.int8: "|i1"})


def _table(table: Table) -> tuple[Any, Any]:
    """Its arrays; bfloat16 as in `_array`."""
    values, scales = table.values, table.scales
    assert values.is_contiguous() and values.numel()
    no_scales = np.zeros(0, dtype=np.float32)
    return (
        np.asarray(_Memory(values, _DTYPES[values.dtype])),
        no_scales if scales is None else np.asarray(_Memory(scales, "<f4")),
    )


def _compute_dtype(state: RowState) -> Any:
    return np.float64 if state.exp_avg.dtype == torch.float64 else np.float32


def _state(state: RowState, compute: Any) -> tuple[Any, ...]:
    """The arrays of a state; what it lacks is an empty one."""
    no_scale, no_master = np.zeros((0, 0), dtype=np.float32), np.zeros((0, 0), dtype=compute)
    scales = (state.exp_avg_scale, state.exp_avg_sq_scale)
    return (
        state.exp_avg.numpy(),
        state.exp_avg_sq.numpy(),
        *(no_scale if scale is None else scale.numpy() for scale in scales),
        no_master if state.master is None else state.master.numpy(),
    )


def _key(noise: int | None) -> int:
    return -1 if noise is None else noise & 0xFFFFFFFF


def _rows_of(scores: Tensor) -> tuple[Any, Any]:
    """Scores [..., m] as a flat array and where in it each row begins: einsum leaves its result permuted."""
    scores = scores.detach()
    if scores.stride(-1) != 1:
        scores = scores.contiguous()
    span = 1 + sum((size - 1) * stride for size, stride in zip(scores.shape, scores.stride(), strict=True))
    flat = scores.as_strided((span if scores.numel() else 0,), (1,))
    begins = np.zeros((1,), dtype=np.int64)
    for size, stride in zip(scores.shape[:-1], scores.stride()[:-1], strict=True):
        begins = (begins[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
    return flat.numpy(), begins


def _uniform(log: Sequence[LogEntry]) -> Sequence[LogEntry]:
    """The log with gradients that the kernels can read: of one dtype, with contiguous rows. Nearly always as it is."""
    dtypes = {entry.gradient.dtype for entry in log}
    readable = len(dtypes) <= 1 and not dtypes & {torch.float16}
    if readable and all(entry.gradient.stride(-1) == 1 for entry in log):
        return log
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return [entry._replace(gradient=entry.gradient.to(dtype).contiguous()) for entry in log]


def _addresses(entry: LogEntry) -> tuple[Any, Any, int]:
    """The address of each token's gradient, an empty array of the gradients' dtype, and their width."""
    gradient = entry.gradient
    stride = gradient.stride(0) * gradient.element_size()
    addresses = gradient.data_ptr() + np.arange(len(gradient), dtype=np.int64) * stride
    return addresses, _array(gradient[:0]), gradient.shape[1]


def _segments(log: Sequence[LogEntry], inverted: Inverted) -> tuple[Any, ...]:
    """What the reduction of a row needs: offsets, tokens, weights, addresses, and an empty array of the dtype."""
    found = [_addresses(entry) for entry in log]
    addresses = np.concatenate([each[0] for each in found])
    return inverted.offsets.numpy(), inverted.tokens.numpy(), inverted.weights.numpy(), addresses, found[0][1]
