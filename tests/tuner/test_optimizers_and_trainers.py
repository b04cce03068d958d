"""Other people's loops teach a memory as the plain loop does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from peft import get_peft_model
from torch import Tensor, nn

from helpers.tuner import SMALL, Build
from memlayers.pool.row_adamw import RowAdamW
from memlayers.tuner import MemoryConfig, memory_handle

STEPS, PARTS = 3, 4


@pytest.fixture(autouse=True)
def _accelerates_state_is_not_kept() -> Iterator[None]:
    """It is the process's: an accelerator's settings would be those of later tests."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _memory(backbone: nn.Module, recipe: str) -> Any:
    model = get_peft_model(backbone, MemoryConfig(recipe=recipe, **SMALL)).train()
    memory_handle(model).pool.initialise("normal", 0)
    return model


def _optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    learn = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(learn, lr=0.03, eps=1e-3)
    return RowAdamW(learn, lr=0.03, eps=1e-3, semantics=name)


def _micro_batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 60, (2, 9), generator=generator) for _ in range(STEPS * PARTS)]


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """What would be read, as it is saved."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value.clone() for name, value in model.state_dict().items() if name in names}


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
@pytest.mark.parametrize("optimizer", ["adamw", "dense", "lazy"])
def test_accelerate_accumulates_and_clips_as_the_plain_loop(tiny_backbone: Build, recipe: str, optimizer: str) -> None:
    plain = _memory(tiny_backbone(), recipe)
    before, plain_optimizer = _learned(plain), _optimizer(optimizer, plain)
    for number, ids in enumerate(_micro_batches(), start=1):
        (plain(input_ids=ids, labels=ids).loss / PARTS).backward()
        if number % PARTS == 0:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            plain_optimizer.step()
            plain_optimizer.zero_grad()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
    bare = _memory(tiny_backbone(), recipe)
    loader = torch.utils.data.DataLoader(_micro_batches(), batch_size=None)  # type: ignore[arg-type]
    model, wrapped, loader = accelerator.prepare(bare, _optimizer(optimizer, bare), loader)
    for ids in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(input_ids=ids, labels=ids).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            wrapped.step()
            wrapped.zero_grad()
    expected = _learned(plain)
    assert not any(torch.equal(before[name], value) for name, value in expected.items())
    for name, value in _learned(accelerator.unwrap_model(model)).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
