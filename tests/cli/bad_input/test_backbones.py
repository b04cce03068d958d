"""Bad input: backbones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import T5Config

from helpers.bad_input import Refused


def test_a_backbone_that_is_not_a_causal_lm(refused: Refused, teaching: list[object], bert: Path, tmp_path: Path):
    assert str(bert) in refused(*teaching, "--backbone", bert)
    T5Config(d_model=32, num_layers=2).save_pretrained(tmp_path / "t5")
    line = refused(*teaching, "--backbone", tmp_path / "t5")
    assert str(tmp_path / "t5") in line and "causal LM" in line


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", None])
def test_a_backbone_with_a_file_missing(
    lost: str | None, refused: Refused, teaching: list[object], chat_backbone: Path, tmp_path: Path
):
    folder = tmp_path / "backbone"
    if lost is None:
        folder.mkdir()
    else:
        shutil.copytree(chat_backbone, folder)
        (folder / lost).unlink()
    line = refused(*teaching, "--backbone", folder)
    assert str(folder) in line and "; give 'pocket', the folder of a causal LM" in line


def test_a_backbone_without_a_tokenizer(refused: Refused, teaching: list[object], chat_backbone: Path, tmp_path: Path):
    folder = shutil.copytree(chat_backbone, tmp_path / "backbone")
    (folder / "tokenizer.json").unlink()
    line = refused(*teaching, "--backbone", folder)
    assert line.startswith(f"the backbone {str(folder)!r} has no tokenizer")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert f"the backbone {str(folder)!r}" in refused(*teaching, "--backbone", folder)


def test_a_backbone_with_weights_missing(refused: Refused, teaching: list[object], chat_backbone: Path, tmp_path: Path):
    folder = shutil.copytree(chat_backbone, tmp_path / "backbone")
    weights = load_file(folder / "model.safetensors")
    lost = "model.layers.3.mlp.up_proj.weight"
    save_file({name: w for name, w in weights.items() if name != lost}, folder / "model.safetensors", {"format": "pt"})
    line = refused(*teaching, "--backbone", folder)
    assert str(folder) in line and f"lacks 1 weights, {lost} first" in line


def test_a_truncated_backbone(refused: Refused, teaching: list[object], chat_backbone: Path, tmp_path: Path):
    folder = shutil.copytree(chat_backbone, tmp_path / "backbone")
    os.truncate(folder / "model.safetensors", 1000)
    assert str(folder) in refused(*teaching, "--backbone", folder)


@pytest.mark.parametrize("name", ["no/such/folder/here", "./none", "none", "a b", "", "/dev/null"])
def test_a_backbone_that_is_nowhere(name: str, refused: Refused, teaching: list[object], tmp_path: Path):
    line = refused(*teaching, "--backbone", name)
    assert line.startswith(f"cannot load the backbone {name!r}: ") and "give 'pocket'" in line
