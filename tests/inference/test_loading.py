from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlayers.backbones import load_backbone
from memlayers.data.encoding import encode_prompt
from memlayers.editing.memory import load_memory
from memlayers.inference.generation import answer_questions
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers
from memlayers.tuner.handle import without_memory
from memlayers.utils.errors import InputError

WEIGHTS = "adapter_model.safetensors"
QUESTIONS = ["What is the code of Ada?", "Who?"]


@pytest.fixture(scope="module")
def made(chat_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A memory folder with a gate that is closed for all tokens, the model it was saved from, the tokenizer."""
    model, tokenizer = load_backbone(chat_backbone, "float32")
    config = MemoryConfig(sub_keys=8, heads=2, top_k=3, gate=True, gate_hidden=8, backbone=str(chat_backbone))
    model = get_peft_model(model, config).eval()
    memory_handle(model, "default").pool.initialise("normal", 0)
    for layer in memory_layers(model):
        gate: Any = layer.memlayers_gate["default"]
        gate.threshold.fill_(1e9)
        gate.trained.fill_(1)
    folder = tmp_path_factory.mktemp("made") / "memory"
    model.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.fixture
def folder(made: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    """A copy of the memory folder, to be damaged."""
    return Path(shutil.copytree(made[0], tmp_path / "memory"))


@torch.no_grad()
def _logits(model: Any, tokenizer: Any) -> Tensor:
    return model(torch.tensor([encode_prompt(tokenizer, QUESTIONS[0])])).logits


def _refused(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as told:
        load_memory(folder, **options)
    assert "\n" not in str(told.value)
    assert str(folder) in str(told.value)
    return str(told.value)


def test_a_loaded_memory_is_the_one_that_was_saved(made: tuple[Path, Any, Any], chat_backbone: Path) -> None:
    folder, model, tokenizer = made
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded = load_memory(folder)
    assert not loaded.model.training
    assert torch.equal(_logits(loaded.model, loaded.tokenizer), _logits(model, tokenizer))
    before, after = model.state_dict(), loaded.model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(_logits(load_memory(folder, backbone=chat_backbone).model, tokenizer), _logits(model, tokenizer))


def test_without_the_gate_every_token_reads(made: tuple[Path, Any, Any], chat_backbone: Path) -> None:
    folder, model, tokenizer = made
    bare, _ = load_backbone(chat_backbone, "float32")
    gated, always_on = load_memory(folder), load_memory(folder, gate=False)
    assert torch.equal(_logits(gated.model, tokenizer), _logits(bare, tokenizer))
    assert not torch.equal(_logits(always_on.model, tokenizer), _logits(bare, tokenizer))
    given = always_on.ask(QUESTIONS)
    assert [answer.question for answer in given] == QUESTIONS
    assert [answer.backbone for answer in given] == answer_questions(bare, tokenizer, QUESTIONS)
    assert [answer.memory for answer in given] == answer_questions(always_on.model, tokenizer, QUESTIONS)
    assert any(answer.memory != answer.backbone for answer in given)
    assert all(answer.memory == answer.backbone for answer in gated.ask(QUESTIONS))


def test_the_backbone_can_run_in_bfloat16(made: tuple[Path, Any, Any]) -> None:
    memory = load_memory(made[0], dtype="bfloat16")
    assert memory.model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    assert memory_handle(memory.model, "default").pool.weight.dtype == torch.float32
    assert len(memory.ask(QUESTIONS)) == 2


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_a_pool_of_another_format_is_loaded_as_it_was_saved(chat_backbone: Path, tmp_path: Path, dtype: str) -> None:
    model, tokenizer = load_backbone(chat_backbone, "float32")
    config = MemoryConfig(sub_keys=8, heads=2, top_k=3, pool_dtype=dtype, backbone=str(chat_backbone))
    model = get_peft_model(model, config).eval()
    pool = memory_handle(model, "default").pool
    pool.initialise("normal", 0)
    model.save_pretrained(tmp_path / "memory")
    loaded = load_memory(tmp_path / "memory")
    for ours, theirs in zip(memory_handle(loaded.model, "default").pool.table, pool.table, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.dtype == theirs.dtype and torch.equal(ours, theirs))
    with_it = _logits(loaded.model, tokenizer)
    assert torch.equal(with_it, _logits(model, tokenizer))
    with without_memory(model):
        assert not torch.equal(with_it, _logits(model, tokenizer))


def _other_weights(backbone: Any) -> None:
    backbone.get_input_embeddings().weight.data.neg_()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_weights, "made for another backbone: its embedding weights differ"),
        ({"hidden_size": 16}, "made for another backbone: hidden_size is 16 and not 32"),
        ({"num_hidden_layers": 2}, "made for another backbone: layers is 2 and not 4"),
    ],
    ids=["weights", "width", "depth"],
)
def test_another_backbone_is_refused(
    folder: Path, chat_backbone: Path, tmp_path: Path, change: Any, message: str
) -> None:
    backbone, tokenizer = load_backbone(chat_backbone, "float32")
    if callable(change):
        change(backbone)
    else:
        config = type(backbone.config)(**{**backbone.config.to_dict(), "layer_types": None, **change})
        backbone = type(backbone)(config)
    backbone.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    assert message in _refused(folder, backbone=tmp_path / "other")


def test_a_folder_that_is_no_memory_says_so(folder: Path, tmp_path: Path) -> None:
    assert "no adapter_config.json" in _refused(tmp_path / "absent")
    (folder / WEIGHTS).rename(folder / "elsewhere")
    assert f"{WEIGHTS} is missing" in _refused(folder)
    (folder / "adapter_config.json").unlink()
    assert "no adapter_config.json" in _refused(folder)


def test_another_methods_adapter_is_refused(chat_backbone: Path, tmp_path: Path) -> None:
    model, _ = load_backbone(chat_backbone, "float32")
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    assert "adapter of another method" in _refused(tmp_path / "lora")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_refused(folder: Path, keep: float) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: int(keep * len(whole))])
    assert "damaged or incomplete memory" in _refused(folder)


@pytest.mark.parametrize("part", ["memlayers_pool.weight", "memlayers_query.scale", "memlayers_gate.hidden_weight"])
def test_a_file_that_lacks_a_tensor_is_refused_by_name(folder: Path, part: str, recwarn: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    lacking = sorted(name for name in tensors if name.endswith(part))
    assert lacking
    save_file({name: value for name, value in tensors.items() if name != lacking[0]}, folder / WEIGHTS)
    told = _refused(folder)
    assert f"lacks 1 of its {len(tensors)} tensors, {lacking[0]} first" in told
    assert not [warning for warning in recwarn if "missing adapter keys" in str(warning.message)]


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("memlayers_pool.weight"))
    save_file({**tensors, name: tensors[name][:-1].clone()}, folder / WEIGHTS)
    assert "damaged or incomplete memory" in _refused(folder)


def _set(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **values})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[]", "another method"),
        (_set(sub_keys=0), "sub_keys is 0"),
        (_set(layers=[9]), "layer 9 is out of range"),
        (_set(backbone=None, base_model_name_or_path=None), "names no backbone"),
    ],
    ids=["cut", "empty", "list", "value", "layer", "backbone"],
)
def test_a_damaged_config_is_refused(folder: Path, damage: Callable[[str], str], message: str) -> None:
    path = folder / "adapter_config.json"
    path.write_text(damage(path.read_text()))
    assert message in _refused(folder)


def test_a_backbone_that_is_gone_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot load the backbone .*gone"):
        load_memory(folder, backbone=tmp_path / "gone")
