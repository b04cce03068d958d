"""A memory layer in plain torch, to be read beside the papers; the oracle of every fast path.

Lample et al. 2019, "Large Memory Layers with Product Keys" (arXiv 1907.05242), section 3, and Berges et al.
2024, "Memory Layers at Scale" (arXiv 2412.09764), section 2. Nothing here is fast: the full product set is
materialised, and so is every row's gradient. The second half of the module is the backend that `interface`
describes.

Shapes: n tokens, h heads, m sub-keys per half (m * m slots), k slots read per head, d the width of a value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.kernels.interface import AdamW, Inverted, LogEntry, RowState, Schedule, Table
from memlayers.kernels.storage import decode_mean, decode_square, encode_mean, encode_square, read_rows, write_rows


def naive_lookup(query: Tensor, keys: Tensor, values: Tensor, top_k: int) -> Tensor:
    """Reads a memory with one flat key per slot (Lample 2019, equations 1-3).

    Args:
        query: [n, key_dim].
        keys: [slots, key_dim].
        values: [slots, d].
        top_k: slots read per token.

    Returns:
        [n, d], the softmax-weighted sum of the values of the `top_k` best keys.
    """
    scores, indices = (query @ keys.T).topk(top_k)  # [n, k]
    return weighted_sum(Table(values), indices, scores.softmax(-1), values.dtype)


def product_scores(scores_a: Tensor, scores_b: Tensor) -> Tensor:
    """The score of every slot: slot i * m + j scores a_i + b_j (Lample 2019, section 3.1).

    Args:
        scores_a: [..., m], scores of the first halves.
        scores_b: [..., m], scores of the second halves.

    Returns:
        [..., m * m].
    """
    return (scores_a[..., :, None] + scores_b[..., None, :]).flatten(-2)


def product_key_top_k_exhaustive(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best slots by sorting the whole product set.

    Equal sub-key scores rank by the lower index, equal slot scores by the better first half, then the
    better second.

    Args:
        scores_a: [..., m].
        scores_b: [..., m].
        k: slots to return, at most m * m.

    Returns:
        scores [..., k], best first, and slot indices [..., k], int64.
    """
    sub_keys = scores_a.shape[-1]
    ranked_a, index_a = torch.sort(scores_a, dim=-1, descending=True, stable=True)
    ranked_b, index_b = torch.sort(scores_b, dim=-1, descending=True, stable=True)
    slots = (index_a[..., :, None] * sub_keys + index_b[..., None, :]).flatten(-2)
    scores, order = torch.sort(product_scores(ranked_a, ranked_b), dim=-1, descending=True, stable=True)
    return scores[..., :k], slots.gather(-1, order[..., :k])


def memory_plus(x: Tensor, memory: Tensor, gate: Tensor, output: Tensor) -> Tensor:
    """Memory+: W_out (SiLU(W_gate x) * y) (Berges 2024, section 2.3).

    Args:
        x: [n, d_in], the layer's input.
        memory: [n, d], what was read.
        gate: [d, d_in].
        output: [d_out, d].

    Returns:
        [n, d_out].
    """
    return (F.silu(x @ gate.T) * memory) @ output.T


# -- the backend ------------------------------------------------------------------------------------------------


