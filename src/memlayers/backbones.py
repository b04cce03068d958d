"""Backbones: loading one, finding its MLP blocks by structure, and telling one from another."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POCKET = Path(__file__).parent / "pocket"

# An attention, or a recurrent mixer in its place, takes one of these; an MLP works on each token by itself.
_SEQUENCE_ARGUMENTS = frozenset(
    "attention_mask position_embeddings past_key_values past_key_value layer_past cache_params state".split()
)
_RESIDUAL = "residual"  # what an MLP that adds it itself calls it
_NEEDED = "take a decoder-only causal LM whose layers hold an attention and an MLP module"
_REFERENCE_LAYERS, _REFERENCE_DEPTH = (6, 14, 22), 28  # Qwen2.5-7B in the v0.2 reference recipe
_HUB_SECONDS = 5.0  # to answer
_PROBE_ROWS = 64  # added tokens come after these
_PROBE_TOLERANCE = 0.02  # bf16 and fp16 copies of one backbone differ by < 0.002, two backbones by about 1


def load_backbone(
    name_or_path: str | Path, dtype: str | torch.dtype = "auto", device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a frozen causal LM and its tokenizer.

    Args:
        name_or_path: "pocket" for the embedded backbone, a local folder, or a name on the Hugging Face hub.
        dtype: of the weights; "auto" is float32 on a CPU, the checkpoint's own elsewhere.
        device: where to put the model; None leaves it on the CPU.

    Returns:
        The model, in eval mode and with no parameter requiring a gradient, and its tokenizer.

    Raises:
        InputError: no such folder or name, not a causal LM, or weights missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = str(name_or_path)
    source = str(POCKET) if name == "pocket" else name
    if isinstance(dtype, str):
        dtype = dtype_on(torch.device(device or "cpu"), dtype)
    reached = Path(source).is_dir() or _hub_is_reached(name)
    here: dict[str, Any] = {} if reached else {"local_files_only": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **here, adapter_kwargs=dict(here)
        )
        model, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(source, **here)
    except Exception as error:  # OSError, ValueError, the safetensors parser's own: all of them bad input
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if not reached and isinstance(error, OSError):
            reason = "no such folder, nothing downloaded under this name, and the hub cannot be reached"
        raise InputError(
            f"cannot load the backbone {name!r}: {reason}; give 'pocket', the folder of a causal LM with its weights "
            "and tokenizer, or its name on the Hugging Face hub"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(
            f"the backbone {str(name_or_path)!r} lacks {len(missing)} weights, {missing[0]} first; "
            "get the whole checkpoint again, or name a causal LM"
        )
    if not tokenizer.encode("a", add_special_tokens=False):  # transformers makes an empty one where files are missing
        raise InputError(f"the backbone {str(name_or_path)!r} has no tokenizer files; get the whole checkpoint again")
    try:
        find_mlp_blocks(model)
    except InputError as error:
        raise InputError(f"the backbone {str(name_or_path)!r}: {error}") from error
    model.requires_grad_(False).eval()
    return (model if device is None else model.to(device)), tokenizer


def _hub_is_reached(name: str) -> bool:
    """Whether the hub answers; asked once, as its client would try for a minute, file by file.

    Args:
        name: of the backbone, which is no folder.

    Raises:
        InputError: it is a slip of the pen for "pocket".
    """
    if get_close_matches(name.casefold(), ["pocket"], cutoff=0.8):
        raise InputError(f"cannot load the backbone {name!r}: no such folder; did you mean 'pocket'?")
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # as the client it is made on pleases
        return False
    return True


@contextmanager
def quiet_wrapping() -> Iterator[None]:
    """A block in which peft wraps a model without the warning that this alone brings about.

    peft 0.21 asks every model for `is_gradient_checkpointing`, which transformers 5.23 deprecates.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def device_named(name: str) -> torch.device:
    """The device of this name, tried out.

    Raises:
        InputError: there is none on this machine.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # AssertionError, RuntimeError, NotImplementedError, as the device pleases
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"device {name!r} cannot be used ({reason}); take cpu, cuda or cuda:0") from error
    return device


def device_chosen(name: str | None) -> torch.device:
    """`device_named`; None takes a GPU where there is one."""
    return device_named(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def dtype_on(device: torch.device, dtype: str) -> str:
    """What "auto" stands for: float32 on a CPU, the checkpoint's own (still "auto") elsewhere."""
    return "float32" if dtype == "auto" and device.type == "cpu" else dtype


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
    depth = getattr(_text_config(bare), "num_hidden_layers", None) if width is not None else None
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
    width = getattr(_text_config(model), "hidden_size", None)
    if width is None:
        raise InputError(f"{type(model).__name__}'s config has no hidden_size; {_NEEDED}")
    return int(width)


