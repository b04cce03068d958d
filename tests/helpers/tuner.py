"""What the tests of the tuner share: a small memory, its logits, and steps of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memlayers.tuner import memory_auxiliary_loss, memory_handle, memory_layers

Build = Callable[..., PreTrainedModel]
SMALL: dict[str, Any] = {"sub_keys": 8, "heads": 2, "top_k": 3}


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def fill(model: nn.Module, adapter: str = "default", seed: int = 0) -> None:
    """Gives a memory something to say, as teaching would."""
    memory_handle(model, adapter).pool.initialise("normal", seed)
    for layer in memory_layers(model, adapter):
        if adapter in layer.memlayers_out:
            output = layer.memlayers_out[adapter].output
            generator = torch.Generator().manual_seed(seed)
            output.data.copy_(torch.randn(output.shape, generator=generator) / 6)


def train_steps(model: nn.Module, ids: Tensor, steps: int, lr: float = 0.05) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = model(ids, labels=ids).loss + memory_auxiliary_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