def product_key_top_k(scores_a: Tensor, scores_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What `product_key_top_k_exhaustive` returns, without building the product set.

    The pair of the i-th best first half and the j-th best second half (from 0) is beaten by the (i+1)(j+1)
    - 1 pairs that are no worse in both halves, so only the staircase (i+1)(j+1) <= k can win: 20 of 64
    pairs at k = 8.

    Args:
        scores_a: [..., m], floating.
        scores_b: [..., m].
        k: slots to return, at most m * m.

    Returns:
        scores [..., k], best first, and slot indices [..., k], int64.
    """
    sub_keys = scores_a.shape[-1]
    if k > sub_keys:
        return product_key_top_k_exhaustive(scores_a, scores_b, k)
    top_a, index_a = _stable_top_k(scores_a, k)
    top_b, index_b = _stable_top_k(scores_b, k)
    stairs = [(i, j) for i in range(k) for j in range(k // (i + 1))]
    rows, columns = torch.tensor(stairs, device=scores_a.device).T
    candidates = top_a[..., rows] + top_b[..., columns]  # [..., stairs]
    scores, order = torch.sort(candidates, dim=-1, descending=True, stable=True)
    slots = index_a[..., rows] * sub_keys + index_b[..., columns]
    return scores[..., :k], slots.gather(-1, order[..., :k])


def _stable_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk along the last dimension, with ties going to the lower index, which torch leaves open."""
    best, index = torch.sort(scores, dim=-1, descending=True, stable=True)
    return best[..., :k], index[..., :k]


def weighted_sum(table: Table, indices: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """sum_i w_i V_i by an explicit gather, accumulated in float32 (float64 where the table is).

    Args:
        table: of d columns.
        indices: [n, r], int32 or int64.
        weights: [n, r].
        dtype: of the result.

    Returns:
        [n, d].
    """
    rows = read_rows(table, indices.long())  # [n, r, d]
    return (weights.to(rows)[..., None] * rows).sum(-2).to(dtype)


def weight_gradient(table: Table, indices: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the loss with respect to the weights: d loss / d w_i = V_i . d loss / d out.

    Args:
        table: of d columns.
        indices: [n, r], int32 or int64.
        gradient: of the loss with respect to what was read, [n, d].

    Returns:
        [n, r], float32 (float64 where the table is).
    """
    rows = read_rows(table, indices.long())
    return (rows * gradient.to(rows)[:, None]).sum(-1)


def invert(log: Sequence[LogEntry]) -> Inverted:
    """Which tokens read each slot.

    Tokens whose whole gradient is zero (padding, prompts that no answer depends on) move nothing and are left out.
    """
    width = max((entry.indices.shape[1] for entry in log), default=0)
    slots, tokens, weights, start = [], [], [], 0
    for entry in log:
        n, r = entry.indices.shape
        alive = entry.gradient.ne(0).any(-1)
        slots.append(entry.indices[alive].long().flatten())
        tokens.append((torch.arange(n, device=alive.device) + start)[alive].repeat_interleave(r))
        weights.append(entry.weights[alive].flatten())
        start += n
    if not width or not sum(map(len, slots)):
        device = log[0].gradient.device if log else None
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Inverted(empty, torch.zeros(1, dtype=torch.int64, device=device), empty, empty.float())
    sorted_slots, order = torch.sort(torch.cat(slots), stable=True)
    rows, counts = torch.unique_consecutive(sorted_slots, return_counts=True)
    return Inverted(
        rows, F.pad(counts.cumsum(0), (1, 0)), torch.cat(tokens)[order], torch.cat(weights)[order].contiguous()
    )


def row_gradients(log: Sequence[LogEntry], inverted: Inverted, picked: Tensor) -> Tensor:
    """The gradients of some rows: sums of weight * gradient over the tokens that read them.

    Args:
        log: as given to `invert`.
        inverted: what it returned.
        picked: positions in `inverted.rows`, int64 [q].

    Returns:
        [q, d], float32 (float64 where the weights are).
    """
    gradient = torch.cat([entry.gradient for entry in log]).to(inverted.weights.dtype)
    sums = gradient.new_zeros(len(picked), gradient.shape[1])
    for i, u in enumerate(picked.tolist()):
        begin, end = inverted.offsets[u], inverted.offsets[u + 1]
        sums[i] = (inverted.weights[begin:end, None] * gradient[inverted.tokens[begin:end]]).sum(0)
    return sums


def square_norm(log: Sequence[LogEntry], inverted: Inverted) -> Tensor:
    """The squared Euclidean norm of the whole table's gradient, a float64 scalar."""
    if not len(inverted.rows):
        return torch.zeros((), dtype=torch.float64, device=inverted.rows.device)
    everything = torch.arange(len(inverted.rows), device=inverted.rows.device)
    return row_gradients(log, inverted, everything).double().square().sum()


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
    """One AdamW step of some rows, in place; what torch.optim.AdamW does to them.

    Args:
        table: whose rows move.
        state: of a piece of the touched rows.
        places: where in `state` each row's moments lie, int64 [q], distinct.
        log: as given to `invert`.
        inverted: what it returned.
        picked: positions in `inverted.rows`, int64 [q].
        adamw: the step's numbers.
        factor: on the gradient (clipping, loss scaling).
        noise: without a master, a coarser table is rounded stochastically with this key; None rounds to nearest.
    """
    rows = inverted.rows[picked]
    gradient = row_gradients(log, inverted, picked) * factor
    mean, square = decode_mean(state, places), decode_square(state, places)
    gradient = gradient.to(mean)
    mean = mean + (gradient - mean) * (1 - adamw.beta1)
    square = square * adamw.beta2 + (1 - adamw.beta2) * gradient * gradient
    values = read_rows(table, rows).to(mean) if state.master is None else state.master[places]
    values = values * adamw.decay
    encode_mean(state, places, mean)
    encode_square(state, places, square)
    step_size, root = (scalar.to(mean)[:, None] for scalar in (adamw.step_size, adamw.root))
    values = values - step_size * mean / (square.sqrt() / root + adamw.eps)
    if state.master is not None:
        state.master[places] = values
    write_rows(table, rows, values, noise if state.master is None else None)


def stale_rows(indices: Tensor, caught_up: Tensor, now: int) -> tuple[Tensor, Tensor]:
    """Which of the slots about to be read are behind; they are marked as caught up.

    Args:
        indices: slots, any shape, int32 or int64; repeated ones count once.
        caught_up: the step after which each slot was last up to date, int64 [slots]; changed in place.
        now: the present step.

    Returns:
        The slots that are behind, int64 [q], in an order of the backend's own, and the steps they are at, int64 [q].
    """
    flat = indices.flatten().long()
    rows = flat[caught_up[flat] < now].unique()
    since = caught_up[rows]
    caught_up[rows] = now
    return rows, since


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
    """Catches rows up on steps in which they had no gradient, as torch.optim.AdamW moves them: in place.

    In each missed step the moments shrink and still move the value, and the value decays. Long after a row's last
    gradient the first moment is too small to move anything (see `pool.row_adamw`); then only decay is left.

    Args:
        table: whose rows move.
        state: of a piece of the touched rows; None for rows that never had a gradient (they only decay).
        places: where in `state` each row's moments lie, int64 [q], distinct; not looked at without `state`.
        rows: slots, int64 [q], distinct.
        since: the step after which each row was last up to date, int64 [q].
        moving_until: the last step in which the moments still move each row, int64 [q].
        schedule: all steps so far; rows are brought to the last of them.
        noise: as in `adamw_rows`.
    """
    late = since < len(schedule.decay) - 1  # the others are not rewritten: lossy formats would change them
    places, rows, since, moving_until = places[late], rows[late], since[late], moving_until[late]
    if not len(rows):
        return
    steps = range(int(since.min()) + 1, len(schedule.decay))
    if state is None:
        # Step by step in the table's own precision, so that catching up in two goes ends in the same bits as in one.
        decaying = table.values if table.scales is None else table.scales
        kept = decaying[rows]
        for step in steps:
            behind = (since < step).view(-1, *[1] * (kept.dim() - 1))
            kept = torch.where(behind, kept * schedule.decay[step].item(), kept)
        decaying[rows] = kept
        return
    mean, square = decode_mean(state, places), decode_square(state, places)
    values = (read_rows(table, rows) if state.master is None else state.master[places]).to(mean)
    for step in steps:
        behind = (since < step)[:, None]
        moving = behind & (step <= moving_until)[:, None]
        root, step_size = schedule.root[step].item(), schedule.step_size[step].item()
        values = torch.where(behind, values * schedule.decay[step].item(), values)
        mean = torch.where(behind, mean + (0 - mean) * (1 - schedule.beta1), mean)
        square = torch.where(behind, square * schedule.beta2, square)
        values = torch.where(moving, values - step_size * mean / (square.sqrt() / root + schedule.eps), values)
    encode_mean(state, places, mean)
    encode_square(state, places, square)
    if state.master is not None:
        state.master[places] = values
    write_rows(table, rows, values, noise if state.master is None else None)
