"""Fixtures shared by the tests: tiny random backbones and the real checkpoint of ../shared/data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_SIZES = {"n_embd": 32, "n_inner": 48, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 64}
OVERRIDES: dict[str, dict[str, Any]] = {
    "qwen3": {**SIZES, "head_dim": 8},
    "gemma": {**SIZES, "head_dim": 8},
    "gpt2": {**GPT2_SIZES, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_backbone() -> Callable[..., PreTrainedModel]:
    """`tiny_backbone(family="qwen2", seed=0, **config)`: a random LM, hidden 32, 4 layers, 64 tokens."""

    def build(family: str = "qwen2", seed: int = 0, **config: Any) -> PreTrainedModel:
        sizes = {**OVERRIDES.get(family, SIZES), **config}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()

    return build


@pytest.fixture
def ids() -> torch.Tensor:
    """Input ids [3, 9] for the tiny backbones, none of them the end token."""
    return torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tinystories() -> Path:
    """The folder of a really pretrained 656k-parameter Llama."""
    path = Path(__file__).parents[2] / "shared" / "data" / "tinystories-656k"
    if not path.is_dir():
        pytest.skip(f"the real checkpoint is not at {path}")
    return path
