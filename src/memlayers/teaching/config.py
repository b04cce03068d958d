"""How facts are taught: the settings, from Python, YAML and flags. Loads no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import yaml

from memlayers.utils.errors import InputError
from memlayers.utils.files import read_text


class Shape(NamedTuple):
    """The size of a memory: sub-keys per half, heads, and the width of a head's query (None: hidden size // heads)."""

    sub_keys: int
    heads: int
    key_dim: int | None


@dataclass(frozen=True, slots=True)
class TeachConfig:
    """How facts are taught. Every field is a flag of ``memlayers teach`` and a key of its YAML file.

    Attributes:
        backbone: "pocket", a local folder, or a name on the Hugging Face hub.
        recipe: "addressed" (calibrated and frozen addressing, only the pool learns) or "dense" (the seed's).
        layers: numbers of the memory layers; None for 6, 14, 22 of 28 scaled to the backbone's depth.
        sub_keys: per half; the pool has sub_keys ** 2 slots; None for 384 (addressed) or 224 (dense).
        heads: lookups per token and layer; None for 8 (addressed) or 1 (dense).
        top_k: slots read per head.
        key_dim: width of a head's query; None for 64 (addressed) or hidden size // heads (dense).
        pool_dtype: storage of the pool.
        gate: train the relevance gate first; None does for the addressed recipe (the seed's came after).
        gate_subjects: the gate opens behind a stored subject's name, and nowhere else (tuner/subject_index.py).
        subject_weight: share of a stored subject's own direction in the queries (0: the state alone), against 1 of the
            state's; only where the gate knows subjects.
        gate_relations: what is asked of a stored subject is compared with what was taught of it (gating/relations.py).
        gate_threshold: logit above which a gate is open.
        gate_steps: optimizer steps per gate.
        general_text: None for the shipped sample, "sampled" for text sampled from the backbone, or a file.
        protect: keep at zero the slots that this text reads most: "shipped", "sampled", or a file; None for none.
        protect_share: of all slots, the most that are protected (never one that the text does not read).
        exposures: most passes over the facts; one pass shows each fact once, in one phrasing. None for 5 and, with
            the addressed recipe and a gate, 10 more at half the rate where measured recall is still below 98 %.
        batch_size: sequences per optimizer step.
        accumulation: forwards that a step is split into.
        value_rate: Adam's learning rate of the values, in units of the MLP output's RMS (design/recipe.md).
        dense_rate: learning rate of everything else that learns, and of the dense recipe's values.
        warmup: steps until the full learning rate, which then falls linearly to a twentieth.
        optimizer: "row-adamw" (moves the rows that were read) or "adamw" (torch's, over the whole pool).
        optimizer_semantics: of row-adamw: "dense" (torch's AdamW over the whole pool, to the last digit) or "lazy" (a
            row moves when it has a gradient); None for dense, or lazy where the state is lossy.
        optimizer_bits: of row-adamw's moments: 32 or 8.
        optimizer_device: where row-adamw keeps its state: "device" (the pool's) or "host".
        half_rounding: how row-adamw writes a bfloat16 pool: "master" (a float32 copy of touched rows) or "stochastic".
        clip: largest norm of the gradient; None does not clip.
        loss: "answer", or "full" (the seed's diagnosis compares them).
        pack: tokens per packed sequence; None does not pack (likewise).
        anchors: public facts mixed in among the facts, a file of questions (the seed's mixed corpus).
        fluency: general text mixed in, a file (likewise).
        stop_at_recall: stop when measured recall reaches it.
        recall_sample: facts asked, in free generation, after each pass; all are asked where the sample is full.
        keep_facts: the memory remembers its facts (facts.jsonl), so that they can be listed, updated and forgotten.
        checkpoint_seconds: at least so long between two checkpoints.
        dtype: of the backbone: "auto" (float32 on a CPU, the checkpoint's own elsewhere), "float32", "bfloat16".
        device: None chooses.
        seed: of everything random.
    """

    backbone: str = "pocket"
    recipe: str = "addressed"
    layers: list[int] | None = None
    sub_keys: int | None = None
    heads: int | None = None
    top_k: int = 8
    key_dim: int | None = None
    pool_dtype: str = "float32"
    gate: bool | None = None
    gate_subjects: bool = True
    subject_weight: float = 2.0
    gate_relations: bool = True
    gate_threshold: float = 1.0
    gate_steps: int = 2000
    general_text: str | None = None
    protect: str | None = None
    protect_share: float = 0.3
    exposures: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    value_rate: float = 0.12
    dense_rate: float = 1e-3
    warmup: int = 10
    optimizer: str = "row-adamw"
    optimizer_semantics: str | None = None
    optimizer_bits: int = 32
    optimizer_device: str = "device"
    half_rounding: str = "master"
    clip: float | None = None
    loss: str = "answer"
    pack: int | None = None
    anchors: str | None = None
    fluency: str | None = None
    stop_at_recall: float = 1.0
    recall_sample: int = 128
    keep_facts: bool = True
    checkpoint_seconds: float = 60.0
    dtype: str = "auto"
    device: str | None = None
    seed: int = 137

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if not _is_of_type(value, kind):
                raise InputError(f"{name} is {value!r}: give {_kind_name(kind)}")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} is {value}: it must be at least 1")
        for name in ("value_rate", "dense_rate", "clip", "stop_at_recall"):
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, f"{name} is {value}: it must be positive, and finite")
        _require(
            0 < self.protect_share < 1,
            f"protect_share is {self.protect_share}: it is a share of the slots, above 0 and below 1",
        )
        _require(
            self.protect is None or self.recipe == "addressed",
            "protect needs addressing that stays as it is: take the recipe addressed, or leave protect out",
        )
        for name in ("warmup", "checkpoint_seconds"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: it must not be negative")
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}: it must be a number from 0 to 2**32 - 1")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            named = ", ".join(str(choice) for choice in choices if choice is not None)
            _require(value in choices, f"{name} is {value!r}: take one of {named}")

        lossy = self.optimizer_bits == 8 or self.optimizer_device == "host" or self.half_rounding == "stochastic"
        _require(
            not (self.optimizer_semantics == "dense" and lossy),
            "optimizer_semantics dense means torch's AdamW to the last digit: take optimizer_bits 32, optimizer_device "
            "device and half_rounding master, or optimizer_semantics lazy",
        )
        _require(
            self.pool_dtype != "int8" or self.optimizer == "row-adamw",
            "an int8 pool is taught by the optimizer row-adamw only: take it, or pool_dtype bfloat16",
        )

    @property
    def shape(self) -> Shape:
        """The memory's size, settled: the addressed recipe's was tuned (docs/LOG.md), the dense one's is the seed's."""
        settled = Shape(384, 8, 64) if self.recipe == "addressed" else Shape(224, 1, None)
        given = {"sub_keys": self.sub_keys, "heads": self.heads, "key_dim": self.key_dim}
        return settled._replace(**{name: value for name, value in given.items() if value is not None})

    @property
    def rounds(self) -> tuple[int, ...]:
        """The most passes of each round of teaching; within a round the learning rate falls (docs/LOG.md).

        Without a gate, what more passes write costs the backbone more, and the dense recipe is kept as the seed's.
        """
        if self.exposures is not None:
            return (self.exposures,)
        return (5, 10) if self.recipe == "addressed" and self.gated else (5,)

    @property
    def gated(self) -> bool:
        """Whether a gate is trained first."""
        return self.recipe == "addressed" if self.gate is None else self.gate


