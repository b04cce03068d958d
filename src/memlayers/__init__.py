"""Memory layers: teach a frozen language model facts, as a PEFT method.

Importing this package is cheap (no torch) and enough for PEFT to load a memory: the method is registered as
soon as PEFT is imported. The names below are imported from their modules when they are first used.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from memlayers._registration import register_with_peft

if TYPE_CHECKING:
    from memlayers.backbones import load_backbone
    from memlayers.config.teach import TeachConfig
    from memlayers.data.fact_files import read_facts, write_facts
    from memlayers.data.facts import Fact, Question
    from memlayers.editing.config import EditConfig
    from memlayers.editing.memory import Memory, load_memory
    from memlayers.editing.report import EditRefused, EditReport
    from memlayers.evaluation.evaluate import evaluate_memory
    from memlayers.inference.answering import Answer
    from memlayers.inference.generation import answer_questions
    from memlayers.pool.row_adamw import RowAdamW
    from memlayers.teaching.teach import teach_facts
    from memlayers.tuner import MemoryConfig, MemoryLayer, MemoryModel, memory_layers, set_gate_enabled
    from memlayers.utils.errors import InputError, WorkError

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "EditConfig",
    "EditRefused",
    "EditReport",
    "Fact",
    "InputError",
    "Memory",
    "MemoryConfig",
    "MemoryLayer",
    "MemoryModel",
    "Question",
    "RowAdamW",
    "TeachConfig",
    "WorkError",
    "answer_questions",
    "evaluate_memory",
    "load_backbone",
    "load_memory",
    "memory_layers",
    "read_facts",
    "set_gate_enabled",
    "teach_facts",
    "write_facts",
]

_HOME: Final = MappingProxyType(
    {
        "Answer": "inference.answering",
        "EditConfig": "editing.config",
        "EditRefused": "editing.report",
        "EditReport": "editing.report",
        "Fact": "data.facts",
        "InputError": "utils.errors",
        "Memory": "editing.memory",
        "MemoryConfig": "tuner",
        "MemoryLayer": "tuner",
        "MemoryModel": "tuner",
        "Question": "data.facts",
        "RowAdamW": "pool.row_adamw",
        "TeachConfig": "config.teach",
        "WorkError": "utils.errors",
        "answer_questions": "inference.generation",
        "evaluate_memory": "evaluation.evaluate",
        "load_backbone": "backbones",
        "load_memory": "editing.memory",
        "memory_layers": "tuner",
        "read_facts": "data.fact_files",
        "set_gate_enabled": "tuner",
        "teach_facts": "teaching.teach",
        "write_facts": "data.fact_files",
    }
)
"""The module each public name comes from."""


def __getattr__(name: str) -> Any:
    """Imports a public name from its module at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # from now on found without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_peft()
