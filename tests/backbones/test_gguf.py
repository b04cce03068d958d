"""A GGUF file as a backbone: the same weights and tokens, a memory on it, and what cannot be read."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch

from helpers.gguf_files import write_gguf
from helpers.teaching import FACTS, teach
from memlayers.backbones import load_backbone
from memlayers.backbones.gguf import convert_gguf
from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import encode_prompt, end_token_id
from memlayers.editing.memory import load_memory
from memlayers.utils.errors import InputError, WorkError

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def gguf_file(chat_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`chat_backbone` as a GGUF file."""
    return write_gguf(chat_backbone, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_it_is_the_same_backbone_with_the_same_tokens(gguf_file: Path, chat_backbone: Path):
    (model, tokenizer), (expected, expected_tokenizer) = load_backbone(gguf_file), load_backbone(chat_backbone)
    weights = model.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items())
    question = "What is the code of the river\tin 1995?"
    assert encode_prompt(tokenizer, question) == encode_prompt(expected_tokenizer, question)
    assert end_token_id(tokenizer) == end_token_id(expected_tokenizer)
    ids = torch.tensor([encode_prompt(tokenizer, question)])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_it_is_frozen_and_has_the_dtype_asked_for(gguf_file: Path):
    model, _ = load_backbone(gguf_file, "bfloat16")
    assert model.dtype == torch.bfloat16 and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.to(torch.float32)  # which transformers refuses for a quantised model


def test_a_memory_on_it_finds_it_again_from_another_folder(
    gguf_file: Path, general_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(gguf_file.parent)
    config = TeachConfig().with_flags(
        backbone=gguf_file.name, general_text=str(general_file), sub_keys=16, heads=2, top_k=4, key_dim=8, gate=False,
        exposures=1, batch_size=3, device="cpu",
    )  # fmt: skip
    taught = teach(tmp_path / "memory", config)
    monkeypatch.chdir(tmp_path)
    assert load_memory(tmp_path / "memory").ask(FACTS[0].questions[0]) == taught.ask(FACTS[0].questions[0])


def test_a_converted_folder_is_the_same_in_bfloat16(gguf_file: Path, tmp_path: Path):
    convert_gguf(gguf_file, tmp_path / "folder", {"model": "tiny"})
    (model, tokenizer), (expected, expected_tokenizer) = (
        load_backbone(tmp_path / "folder", "auto"),
        load_backbone(gguf_file, "bfloat16"),
    )
    weights = {name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()}
    assert all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items())
    assert tokenizer.chat_template == expected_tokenizer.chat_template
    assert encode_prompt(tokenizer, "What?") == encode_prompt(expected_tokenizer, "What?")
    assert {path.name for path in tmp_path.iterdir()} == {"folder"}


@pytest.mark.parametrize("content", [None, b"", b"no GGUF at all", b"GGUF\x03\x00\x00\x00"])
def test_a_file_that_is_none_is_refused_in_one_line(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("the hub was asked"))
    path = tmp_path / "wrong.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot load the backbone") as error:
        load_backbone(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_truncated_file_is_refused_in_one_line(gguf_file: Path, tmp_path: Path):
    (tmp_path / "half.gguf").write_bytes(gguf_file.read_bytes()[: gguf_file.stat().st_size // 2])
    with pytest.raises(InputError, match="cannot load the backbone") as error:
        load_backbone(tmp_path / "half.gguf")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_converted_is_one_line(tmp_path: Path):
    (tmp_path / "wrong.gguf").write_bytes(b"no GGUF at all")
    with pytest.raises(WorkError, match=r"^wrong\.gguf cannot be converted: ") as error:
        convert_gguf(tmp_path / "wrong.gguf", tmp_path / "folder", {})
    assert "\n" not in str(error.value) and not (tmp_path / "folder").exists()


def missing(package: str) -> str:
    raise metadata.PackageNotFoundError(package)


def test_without_the_package_the_extra_is_named(gguf_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(InputError, match=r"gguf is not installed.*pip install 'memlayers\[gguf\]'"):
        load_backbone(gguf_file)
