from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from memlayers.backbones import adds_residual, default_layers, find_mlp_blocks
from memlayers.tuner import MemoryConfig
from memlayers.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
BLOCKS = {
    "qwen2": "model.layers.{}.mlp",
    "qwen3": "model.layers.{}.mlp",
    "llama": "model.layers.{}.mlp",
    "mistral": "model.layers.{}.mlp",
    "gemma": "model.layers.{}.mlp",
    "phi3": "model.layers.{}.mlp",
    "gpt2": "transformer.h.{}.mlp",
    "gpt_neox": "gpt_neox.layers.{}.mlp",
    "mixtral": "model.layers.{}.mlp",
}


@pytest.mark.parametrize("family", BLOCKS)
def test_finds_the_mlp_blocks_by_structure(tiny_backbone: Build, family: str) -> None:
    assert find_mlp_blocks(tiny_backbone(family)) == [BLOCKS[family].format(layer) for layer in range(4)]


def test_finds_them_through_peft_and_beside_memory_layers(tiny_backbone: Build) -> None:
    memory = get_peft_model(tiny_backbone(), MemoryConfig(layers=[1], sub_keys=4, top_k=2))
    lora = get_peft_model(tiny_backbone(), LoraConfig(target_modules=["q_proj", "up_proj"]))
    for model in (memory, lora):
        assert find_mlp_blocks(model) == [f"base_model.model.model.layers.{layer}.mlp" for layer in range(4)]


def on_meta(name: str, **config: Any) -> Any:
    """A model of this class and of its config's own sizes, without weights."""
    kind = getattr(transformers, name)
    with torch.device("meta"):
        return kind(kind.config_class(**config))


def seeing_gemma() -> PreTrainedModel:
    """A text decoder of 3 layers beside a vision tower as wide and deeper."""
    text: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 64}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=50, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config)


def test_a_multimodal_model_gets_its_memory_in_the_text_decoder() -> None:
    paths = [f"model.language_model.layers.{layer}.mlp" for layer in range(3)]
    assert find_mlp_blocks(seeing_gemma()) == paths
    lora = get_peft_model(seeing_gemma(), LoraConfig(target_modules=["q_proj", "up_proj"]))
    assert find_mlp_blocks(lora) == [f"base_model.model.{path}" for path in paths]
    memory = get_peft_model(lora, MemoryConfig(layers=[2], sub_keys=4, top_k=2))
    assert find_mlp_blocks(memory) == [f"base_model.model.base_model.model.{path}" for path in paths]
    assert memory.peft_config["default"].fingerprint["layers"] == 3
    assert memory.peft_config["default"].target_modules == [f"base_model.model.{paths[2]}"]


@pytest.mark.parametrize(
    "name",
    [
        "Ernie4_5_VLMoeForConditionalGeneration",
        "Exaone4_5_ForConditionalGeneration",
        "IdeficsForVisionText2Text",
        "InternVLForConditionalGeneration",
        "Llama4ForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "PaliGemmaForConditionalGeneration",
        "Qwen2AudioForConditionalGeneration",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
        "Step3p7ForConditionalGeneration",
        "VoxtralForConditionalGeneration",
    ],
)
def test_towers_for_images_and_sound_are_left_alone(name: str) -> None:
    """Some of these towers are deeper than the decoder, some as deep."""
    model = on_meta(name)
    decoder = set(model.get_decoder().modules())
    blocks = find_mlp_blocks(model)
    assert len(blocks) == model.config.get_text_config(decoder=True).num_hidden_layers
    assert all(model.get_submodule(block) in decoder for block in blocks)


@pytest.mark.parametrize(("name", "block"), [("BloomForCausalLM", "h.{}.mlp"), ("MptForCausalLM", "blocks.{}.ffn")])
def test_an_mlp_that_adds_the_residual_is_found_and_told_apart(name: str, block: str) -> None:
    model = on_meta(name)
    blocks = find_mlp_blocks(model)
    assert blocks == [f"transformer.{block}".format(layer) for layer in range(model.config.num_hidden_layers)]
    assert all(adds_residual(model.get_submodule(path)) for path in blocks)
    memory = get_peft_model(model, MemoryConfig(layers=[0], sub_keys=4, top_k=2))
    assert adds_residual(memory.base_model.model.get_submodule(blocks[0]))


