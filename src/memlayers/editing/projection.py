"""Keeps the steps of an edit out of what the facts beside it read.

What a memory adds is linear in the rows that it reads: a token that reads them with weights r is given r V. A step D
changes nothing for it where r D = 0. So each step is multiplied by

    P = (I + s sum r^T r)^-1        over the reads r of the facts beside it

which leaves alone what none of them reads and takes out most what they read most (orthogonal weights modification, Zeng
et al. 2019, arXiv 1810.01256; for edits AlphaEdit, Fang et al. 2025, arXiv 2410.02355).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memlayers.data.encoding import Encoded
from memlayers.inference.capture import capture
from memlayers.tuner.handle import MemoryHandle


class Projection:
    """P, for the rows that an edit may write.

    Args:
        reads: how much each token reads of each row, float32 [tokens, rows].
        strength: s, how much what they read counts; a read's weights are at most the number of heads together.
    """

    def __init__(self, reads: Tensor, strength: float) -> None:
        gram = torch.sparse.mm(reads.to_sparse().t(), reads)  # a token reads few of the rows
        self._factor = torch.linalg.cholesky(torch.eye(len(gram), device=gram.device) + strength * gram)

    def __call__(self, step: Tensor) -> Tensor:
        """P times a step, float32 [rows, dim]."""
        return torch.cholesky_solve(step, self._factor)


@torch.no_grad()
def reads_of(memory: MemoryHandle, examples: Sequence[Encoded], rows: Tensor) -> Tensor:
    """How much the tokens of some sequences read of some rows, in units of each layer's values.

    Args:
        memory: the memory.
        examples: the sequences.
        rows: distinct slots, int64 ascending.

    Returns:
        float32 [tokens, rows], of those tokens that read any of the rows.
    """
    found = [torch.zeros(0, len(rows), device=rows.device)]
    with capture(memory, "reads") as seen:
        for _ in seen.run([one.input_ids for one in examples]):
            for read in seen.reads:
                indices = read.indices.to(rows.device)
                place = torch.searchsorted(rows, indices).clamp_max(len(rows) - 1)
                weights = read.weights.to(rows.device) / memory.queries[read.layer].scale.to(rows.device)
                own = torch.where(rows[place] == indices, weights, 0.0)
                dense = own.new_zeros(len(own), len(rows)).scatter_add_(1, place, own)
                found.append(dense[own.any(1)])
    return torch.cat(found)
