from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model
from peft.utils import PeftType
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from memlayers.tuner import (
    MemoryConfig,
    MemoryLayer,
    memory_auxiliary_loss,
    memory_handle,
    memory_layers,
    set_gate_enabled,
)
from memlayers.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "phi3", "gpt2", "gpt_neox", "mixtral")
SMALL: dict[str, Any] = {"sub_keys": 8, "heads": 2, "top_k": 3}


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def _fill(model: nn.Module, adapter: str = "default", seed: int = 0) -> None:
    """Gives a memory something to say, as teaching would."""
    memory_handle(model, adapter).pool.initialise("normal", seed)
    for layer in memory_layers(model, adapter):
        if adapter in layer.memlayers_out:
            output = layer.memlayers_out[adapter].output
            generator = torch.Generator().manual_seed(seed)
            output.data.copy_(torch.randn(output.shape, generator=generator) / 6)


def _saved(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The backbone, saved and loaded again, so that an adapter of it knows where it came from."""
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_starts_bit_identical_saves_and_loads(
    tiny_backbone: Build, ids: Tensor, tmp_path: Path, family: str, recipe: str
) -> None:
    backbone = tiny_backbone(family)
    bare = _logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(recipe=recipe, gate=True, **SMALL)).eval()
    assert len(memory_layers(model)) == 3
    assert torch.equal(_logits(model, ids), bare)
    _fill(model)
    taught = _logits(model, ids)
    assert not torch.equal(taught, bare)
    with model.disable_adapter():
        assert torch.equal(_logits(model, ids), bare)
    assert torch.equal(_logits(model, ids), taught)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_backbone(family), tmp_path)
    assert torch.equal(_logits(loaded, ids), taught)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_the_real_checkpoint(tinystories: Path, tmp_path: Path, low_cpu_mem_usage: bool) -> None:
    backbone = AutoModelForCausalLM.from_pretrained(tinystories)
    ids = torch.arange(3, 40).view(1, -1)
    bare = _logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(**SMALL)).eval()
    assert torch.equal(_logits(model, ids), bare)
    _fill(model)
    taught = _logits(model, ids)
    assert not torch.equal(taught, bare)
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(_logits(loaded, ids), taught)


FRESH_PROCESS = """
import sys
import memlayers
import torch
from peft import AutoPeftModelForCausalLM
torch.set_num_threads(1)
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
"""


def test_a_fresh_process_loads_the_same_bits(tiny_backbone: Build, ids: Tensor, tmp_path: Path) -> None:
    backbone = _saved(tiny_backbone(), tmp_path / "backbone")
    model = get_peft_model(backbone, MemoryConfig(recipe="dense", pool_dtype="bfloat16", gate=True, **SMALL))
    _fill(model)
    model.save_pretrained(tmp_path / "memory")
    torch.save(ids, tmp_path / "ids")
    arguments = [str(tmp_path / name) for name in ("memory", "ids", "logits")]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, *arguments], check=True)
    assert torch.equal(torch.load(tmp_path / "logits"), _logits(model.eval(), ids))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_file_holds_one_pool_in_its_own_dtype(tiny_backbone: Build, tmp_path: Path, dtype: str) -> None:
    config = MemoryConfig(pool_dtype=dtype, gate=True, **SMALL)
    model = get_peft_model(tiny_backbone().bfloat16(), config)
    memory_handle(model, "default").pool.initialise("normal", seed=3)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
        (pool,) = [name for name in names if "memlayers_pool" in name]
        assert file.get_tensor(pool).dtype == getattr(torch, dtype)
        assert file.get_tensor(pool).shape == (64, 32)
    # Per layer: sub-keys, the query's mean, projection and scale, and the gate's eight tensors.
    assert len(names) == 1 + 3 * (1 + 3 + 8)
    assert not any("default" in name or "base_layer" in name for name in names)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(tiny_backbone().bfloat16(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(memory_handle(loaded, "default").pool.weight, memory_handle(model, "default").pool.weight)
        assert memory_layers(loaded)[0].memlayers_sub_keys["default"].dtype == torch.float32


def test_addressing_and_gate_survive_saving(tiny_backbone: Build, ids: Tensor, tmp_path: Path) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(gate=True, **SMALL)).eval()
    _fill(model)
    for number, layer in enumerate(memory_layers(model)):
        query: Any = layer.memlayers_query["default"]
        layer.set_addressing("default", torch.full((32,), 0.1 * number), query.projection + number, scale=2.0)
        gate: Any = layer.memlayers_gate["default"]
        gate.mean.fill_(0.1)
        gate.std.fill_(0.9)
        gate.threshold.fill_(0.05)
        gate.trained.fill_(1)
    gated = _logits(model, ids)
    set_gate_enabled(model, False)
    assert not torch.equal(_logits(model, ids), gated)
    set_gate_enabled(model, True)
    assert torch.equal(_logits(model, ids), gated)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_backbone(), tmp_path)
    assert torch.equal(_logits(loaded, ids), gated)


def test_a_gate_closed_everywhere_leaves_the_logits_to_the_bit(tiny_backbone: Build, ids: Tensor) -> None:
    backbone = tiny_backbone()
    bare = _logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(gate=True, **SMALL)).eval()
    _fill(model)
    calls: list[None] = []
    memory_handle(model, "default").pool.register_forward_hook(lambda *_: calls.append(None))
    assert not torch.equal(_logits(model, ids), bare) and len(calls) == 3
    calls.clear()
    for layer in memory_layers(model):
        gate: Any = layer.memlayers_gate["default"]
        gate.threshold.fill_(float("inf"))
        gate.trained.fill_(1)
    assert torch.equal(_logits(model, ids), bare) and not calls


def test_two_adapters_do_not_touch_each_other(tiny_backbone: Build, ids: Tensor, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    bare = _logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(layers=[1, 2], **SMALL), adapter_name="one").eval()
    _fill(model, "one")
    one = _logits(model, ids)
    model.add_adapter("two", MemoryConfig(layers=[0, 2, 3], recipe="dense", gate=True, **SMALL))
    assert torch.equal(_logits(model, ids), one)
    assert [len(memory_layers(model, name)) for name in ("one", "two")] == [2, 3]
    assert memory_handle(model, "one").pool.weight.requires_grad
    assert not memory_handle(model, "two").pool.weight.requires_grad
    model.set_adapter("two")
    assert torch.equal(_logits(model, ids), bare)
    _fill(model, "two", seed=1)
    two = _logits(model, ids)
    model.set_adapter("one")
    assert torch.equal(_logits(model, ids), one) and not torch.equal(one, two)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_backbone(), tmp_path / "two", adapter_name="two")
    assert torch.equal(_logits(loaded, ids), two)
    loaded.load_adapter(tmp_path / "one", "one")
    assert torch.equal(_logits(loaded, ids), two)
    loaded.set_adapter("one")
    assert torch.equal(_logits(loaded, ids), one)
    loaded.delete_adapter("one")
    assert torch.equal(_logits(loaded, ids), two)
    loaded.delete_adapter("two")
    assert torch.equal(_logits(loaded.base_model.model, ids), bare)
    assert not memory_layers(loaded, "one") and not memory_layers(loaded, "two")
    assert not any("memlayers_" in name for name, _ in loaded.named_parameters())


def test_unload_gives_the_backbone_back_and_merging_is_refused(tiny_backbone: Build, ids: Tensor) -> None:
    backbone = tiny_backbone()
    bare, names = _logits(backbone, ids), [name for name, _ in backbone.named_modules()]
    model = get_peft_model(backbone, MemoryConfig(**SMALL))
    _fill(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match="cannot be merged"):
            merge()
    assert len(memory_layers(model)) == 3
    unloaded = model.unload().eval()
    assert [name for name, _ in unloaded.named_modules()] == names
    assert torch.equal(_logits(unloaded, ids), bare)


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
def test_transformers_loads_and_adds_adapters(tiny_backbone: Build, ids: Tensor, tmp_path: Path, recipe: str) -> None:
    config = MemoryConfig(recipe=recipe, gate=True, pool_dtype="bfloat16", **SMALL)
    model = get_peft_model(tiny_backbone(), config).eval()
    _fill(model)
    for layer in memory_layers(model):
        layer.memlayers_query["default"].mean.fill_(0.1)
        layer.memlayers_gate["default"].trained.fill_(1)
    model.save_pretrained(tmp_path / "memory")
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    for name in ("default", "second"):
        backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
        bare = _logits(backbone, ids)
        backbone.load_adapter(str(tmp_path / "memory"), adapter_name=name)
        assert torch.equal(_logits(backbone, ids), _logits(model, ids))
        assert memory_handle(backbone, name).pool.weight.dtype == torch.bfloat16
        backbone.disable_adapters()
        assert torch.equal(_logits(backbone, ids), bare)
        backbone.enable_adapters()
        backbone.add_adapter(MemoryConfig(**SMALL), adapter_name="fresh")
        assert torch.equal(_logits(backbone, ids), bare)
        backbone.set_adapter(name)
        assert torch.equal(_logits(backbone, ids), _logits(model, ids))
        backbone.delete_adapter(name)
        assert not memory_layers(backbone, name) and len(memory_layers(backbone, "fresh")) == 3


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_generation_with_and_without_cache_agree(tiny_backbone: Build, ids: Tensor, family: str) -> None:
    model = get_peft_model(tiny_backbone(family), MemoryConfig(**SMALL)).eval()
    _fill(model)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    with model.disable_adapter():
        assert not torch.equal(cached, model.generate(ids, use_cache=True, **options))


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


def _teach(model: nn.Module, ids: Tensor, steps: int, lr: float = 0.05) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = model(ids, labels=ids).loss + memory_auxiliary_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
def test_teaching_leaves_the_backbone_bit_identical(tiny_backbone: Build, ids: Tensor, recipe: str) -> None:
    backbone = tiny_backbone()
    before = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    bare = _logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(recipe=recipe, gate=True, **SMALL))
    layer = memory_layers(model)[0]
    mean = layer.memlayers_query["default"].mean
    frozen = copy.deepcopy({**layer.memlayers_gate.state_dict(), "mean": mean})
    losses = _teach(model, ids, steps=8)
    assert losses[-1] < losses[0]
    after = {name.replace(".base_layer", ""): p for name, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
    now = {**layer.memlayers_gate.state_dict(), "mean": mean}
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    with model.disable_adapter():
        assert torch.equal(_logits(model, ids), bare)


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    tiny_backbone: Build, ids: Tensor, recipe: str, use_reentrant: bool
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(tiny_backbone(), MemoryConfig(recipe=recipe, **SMALL)).train()
        _fill(model)
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
    _teach(model, ids, steps=2)  # a second backward through a leaked graph would raise
    model(ids)
    model.add_adapter("other", MemoryConfig(**SMALL))
    model.delete_adapter("default")
    assert memory_auxiliary_loss(model) == 0
    assert memory_auxiliary_loss(get_peft_model(tiny_backbone(), MemoryConfig(**SMALL))) == 0


def test_two_memories_in_one_process_share_nothing(tiny_backbone: Build, ids: Tensor) -> None:
    config = MemoryConfig(gate=True, **SMALL)
    one, two = (get_peft_model(tiny_backbone(seed=seed), config).eval() for seed in (0, 1))
    untouched = {name: value.clone() for name, value in two.state_dict().items()}
    _teach(one, ids, steps=3)
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
    _fill(copied)
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