def test_most_mlps_do_not_add_the_residual(tiny_backbone: Build) -> None:
    model = tiny_backbone()
    assert not any(adds_residual(model.get_submodule(path)) for path in find_mlp_blocks(model))


def test_layers_without_an_mlp_are_not_counted() -> None:
    """In NemotronH an MLP is a layer of its own; in Zamba2 it is inside a transformer block inside some layers."""
    kinds = ["mamba", "mlp", "attention", "mlp", "moe"]
    nemotron = on_meta("NemotronHForCausalLM", layers_block_type=kinds)
    assert find_mlp_blocks(nemotron) == [f"model.layers.{layer}.mixer" for layer in (1, 3, 4)]
    zamba = on_meta("Zamba2ForCausalLM", num_hidden_layers=6, layers_block_type=["mamba", "hybrid", "mamba"] * 2)
    hybrid = "model.layers.{}.shared_transformer.feed_forward"
    assert find_mlp_blocks(zamba) == [hybrid.format(1), hybrid.format(4)]


def test_an_mlp_that_layers_share_counts_once(tiny_backbone: Build) -> None:
    model: Any = tiny_backbone()
    model.model.layers[2].mlp = model.model.layers[1].mlp
    assert find_mlp_blocks(model) == [f"model.layers.{layer}.mlp" for layer in (0, 1, 3)]


def test_mlps_of_another_width_than_the_residual_stream_are_refused(tiny_backbone: Build) -> None:
    model: Any = tiny_backbone()
    for layer in model.model.layers:
        layer.mlp = torch.nn.Sequential(torch.nn.Linear(24, 20), torch.nn.Linear(20, 24))
    with pytest.raises(InputError, match="hold MLPs of another width than its residual stream, 32;"):
        find_mlp_blocks(model)


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("OPTForCausalLM", "'s layers hold fc1 and fc2 and no MLP module to add a memory to;"),
        ("XGLMForCausalLM", "'s layers hold fc1 and fc2 and no MLP module to add a memory to;"),
        ("RobertaForCausalLM", "'s layers hold intermediate and output and no MLP module to add a memory to;"),
        ("GitForCausalLM", "'s layers hold intermediate and output and no MLP module to add a memory to;"),
        ("MambaForCausalLM", "'s layers hold mixer, which mixes tokens, and no MLP module to add a memory to;"),
        ("RwkvForCausalLM", "'s layers hold attention and feed_forward, which mix tokens, and no MLP module to add"),
        ("XLNetLMHeadModel", "'s layers hold rel_attn and ff and no attention;"),
        ("BltForCausalLM", "'s config has no hidden_size;"),
    ],
)
def test_a_refusal_says_what_the_layers_hold(name: str, holds: str) -> None:
    with pytest.raises(InputError, match=f"^{name}{holds}") as error:
        find_mlp_blocks(on_meta(name))
    assert _one_line(error)


def test_refuses_what_is_no_causal_lm(tiny_backbone: Build, tmp_path: Path) -> None:
    encoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    t5 = T5Config(d_model=32, d_ff=48, num_layers=2, num_heads=2, d_kv=8, vocab_size=64)
    for model in (BertLMHeadModel(BertConfig(**encoder)), T5ForConditionalGeneration(t5)):
        with pytest.raises(InputError, match="causal LM"):
            find_mlp_blocks(model)
    headless = AutoModel.from_config(tiny_backbone().config)
    with pytest.raises(InputError, match="Qwen2Model is not a decoder-only causal LM"):
        find_mlp_blocks(headless)
    with pytest.raises(InputError, match="no MLP blocks"):
        find_mlp_blocks(torch.nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(28, [6, 14, 22]), (8, [2, 4, 6]), (4, [1, 2, 3]), (2, [0, 1]), (1, [0]), (80, [17, 40, 63])],
)
def test_default_layers(depth: int, layers: list[int]) -> None:
    assert default_layers(depth) == layers


def _one_line(error: pytest.ExceptionInfo[InputError]) -> bool:
    return "\n" not in str(error.value)
