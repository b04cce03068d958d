"""`plan`: what fits into a machine, for a configuration, a memory, or a backbone alone. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlayers.config.teach import TeachConfig
from memlayers.performance.backbone_size import Backbone, default_layers, read_backbone
from memlayers.performance.plan import Line, Work, command, make_plan, recommended, touched_rows
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from memlayers.editing.memory import Memory


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits.

    Attributes:
        backbone: its size.
        work: what a teaching step holds.
        lines: every way to keep pool and optimizer state, beside the backbone as it is and in 4-bit, by preference.
        vram: the device's memory, GiB.
        host: of the host, that may be used, GiB.
    """

    backbone: Backbone
    work: Work
    lines: list[Line]
    vram: float
    host: float

    @property
    def recommended(self) -> Line | None:
        """The first that fits; None where nothing does."""
        return recommended(self.lines)

    @property
    def command(self) -> str | None:
        """The ``memlayers teach`` command of what is recommended."""
        best = self.recommended
        return None if best is None else command(self.backbone, self.work, best)


def usual_batch(backbone: str) -> int:
    """Sequences per step where none are asked for: few of a large backbone, so that a step fits."""
    return 32 if backbone == "pocket" else 4


def plan(
    of: str | TeachConfig | Memory,
    *,
    slots: int | None = None,
    vram: float = 24.0,
    host: float = 64.0,
    length: int = 64,
    answer: int = 16,
    facts: int = 5000,
    phrasings: int = 10,
    tokens_per_fact: int = 20,
    touched: int | None = None,
    batch_size: int | None = None,
    gpus: int = 1,
    split: bool = False,
) -> Plan:
    """Works out what teaching needs, from the backbone's configuration alone: no weights are read.

    Args:
        of: a backbone's name or folder, the settings to teach with, or a memory that was taught with some.
        slots: rows of the value pool, rounded up to a square; None for the settings' own.
        vram: memory of the device, GiB.
        host: memory of the host that may be used, GiB.
        length: tokens of the longest sequence.
        answer: positions at which some sequence has an answer.
        facts: to be taught; says how many rows are touched.
        phrasings: of each fact.
        tokens_per_fact: tokens of its sequences that differ.
        touched: rows touched, if known.
        batch_size: sequences per step; None for 4, or 32 of the embedded backbone, or what the settings say.
        gpus: processes that share each step, with a device of this memory each.
        split: the pool is split by columns over them.

    Raises:
        InputError: an unknown backbone, a memory without a record of its settings, a shape that cannot be built.
    """
    config = _settings(of)
    backbone = read_backbone(config.backbone)
    pocket = config.backbone == "pocket"
    if batch_size is None:
        batch_size = usual_batch(of) if isinstance(of, str) else config.schedule.batch_size
    dtype = config.machine.dtype if config.machine.dtype != "auto" else "float32" if pocket else "bfloat16"
    layers = tuple(sorted(config.memory.layers)) if config.memory.layers else default_layers(backbone.depth)
    if layers[0] < 0 or layers[-1] >= backbone.depth or len(set(layers)) < len(layers):
        raise InputError(
            f"layers is {list(layers)}: give distinct layers of this backbone's, 0 to {backbone.depth - 1}"
        )
    shape, top_k = config.memory.shape, config.memory.top_k
    sub_keys = shape.sub_keys if slots is None else math.isqrt(slots - 1) + 1
    key_dim = shape.key_dim or backbone.hidden // shape.heads // 2 * 2
    if touched is None:
        touched = touched_rows(sub_keys**2, facts, tokens_per_fact, len(layers), shape.heads * top_k)
    work = Work(
        sub_keys, shape.heads, top_k, key_dim, layers, batch_size, length, min(answer, length), dtype,
        min(touched, sub_keys**2), contexts=min(config.gate.tokens // 2, facts * phrasings * length),
        gpus=gpus, split=split and gpus > 1,
    )  # fmt: skip
    return Plan(backbone, work, make_plan(backbone, work, vram=vram, host=host), vram, host)


def _settings(of: str | TeachConfig | Memory) -> TeachConfig:
    if isinstance(of, str):
        return TeachConfig(backbone=of)
    if isinstance(of, TeachConfig):
        return of
    taught = of.teaching
    if taught is None or taught.config is None:
        raise InputError(f"{of.folder}: has no record of how it was taught; give its backbone and slots instead")
    return taught.config
