"""`TeachConfig`: everything that decides what teaching does, one nested set of settings. Loads no torch.

The sections of a YAML file are its fields; the flags of ``memlayers teach`` are theirs (`flag_fields`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from memlayers.config.options import check_section, flag_of, option
from memlayers.config.sections import (
    DataConfig,
    GateConfig,
    MachineConfig,
    MemorySettings,
    OptimizerConfig,
    QueryConfig,
    ScheduleConfig,
)
from memlayers.utils.errors import InputError
from memlayers.utils.files import read_text

EXPOSURES, FURTHER = 5, 6  # docs/LOG.md


@dataclass(frozen=True, slots=True)
class TeachConfig:
    """How facts are taught: what is asked of the backbone, the memory, its gate, and the steps.

    Attributes:
        backbone: "pocket"; "smollm2", "qwen" or "gemma" once fetched; a folder; a GGUF file; or a name on the Hugging
            Face hub.
        data: which text is read beside the facts.
        memory: how the memory is built.
        queries: how they are learned where subjects have several facts.
        gate: when it may be read.
        schedule: how long, in which steps, and until when.
        optimizer: how the value pool is written.
        machine: where it runs.
        seed: of everything random; the same seed gives the same bits on the same machine.

    Raises:
        InputError: a value is of the wrong type or out of its range, or two do not go together.
    """

    backbone: str = option(
        "pocket",
        "Its name, a folder, or a .gguf file. `pocket`; `smollm2`, `qwen` or `gemma` once fetched (``memlayers "
        "fetch``); or a name on the Hugging Face hub.",
    )
    data: DataConfig = field(default_factory=DataConfig)
    memory: MemorySettings = field(default_factory=MemorySettings)
    queries: QueryConfig = field(default_factory=QueryConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    seed: int = option(
        137,
        "Of everything random.",
        check=lambda value: None if 0 <= value < 2**32 else "give a number from 0 to 2**32 - 1",
    )

    def __post_init__(self) -> None:
        for name, kind in _SECTIONS.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} is {getattr(self, name)!r}: give a {kind.__name__}")
        check_section(self)
        if self.data.protect is not None and self.memory.recipe != "addressed":
            raise InputError(
                "protect needs addressing that stays as it is: take the recipe addressed, or leave protect out"
            )
        if self.memory.pool_dtype == "int8" and self.optimizer.name != "row-adamw":
            raise InputError("an int8 pool is taught by the optimizer row-adamw only: take it, or pool_dtype bfloat16")

    @property
    def gated(self) -> bool:
        """Whether a gate is trained first."""
        return self.memory.recipe == "addressed" if self.gate.enabled is None else self.gate.enabled

    @property
    def exposures(self) -> int:
        """How often each fact is shown, at most."""
        return EXPOSURES if self.schedule.exposures is None else self.schedule.exposures

    @property
    def further(self) -> int:
        """Rounds over the facts that are not held afterwards, at most.

        Without a gate, what more exposures write costs the backbone more, and the dense recipe is kept as it was
        published; a number of exposures that is asked for is kept to.
        """
        if self.schedule.further is not None:
            return self.schedule.further
        as_told = self.schedule.exposures is not None or self.memory.recipe != "addressed" or not self.gated
        return 0 if as_told else FURTHER

    def flags(self) -> dict[str, Any]:
        """The value of every flag, by its name: what `with_flags` takes."""
        return {
            flag: getattr(getattr(self, where.section) if where.section else self, where.field.name)
            for flag, where in flag_fields().items()
        }

    def with_flags(self, **flags: Any) -> TeachConfig:
        """A copy with some values changed, each named by its flag: ``config.with_flags(sub_keys=64, exposures=20)``.

        Raises:
            InputError: no such flag, or a wrong value.
        """
        known = flag_fields()
        changes: dict[str, dict[str, Any]] = {}
        for flag, value in flags.items():
            if flag not in known:
                raise InputError(f"unknown setting {flag!r}; known settings: {', '.join(known)}")
            changes.setdefault(known[flag].section, {})[known[flag].field.name] = value
        own = changes.pop("", {})
        own |= {name: replace(getattr(self, name), **values) for name, values in changes.items()}
        changed: TeachConfig = replace(self, **own)
        return changed


_SECTIONS: Mapping[str, Any] = MappingProxyType(
    {each.name: each.default_factory for each in fields(TeachConfig) if is_dataclass(each.default_factory)}
)
"""The sections of `TeachConfig`, each with its kind."""


class FlagField(NamedTuple):
    """Where a flag's value lies: in which section ("" for `TeachConfig` itself), and the field."""

    section: str
    field: Field[Any]


def flag_fields() -> dict[str, FlagField]:
    """Every flag of ``memlayers teach``, words joined by underscores, in the order of the sections."""
    found = [(flag_of(each), FlagField("", each)) for each in fields(TeachConfig)]
    found += [(flag_of(each), FlagField(name, each)) for name, kind in _SECTIONS.items() for each in fields(kind)]
    return {flag: where for flag, where in found if flag is not None}


def read_teach_config(path: str | Path | None, flags: dict[str, Any]) -> TeachConfig:
    """Reads a YAML file of settings, if there is one, and lays flags over it (None: not given).

    Raises:
        InputError: not YAML, an unknown key, a value of the wrong type or out of range; names file and key.
    """
    config = TeachConfig() if path is None else _read_yaml(path)
    return config.with_flags(**{name: value for name, value in flags.items() if value is not None})


def config_from_record(values: dict[str, Any]) -> TeachConfig:
    """The settings that ``dataclasses.asdict`` took apart; also the flat ones that version 0.1 wrote.

    Raises:
        InputError: an unknown name, or a wrong value.
        TypeError: not settings at all.
    """
    if "recipe" in values:
        return TeachConfig().with_flags(**values)
    gate = {name: value for name, value in values.get("gate", {}).items() if name != "most_contexts"}  # before 0.2
    if "relation_check" in gate:  # questions put to other subjects: before 0.2
        check = gate["relation_check"]
        gate["relation_check"] = {name: value for name, value in check.items() if name != "swapped"}
    config: TeachConfig = _build(TeachConfig, {**values, "gate": gate} if gate else values, "")
    return config


def _read_yaml(path: str | Path) -> TeachConfig:
    try:
        read = yaml.load(read_text(path), _Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not YAML ({reason}); write one 'key: value' per line") from error
    if not isinstance(read, dict):
        raise InputError(f"{path}: not a mapping; write one 'key: value' per line")
    try:
        config: TeachConfig = _build(TeachConfig, read, "")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return config


def _build(kind: Any, values: dict[Any, Any], where: str) -> Any:
    """A dataclass of settings from a mapping; its sections from the mappings within."""
    known = {each.name: each for each in fields(kind)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            section = _section_of(name)
            hint = f"it belongs under '{section}:'" if section and not where else f"known keys: {', '.join(known)}"
            raise InputError(f"unknown key {(_dotted(where, name) if where else name)!r}; {hint}")
        section_kind: Any = known[name].default_factory
        if is_dataclass(section_kind):
            if not isinstance(value, dict):
                raise InputError(f"{_dotted(where, name)} is {value!r}: indent its own keys below it")
            value = _build(section_kind, value, _dotted(where, name))
        given[name] = value
    return kind(**given)


def _section_of(name: Any) -> str | None:
    """The section of a flag's name, or of a field's."""
    where = flag_fields().get(name)
    return where.section if where and where.section else None


def _dotted(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as YAML 1.2 does; PyYAML wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
