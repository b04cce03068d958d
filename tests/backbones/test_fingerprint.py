from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from memlayers.backbones import backbone_fingerprint, check_fingerprint
from memlayers.utils.errors import InputError

Build = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fingerprint_survives_dtype_and_added_tokens(tiny_backbone: Build, dtype: torch.dtype) -> None:
    fingerprint = json.loads(json.dumps(backbone_fingerprint(tiny_backbone(vocab_size=80))))
    assert len(fingerprint["probe"]) == 8
    other = tiny_backbone(vocab_size=80).to(dtype)
    other.resize_token_embeddings(96, mean_resizing=False)
    check_fingerprint(fingerprint, other)


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("qwen2", {"seed": 1}, "embedding weights differ"),
        ("qwen2", {"num_hidden_layers": 3}, "layers is 3 and not 4"),
        ("qwen2", {"hidden_size": 48}, "hidden_size is 48 and not 32"),
        ("qwen2", {"vocab_size": 63}, "vocab_size is 63 and not 64"),
        ("llama", {}, "model_type is llama and not qwen2"),
    ],
)
def test_the_fingerprint_tells_backbones_apart(
    tiny_backbone: Build, family: str, change: dict[str, int], named: str
) -> None:
    fingerprint = backbone_fingerprint(tiny_backbone())
    with pytest.raises(InputError, match=named):
        check_fingerprint(fingerprint, tiny_backbone(family, **change))
