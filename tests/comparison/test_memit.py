"""MEMIT: that an edit is what its equation says, and that what is edited is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from helpers.teaching import FACTS
from memlayers.backbones import POCKET
from memlayers.comparison import memit
from memlayers.comparison.memit import Memit, edited_modules
from memlayers.config.teach import TeachConfig
from memlayers.data.fact_files import read_facts
from memlayers.utils.errors import InputError


@pytest.fixture
def method(chat_backbone: Path, general_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Memit:
    monkeypatch.setattr(memit, "STEPS", 2)
    monkeypatch.setattr(memit, "LAST", 14)
    config = TeachConfig().with_flags(backbone=str(chat_backbone), general_text=str(general_file), device="cpu")
    return Memit(config, tmp_path / "work", quiet=True)


def test_an_edit_is_recalled_and_moves_only_the_down_projections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"STEPS": 80, "RATE": 1.0, "LARGEST": 20.0, "WORDINGS": 1, "LAMBDAS": (1.5,)}.items():
        monkeypatch.setattr(memit, name, value)
    monkeypatch.setattr(memit, "COVARIANCE_TOKENS", 2000)
    # Without a subject the prompt's last token is edited: the pocket is too small to be convinced anywhere else.
    fact = replace(read_facts(POCKET / "demo.jsonl")[0], subject="")
    method = Memit(TeachConfig().with_flags(device="cpu"), tmp_path, quiet=True)
    method.load()
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    assert method.ask(fact.questions[:1]) != [fact.answer]
    method.teach([fact])
    assert method.ask(fact.questions[:1]) == [fact.answer]
    changed = {name for name, value in method.model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == len(method.downs) and all(name.endswith("down_proj.weight") for name in changed)
    assert method.stored_bytes() == sum(down.weight.nbytes for down in method.downs)
    assert method.tokens > 0 and method.note.startswith("layers ")


def test_an_edit_brings_the_residual_stream_to_its_target(method: Memit) -> None:
    method.teach(FACTS[:2])
    places = [method._places(fact) for fact in FACTS[2:4]]
    now = method._averaged(places, method.behind)
    targets = now + 0.1 * torch.randn(now.shape, generator=torch.Generator().manual_seed(0))
    method._edit(places, targets, 1e-9)
    missing = (targets - method._averaged(places, method.behind)).norm() / (targets - now).norm()
    assert missing < 0.2
    method._edit(places, now, 1e12)  # what must be kept outweighs all
    assert torch.allclose(method._averaged(places, method.behind), targets, atol=0.05)


def test_the_covariance_is_that_of_all_keys(method: Memit) -> None:
    method.teach(FACTS[:1])
    texts = [[3, 4, 5], [6, 7]]
    kept: list[torch.Tensor] = []
    for _, (state,), real in method._forwards(texts, [method.downs[0]], inputs=True):
        kept.append(state[real])
    keys = torch.cat(kept)
    assert keys.shape == (5, method.downs[0].in_features)
    assert all(torch.allclose(each, each.T) and each.diagonal().min() >= 0 for each in method.covariances)


def test_a_backbone_without_linear_down_projections_is_one_line(
    tiny_backbone: Callable[..., PreTrainedModel],
) -> None:
    with pytest.raises(InputError, match="no linear down-projection that MEMIT could edit"):
        edited_modules(tiny_backbone("gpt2"), [0])
    downs, behind = edited_modules(tiny_backbone("llama"), [1, 2])
    assert [down.out_features for down in downs] == [32, 32] and type(behind).__name__ == "LlamaDecoderLayer"
