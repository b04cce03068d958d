"""Loads a memory's folder, as `teach` or ``save_pretrained`` wrote it, on the backbone that it belongs to."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayers.backbones import device_chosen, load_backbone, quiet_wrapping
from memlayers.inference.folder import WEIGHTS_FILE, read_adapter_config
from memlayers.tuner import set_gate_enabled
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_adapter(
    folder: str | Path,
    *,
    backbone: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    gate: bool = True,
    loaded: tuple[Any, PreTrainedTokenizerBase] | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Loads a backbone and puts a memory on it.

    Args:
        folder: an adapter folder.
        backbone: "pocket", a folder or a hub name; None for the one the memory was taught on.
        dtype: of the backbone; as in `load_backbone`.
        device: None chooses.
        gate: False reads the memory for every token.
        loaded: the backbone and its tokenizer, where they are loaded already; the memory is put on this very model.

    Returns:
        The PEFT model, in eval mode, and the backbone's tokenizer.

    Raises:
        InputError: not a memory folder, a damaged one, or one made for another backbone.
    """
    from peft import PeftModel

    folder = Path(folder)
    if loaded is None:
        loaded = load_backbone(backbone_named(folder, backbone), dtype, device_chosen(device))
    model, tokenizer = loaded
    try:
        with (
            quiet_wrapping(),
            warnings.catch_warnings(),
        ):  # peft warns of missing tensors and goes on; below they are an error
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            memory = PeftModel.from_pretrained(model, str(folder))
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except Exception as error:  # torch's size mismatches, the safetensors parser's own errors
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"{folder}: damaged or incomplete memory ({reason}); teach it again or restore a copy"
        ) from error
    _require_whole(memory, folder)
    set_gate_enabled(memory, gate)
    return memory.eval(), tokenizer


def backbone_named(folder: str | Path, backbone: str | Path | None = None) -> str | Path:
    """Which backbone a memory belongs on: the one given, or else the one that its folder names.

    Raises:
        InputError: not a memory folder, or one that names no backbone.
    """
    config = read_adapter_config(folder)
    source = backbone or config.get("backbone") or config.get("base_model_name_or_path")
    if not source:
        raise InputError(f"{folder}: names no backbone; say which with --backbone")
    return str(source) if not isinstance(source, Path) else source


def _require_whole(memory: Any, folder: Path) -> None:
    """Refuses a memory of which the file holds only a part: the rest would stay at its random start."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    expected = get_peft_model_state_dict(memory, save_embedding_layers=False)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        missing = sorted(set(expected) - set(file.keys()))
    if missing:
        raise InputError(
            f"{folder}: incomplete memory, {WEIGHTS_FILE} lacks {len(missing)} of its {len(expected)} tensors, "
            f"{missing[0]} first; teach it again or restore a copy"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in expected.values()):
        raise InputError(f"{folder}: damaged memory, a value is not finite; teach it again or restore a copy")
