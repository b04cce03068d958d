"""The memory as a PEFT method, laid out as peft lays out its own; importing this package registers it."""

from __future__ import annotations

from peft import mapping
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

from memlayers.tuner.addressing import Read
from memlayers.tuner.config import METHOD, MemoryConfig
from memlayers.tuner.gate import RelevanceGate
from memlayers.tuner.handle import (
    MemoryHandle,
    active_memories,
    memory_auxiliary_loss,
    memory_handle,
    set_gate_enabled,
    value_pool,
    without_memory,
)
from memlayers.tuner.layer import MemoryLayer
from memlayers.tuner.model import MemoryModel, memory_layers

__all__ = [
    "MemoryConfig",
    "MemoryHandle",
    "MemoryLayer",
    "MemoryModel",
    "Read",
    "RelevanceGate",
    "active_memories",
    "memory_auxiliary_loss",
    "memory_handle",
    "memory_layers",
    "set_gate_enabled",
    "value_pool",
    "without_memory",
]


def _register() -> None:
    # peft refuses to register a name twice; after a reload the classes of this import are the ones to know.
    peft_type = PeftType[METHOD.upper()]
    for table in (
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        mapping.PEFT_TYPE_TO_TUNER_MAPPING,
    ):
        table.pop(peft_type, None)
    register_peft_method(name=METHOD, config_cls=MemoryConfig, model_cls=MemoryModel)


_register()
