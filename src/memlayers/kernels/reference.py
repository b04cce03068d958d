"""A memory layer in plain torch, to be read beside the papers; the oracle of every fast path.

Lample et al. 2019, "Large Memory Layers with Product Keys" (arXiv 1907.05242), section 3, and Berges et al.
2024, "Memory Layers at Scale" (arXiv 2412.09764), section 2. Nothing here is fast: the full product set is
materialised.

Shapes: n tokens, h heads, m sub-keys per half (m * m slots), k slots read per head, d the width of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    return weighted_sum(values, indices, scores.softmax(-1))


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


def weighted_sum(values: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i V_i by an explicit gather.

    Args:
        values: [slots, d].
        indices: [n, r], int64.
        weights: [n, r].

    Returns:
        [n, d].
    """
    return (weights[..., None] * values[indices]).sum(-2)


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
