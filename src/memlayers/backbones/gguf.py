"""GGUF files: loading one as transformers reads it, and converting it to a Hugging Face folder."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memlayers.utils.errors import InputError, WorkError, reason_of
from memlayers.utils.files import atomic_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SOURCE_FILE = "source.json"
"""In a folder that was converted: where its weights come from."""


def require_gguf() -> None:
    """Checks that the package is installed which transformers reads GGUF files with.

    Raises:
        InputError: it is not.
    """
    try:
        metadata.version("gguf")  # a folder of this name could be imported, too
    except metadata.PackageNotFoundError:
        raise InputError(
            "the package gguf is not installed, which reads .gguf files; pip install 'memlayers[gguf]'"
        ) from None


def load_gguf(path: Path, dtype: str | torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Loads the model of a GGUF file with plain weights, and the tokenizer that the file holds.

    Args:
        path: an existing file.
        dtype: of the weights; "auto" is bfloat16.

    Returns:
        The model, its tokenizer, and what transformers says of the loading ("missing_keys" and others).

    Raises:
        InputError: the package gguf is missing.
        Exception: whatever transformers raises where it cannot read the file.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require_gguf()
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # otherwise a kernel may keep the weights in their blocks
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    folder, file = str(path.parent), str(path.absolute())
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting turns off
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=torch.bfloat16 if dtype == "auto" else dtype, output_loading_info=True,
            **options,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model, info = loaded
    # The weights are plain tensors by now; transformers still takes the model for a quantised one.
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = model.name_or_path = file
    return model, tokenizer, info


def convert_gguf(path: Path, target: Path, source: Mapping[str, Any]) -> None:
    """Writes the model of a GGUF file as a Hugging Face folder: bfloat16 safetensors, tokenizer, chat template.

    Args:
        path: the file.
        target: the folder; it appears in one piece, and takes the place of one that is there.
        source: where the file comes from, for `SOURCE_FILE`.

    Raises:
        InputError: the package gguf is missing, or the folder cannot be written.
        WorkError: transformers cannot read the file, or the disk is full.
    """
    try:
        model, tokenizer, _ = load_gguf(path, torch.bfloat16)
    except InputError:
        raise
    except Exception as error:  # as transformers and the package gguf please
        reason = reason_of(error)
        raise WorkError(
            f"{path.name} cannot be converted: {reason}; try other versions of transformers and gguf"
        ) from error
    with atomic_directory(target, replace=True) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / SOURCE_FILE).write_text(json.dumps(dict(source), indent=1) + "\n", encoding="utf-8")
