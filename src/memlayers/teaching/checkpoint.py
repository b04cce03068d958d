"""Checkpoints of teaching: whole folders of safetensors and JSON, written aside and renamed, the newest alone kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlayers.config.teach import TeachConfig
from memlayers.data.facts import Fact
from memlayers.inference.folder import WEIGHTS_FILE
from memlayers.inference.record import TeachReport
from memlayers.teaching.held import Checked, Round, Wording
from memlayers.tuner.handle import MemoryHandle
from memlayers.utils.errors import InputError
from memlayers.utils.files import atomic_directory, file_digest

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


class Progress(NamedTuple):
    """How far teaching has come.

    Attributes:
        report: so far; its seconds include the run under way.
        epoch_loss: of the epoch under way, in nats.
        epoch_tokens: that it is summed over.
        checked: what the last check found; None where something was taught since.
        under_way: the round of teaching further; None outside of one.
        shown_further: the wordings that rounds of teaching further showed.
    """

    report: TeachReport
    epoch_loss: float = 0.0
    epoch_tokens: int = 0
    checked: Checked | None = None
    under_way: Round | None = None
    shown_further: Collection[Wording] = ()


class Checkpoint:
    """The checkpoints of one run, in a folder of their own.

    Args:
        folder: where they lie; it need not be there yet.
        identity: what a run that continues must agree on, as JSON: its settings, the digests of its facts.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(identity))

    def save(self, memory: MemoryHandle, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Writes one, and removes the others. Processes that split the pool all take part, and the first writes."""
        report, columns = progress.report, memory.pool.columns
        name = f"step-{report.steps:08d}-{len(report.curve) + len(report.checks):04d}"
        tensors = {
            f"{index}.{key}": (value if columns is None else columns.together(value)).contiguous()
            for index, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
            if isinstance(value, Tensor)
        }
        if columns is not None and columns.rank:
            memory.save(self.folder)
            return
        with atomic_directory(self.folder / name, replace=True) as folder:
            memory.save(folder)
            save_file(tensors, folder / OPTIMIZER_FILE)
            record = {
                "identity": self.identity,
                "report": asdict(report),
                "epoch": [progress.epoch_loss, progress.epoch_tokens],
                "checked": None if progress.checked is None else asdict(progress.checked),
                "round": None if progress.under_way is None else _round_as_json(progress.under_way),
                "shown_further": sorted(progress.shown_further),
                "digests": {name: file_digest(folder / name) for name in (WEIGHTS_FILE, OPTIMIZER_FILE)},
            }
            (folder / STATE_FILE).write_text(json.dumps(record), encoding="utf-8")
        for other in self.found():
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)

    def restore(self, memory: MemoryHandle, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Loads the newest whole one into memory and optimizer, and says how far it was; None where there is none.

        Raises:
            InputError: it is damaged, or of a run with other settings or other facts.
        """
        found = self.found()
        if not found:
            return None
        folder = found[-1]
        try:
            record = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            for file, digest in record["digests"].items():
                if file_digest(folder / file) != digest:
                    raise ValueError(f"{file} is not as it was written")
            split = memory.pool.columns is not None  # then only some of it is for this device
            adapter = load_file(folder / WEIGHTS_FILE, device="cpu" if split else str(memory.device))
            tensors = load_file(folder / OPTIMIZER_FILE, device="cpu")
            identity = record["identity"]
            checked = None if record["checked"] is None else Checked(**record["checked"])
            under_way = None if record.get("round") is None else _round_of(record["round"])  # older ones have none
            loss, tokens = record["epoch"]
            shown = {(i, j) for i, j in record["shown_further"]}
            progress = Progress(TeachReport.from_dict(record["report"]), loss, tokens, checked, under_way, shown)
        except Exception as error:  # the safetensors parser raises its own
            raise InputError(f"{folder}: damaged checkpoint ({error}); delete {self.folder} and start again") from error
        if identity != self.identity:
            raise InputError(
                f"{self.folder}: left by a run with other settings or other facts; "
                "resume with the same ones, or delete the folder"
            )
        memory.load(adapter)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return progress

    def found(self) -> list[Path]:
        """The folders of those that are whole, oldest first."""
        return sorted(path for path in self.folder.glob("step-????????-????") if path.is_dir())


def _round_as_json(under_way: Round) -> dict[str, Any]:
    return {**asdict(under_way), "left": list(under_way.left.items())}  # JSON's keys are texts


def _round_of(record: dict[str, Any]) -> Round:
    return Round(**{**record, "left": {i: wordings for i, wordings in record["left"]}})


def run_identity(config: TeachConfig, facts: Sequence[Fact], gate_facts: Sequence[Fact], passes: int) -> dict[str, Any]:
    """What a checkpoint must agree with, and each process with the others: configuration, facts, passes of a step.

    How many processes share the passes, or split the pool, is no part of it: the bits are the same.
    """
    schedule, machine = replace(config.schedule, accumulation=passes), replace(config.machine, shard_pool="none")
    alike = replace(config, schedule=schedule, machine=machine)
    return {"config": asdict(alike), "facts": facts_digest(facts), "gate_facts": facts_digest(gate_facts)}


def flat_names(values: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat_names(value, f"{within}{name}.") if isinstance(value, dict) else {f"{within}{name}": value}
    return found


def facts_digest(facts: Sequence[Fact]) -> str:
    """SHA-256 of what is taught of facts, in their order; not of where they were found, which may have moved."""
    taught = [asdict(replace(fact, sources=())) for fact in facts]
    return hashlib.sha256(repr(taught).encode()).hexdigest()
