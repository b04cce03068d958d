"""The configuration of a memory, a `peft.PeftConfig`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, TaskType
from peft.utils.peft_types import PeftType

from memlayers._registration import LOADING_NOTE
from memlayers.config.options import not_negative, option
from memlayers.config.sections import MemorySettings
from memlayers.utils.errors import InputError

METHOD = "memlayers"
_FRONT_MATTER = re.compile(r"---\n.*?\n---\n", re.DOTALL)


def _extend_peft_types() -> None:
    """Adds MEMLAYERS to peft's `PeftType`, once.

    peft looks methods up by this enum and offers no public way to add a member; a plain string in its place
    breaks transformers, which asks for `.value`. So the member is entered into the enum's own maps.
    """
    name = METHOD.upper()
    if name in PeftType.__members__:
        return
    enum: Any = PeftType
    member: Any = str.__new__(enum, name)
    member._name_ = member._value_ = name
    type.__setattr__(enum, name, member)
    enum._member_names_.append(name)
    enum._member_map_[name] = enum._value2member_map_[name] = member


_extend_peft_types()


@dataclass
class MemoryConfig(MemorySettings, PeftConfig):
    """How a memory is built: `MemorySettings`, and what a saved memory needs besides (docs/method.md).

    What is None is settled when a model is wrapped; the settled config is the model's own copy,
    `model.peft_config[adapter]`.

    Args:
        trainable_addressing: query projection and sub-keys learn; None from the recipe.
        gated_output: the read passes SiLU gating and a zero-initialised projection (Memory+, Berges et al. 2024,
            section 2.3); None from the recipe.
        pool_init: "zero", or "normal" of std hidden_size^-0.5; None from the recipe.
        gate: each memory layer has a relevance gate (open until it is trained).
        gate_hidden: width of the gate's hidden layer (128 in the v0.2 reference recipe; 256 tells stored subjects from
            others more surely, docs/LOG.md).
        gate_soft: the gate of the v0.2 reference recipe: its sigmoid multiplies what the memory adds, at every token
            and layer.
        subjects: the memory is read after a mention of a stored subject only, and one gate at the first memory layer
            decides for all layers; otherwise there is a gate per layer, and no index of subjects. (Memories of version
            0.1 say here how many entries the index has; any number but 0 counts as true.)
        relations: what is asked of a subject is compared with what was taught of it (tuner/relation_check.py).
        seed: of every random start; the same seed gives the same bits.
        backbone: the name that `memlayers teach` was given, by which `memlayers ask` finds the backbone again; peft's
            `base_model_name_or_path` may be a path on another machine.
        fingerprint: of the backbone, see `backbone_fingerprint`; filled in when a model is wrapped and compared when
            the memory is loaded.
        target_modules: names of the modules wrapped, which peft reads; derived from `layers`, whatever is given.

    Raises:
        InputError: a value is out of its range.
    """

    subject_weight: float | None = option(  # type: ignore[assignment]  # settled before anybody reads it
        None,
        "As in `MemorySettings`; None where it would not work, and otherwise that default.",
        flag=None,
        check=not_negative,
    )
    trainable_addressing: bool | None = None
    gated_output: bool | None = None
    pool_init: str | None = None
    gate: bool = False
    gate_hidden: int = 256
    gate_soft: bool = False
    subjects: bool = False
    relations: bool = False
    seed: int = 137
    backbone: str | None = None
    fingerprint: dict[str, Any] | None = None
    target_modules: list[str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        PeftConfig.__post_init__(self)
        self.peft_type = PeftType[METHOD.upper()]
        self.task_type = self.task_type or TaskType.CAUSAL_LM
        works = self.recipe == "addressed" and self.qk_norm
        _require(not self.subject_weight or works, "subject_weight is for the addressed recipe with qk_norm: take 0")
        if self.subject_weight is None:
            self.subject_weight = MemorySettings.subject_weight if works and self.subjects else 0.0
        MemorySettings.__post_init__(self)
        dense = self.recipe == "dense"
        if self.trainable_addressing is None:
            self.trainable_addressing = dense
        if self.gated_output is None:
            self.gated_output = dense
        if self.pool_init is None:
            self.pool_init = "normal" if dense else "zero"
        self.subjects, self.relations = bool(self.subjects), bool(self.relations)
        self.sub_keys, self.heads, self.key_dim = self.shape
        self._check()

    @property
    def slots(self) -> int:
        """Rows of the value pool."""
        return self.shape.sub_keys**2

    @property
    def torch_pool_dtype(self) -> torch.dtype:
        """`pool_dtype` as torch has it."""
        dtype: torch.dtype = getattr(torch, self.pool_dtype)
        return dtype

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As peft's; and the model card that peft has just written says first how the memory is loaded."""
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else LOADING_NOTE
        if LOADING_NOTE not in text:
            head = _FRONT_MATTER.match(text)
            end = head.end() if head else 0
            card.write_text(f"{text[:end]}\n{LOADING_NOTE}\n\n{text[end:].lstrip()}", encoding="utf-8")

    def derived_seed(self, *path: int) -> int:
        """The seed of one of many random starts."""
        seed = self.seed
        for step in path:
            seed = (seed * 1_000_003 + step + 1) % 2**63
        return seed

    def _check(self) -> None:
        _require(
            _is_int(self.gate_hidden) and self.gate_hidden >= 1,
            f"gate_hidden is {self.gate_hidden!r}: it must be a whole number from 1",
        )
        _require(
            self.load_balance == 0 or bool(self.trainable_addressing),
            "load_balance needs trainable addressing: take the dense recipe, or load_balance=0",
        )
        _require(self.pool_init in ("zero", "normal"), f"pool_init {self.pool_init!r}: take zero or normal")
        _require(
            self.pool_init == "zero" or bool(self.gated_output),
            "pool_init normal without gated_output changes the backbone before anything is taught: take zero",
        )
        _require(
            not self.protectable or self.pool_init == "zero",
            "protectable slots are kept at zero: take pool_init zero, as the addressed recipe does",
        )
        _require(self.subjects or not self.relations, "relations are kept per subject: give subjects too")
        _require(
            not self.gate_soft or (self.gate and not self.subjects),
            "gate_soft is a gate of its own kind: take gate=True, and no subjects",
        )
        _require(_is_int(self.seed) and self.seed >= 0, f"seed is {self.seed!r}: it must be a number from 0")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