def context_length(model: nn.Module) -> int:
    """The most tokens the backbone reads at once; a very large number where its config names none."""
    return int(getattr(_text_config(model), "max_position_embeddings", None) or 1_000_000)


def backbone_fingerprint(model: nn.Module) -> dict[str, Any]:
    """What tells one backbone from another in any dtype and with any tokens added.

    Returns:
        {"model_type": str, "hidden_size": int, "layers": int, "vocab_size": int, "probe": 8 floats}, fit for
        JSON. The probe is the RMS of the input embedding's first 64 rows and 7 projections of these rows in
        units of it; empty where the weights are not at hand (meta device).
    """
    config = _text_config(model)
    return {
        "model_type": config.model_type,
        "hidden_size": hidden_size(model),
        "layers": len(find_mlp_blocks(model)),
        "vocab_size": int(config.vocab_size),
        "probe": _probe(model),
    }


def check_fingerprint(expected: dict[str, Any], model: nn.Module) -> None:
    """Checks that `model` is the backbone that `expected` was taken from.

    Raises:
        InputError: naming what differs. A larger vocabulary (added tokens) is no difference.
    """
    actual = backbone_fingerprint(model)
    differing = [key for key in ("model_type", "hidden_size", "layers") if expected.get(key) != actual[key]]
    if actual["vocab_size"] < expected.get("vocab_size", 0):
        differing.append("vocab_size")
    described = [f"{key} is {actual[key]} and not {expected.get(key)}" for key in differing]
    if not described and not _same_probe(expected.get("probe", []), actual["probe"]):
        described = ["its embedding weights differ"]
    if described:
        raise InputError(
            f"this memory was made for another backbone: {', '.join(described)}; load the backbone it was "
            "taught on, or teach a memory for this one"
        )


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    if config is None:
        raise InputError(f"{type(model).__name__} has no config; a memory needs a transformers causal LM")
    return config.get_text_config(decoder=True)


def _width(model: nn.Module) -> int | None:
    """`hidden_size`; None for a model without a config."""
    return None if getattr(model, "config", None) is None else hidden_size(model)


def _require_causal_lm(model: Any) -> nn.Module:
    """The model without peft around it."""
    bare = model
    while hasattr(bare, "get_base_model"):  # a memory over LoRA: twice
        bare = bare.get_base_model()
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
    text = None if getattr(model, "config", None) is None else _text_config(model)

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


@torch.no_grad()
def _probe(model: Any) -> list[float]:
    weight = model.get_input_embeddings().weight
    if weight.is_meta:
        return []
    rows = weight[:_PROBE_ROWS].to("cpu", torch.float64).flatten()
    rms = float(rows.square().mean().sqrt())
    # Cosines of incommensurable frequencies: near-orthogonal directions that need no random generator.
    positions = torch.arange(rows.numel(), dtype=torch.float64)
    waves = [torch.cos(math.sqrt(prime) * (positions + 1)) for prime in (2, 3, 5, 7, 11, 13, 17)]
    scale = math.sqrt(2 / rows.numel()) / max(rms, 1e-30)
    return [round(value, 6) for value in (rms, *(float(rows @ wave) * scale for wave in waves))]


def _same_probe(expected: list[float], actual: list[float]) -> bool:
    if not expected or not actual:
        return True
    (rms, *projections), (actual_rms, *actual_projections) = expected, actual
    return abs(rms - actual_rms) <= _PROBE_TOLERANCE * max(abs(rms), abs(actual_rms)) and all(
        abs(a - b) <= _PROBE_TOLERANCE for a, b in zip(projections, actual_projections, strict=True)
    )