def read_teach_config(path: str | Path | None, flags: dict[str, Any]) -> TeachConfig:
    """Reads a YAML file of `TeachConfig` keys, if there is one, and lays flags over it (None: not given).

    Raises:
        InputError: not YAML, an unknown key, a value of the wrong type or out of range; names file and key.
    """
    values = {} if path is None else _read_yaml(path)
    return TeachConfig(**{**values, **{name: value for name, value in flags.items() if value is not None}})


def _read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file, each with a value that it may have; names the file where one has not."""
    try:
        read = yaml.load(read_text(path), _Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not YAML ({reason}); write one 'key: value' per line") from error
    if not isinstance(read, dict):
        raise InputError(f"{path}: not a mapping; write one 'key: value' per line")
    known = [f.name for f in fields(TeachConfig)]
    for name in read:
        if name not in known:
            raise InputError(f"{path}: unknown key {name!r}; known keys: {', '.join(known)}")
    try:
        TeachConfig(**read)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return read


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as YAML 1.2 does; PyYAML wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

_AT_LEAST_ONE = tuple("sub_keys heads top_k gate_steps exposures batch_size accumulation pack recall_sample".split())
_CHOICES = MappingProxyType(
    {
        "recipe": ("addressed", "dense"),
        "loss": ("answer", "full"),
        "optimizer": ("row-adamw", "adamw"),
        "optimizer_semantics": ("dense", "lazy", None),
        "optimizer_bits": (32, 8),
        "optimizer_device": ("device", "host"),
        "half_rounding": ("master", "stochastic"),
        "dtype": ("auto", "float32", "bfloat16", "float16"),
        "pool_dtype": ("float32", "bfloat16", "float16", "int8"),
    }
)


def _is_of_type(value: Any, kind: Any) -> bool:
    """Whether a value from YAML or a caller is of the annotated type; whole numbers do for real ones."""
    if isinstance(kind, UnionType):
        return any(_is_of_type(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of_type(one, get_args(kind)[0]) for one in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _kind_name(kind: Any) -> str:
    """The annotated type in words, for an error message."""
    if isinstance(kind, UnionType):
        return " or ".join(_kind_name(one) for one in get_args(kind))
    if get_origin(kind) is list:
        return f"a list, each {_kind_name(get_args(kind)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind, "nothing")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
