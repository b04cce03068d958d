"""What the tests of the tuner share: a small memory, its logits, and steps of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from memlayers.tuner import MemoryConfig, memory_auxiliary_loss, memory_handle, memory_layers
from memlayers.tuner.current import Recorder, current, holding

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


class Seen(Recorder):
    """What the first memory layers decided in the latest forward pass of `seen`, per memory.

    Attributes:
        subjects: of each token, int64 [n], where the memory has an index that is filled.
        opened: which tokens may read, int64 [open]; None for all.
        output: what the call gave.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.subjects: dict[str, Tensor] = {}
        self.opened: dict[str, Tensor | None] = {}
        self.output: Any = None

    def decided(self, layer: nn.Module, adapter: str, opened: Tensor | None, tokens: int) -> None:
        index = memory_handle(self.model, adapter).index
        self.opened[adapter] = opened
        if index is not None and index.reach and current().forward is not None:
            self.subjects[adapter] = current().forward.subjects(adapter, index, tokens)


def seen(model: Any, *args: Any, call: str = "__call__", **kwargs: Any) -> Seen:
    """Calls a model, or a method of its, and says what its memory layers decided."""
    recorder = Seen(model)
    with torch.no_grad(), holding(recorder=recorder):
        recorder.output = getattr(model, call)(*args, **kwargs)
    return recorder


NAME = (61, 62)
"""Token ids of the subject that `taught` models know."""


def taught(backbone: PreTrainedModel, scale: float = 4.0, **config: Any) -> Any:
    """A model with a memory of one subject, `NAME`, which is read for 30 tokens after it and changes what is said."""
    model: Any = get_peft_model(backbone, MemoryConfig(**{**SMALL, "subjects": True, **config})).eval()
    fill(model)
    memory = memory_handle(model)
    assert memory.index is not None
    memory.index.fill({NAME: NAME}, 30)
    with torch.no_grad():
        memory.pool.parameter.mul_(scale)
    return model
