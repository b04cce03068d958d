"""What lies in an adapter's folder: the names of its files, and the readers that need no torch.

::

    DIR/adapter_config.json  adapter_model.safetensors   the adapter, as peft writes it
    DIR/teaching.json        how it was taught, where, and what came of it (teaching/record.py)
    DIR/facts.jsonl          the stored facts, in order
    DIR/journal.jsonl  undo/ the edits made since, and what undoing them needs (editing/journal.py)
    DIR/slot_use.safetensors which slots each fact reads: a cache, made anew where it is missing
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from memlayers.data.fact_files import read_facts
from memlayers.data.facts import Fact
from memlayers.utils.errors import InputError

ADAPTER: Final = "default"
"""The name of the adapter inside a memory's folder, as peft saves the first one."""
CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
TEACHING_FILE: Final = "teaching.json"
FACTS_FILE: Final = "facts.jsonl"
JOURNAL_FILE: Final = "journal.jsonl"
UNDO_FOLDER: Final = "undo"
SLOT_USE_FILE: Final = "slot_use.safetensors"

PEFT_TYPE: Final = "MEMLAYERS"
"""What peft calls this method in `CONFIG_FILE` (`tuner.config.METHOD` in capitals; that module loads torch)."""


POOL_PLACES: Final = ("device", "host", "disk")
"""Where the value pool is while a memory is open: with the backbone, in host memory, or in its file."""


def check_pool_place(place: str) -> None:
    """Raises InputError for what is none of `POOL_PLACES`."""
    if place not in POOL_PLACES:
        raise InputError(f"pool {place!r}: give {', '.join(POOL_PLACES[:-1])} or {POOL_PLACES[-1]}")


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of the adapter in a memory's folder.

    Raises:
        InputError: not a memory's folder, or one that lacks a file or whose configuration is damaged.
    """
    path = _require_memory(folder)
    if not (Path(folder) / WEIGHTS_FILE).is_file():
        raise InputError(f"{folder}: {WEIGHTS_FILE} is missing; teach it again or restore a copy")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); teach the memory again or restore a copy") from error
    if not isinstance(config, dict) or config.get("peft_type") != PEFT_TYPE:
        raise InputError(f"{folder}: an adapter of another method; give a folder that `memlayers teach` wrote")
    return config


def folder_version(folder: str | Path) -> tuple[int, ...] | None:
    """What tells a memory as it is from the same folder after an edit, or another memory there; None where none is.

    Weights change in place; the journal is another file after each edit.
    """
    found: list[int] = []
    for name in (WEIGHTS_FILE, JOURNAL_FILE):
        try:
            each = (Path(folder) / name).stat()
        except OSError:
            if name == WEIGHTS_FILE:
                return None
            continue
        found += each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns
    return tuple(found)


def stored_facts(folder: str | Path) -> list[Fact]:
    """The facts that a memory remembers, in order; may be none, once all were forgotten.

    Raises:
        InputError: not a memory's folder, one that does not remember its facts, or a damaged list.
    """
    _require_memory(folder)
    path = Path(folder) / FACTS_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: this memory does not remember its facts; put the facts file it was taught there as {FACTS_FILE}"
        )
    return read_facts(path) if path.stat().st_size else []


def _require_memory(folder: str | Path) -> Path:
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder}: not a memory folder (no {CONFIG_FILE}); give the folder `teach --out` wrote")
    return path
