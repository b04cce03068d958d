from __future__ import annotations

import torch

from memlayers.tuner import RelevanceGate

DIM = 16


def test_the_gate_standardises_its_features() -> None:
    tokens = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0)).view(-1, DIM)
    gate, shifted = RelevanceGate(DIM, 8, seed=0), RelevanceGate(DIM, 8, seed=0)
    shifted.mean.fill_(3.0)
    shifted.std.fill_(2.0)
    torch.testing.assert_close(gate(tokens), shifted(tokens * 2 + 3))
    assert gate(tokens).shape == (10,) and gate.is_open(tokens).all()
