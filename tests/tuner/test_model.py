"""The PEFT model: several adapters, unloading, generation, copies, and what is refused."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import PeftType
from torch import Tensor

from helpers.tuner import SMALL, Build, fill, logits, train_steps
from memlayers.tuner import MemoryConfig, MemoryLayer, memory_handle, memory_layers, set_gate_enabled
from memlayers.utils.errors import InputError


def test_a_gate_closed_everywhere_leaves_the_logits_to_the_bit(tiny_backbone: Build, ids: Tensor) -> None:
    backbone = tiny_backbone()
    bare = logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(gate=True, **SMALL)).eval()
    fill(model)
    calls: list[None] = []
    memory_handle(model, "default").pool.register_forward_hook(lambda *_: calls.append(None))
    assert not torch.equal(logits(model, ids), bare) and len(calls) == 3
    calls.clear()
    for layer in memory_layers(model):
        gate: Any = layer.memlayers_gate["default"]
        gate.threshold.fill_(float("inf"))
        gate.trained.fill_(1)
    assert torch.equal(logits(model, ids), bare) and not calls


def test_two_adapters_do_not_touch_each_other(tiny_backbone: Build, ids: Tensor, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    bare = logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(layers=[1, 2], **SMALL), adapter_name="one").eval()
    fill(model, "one")
    one = logits(model, ids)
    model.add_adapter("two", MemoryConfig(layers=[0, 2, 3], recipe="dense", gate=True, **SMALL))
    assert torch.equal(logits(model, ids), one)
    assert [len(memory_layers(model, name)) for name in ("one", "two")] == [2, 3]
    assert memory_handle(model, "one").pool.weight.requires_grad
    assert not memory_handle(model, "two").pool.weight.requires_grad
    model.set_adapter("two")
    assert torch.equal(logits(model, ids), bare)
    fill(model, "two", seed=1)
    two = logits(model, ids)
    model.set_adapter("one")
    assert torch.equal(logits(model, ids), one) and not torch.equal(one, two)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_backbone(), tmp_path / "two", adapter_name="two")
    assert torch.equal(logits(loaded, ids), two)
    loaded.load_adapter(tmp_path / "one", "one")
    assert torch.equal(logits(loaded, ids), two)
    loaded.set_adapter("one")
    assert torch.equal(logits(loaded, ids), one)
    loaded.delete_adapter("one")
    assert torch.equal(logits(loaded, ids), two)
    loaded.delete_adapter("two")
    assert torch.equal(logits(loaded.base_model.model, ids), bare)
    assert not memory_layers(loaded, "one") and not memory_layers(loaded, "two")
    assert not any("memlayers_" in name for name, _ in loaded.named_parameters())


def test_unload_gives_the_backbone_back_and_merging_is_refused(tiny_backbone: Build, ids: Tensor) -> None:
    backbone = tiny_backbone()
    bare, names = logits(backbone, ids), [name for name, _ in backbone.named_modules()]
    model = get_peft_model(backbone, MemoryConfig(**SMALL))
    fill(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match="cannot be merged"):
            merge()
    assert len(memory_layers(model)) == 3
    unloaded = model.unload().eval()
    assert [name for name, _ in unloaded.named_modules()] == names
    assert torch.equal(logits(unloaded, ids), bare)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_generation_with_and_without_cache_agree(tiny_backbone: Build, ids: Tensor, family: str) -> None:
    model = get_peft_model(tiny_backbone(family), MemoryConfig(**SMALL)).eval()
    fill(model)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    with model.disable_adapter():
        assert not torch.equal(cached, model.generate(ids, use_cache=True, **options))


def test_two_memories_in_one_process_share_nothing(tiny_backbone: Build, ids: Tensor) -> None:
    config = MemoryConfig(gate=True, **SMALL)
    one, two = (get_peft_model(tiny_backbone(seed=seed), config).eval() for seed in (0, 1))
    untouched = {name: value.clone() for name, value in two.state_dict().items()}
    train_steps(one, ids, steps=3)
    one.peft_config["default"].layers.append(99)
    set_gate_enabled(one, False)
    assert all(torch.equal(value, untouched[name]) for name, value in two.state_dict().items())
    assert {p.data_ptr() for p in one.parameters()}.isdisjoint(p.data_ptr() for p in two.parameters())
    assert two.peft_config["default"].layers == [1, 2, 3]
    assert all(layer.gate_enabled for layer in memory_layers(two))
    assert config.layers is None and config.fingerprint is None
    assert not MemoryLayer.frozen_peft_weight_names and not MemoryLayer.merged_adapters


def test_the_same_seed_gives_the_same_memory(tiny_backbone: Build) -> None:
    def memory(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch.seed())  # the global generator must not matter
        state = get_peft_model(tiny_backbone(), MemoryConfig(recipe="dense", seed=seed, **SMALL)).state_dict()
        return {name: value for name, value in state.items() if "memlayers_" in name}

    one, again, other = memory(5), memory(5), memory(6)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    random = {name: value for name, value in one.items() if value.unique().numel() > 1}
    assert len(random) == 1 + 3 * 3 and not any(torch.equal(value, other[name]) for name, value in random.items())


def test_a_copied_model_has_a_pool_of_its_own(tiny_backbone: Build, ids: Tensor) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(**SMALL)).eval()
    copied = copy.deepcopy(model)
    fill(copied)
    assert not memory_handle(model, "default").pool.weight.any()
    for layer in memory_layers(copied):
        assert layer.memlayers_pool_owner["default"]["default"] is memory_handle(copied, "default").pool


def test_the_model_settles_and_keeps_its_config(tiny_backbone: Build, tmp_path: Path) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(**SMALL))
    config = model.peft_config["default"]
    assert (config.layers, config.key_dim, config.slots) == ([1, 2, 3], 64, 64)
    dense = get_peft_model(tiny_backbone(), MemoryConfig(recipe="dense", **SMALL)).peft_config["default"]
    assert dense.key_dim == 16  # hidden size // heads
    assert config.fingerprint is not None and config.fingerprint["layers"] == 4
    model.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MemoryConfig) and loaded.peft_type == PeftType["MEMLAYERS"]
    assert loaded.to_dict() == {**config.to_dict(), "inference_mode": True}


@pytest.mark.parametrize(
    ("family", "options", "named"),
    [("qwen2", {"seed": 1}, "embedding weights differ"), ("llama", {"num_hidden_layers": 3}, "layers is 3")],
)
def test_another_backbone_is_refused_before_anything_is_built(
    tiny_backbone: Build, tmp_path: Path, family: str, options: dict[str, int], named: str
) -> None:
    get_peft_model(tiny_backbone(), MemoryConfig(**SMALL)).save_pretrained(tmp_path)
    other = tiny_backbone(family, **options)
    with pytest.raises(InputError, match=named) as error:
        PeftModel.from_pretrained(other, tmp_path)
    assert "\n" not in str(error.value)
    assert not memory_layers(other)
    get_peft_model(other, MemoryConfig(layers=[0], **SMALL))  # and the backbone can still be used


def test_a_layer_out_of_range_names_the_range(tiny_backbone: Build) -> None:
    with pytest.raises(InputError, match="layer 4 is out of range: this backbone has the layers 0 to 3"):
        get_peft_model(tiny_backbone(), MemoryConfig(layers=[1, 4]))
    with pytest.raises(InputError, match="17 heads are too many"):
        get_peft_model(tiny_backbone(), MemoryConfig(recipe="dense", heads=17))


def test_many_layers_at_once(tiny_backbone: Build, ids: Tensor) -> None:
    """peft shortens lists of 20 and more target modules to suffixes."""
    backbone = tiny_backbone(num_hidden_layers=23)
    layers = [*range(20), 22]
    model = get_peft_model(backbone, MemoryConfig(layers=layers, **SMALL))
    names = [name for name, module in model.named_modules() if isinstance(module, MemoryLayer)]
    assert [int(name.split(".")[-2]) for name in names] == layers


def test_registering_twice_does_no_harm(tiny_backbone: Build, ids: Tensor) -> None:
    import memlayers.tuner

    members = len(PeftType)
    importlib.reload(memlayers.tuner)
    assert len(PeftType) == members and PeftType("MEMLAYERS") is PeftType["MEMLAYERS"]
    assert copy.deepcopy(PeftType["MEMLAYERS"]) is PeftType["MEMLAYERS"]
    assert len(memory_layers(get_peft_model(tiny_backbone(), MemoryConfig(**SMALL)))) == 3
