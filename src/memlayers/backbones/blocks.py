"""The MLP blocks of a backbone, found by structure, and the sizes that its config names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from memlayers.utils.errors import InputError

# An attention, or a recurrent mixer in its place, takes one of these; an MLP works on each token by itself.
_SEQUENCE_ARGUMENTS = frozenset(
    "attention_mask position_embeddings past_key_values past_key_value layer_past cache_params state".split()
)
_RESIDUAL = "residual"  # what an MLP that adds it itself calls it
_NEEDED = "take a decoder-only causal LM whose layers hold an attention and an MLP module"
_REFERENCE_LAYERS, _REFERENCE_DEPTH = (6, 14, 22), 28  # Qwen2.5-7B in the v0.2 reference recipe


def find_mlp_blocks(model: nn.Module) -> list[str]:
    """Finds the MLP blocks of a causal LM's text decoder by structure.

    An attention's forward, or that of a recurrent mixer, takes a mask, positions or a cache. An MLP's has one required
    argument, and a `residual` besides in some families (`adds_residual`); it holds several weight matrices, one of them
    as wide as the residual stream, which tells it from a norm or a single projection. The decoder's layers are a
    ModuleList whose blocks hold both. A list under another config than the text decoder's is a tower for images or
    sound. Of several lists the one as long as the config says is taken, then the one with the most MLPs.

    Not every layer needs an MLP: in hybrid models some have a mixer alone, or an MLP is a layer of its own. An MLP
    module that several layers share counts once, at the first of them.

    Args:
        model: a transformers causal LM, bare, inside a multimodal model, wrapped by peft, or with memory layers already
            in place.

    Returns:
        Module names, as in `model.named_modules()`, in layer order; of the layers that have an MLP.

    Raises:
        InputError: the model is not a causal LM, or its layers hold no such MLP; the message says what they hold.
    """
    bare = _require_causal_lm(model)
    lists = _layer_lists(model)
    width = _width(bare)
    depth = getattr(text_config(bare), "num_hidden_layers", None) if width is not None else None
    found: list[str] = []
    rank = (False, 0)
    for name, layers in lists.items():
        paths = _mlp_paths(name, layers, width) if any(map(_has_attention, layers)) else []
        if paths and (len(layers) == depth, len(paths)) > rank:
            found, rank = paths, (len(layers) == depth, len(paths))
    if not found:
        raise InputError(_what_is_missing(type(bare).__name__, list(lists.values()), width))
    return found


def adds_residual(mlp: nn.Module) -> bool:
    """Whether an MLP block's output includes the residual stream, which its forward then takes as `residual`.

    So in BLOOM and MPT. What is added to this output reaches the residual stream just the same.

    Args:
        mlp: the block, bare or wrapped by peft.
    """
    return any(parameter.name == _RESIDUAL for parameter in _forward_parameters(_unwrap(mlp)))


def default_layers(depth: int) -> list[int]:
    """The layers that get a memory by default: 6, 14 and 22 of 28, scaled to `depth` layers.

    Returns:
        One to three distinct layer numbers in ascending order: 8 -> [2, 4, 6], 2 -> [0, 1], 1 -> [0].
    """
    return sorted({min(round(layer * depth / _REFERENCE_DEPTH), depth - 1) for layer in _REFERENCE_LAYERS})


def hidden_size(model: nn.Module) -> int:
    """The width of the backbone's residual stream.

    Raises:
        InputError: its config does not say.
    """
    width = getattr(text_config(model), "hidden_size", None)
    if width is None:
        raise InputError(f"{type(model).__name__}'s config has no hidden_size; {_NEEDED}")
    return int(width)


def context_length(model: nn.Module) -> int:
    """The most tokens the backbone reads at once; a very large number where its config names none."""
    return int(getattr(text_config(model), "max_position_embeddings", None) or 1_000_000)


def takes_logits_to_keep(model: Any) -> bool:
    """Whether the model's head can be applied to some positions alone (`logits_to_keep`)."""
    bare = _unwrapped(model)
    return "logits_to_keep" in inspect.signature(bare.forward).parameters


