"""Loading a frozen backbone, and the device that it goes to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memlayers.backbones.blocks import find_mlp_blocks
from memlayers.backbones.gguf import load_gguf
from memlayers.config.named_backbones import NAMED_BACKBONES, fetched_folder
from memlayers.utils.errors import InputError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POCKET = Path(__file__).parents[1] / "pocket"

_HUB_SECONDS = 5.0  # to answer
_LEAST_BFLOAT16 = 100_000_000  # parameters: below, a CPU spends its time on other things than products of matrices


def load_backbone(
    name_or_path: str | Path, dtype: str | torch.dtype = "auto", device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a frozen causal LM and its tokenizer.

    Args:
        name_or_path: "pocket" for the embedded backbone; "smollm2", "qwen" or "gemma" where it was fetched
            (`fetch_backbone`); a local folder; a GGUF file, which needs the package gguf; or a name on the Hugging Face
            hub.
        dtype: of the weights; "auto" is the checkpoint's own (of a GGUF file, bfloat16), but on a CPU float32, unless
            the checkpoint is bfloat16, the CPU has instructions for it, and the backbone is large enough to gain.
        device: where to put the model; None leaves it on the CPU.

    Returns:
        The model, in eval mode and with no parameter requiring a gradient, and its tokenizer.

    Raises:
        InputError: no such file, folder or name, one that was not fetched, not a causal LM, or weights missing.
    """
    name = str(name_or_path)
    source = _source(name)
    widens = dtype == "auto" and torch.device(device or "cpu").type == "cpu"
    if widens and not _has_bfloat16():
        dtype = torch.float32
    is_file = _is_gguf(source)
    reached = is_file or Path(source).is_dir() or _hub_is_reached(name)

    def load(dtype: str | torch.dtype) -> tuple[Any, PreTrainedTokenizerBase, dict[str, Any]]:
        return load_gguf(Path(source), dtype) if is_file else _load(source, dtype, reached)

    try:
        model, tokenizer, info = load(dtype)
        if widens and model.dtype != torch.float32 and not _gains_by_bfloat16(model):
            del model  # never both at once
            model, tokenizer, info = load(torch.float32)
    except InputError:
        raise
    except Exception as error:  # OSError, ValueError, the safetensors parser's own: all of them bad input
        reason = reason_of(error)
        if not reached and isinstance(error, OSError):
            reason = "no such folder, nothing downloaded under this name, and the hub cannot be reached"
        raise InputError(
            f"cannot load the backbone {name!r}: {reason}; give 'pocket', the folder of a causal LM with its weights "
            "and tokenizer, a .gguf file, or its name on the Hugging Face hub"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(
            f"the backbone {name!r} lacks {len(missing)} weights, {missing[0]} first; "
            "get the whole checkpoint again, or name a causal LM"
        )
    if not tokenizer.encode("a", add_special_tokens=False):  # transformers makes an empty one where files are missing
        raise InputError(f"the backbone {name!r} has no tokenizer files; get the whole checkpoint again")
    try:
        find_mlp_blocks(model)
    except InputError as error:
        raise InputError(f"the backbone {name!r}: {error}") from error
    model.requires_grad_(False).eval()
    return (model if device is None else model.to(device)), tokenizer


def lasting_name(name: str) -> str:
    """The name by which a backbone is found again from any folder: a path made absolute, any other name as it is."""
    is_path = name != "pocket" and name not in NAMED_BACKBONES and Path(name).exists()
    return str(Path(name).absolute()) if is_path else name


def _source(name: str) -> str:
    """The folder of a short name, which stands before a file, a folder or a name on the hub; these as they are.

    Raises:
        InputError: a short name that was not fetched, or a GGUF file that is not there.
    """
    if name == "pocket":
        return str(POCKET)
    if name in NAMED_BACKBONES:
        return str(fetched_folder(name))
    if _is_gguf(name) and not Path(name).is_file():
        raise InputError(f"cannot load the backbone {name!r}: no such file; check the path")
    return name


def _is_gguf(name: str) -> bool:
    return name.casefold().endswith(".gguf") and not Path(name).is_dir()


def _load(source: str, dtype: str | torch.dtype, reached: bool) -> tuple[Any, PreTrainedTokenizerBase, dict[str, Any]]:
    """The model of a folder or of a name on the hub, its tokenizer, and what transformers says of the loading."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    here: dict[str, Any] = {} if reached else {"local_files_only": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, output_loading_info=True, **here, adapter_kwargs=dict(here)
    )
    model, info = loaded
    return model, AutoTokenizer.from_pretrained(source, **here), info


def _hub_is_reached(name: str) -> bool:
    """Whether the hub answers; asked once, as its client would try for a minute, file by file.

    Args:
        name: of the backbone, which is no folder.

    Raises:
        InputError: it is a slip of the pen for "pocket" or another short name.
    """
    if meant := get_close_matches(name.casefold(), ["pocket", *NAMED_BACKBONES], cutoff=0.8):
        raise InputError(f"cannot load the backbone {name!r}: no such folder; did you mean {meant[0]!r}?")
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
        reason = reason_of(error)
        raise InputError(f"device {name!r} cannot be used ({reason}); take cpu, cuda or cuda:0") from error
    return device


def device_chosen(name: str | None) -> torch.device:
    """`device_named`; None takes a GPU where there is one."""
    return device_named(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _has_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16 matrices.

    Measured (docs/LOG.md): with AVX-512 BF16 a model of 135 million parameters runs 1.6 to 2.1 times as fast as in
    float32; on a CPU with AVX2 alone, a seventh as fast.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch has it from 2.11 on
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _gains_by_bfloat16(model: PreTrainedModel) -> bool:
    """Whether such a CPU runs a model as it is faster than in float32."""
    return model.dtype == torch.bfloat16 and model.num_parameters() >= _LEAST_BFLOAT16
