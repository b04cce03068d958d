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
    "attention_mask position_embeddings past_key_values past_key_value layer_past cache_params".split()
)
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
    """Finds the MLP blocks of a decoder-only causal LM by structure.

    The decoder is the longest ModuleList whose blocks all have an MLP, and some of them an attention. An
    attention's forward takes a mask, positions or a cache; an MLP's has one required argument, and it holds
    several weight matrices, which tells it from a norm or a single projection.

    Args:
        model: a transformers causal LM, bare, wrapped by peft, or with memory layers already in place.

    Returns:
        Module names, as in `model.named_modules()`, in layer order.

    Raises:
        InputError: the model is not a causal LM, or none of its block lists looks like that.
    """
    _require_causal_lm(model)
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            mlps = [_mlp_name(block) for block in module]
            paths = [f"{name}.{index}.{mlp}" for index, mlp in enumerate(mlps) if mlp is not None]
            if len(paths) == len(module) > len(found) and any(map(_has_attention, module)):
                found = paths
    if not found:
        raise InputError(
            f"no MLP blocks found in {type(model).__name__}; a memory needs a decoder-only causal LM whose "
            "layers hold an attention and an MLP module"
        )
    return found


def default_layers(depth: int) -> list[int]:
    """The layers that get a memory by default: 6, 14 and 22 of 28, scaled to `depth` layers.

    Returns:
        One to three distinct layer numbers in ascending order: 8 -> [2, 4, 6], 2 -> [0, 1], 1 -> [0].
    """
    return sorted({min(round(layer * depth / _REFERENCE_DEPTH), depth - 1) for layer in _REFERENCE_LAYERS})


def hidden_size(model: nn.Module) -> int:
    """The width of the backbone's residual stream."""
    return int(_text_config(model).hidden_size)


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


def _require_causal_lm(model: Any) -> None:
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    generates = bare.can_generate() if hasattr(bare, "can_generate") else True
    if not generates or getattr(getattr(bare, "config", None), "is_encoder_decoder", False):
        raise InputError(f"{type(bare).__name__} is not a decoder-only causal LM; load one with AutoModelForCausalLM")


def _unwrap(module: nn.Module) -> nn.Module:
    """The backbone's own module inside peft's layers, memory layers among them."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def _forward_parameters(module: nn.Module) -> list[inspect.Parameter]:
    # The class's forward: hooks (accelerate) replace the instance's.
    return list(inspect.signature(type(module).forward).parameters.values())[1:]


def _is_attention(module: nn.Module) -> bool:
    return any(parameter.name in _SEQUENCE_ARGUMENTS for parameter in _forward_parameters(module))


def _is_mlp(module: nn.Module) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [parameter for parameter in _forward_parameters(module) if parameter.kind in positional]
    required = [parameter for parameter in parameters if parameter.default is inspect.Parameter.empty]
    matrices = sum(parameter.dim() >= 2 for parameter in module.parameters())
    return len(required) == 1 and matrices >= 2 and not _is_attention(module)


def _children(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, _unwrap(child)) for name, child in block.named_children())


def _mlp_name(block: nn.Module) -> str | None:
    return next((name for name, child in _children(block) if _is_mlp(child)), None)


def _has_attention(block: nn.Module) -> bool:
    return any(_is_attention(child) for _, child in _children(block))


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
