"""Addressing: from a token's state to the slots that it reads (docs/method.md, "The value pool: product keys")."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.pool.product_keys import product_key_top_k
from memlayers.tuner.config import MemoryConfig


class Read(NamedTuple):
    """What a memory layer looks up for n tokens, r = heads * top_k slots each.

    Attributes:
        indices: slots, int64 [n, r], head by head, the best slot of a head first.
        weights: their softmax weights, float32 [n, r]; they sum to 1 per head.
    """

    indices: Tensor
    weights: Tensor


class Query(nn.Module):
    """q = (x - mean) @ projection, in float32, and the unit in which this layer takes the values.

    ``projection`` [d, heads * key_dim] is a parameter; ``mean`` [d] and ``scale`` [] are buffers: they are
    calibrated, never learned.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, out_features: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        normal = torch.randn(dim, out_features, generator=torch.Generator().manual_seed(seed))
        self.projection = nn.Parameter(normal * dim**-0.5)

    @property
    def width(self) -> int:
        """Of a query, heads * key_dim."""
        return self.projection.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, heads * key_dim], float32."""
        return (x.float() - self.mean.float()) @ self.projection.float()


def unit_halves(query: Tensor, code: Tensor | None, subject_weight: float | None) -> Tensor:
    """The halves that are compared with sub-keys by cosine: each of unit norm, the subject's direction in it.

    Args:
        query: [n, heads, 2, key_dim / 2].
        code: the directions of the tokens' subjects, [n, heads * key_dim]; None where queries carry none.
        subject_weight: of the directions, against 1 of the query.

    Returns:
        As `query`.
    """
    query = F.normalize(query, dim=-1)
    if code is None or subject_weight is None:
        return query
    unit = (query.shape[1] * 2) ** 0.5 * code.view_as(query)  # each half of a direction has norm (2 heads)^-0.5
    return F.normalize(query + subject_weight * unit, dim=-1)


def tempered_scores(
    query: Tensor, code: Tensor | None, sub_keys: Tensor, config: MemoryConfig
) -> tuple[Tensor, Tensor]:
    """The scores of both halves of the product keys.

    Args:
        query: [n, heads * key_dim].
        code: the directions of the tokens' subjects, of the same shape; None where queries carry none.
        sub_keys: float32 [2, heads, m, key_dim / 2].
        config: of the memory.

    Returns:
        float32 [n, heads, m] each.
    """
    heads = config.shape.heads
    query = query.view(query.shape[0], heads, 2, sub_keys.shape[-1])
    if config.qk_norm:
        query = unit_halves(query, code, config.subject_weight)
        if config.trainable_addressing:  # frozen ones are made with unit norm
            sub_keys = F.normalize(sub_keys, dim=-1)
    query = (config.temperature * query).permute(2, 1, 0, 3)  # [2, h, n, key_dim / 2]
    scores = query.flatten(0, 1) @ sub_keys.flatten(0, 1).mT  # [2 h, n, m]: one product per half and head
    by_half = scores.unflatten(0, (2, heads)).transpose(1, 2)  # [2, n, h, m], a view
    return by_half[0], by_half[1]


def choose(scores_a: Tensor, scores_b: Tensor, top_k: int) -> Read:
    """The best slots of each head, and their weights."""
    scores, indices = product_key_top_k(scores_a, scores_b, top_k)
    return Read(indices.flatten(1), scores.softmax(-1).flatten(1))


def imbalance(scores: Tensor) -> Tensor:
    """0 when the sub-keys of scores [n, h, m] are used evenly, m - 1 when every token uses the same one."""
    use = scores.softmax(-1).mean(0)  # [h, m]
    return (use.square().sum(-1) * use.shape[-1] - 1).mean()
