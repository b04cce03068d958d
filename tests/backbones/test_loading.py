from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

from memlayers.backbones import (
    backbone_fingerprint,
    check_fingerprint,
    find_mlp_blocks,
    lasting_name,
    load_backbone,
    loading,
    quiet_wrapping,
)
from memlayers.tuner import MemoryConfig
from memlayers.utils.errors import InputError

Build = Callable[..., PreTrainedModel]


def test_loads_a_frozen_backbone(tinystories: Path) -> None:
    model, tokenizer = load_backbone(tinystories)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("Once upon a time")["input_ids"]
    assert len(find_mlp_blocks(model)) == model.config.num_hidden_layers
    half, _ = load_backbone(tinystories, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    check_fingerprint(backbone_fingerprint(model), half)


def _one_line(error: pytest.ExceptionInfo[InputError]) -> bool:
    return "\n" not in str(error.value)


def test_a_wrong_path_says_how_to_mend_it(tmp_path: Path) -> None:
    for wrong in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="give 'pocket', the folder of a causal LM") as error:
            load_backbone(wrong)
        assert str(wrong) in str(error.value) and _one_line(error)


def test_missing_weights_are_named(tinystories: Path, tmp_path: Path) -> None:
    for file in tinystories.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="cannot load the backbone") as error:
        load_backbone(tmp_path)
    assert _one_line(error)
    weights = load_file(tinystories / "model.safetensors")
    gone = next(name for name in weights if "down_proj" in name)
    save_file({name: weight for name, weight in weights.items() if name != gone}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"lacks 1 weights, {gone}"):
        load_backbone(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match="cannot load the backbone") as error:
        load_backbone(tmp_path)
    assert _one_line(error)


def test_an_encoder_is_refused_in_one_line(tmp_path: Path, tinystories: Path) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    for file in tinystories.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="decoder-only causal LM") as error:
        load_backbone(tmp_path)
    assert _one_line(error)


@pytest.mark.parametrize("name", ["Pocket", "POCKET", "pockt"])
def test_a_slip_of_the_pen_for_pocket_is_told_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match=f"cannot load the backbone '{name}': .*did you mean 'pocket'") as error:
        load_backbone(name)
    assert _one_line(error)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Session:
        def head(self, url: str, **options: object) -> None:
            asked.append(options)
            raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("the hub is tried again"))
    with pytest.raises(InputError, match="'nobody/no-such-model': no such folder, nothing downloaded") as error:
        load_backbone("nobody/no-such-model")
    assert _one_line(error) and len(asked) == 1 and asked[0]["timeout"] <= 5


@pytest.mark.parametrize(
    ("saved", "instructions", "least", "expected"),
    [
        ("bfloat16", True, 0, torch.bfloat16),
        ("bfloat16", True, 10**9, torch.float32),  # too small to gain
        ("bfloat16", False, 0, torch.float32),
        ("float16", True, 0, torch.float32),
        ("float32", True, 0, torch.float32),
    ],
)
def test_auto_on_a_cpu_is_bfloat16_only_where_that_is_faster(
    saved: str, instructions: bool, least: int, expected: torch.dtype,
    chat_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(loading, "_has_bfloat16", lambda: instructions)
    monkeypatch.setattr(loading, "_LEAST_BFLOAT16", least)
    load_backbone(chat_backbone, saved)[0].save_pretrained(tmp_path)
    for file in chat_backbone.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_backbone(tmp_path)[0].dtype == load_backbone(tmp_path, device="cpu")[0].dtype == expected
    assert load_backbone(tmp_path, "bfloat16")[0].dtype == torch.bfloat16


def test_an_older_torch_that_does_not_tell_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert loading._has_bfloat16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not loading._has_bfloat16()


def test_wrapping_brings_no_warning(chat_backbone: Path) -> None:
    model, _ = load_backbone(chat_backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_wrapping():
            get_peft_model(model, MemoryConfig(layers=[1], sub_keys=4, top_k=2))


def test_a_path_lasts_and_a_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "pocket").mkdir()
    monkeypatch.chdir(tmp_path)
    assert lasting_name("own") == lasting_name("./own") == str(tmp_path / "own")
    for name in ("pocket", "smollm2", "organisation/name"):
        assert lasting_name(name) == name