def text_config(model: nn.Module) -> Any:
    """The config of the text decoder.

    Raises:
        InputError: the model has none.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        raise InputError(f"{type(model).__name__} has no config; a memory needs a transformers causal LM")
    return config.get_text_config(decoder=True)


def _width(model: nn.Module) -> int | None:
    """`hidden_size`; None for a model without a config."""
    return None if getattr(model, "config", None) is None else hidden_size(model)


def _unwrapped(model: Any) -> Any:
    """What peft has wrapped, a memory over LoRA twice; a model that says it is its own base is."""
    while hasattr(model, "get_base_model") and model.get_base_model() is not model:
        model = model.get_base_model()
    return model


def _require_causal_lm(model: Any) -> nn.Module:
    """The model without peft around it."""
    bare = _unwrapped(model)
    generates = bare.can_generate() if hasattr(bare, "can_generate") else True
    if not generates or getattr(getattr(bare, "config", None), "is_encoder_decoder", False):
        raise InputError(f"{type(bare).__name__} is not a decoder-only causal LM; load one with AutoModelForCausalLM")
    assert isinstance(bare, nn.Module)
    return bare


def _unwrap(module: nn.Module) -> nn.Module:
    """The backbone's own module inside peft's layers, memory layers among them."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def _layer_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The ModuleLists by name that belong to the text decoder: no other config lies between them and the model's."""
    modules = dict(model.named_modules())
    text = None if getattr(model, "config", None) is None else text_config(model)

    def is_text(name: str) -> bool:
        while name and not hasattr(getattr(modules[name], "config", None), "get_text_config"):
            name = name.rpartition(".")[0]
        if text is None or not name:
            return True
        config: Any = modules[name].config.get_text_config(decoder=True)
        return type(config) is type(text) and getattr(config, "hidden_size", None) == text.hidden_size

    return {name: module for name, module in modules.items() if isinstance(module, nn.ModuleList) and is_text(name)}


def _mlp_paths(name: str, layers: nn.ModuleList, width: int | None) -> list[str]:
    """The names of the MLPs that the layers of a list hold, each module once."""
    paths: dict[int, str] = {}
    for index, layer in enumerate(layers):
        mlp = _mlp_name(layer, width)
        if mlp is not None:
            paths.setdefault(id(layer.get_submodule(mlp)), f"{name}.{index}.{mlp}")
    return list(paths.values())


def _forward_parameters(module: nn.Module) -> list[inspect.Parameter]:
    # The class's forward: hooks (accelerate) replace the instance's.
    return list(inspect.signature(type(module).forward).parameters.values())[1:]


def _is_attention(module: nn.Module) -> bool:
    return any(parameter.name in _SEQUENCE_ARGUMENTS for parameter in _forward_parameters(module))


def _is_mlp(module: nn.Module, width: int | None = None) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [parameter for parameter in _forward_parameters(module) if parameter.kind in positional]
    required = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    if len(required) != 1 and required[1:] != [_RESIDUAL]:
        return False
    return _matrices(module) >= 2 and not _is_attention(module) and (width is None or width in _widths(module))


def _matrices(module: nn.Module) -> int:
    return sum(parameter.dim() >= 2 for parameter in module.parameters())


def _widths(module: nn.Module) -> set[int]:
    """The sizes of its weight matrices; a quantised one is stored in another shape, but its module says its size."""
    shapes = {size for parameter in module.parameters() if parameter.dim() >= 2 for size in parameter.shape}
    return shapes | {getattr(part, "in_features", 0) for part in module.modules()}


def _children(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, _unwrap(child)) for name, child in block.named_children())


def _mlp_name(block: nn.Module, width: int | None = None) -> str | None:
    """The name, within a layer, of its MLP; that of a whole transformer block within the layer where it has none."""
    own = next((name for name, child in _children(block) if _is_mlp(child, width)), None)
    if own is not None:
        return own
    nested = ((name, _mlp_name(child, width)) for name, child in block.named_children() if _has_attention(child))
    return next((f"{name}.{inner}" for name, inner in nested if inner is not None), None)


def _has_attention(block: nn.Module) -> bool:
    lists = (child for child in block.children() if isinstance(child, nn.ModuleList))
    return any(_is_attention(child) for part in (block, *lists) for _, child in _children(part))


def _what_is_missing(model: str, lists: list[nn.ModuleList], width: int | None) -> str:
    """The line for a model, named, none of whose lists of layers holds MLPs to add a memory to."""
    layers = max((each for each in lists if _matrices(each)), key=len, default=None)
    if layers is None:
        return f"no MLP blocks found in {model}; {_NEEDED}"
    parts = {name: child for name, child in _children(layers[0]) if _matrices(child)}
    mixers = [name for name, child in parts.items() if _is_attention(child)]
    names = [name for name in parts if name not in mixers] or mixers
    held = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    if any(map(_is_mlp, parts.values())):
        lacking = f"MLPs of another width than its residual stream, {width}" if mixers else f"{held} and no attention"
        return f"{model}'s layers hold {lacking}; {_NEEDED}"
    mixing = f", which {'mix' if names[1:] else 'mixes'} tokens," if names == mixers else ""
    return f"{model}'s layers hold {held}{mixing} and no MLP module to add a memory to; {_NEEDED}"
