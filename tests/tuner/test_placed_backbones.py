"""A memory on a backbone whose weights lie elsewhere, or are stored in four bits, and with a quantised cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, QuantizedCache
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from helpers.tuner import NAME, SMALL, logits, seen, taught
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers

Build = Callable[..., PreTrainedModel]
IDS = torch.tensor([[3, *NAME, 5, 6, 7, 8], [9, 10, *NAME, 11, 12, 13]])


def _gradient(model: Any) -> Tensor:
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    dense: Tensor = memory_handle(model).pool.weight.grad.to_dense()  # type: ignore[union-attr]
    return dense


@pytest.mark.parametrize("places", ["disk", "all on disk", "cpu"])
def test_a_backbone_offloaded_by_a_device_map_runs_as_the_whole_one(
    tiny_backbone: Build, tmp_path: Path, places: str
) -> None:
    whole = tiny_backbone()
    whole.save_pretrained(tmp_path / "backbone")
    disk = {"disk": {1}, "all on disk": {1, 2, 3}, "cpu": set()}[places]  # memory layers are 1, 2 and 3
    device_map = {
        **dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu"),
        **{f"model.layers.{i}": "disk" if i in disk else "cpu" for i in range(4)},
    }
    placed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "backbone", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    expected, model = taught(whole), taught(placed)
    assert any(parameter.is_meta for parameter in placed.parameters()) == bool(disk)
    for layer in memory_layers(model):
        assert not any(p.is_meta for name, p in layer.named_parameters() if "base_layer" not in name)
    assert torch.equal(logits(model, IDS), logits(expected, IDS))
    torch.testing.assert_close(_gradient(model), _gradient(expected))
    said = [
        each.generate(input_ids=IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
        for each in (model, expected)
    ]
    assert torch.equal(*said)


def test_a_backbone_in_four_bits_gives_the_gradient_of_its_weights(tiny_backbone: Build, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install 'memlayers[quant]')")
    from transformers import BitsAndBytesConfig

    tiny_backbone(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    in_four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    stored = [
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=in_four, device_map="cpu") for _ in range(2)
    ]
    assert isinstance(stored[0].model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
    weights = stored[1].dequantize()
    # Always in training mode: answering, bitsandbytes packs the weights for a CPU so that they have no backward.
    found, expected = (_gradient(taught(backbone).train()) for backbone in (stored[0], weights))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert expected.any()


def test_a_quantised_cache_keeps_the_history(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    cache = QuantizedCache("fp8", model.config)
    pieces = [seen(model, piece, past_key_values=cache, use_cache=True) for piece in IDS.split([3, 1, 3], 1)]
    found = torch.cat([each.subjects["default"].view(2, -1) for each in pieces], 1)
    assert torch.equal(found, seen(model, IDS).subjects["default"].view(2, -1)) and found.any()


def test_continuous_batching_without_an_attention_that_keeps_its_keys_says_so(
    tiny_backbone: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers runs it in a thread of its own, whose errors it logs."""
    model = taught(tiny_backbone("mistral", sliding_window=4))
    model.base_model.model.set_attn_implementation("paged|sdpa")
    batch = model.generate_batch(
        inputs=[IDS[0].tolist()],
        generation_config=GenerationConfig(max_new_tokens=2, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=64, block_size=8, max_batch_tokens=24),
    )
    assert not any(out.generated_tokens for out in batch.values())
    assert "needs an attention that keeps all of its keys, which this backbone lacks: use generate" in caplog.text


def test_an_untrained_memory_on_a_meta_backbone_is_built_for_loading(tiny_backbone: Build) -> None:
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(tiny_backbone().config)
    model = get_peft_model(backbone, MemoryConfig(**SMALL))
    assert memory_handle(model).pool.slots == 64
