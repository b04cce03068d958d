"""A memory that is saved and loaded: every family of backbones, in PEFT and in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from helpers.tuner import SMALL, Build, fill, logits
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers, set_gate_enabled

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "phi3", "gpt2", "gpt_neox", "mixtral")


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
    bare = logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(recipe=recipe, gate=True, **SMALL)).eval()
    assert len(memory_layers(model)) == 3
    assert torch.equal(logits(model, ids), bare)
    fill(model)
    taught = logits(model, ids)
    assert not torch.equal(taught, bare)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), bare)
    assert torch.equal(logits(model, ids), taught)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_backbone(family), tmp_path)
    assert torch.equal(logits(loaded, ids), taught)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_the_real_checkpoint(tinystories: Path, tmp_path: Path, low_cpu_mem_usage: bool) -> None:
    backbone = AutoModelForCausalLM.from_pretrained(tinystories)
    ids = torch.arange(3, 40).view(1, -1)
    bare = logits(backbone, ids)
    model = get_peft_model(backbone, MemoryConfig(**SMALL)).eval()
    assert torch.equal(logits(model, ids), bare)
    fill(model)
    taught = logits(model, ids)
    assert not torch.equal(taught, bare)
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded, ids), taught)


OTHER_PROCESS = """
import sys
import memlayers
import torch
from peft import AutoPeftModelForCausalLM
torch.set_num_threads(1)
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
"""


def test_another_process_loads_the_same_bits(
    warm_python: Any, tiny_backbone: Build, ids: Tensor, tmp_path: Path
) -> None:
    backbone = _saved(tiny_backbone(), tmp_path / "backbone")
    model = get_peft_model(backbone, MemoryConfig(recipe="dense", pool_dtype="bfloat16", gate=True, **SMALL))
    fill(model)
    model.save_pretrained(tmp_path / "memory")
    torch.save(ids, tmp_path / "ids")
    arguments = [str(tmp_path / name) for name in ("memory", "ids", "logits")]
    done = warm_python.run(OTHER_PROCESS, *arguments)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits"), logits(model.eval(), ids))


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
    fill(model)
    for number, layer in enumerate(memory_layers(model)):
        query: Any = layer.memlayers_query["default"]
        layer.set_addressing("default", torch.full((32,), 0.1 * number), query.projection + number, scale=2.0)
        gate: Any = layer.memlayers_gate["default"]
        gate.mean.fill_(0.1)
        gate.std.fill_(0.9)
        gate.threshold.fill_(0.05)
        gate.trained.fill_(1)
    gated = logits(model, ids)
    set_gate_enabled(model, False)
    assert not torch.equal(logits(model, ids), gated)
    set_gate_enabled(model, True)
    assert torch.equal(logits(model, ids), gated)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_backbone(), tmp_path)
    assert torch.equal(logits(loaded, ids), gated)


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
def test_transformers_loads_and_adds_adapters(tiny_backbone: Build, ids: Tensor, tmp_path: Path, recipe: str) -> None:
    config = MemoryConfig(recipe=recipe, gate=True, pool_dtype="bfloat16", **SMALL)
    model = get_peft_model(tiny_backbone(), config).eval()
    fill(model)
    for layer in memory_layers(model):
        layer.memlayers_query["default"].mean.fill_(0.1)
        layer.memlayers_gate["default"].trained.fill_(1)
    model.save_pretrained(tmp_path / "memory")
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    for name in ("default", "second"):
        backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
        bare = logits(backbone, ids)
        backbone.load_adapter(str(tmp_path / "memory"), adapter_name=name)
        assert torch.equal(logits(backbone, ids), logits(model, ids))
        assert memory_handle(backbone, name).pool.weight.dtype == torch.bfloat16
        backbone.disable_adapters()
        assert torch.equal(logits(backbone, ids), bare)
        backbone.enable_adapters()
        backbone.add_adapter(MemoryConfig(**SMALL), adapter_name="fresh")
        assert torch.equal(logits(backbone, ids), bare)
        backbone.set_adapter(name)
        assert torch.equal(logits(backbone, ids), logits(model, ids))
        backbone.delete_adapter(name)
        assert not memory_layers(backbone, name) and len(memory_layers(backbone, "fresh")) == 3


def test_a_model_card_says_first_what_loading_needs(tiny_backbone: Build, tmp_path: Path) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(**SMALL))
    for _ in range(2):
        model.save_pretrained(str(tmp_path))
        card = (tmp_path / "README.md").read_text(encoding="utf-8")
        body = card.split("---\n", 2)[2].strip()
        assert body.startswith("**To load it, `import memlayers` first**") and card.count("import memlayers") == 1
