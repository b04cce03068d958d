"""Teaching by several processes, as cases of helpers/distributed.py, and what one process alone makes of the same."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from helpers.distributed import refused
from helpers.teaching import FACTS, adapter_bytes, teach
from memlayers.config.teach import TeachConfig, config_from_record
from memlayers.inference import generation
from memlayers.teaching.checkpoint import Checkpoint
from memlayers.teaching.teacher import Teacher
from memlayers.utils import ranks
from memlayers.utils.errors import InputError, WorkError

PASSES = 4
CHANGES: dict[str, dict[str, Any]] = {
    "gated": {"further": 2, "clip": 0.5},
    "dense": {"recipe": "dense", "gate": False, "clip": 0.5, "pool_dtype": "bfloat16", "batch_size": 6},
    "killed": {"gate": False, "exposures": 4, "checkpoint_seconds": 0.0},
}
"""What is taught: the default recipe, all stages; one in which more learns than the pool; one that is killed."""


def prepare(folder: Path, backbone: Path, general_text: Path) -> None:
    """Writes settings for the processes, and what one process that does the same passes makes of them."""
    for name, changes in CHANGES.items():
        settings: dict[str, Any] = {
            "backbone": str(backbone), "general_text": str(general_text), "sub_keys": 16, "heads": 2, "top_k": 4,
            "key_dim": 8, "gate_threshold": -1e9, "gate_steps": 20, "exposures": 2, "batch_size": 5,
            "accumulation": PASSES, "value_rate": 1.0, "dense_rate": 0.02, "warmup": 1, "recall_sample": 6,
            "checkpoint_seconds": 1e9, "dtype": "float32", "device": "cpu", "seed": 1,
        }  # fmt: skip
        config = TeachConfig().with_flags(**{**settings, **changes})
        config = replace(config, schedule=replace(config.schedule, further_epochs=2))
        (folder / f"{name}.json").write_text(json.dumps(asdict(config)))
        report = asdict(teach(folder / f"{name}-1", config).report)
        (folder / f"{name}-report.json").write_text(json.dumps(_without_times(report)))


def settings_of(folder: Path, name: str) -> TeachConfig:
    return config_from_record(json.loads((folder / f"{name}.json").read_text()))


def taught(folder: Path, name: str) -> Path:
    """Where this many processes teach."""
    return folder / f"{name}-{dist.get_world_size()}"


def _without_times(report: dict[str, Any]) -> dict[str, Any]:
    tokens = {name: stage["tokens"] for name, stage in report["stages"].items()}
    plain: dict[str, Any] = json.loads(json.dumps({**report, "seconds": 0.0, "stages": tokens}))
    return plain


def teaches_the_same_bytes(folder: Path) -> None:
    generation.MAX_NEW_TOKENS = 8
    for name in ("gated", "dense"):
        memory = teach(taught(folder, name), settings_of(folder, name))
        assert adapter_bytes(taught(folder, name)) == adapter_bytes(folder / f"{name}-1"), name
        assert _without_times(asdict(memory.report)) == json.loads((folder / f"{name}-report.json").read_text())
        assert not Path(f"{taught(folder, name)}.teaching").exists()


def refuses_other_facts_and_settings(folder: Path) -> None:
    config, last = settings_of(folder, "gated"), dist.get_rank() + 1 == dist.get_world_size()
    who = f"rank {dist.get_world_size() - 1} has"
    for name, facts, seed in (("facts", FACTS[last:], 1), ("seed", FACTS, 1 + last)):
        work = partial(teach, folder / "refused", replace(config, seed=seed), facts)
        refused(InputError, f"{who} another {name} than rank 0", work)
    assert not list(folder.glob("refused*"))


def fails_in_one_and_ends_in_all(folder: Path) -> None:
    """What one process finds wrong, all say; the folder is looked at by the first alone. It ends the job."""
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "something").touch()
    refused(
        InputError,
        f"{folder}/taken: exists and is not empty",
        lambda: teach(folder / "taken", settings_of(folder, "gated")),
    )


def dies_in_a_step(folder: Path) -> None:
    """Rank 1 is killed in a step; the others name it, within seconds, and leave a checkpoint. It ends the job."""
    ranks.ROLL_CALL_SECONDS = 15.0  # type: ignore[misc]
    rank, step = dist.get_rank(), Teacher._loss

    def dying(run: Teacher, batch: Any) -> Any:
        if rank == 1 and run.report.steps == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(run, batch)

    Teacher._loss = dying  # type: ignore[method-assign]
    out = taught(folder, "killed")
    try:
        teach(out, settings_of(folder, "killed"))
    except WorkError as error:
        assert f"rank 1 of {os.environ['WORLD_SIZE']} ended without a word" in str(error) and "\n" not in str(error)
        assert ranks.told_by(error) == 0
    else:
        raise AssertionError("nobody missed it")
    assert not out.exists() and len(Checkpoint(Path(f"{out}.teaching"), {}).found()) == 1
