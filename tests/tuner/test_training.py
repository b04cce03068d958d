"""What training moves, and what it leaves."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from helpers.tuner import SMALL, Build, fill, logits, train_steps
from memlayers.tuner import MemoryConfig, memory_auxiliary_loss, memory_layers


def _trainable(model: nn.Module) -> set[str]:
    return {name.split("memlayers_")[-1] for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("addressed", {"pool.default.weight"}),
        (
            "dense",
            {
                "pool.default.weight",
                "sub_keys.default",
                "query.default.projection",
                "out.default.gate",
                "out.default.output",
            },
        ),
    ],
)
def test_what_is_frozen_stays_frozen(tiny_backbone: Build, tmp_path: Path, recipe: str, expected: set[str]) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(recipe=recipe, gate=True, **SMALL))
    assert _trainable(model) == expected
    with model.disable_adapter():
        assert _trainable(model) == set()
    assert _trainable(model) == expected
    model.add_adapter("other", MemoryConfig(**SMALL))
    model.set_adapter("other")
    model.set_adapter("default")
    assert _trainable(model) == expected
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    assert _trainable(PeftModel.from_pretrained(tiny_backbone(), tmp_path)) == set()
    assert _trainable(PeftModel.from_pretrained(tiny_backbone(), tmp_path, is_trainable=True)) == expected


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
def test_teaching_leaves_the_backbone_bit_identical(tiny_backbone: Build, ids: Tensor, recipe: str) -> None:
    backbone = tiny_backbone()
    before = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    bare = logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(recipe=recipe, gate=True, **SMALL))
    layer = memory_layers(model)[0]
    mean = layer.memlayers_query["default"].mean
    frozen = copy.deepcopy({**layer.memlayers_gate.state_dict(), "mean": mean})
    losses = train_steps(model, ids, steps=8)
    assert losses[-1] < losses[0]
    after = {name.replace(".base_layer", ""): p for name, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
    now = {**layer.memlayers_gate.state_dict(), "mean": mean}
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), bare)


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    tiny_backbone: Build, ids: Tensor, recipe: str, use_reentrant: bool
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(tiny_backbone(), MemoryConfig(recipe=recipe, **SMALL)).train()
        fill(model)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_load_balance_loss_is_exposed_and_does_not_leak(tiny_backbone: Build, ids: Tensor) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(recipe="dense", load_balance=0.1, **SMALL)).train()
    model(ids)
    loss = memory_auxiliary_loss(model)
    assert loss > 0 and loss.requires_grad
    assert memory_auxiliary_loss(model) == 0
    train_steps(model, ids, steps=2)  # a second backward through a leaked graph would raise
    model(ids)
    model.add_adapter("other", MemoryConfig(**SMALL))
    model.delete_adapter("default")
    assert memory_auxiliary_loss(model) == 0
    assert memory_auxiliary_loss(get_peft_model(tiny_backbone(), MemoryConfig(**SMALL))) == 0
