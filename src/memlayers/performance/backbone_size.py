"""The size of a backbone, from its configuration alone. Loads no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from memlayers.config.named_backbones import NAMED_BACKBONES, fetched_folder
from memlayers.utils.errors import InputError, reason_of

GIB: Final = 2**30
CONFIGS: Final = Path(__file__).parent / "backbone_configs"
POCKET_CONFIG: Final = Path(__file__).parents[1] / "pocket" / "config.json"
BYTES: Final[Mapping[str, int]] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1})


@dataclass(frozen=True, slots=True)
class Backbone:
    """What a plan needs to know of a backbone.

    Attributes:
        name: as it was asked for.
        hidden: width of the residual stream, d.
        inner: width of an MLP's inner layer.
        depth: decoder layers.
        heads: attention heads.
        attention: width of all heads together.
        vocabulary: tokens.
        linear: weights in linear layers, which quantisation shrinks.
        other: weights in embeddings (and an untied head), norms and biases.
        kv: width of all key heads together; 0 for `attention`.
    """

    name: str
    hidden: int
    inner: int
    depth: int
    heads: int
    attention: int
    vocabulary: int
    linear: int
    other: int
    kv: int = 0

    @property
    def weights(self) -> int:
        """All of them."""
        return self.linear + self.other

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the weights: "float32", "bfloat16", "8-bit" or "4-bit" (linear layers; the rest in bfloat16).

        4-bit counts bitsandbytes' NF4: half a byte, and a float32 scale per 64 weights, itself in 8 bits by double
        quantisation (0.127 bits a weight).
        """
        if dtype in BYTES:
            return self.weights * BYTES[dtype]
        per_weight = 1.0 if dtype == "8-bit" else 0.5 + 0.127 / 8
        return int(self.linear * per_weight) + 2 * self.other


def read_backbone(name: str) -> Backbone:
    """Finds a backbone's config: "pocket", a fetched or a shipped name, a config.json, a folder with one, a GGUF file.

    Raises:
        InputError: there is none, or it lacks a number.
    """
    shipped = {path.stem: path for path in sorted(CONFIGS.glob("*.json"))}
    short = name.rsplit("/", 1)[-1].lower().removesuffix("-instruct")
    path = Path(name)
    if name == "pocket":
        path = POCKET_CONFIG
    elif name in NAMED_BACKBONES:
        path = fetched_folder(name)
    elif not path.exists() and short in shipped:
        path = shipped[short]
    path = path / "config.json" if path.is_dir() else path
    if path.suffix.casefold() == ".gguf":
        return _read_gguf(name, path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{name}: no config of this backbone here; take pocket, {', '.join(shipped)}, or the path of a config.json "
            "or a .gguf file"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a config ({error}); give the backbone's config.json") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a config; give the backbone's config.json")
    if path.parent == CONFIGS:
        name = name if "/" in name else config["_name_or_path"]  # what the hub calls it, so that `teach` finds it
    elif path == Path(name):
        name = str(path.parent)
    config = config.get("text_config", config)
    try:
        return _count(name, config) if config.get("model_type") in _KNOWN else _count_by_building(name, config)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error} is missing or wrong; give the backbone's own config.json") from error


def _read_gguf(name: str, path: Path) -> Backbone:
    """Reads the shapes in a GGUF file, none of its weights.

    Raises:
        InputError: no such file, one that is none or lacks a number, or the package gguf is missing.
    """
    from memlayers.backbones.gguf import require_gguf

    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    require_gguf()
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        family = reader.fields["general.architecture"].contents()

        def number(key: str, default: int | None = None) -> int:
            field = reader.fields.get(f"{family}.{key}")
            if field is None and default is None:
                raise KeyError(f"{family}.{key}")
            found: Any = default if field is None else field.contents()
            return int(max(found) if isinstance(found, list) else found)  # some families: one for each layer

        sizes = {str(tensor.name): [int(size) for size in tensor.shape] for tensor in reader.tensors}
        d, depth, heads = number("embedding_length"), number("block_count"), number("attention.head_count")
        head_dim, kv_heads = number("attention.key_length", d // heads), number("attention.head_count_kv", heads)
        linear = sum(
            math.prod(shape) for key, shape in sizes.items() if key.startswith("blk.") and len(shape) > 1
        )  # fmt: skip
        return Backbone(
            name, d, number("feed_forward_length"), depth, heads, heads * head_dim,
            math.prod(sizes["token_embd.weight"]) // d, linear, sum(map(math.prod, sizes.values())) - linear,
            kv_heads * head_dim,
        )  # fmt: skip
    except Exception as error:  # as the package pleases
        raise InputError(f"{path}: cannot be read as a GGUF file ({reason_of(error)}); give a whole one") from error


_KNOWN: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma")


def _count(name: str, config: dict[str, Any]) -> Backbone:
    """Counts the weights of a decoder with gated MLPs, as Llama and Qwen2 are."""
    d, inner, depth = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, vocabulary, kind = config["num_attention_heads"], config["vocab_size"], config["model_type"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or d // heads
    attention, kv = heads * head_dim, kv_heads * head_dim
    linear = depth * (2 * d * attention + 2 * d * kv + 3 * d * inner)
    biases = attention + 2 * kv if kind == "qwen2" or config.get("attention_bias") else 0
    biases += d if config.get("attention_bias") and kind != "qwen2" else 0
    biases += 2 * inner + d if config.get("mlp_bias") and kind == "llama" else 0
    norms = 2 * d + (2 * head_dim if kind == "qwen3" else 0)
    tied = config.get("tie_word_embeddings", kind == "gemma")
    other = depth * (biases + norms) + d + vocabulary * d * (1 if tied else 2)
    return Backbone(name, d, inner, depth, heads, attention, vocabulary, linear, other, kv)


def _count_by_building(name: str, config: dict[str, Any]) -> Backbone:
    """Counts the weights of any other causal LM by building it without storage."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    built = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(built)
    linear = sum(
        module.weight.numel() for key, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not key.endswith("lm_head")
    )  # fmt: skip
    total = sum(parameter.numel() for parameter in model.parameters())
    d, heads = int(built.hidden_size), int(built.num_attention_heads)
    inner = int(getattr(built, "intermediate_size", None) or getattr(built, "n_inner", None) or 4 * d)
    head_dim = int(getattr(built, "head_dim", None) or d // heads)
    kv = head_dim * int(getattr(built, "num_key_value_heads", None) or heads)
    return Backbone(
        name, d, inner, int(built.num_hidden_layers), heads, heads * head_dim, int(built.vocab_size), linear,
        total - linear, kv,
    )  # fmt: skip


def default_layers(depth: int) -> tuple[int, ...]:
    """6, 14 and 22 of 28, scaled, as `backbones.default_layers`."""
    return tuple(sorted({min(round(layer * depth / 28), depth - 1) for layer in (6, 14, 22)}))
