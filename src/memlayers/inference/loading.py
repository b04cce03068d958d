"""Loads a memory's folder, as `teach` or ``save_pretrained`` wrote it, on the backbone that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayers.backbones import device_chosen, load_backbone, quiet_wrapping
from memlayers.inference.folder import (
    ADAPTER,
    WEIGHTS_FILE,
    check_pool_place,
    folder_version,
    read_adapter_config,
)
from memlayers.pool.mapped_rows import MappedRows
from memlayers.pool.weights_file import read_tensor
from memlayers.tuner import memory_handle, set_gate_enabled
from memlayers.utils.errors import InputError
from memlayers.utils.folder_change import is_changing, settle_folder
from memlayers.utils.tensor_file import read_tensor_file

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def load_adapter(
    folder: str | Path,
    *,
    backbone: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    gate: bool = True,
    pool: str = "device",
    loaded: tuple[Any, PreTrainedTokenizerBase] | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Loads a backbone and puts a memory on it.

    Args:
        folder: an adapter folder.
        backbone: "pocket", a folder or a hub name; None for the one the memory was taught on.
        dtype: of the backbone; as in `load_backbone`.
        device: None chooses.
        gate: False reads the memory for every token.
        pool: where the value pool is: "device", with the backbone; "host", in host memory, from where the rows that a
            token reads are fetched; "disk", in its file, of which the system keeps in memory what it has room for.
            Values that are not finite are then not looked for in the pool.
        loaded: the backbone and its tokenizer, where they are loaded already; the memory is put on this very model.

    Returns:
        The PEFT model, in eval mode, and the backbone's tokenizer.

    Raises:
        InputError: not a memory folder, a damaged one, or one made for another backbone.
    """
    folder = Path(folder)
    check_pool_place(pool)
    if loaded is None:
        loaded = load_backbone(backbone_named(folder, backbone), dtype, device_chosen(device))
    model, tokenizer = loaded
    settle_folder(folder)
    version = folder_version(folder)
    try:
        with quiet_wrapping():
            memory = _on_backbone(model, folder, pool)
    except InputError as error:
        told = str(error)
        raise error if told.startswith(f"{folder}: ") else InputError(f"{folder}: {told}") from error
    except Exception as error:  # torch's size mismatches, say
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"{folder}: damaged or incomplete memory ({reason}); teach it again or restore a copy"
        ) from error
    if is_changing(folder) or folder_version(folder) != version:
        raise InputError(f"{folder}: edited while it was opened; load it again")
    set_gate_enabled(memory, gate)
    return memory.eval(), tokenizer


def _on_backbone(model: Any, folder: Path, place: str) -> Any:
    """The PEFT model of a backbone and a memory's folder.

    The memory is built without storage and given the file's tensors, so nothing is held twice, and a pool that is
    mapped is never held.

    Raises:
        InputError: of the weights a part is missing, or a value is not finite: the rest would stay at its start.
    """
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    file = read_tensor_file(folder / WEIGHTS_FILE)
    made = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    memory = made(model, config, ADAPTER, low_cpu_mem_usage=True)
    expected = set(get_peft_model_state_dict(memory, adapter_name=ADAPTER, save_embedding_layers=False))
    missing = sorted(expected - set(file.tensors))
    if missing:
        raise InputError(
            f"{folder}: incomplete memory, {WEIGHTS_FILE} lacks {len(missing)} of its {len(expected)} tensors, "
            f"{missing[0]} first; teach it again or restore a copy"
        )
    pool = memory_handle(memory, ADAPTER).pool
    if pool.columns is not None and place != "device":
        raise InputError(f"a pool that is split over processes lies with the backbone: take 'device', not {place!r}")
    pool.stays = place != "device"
    state: dict[str, Any] = {}
    if place == "disk":
        pool.mapped = MappedRows(file)
        state |= pool.mapped.tensors
    for name in file.tensors:
        if name not in state:
            state[name] = read_tensor(file, name)
            if not _finite(state[name]):
                raise InputError(f"{folder}: damaged memory, a value is not finite; teach it again or restore a copy")
    set_peft_model_state_dict(memory, state, adapter_name=ADAPTER, low_cpu_mem_usage=True)
    return memory


def _finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN; looked at in pieces, since the answers take memory too."""
    return all(bool(part.isfinite().all()) for part in tensor.reshape(-1).split(1 << 24))


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
