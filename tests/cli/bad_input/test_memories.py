"""Bad input: memories."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.bad_input import Refused


def test_a_folder_that_is_no_memory(refused: Refused, chat_backbone: Path, tmp_path: Path):
    for folder in (tmp_path, chat_backbone, tmp_path / "none", "/dev/null"):
        assert refused("ask", folder, "Who?").startswith(f"{folder}: not a memory folder")
        assert refused("eval", folder, "--text", __file__, "--out", tmp_path / "x.json").startswith(f"{folder}: not a")


def test_an_adapter_of_another_method(refused: Refused, chat_backbone: Path, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(chat_backbone)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    line = refused("ask", tmp_path / "lora", "Who?")
    assert line == f"{tmp_path / 'lora'}: an adapter of another method; give a folder that `memlayers teach` wrote"


def _other_backbone(source: Path, folder: Path, seed: int, **sizes: int) -> Path:
    own = AutoConfig.from_pretrained(source).to_dict()
    config = AutoConfig.for_model(own.pop("model_type"), **{**own, "layer_types": None, **sizes})
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"hidden_size": 48}, "hidden_size is 48 and not 32"),
        ({"num_hidden_layers": 2}, "layers is 2 and not 4"),
        ({}, "its embedding weights differ"),
    ],
)
def test_a_memory_on_another_backbone(
    sizes: dict[str, int], said: str, refused: Refused, memory: Path, chat_backbone: Path, tmp_path: Path
):
    other = _other_backbone(chat_backbone, tmp_path / "other", 7, **sizes)
    line = refused("ask", memory, "Who?", "--backbone", other)
    assert line.startswith(f"{memory}: this memory was made for another backbone") and said in line


def test_a_backbone_that_has_moved(refused: Refused, memory: Path, tmp_path: Path):
    path = memory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "backbone": str(tmp_path / "gone")}))
    assert str(tmp_path / "gone") in refused("ask", memory, "Who?")
    path.write_text(json.dumps({**json.loads(path.read_text()), "backbone": None, "base_model_name_or_path": None}))
    assert refused("ask", memory, "Who?") == f"{memory}: names no backbone; say which with --backbone"


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_adapter(keep: int, refused: Refused, memory: Path):
    weights = memory / "adapter_model.safetensors"
    os.truncate(weights, keep if keep >= 0 else weights.stat().st_size + keep)
    assert refused("ask", memory, "Who?").startswith(f"{memory}: damaged or incomplete memory (")


def test_a_corrupted_adapter(refused: Refused, memory: Path):
    weights = memory / "adapter_model.safetensors"
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])
    assert refused("ask", memory, "Who?").startswith(f"{memory}: damaged or incomplete memory (")


def test_a_missing_adapter_file(refused: Refused, memory: Path):
    (memory / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in refused("ask", memory, "Who?")


def test_an_adapter_with_weights_missing(refused: Refused, memory: Path):
    weights = load_file(memory / "adapter_model.safetensors")
    for name in weights:
        save_file({k: w for k, w in weights.items() if k != name}, memory / "adapter_model.safetensors")
        assert refused("ask", memory, "Who?").startswith(
            f"{memory}: incomplete memory, adapter_model.safetensors lacks 1 of"
        )


def test_an_adapter_of_another_size(refused: Refused, memory: Path):
    path = memory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sub_keys": 4}))
    assert refused("ask", memory, "Who?").startswith(f"{memory}: damaged or incomplete memory (")


def test_an_adapter_with_values_that_are_not_finite(refused: Refused, memory: Path):
    weights = load_file(memory / "adapter_model.safetensors")
    pool = next(name for name in weights if "memlayers_pool" in name)
    weights[pool][3, 5] = float("nan")
    save_file(weights, memory / "adapter_model.safetensors")
    assert "not finite" in refused("ask", memory, "Who?")


@pytest.mark.parametrize(
    "change",
    [
        {"layers": "x"}, {"layers": [99]}, {"fingerprint": [1]}, {"fingerprint": {"probe": "x"}}, {"recipe": "none"},
        {"backbone": 5}, {"heads": None}, {"sub_keys": "8"}, {"pool_dtype": "int3"}, {"peft_type": None},
    ],
)  # fmt: skip
def test_an_adapter_config_with_wrong_values(change: dict[str, Any], refused: Refused, memory: Path):
    path = memory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    line = refused("ask", memory, "Who?")
    assert str(memory) in line or "backbone '5'" in line


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"peft_type": "MEMLAYERS"', b"\xff\xfe", b"[" * 9999])
def test_a_damaged_adapter_config(data: bytes, refused: Refused, memory: Path):
    (memory / "adapter_config.json").write_bytes(data)
    assert refused("ask", memory, "Who?").startswith(str(memory))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"facts": 1, "config": {"x": 1}, "environment": {}}'])
def test_a_damaged_record_of_teaching(text: str, refused: Refused, memory: Path, facts: Path, tmp_path: Path):
    (memory / "teaching.json").write_text(text)
    line = refused("eval", memory, "--facts", facts, "--out", tmp_path / "scores.json", "--device", "cpu", "--quiet")
    assert line.startswith(f"{memory / 'teaching.json'}: damaged record")
