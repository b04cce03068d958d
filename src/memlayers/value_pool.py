"""The value pool: the one table in which every memory layer of an adapter reads and writes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.kernels.reference import weighted_sum


class ValuePool(nn.Module):
    """A table of slots, read by weighted sums of rows.

    A module of its own with a forward of its own, so that hooks (accelerate, FSDP) fire whichever layer
    reads it. Its storage starts uninitialised, so that a pool about to be loaded touches no memory; see
    `initialise`.

    Args:
        slots: number of rows.
        dim: width of a value, the backbone's hidden size.
        dtype: of the storage; kept through saving, loading and peft's casts.
    """

    def __init__(self, slots: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(slots, dim, dtype=dtype))

    @torch.no_grad()
    def initialise(self, init: str, seed: int) -> None:
        """Fills the table in place with zeros ("zero") or with normal values of std dim^-0.5 ("normal").

        Does nothing on the meta device, where peft builds adapters that it is about to load.
        """
        if self.weight.is_meta:
            return
        if init == "normal":
            generator = torch.Generator().manual_seed(seed)
            self.weight.normal_(0, self.weight.shape[1] ** -0.5, generator=generator)
        else:
            self.weight.zero_()

    def forward(self, indices: Tensor, weights: Tensor) -> Tensor:
        """Reads sum_i w_i V_i for each token.

        Args:
            indices: [n, r] int64 slots; n may be 0. Any device.
            weights: [n, r] floating.

        Returns:
            [n, dim] in the pool's dtype and on its device.
        """
        indices, weights = indices.to(self.weight.device), weights.to(self.weight)
        if weights.requires_grad and self.weight.dtype in (torch.bfloat16, torch.float16):
            return weighted_sum(self.weight, indices, weights)  # CUDA lacks this backward (pytorch 185808)
        return F.embedding_bag(indices, self.weight, per_sample_weights=weights, mode="sum")
