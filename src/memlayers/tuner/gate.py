"""The relevance gate: decides per token whether a memory layer is read at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RelevanceGate(nn.Module):
    """Standardise, Linear d -> hidden, ReLU, Linear hidden -> 1, then a hard threshold (docs/method.md, 2).

    Parameters ``hidden_weight`` [hidden, d], ``hidden_bias`` [hidden], ``output_weight`` [hidden] and
    ``output_bias`` []. Buffers ``mean`` and ``std`` [d] of the features, ``threshold`` [] and ``trained`` [],
    0 or 1. Whoever trains the gate sets the buffers too; until then it is open for every token.

    The tensors sit flat on the module, not in nn.Linear children: peft takes an adapter's name out of a key
    only where exactly one more name follows it. What no optimizer may move is a buffer, since peft switches
    ``requires_grad`` for whole modules.

    Args:
        dim: width of the features, the MLP block's input.
        hidden: width of the hidden layer.
        seed: of the random start.
    """

    mean: Tensor
    std: Tensor
    threshold: Tensor
    trained: Tensor

    def __init__(self, dim: int, hidden: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden_weight = nn.Parameter(torch.randn(hidden, dim, generator=generator) * dim**-0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.output_weight = nn.Parameter(torch.randn(hidden, generator=generator) * hidden**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("trained", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The relevance of each token.

        Args:
            x: [n, d], any floating dtype.

        Returns:
            Logits [n], float32 even under autocast: the hard threshold must fall the same way when teaching
            and when answering.
        """
        with torch.autocast(x.device.type, enabled=False):
            features = (x.float() - self.mean.float()) / self.std.float()
            hidden = F.relu(F.linear(features, self.hidden_weight.float(), self.hidden_bias.float()))
            logits: Tensor = hidden @ self.output_weight.float() + self.output_bias.float()
        return logits

    @torch.no_grad()
    def is_open(self, x: Tensor) -> Tensor:
        """Which tokens may read the memory: bool [n] for x [n, d]; all while the gate is untrained."""
        logits: Tensor = self(x)
        return (logits > self.threshold) | (self.trained == 0)
