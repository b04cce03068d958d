from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
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

from memlayers.backbones import (
    adds_residual,
    backbone_fingerprint,
    check_fingerprint,
    default_layers,
    find_mlp_blocks,
    load_backbone,
    quiet_wrapping,
)
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


def test_auto_is_float32_on_a_cpu_as_on_the_command_line(tiny_backbone: Build, chat_backbone: Path, tmp_path: Path):
    load_backbone(chat_backbone, "bfloat16")[0].save_pretrained(tmp_path)
    for file in chat_backbone.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_backbone(tmp_path)[0].dtype == load_backbone(tmp_path, device="cpu")[0].dtype == torch.float32
    assert load_backbone(tmp_path, "bfloat16")[0].dtype == torch.bfloat16


def test_wrapping_brings_no_warning(chat_backbone: Path) -> None:
    model, _ = load_backbone(chat_backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_wrapping():
            get_peft_model(model, MemoryConfig(layers=[1], sub_keys=4, top_k=2))
