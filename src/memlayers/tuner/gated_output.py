"""The gated output of the dense recipe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedOutput(nn.Module):
    """Memory+ (Berges 2024, section 2.3): W_out (SiLU(W_gate x) * memory), W_out starting at zero.

    Parameters ``gate`` and ``output``, each [d, d], flat on the module for the reason given in `RelevanceGate`.
    """

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        normal = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed))
        self.gate = nn.Parameter(normal * dim**-0.5)
        self.output = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """[n, d] and [n, d] -> [n, d] in the parameters' dtype."""
        x, memory = x.to(self.gate.dtype), memory.to(self.gate.dtype)
        return F.linear(F.silu(F.linear(x, self.gate)) * memory, self.output)
