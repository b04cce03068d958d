"""Keeps the steps of an edit out of what the facts beside it read.

What a memory adds is linear in the rows that it reads: a token that reads them with weights r is given r V. A step D
changes nothing for it where r D = 0. So each step is multiplied by

    P = (I + s sum r^T r)^-1        over the reads r of the facts beside it

which leaves alone what none of them reads and takes out most what they read most (orthogonal weights modification, Zeng
et al. 2019, arXiv 1810.01256; for edits AlphaEdit, Fang et al. 2025, arXiv 2410.02355).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from memlayers.data.encoding import Encoded
from memlayers.inference.capture import capture
from memlayers.tuner.handle import MemoryHandle


class Projection:
    """P, for the rows that an edit may write.

    Args:
        reads: how much each token reads of each row, float32 [tokens, rows].
        strength: s, how much what they read counts.
    """

    def __init__(self, reads: Tensor, strength: float) -> None:
        gram = torch.sparse.mm(reads.to_sparse().t(), reads)  # a token reads few of the rows
        self._factor = torch.linalg.cholesky(torch.eye(len(gram), device=gram.device) + strength * gram)

    def __call__(self, step: Tensor) -> Tensor:
        """P times a step, float32 [rows, dim]."""
        return torch.cholesky_solve(step, self._factor)


class Beside:
    """What the facts beside an edit read of the rows that it may write.

    Args:
        memory: the memory.
        examples: some phrasings of each fact, with its answer; at least one.
        rows: distinct slots, int64 ascending.

    Attributes:
        rows: the same.
    """

    def __init__(self, memory: MemoryHandle, examples: Sequence[Sequence[Encoded]], rows: Tensor) -> None:
        self.rows = rows
        sequences = [one.input_ids for each in examples for one in each]
        owners = torch.tensor([number for number, each in enumerate(examples) for _ in each])
        reads, owner = [torch.zeros(0, len(rows), device=rows.device)], [owners[:0]]
        with torch.no_grad(), capture(memory, "reads") as seen:
            for batch in seen.run(sequences):
                for read in seen.reads:
                    own = _weights_of(rows, read.indices, read.weights / memory.queries[read.layer].scale)
                    any_read = own.any(1)
                    tokens = batch.sequence if read.tokens is None else batch.sequence[read.tokens.cpu()]
                    reads.append(own[any_read])
                    owner.append(owners[tokens][any_read.cpu()])
        self._reads, self._owner = torch.cat(reads), torch.cat(owner)  # float32 [tokens, rows], int64 [tokens]

    def projection(self, strength: float, without: Collection[int] = ()) -> Projection:
        """Keeps steps out of what all facts read but some, by their places."""
        kept = ~torch.isin(self._owner, torch.tensor(list(without), dtype=torch.int64))
        return Projection(self._reads[kept.to(self._reads.device)], strength)


def _weights_of(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The weights [n, r] with which slots [n, r] are read, by rows: [n, rows]."""
    indices, weights = indices.to(rows.device), weights.to(rows.device)
    place = torch.searchsorted(rows, indices).clamp_max(len(rows) - 1)
    own = torch.where(rows[place] == indices, weights, 0.0)
    return own.new_zeros(len(own), len(rows)).scatter_add_(1, place, own)
