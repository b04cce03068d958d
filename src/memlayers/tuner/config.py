"""The configuration of a memory, a `peft.PeftConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig, TaskType
from peft.utils.peft_types import PeftType

from memlayers.utils.errors import InputError

METHOD = "memlayers"
_DTYPES = ("float32", "bfloat16", "float16", "int8")


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
class MemoryConfig(PeftConfig):
    """How a memory is built (docs/method.md).

    `addressed` is the default recipe: addressing is calibrated once and frozen, the value pool starts at
    zero and alone learns. `dense` is the v0.2 reference recipe: query, sub-keys and a gated output projection learn
    beside the pool. What is None is settled when a model is wrapped; the settled config is the model's own copy,
    `model.peft_config[adapter]`.

    Args:
        recipe: "addressed" or "dense"; settles `trainable_addressing`, `gated_output` and `pool_init`.
        layers: numbers of the layers that get a memory, from 0; None for 6, 14 and 22 of 28 scaled to the
            backbone's depth (Berges 2024 spread three, too).
        sub_keys: sub-keys per half, m; the pool has m * m slots (Lample 2019, section 3.1).
        heads: independent lookups per token and layer, summed (Lample 2019, section 3.2).
        top_k: slots read per head.
        key_dim: width of a head's query, both halves together, even; None for hidden_size // heads.
        temperature: factor on the scores before the softmax.
        qk_norm: cosine scores, each half normalised (Berges 2024, section 2.3); otherwise plain products.
        trainable_addressing: query projection and sub-keys learn; None from the recipe.
        gated_output: the read passes SiLU gating and a zero-initialised projection (Memory+); None from the
            recipe.
        pool_init: "zero", or "normal" of std hidden_size^-0.5; None from the recipe.
        load_balance: weight of the loss that spreads reads over the sub-keys, 0 for none; needs trainable
            addressing. See `memory_auxiliary_loss`.
        protectable: the pool has room for a mark per slot that keeps it at zero, see `teaching.protect.protect_slots`.
        pool_dtype: storage of the value pool: "float32", "bfloat16", "float16", or "int8" (a float32 scale per row).
        gate: each memory layer has a relevance gate (open until it is trained).
        gate_hidden: width of the gate's hidden layer (128 in the v0.2 reference recipe; 256 tells stored subjects from
            others more surely, docs/LOG.md).
        gate_soft: the gate of the v0.2 reference recipe: its sigmoid multiplies what the memory adds, at every token
            and layer.
        subjects: the memory is read after a mention of a stored subject only, and one gate at the first memory layer
            decides for all layers; otherwise there is a gate per layer, and no index of subjects. (Memories of version
            0.1 say here how many entries the index has; any number but 0 counts as true.)
        subject_weight: weight of the subject in a query: a direction of its own for each subject, times this, is added
            to each normalised half, so that all wordings about one subject read nearly the same slots, and other
            subjects other slots. 0: the state alone. Works where there are `subjects` and `qk_norm`.
        relations: what is asked of a subject is compared with what was taught of it (tuner/relation_check.py).
        seed: of every random start; the same seed gives the same bits.
        backbone: the name that `memlayers teach` was given, by which `memlayers ask` finds the backbone
            again; peft's `base_model_name_or_path` may be a path on another machine.
        fingerprint: of the backbone, see `backbone_fingerprint`; filled in when a model is wrapped and
            compared when the memory is loaded.
        target_modules: names of the modules wrapped, which peft reads; derived from `layers`, whatever is
            given.

    Raises:
        InputError: a value is out of its range.
    """

    recipe: str = "addressed"
    layers: list[int] | None = None
    sub_keys: int = 256
    heads: int = 4
    top_k: int = 8
    key_dim: int | None = None
    temperature: float = 20.0
    qk_norm: bool = True
    trainable_addressing: bool | None = None
    gated_output: bool | None = None
    pool_init: str | None = None
    load_balance: float = 0.0
    protectable: bool = False
    pool_dtype: str = "float32"
    gate: bool = False
    gate_hidden: int = 256
    gate_soft: bool = False
    subjects: bool = False
    subject_weight: float = 0.0
    relations: bool = False
    seed: int = 0
    backbone: str | None = None
    fingerprint: dict[str, Any] | None = None
    target_modules: list[str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[METHOD.upper()]
        self.task_type = self.task_type or TaskType.CAUSAL_LM
        _require(self.recipe in ("addressed", "dense"), f"recipe {self.recipe!r}: take addressed or dense")
        dense = self.recipe == "dense"
        if self.trainable_addressing is None:
            self.trainable_addressing = dense
        if self.gated_output is None:
            self.gated_output = dense
        if self.pool_init is None:
            self.pool_init = "normal" if dense else "zero"
        self.subjects, self.relations = bool(self.subjects), bool(self.relations)
        self._check()

    @property
    def slots(self) -> int:
        """Rows of the value pool."""
        return self.sub_keys**2

    @property
    def torch_pool_dtype(self) -> torch.dtype:
        """`pool_dtype` as torch has it."""
        dtype: torch.dtype = getattr(torch, self.pool_dtype)
        return dtype

    def _check(self) -> None:
        for name in ("sub_keys", "heads", "top_k", "gate_hidden"):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 1, f"{name} is {value!r}: it must be a whole number from 1")
        _require(self.top_k <= self.sub_keys, f"top_k {self.top_k} exceeds the {self.sub_keys} sub_keys")
        _require(
            self.key_dim is None or (_is_int(self.key_dim) and self.key_dim >= 2 and self.key_dim % 2 == 0),
            f"key_dim is {self.key_dim!r}: it must be an even number from 2, two halves of equal width",
        )
        _require(
            self.layers is None
            or (
                isinstance(self.layers, (list, tuple))
                and len(self.layers) > 0
                and all(_is_int(layer) and layer >= 0 for layer in self.layers)
                and len(set(self.layers)) == len(self.layers)
            ),
            f"layers is {self.layers!r}: give a list of distinct layer numbers, from 0",
        )
        _require(self.temperature > 0, f"temperature is {self.temperature!r}: it must be positive")
        _require(self.load_balance >= 0, f"load_balance is {self.load_balance!r}: it must not be negative")
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
        _require(self.pool_dtype in _DTYPES, f"pool_dtype {self.pool_dtype!r}: take {', '.join(_DTYPES)}")
        _require(self.subjects or not self.relations, "relations are kept per subject: give subjects too")
        _require(
            not self.gate_soft or (self.gate and not self.subjects),
            "gate_soft is a gate of its own kind: take gate=True, and no subjects",
        )
        _require(self.subject_weight >= 0, f"subject_weight is {self.subject_weight!r}: it must not be negative")
        _require(
            self.subject_weight == 0 or (self.qk_norm and self.recipe == "addressed"),
            "subject_weight is for the addressed recipe with qk_norm: take 0",
        )
        _require(_is_int(self.seed) and self.seed >= 0, f"seed is {self.seed!r}: it must be a number from 0")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
