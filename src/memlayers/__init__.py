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
    from memlayers.config.sections import (
        DataConfig,
        GateConfig,
        MachineConfig,
        MemorySettings,
        OptimizerConfig,
        ScheduleConfig,
    )
    from memlayers.config.teach import TeachConfig
    from memlayers.data.fact_files import read_facts, read_questions, write_facts
    from memlayers.data.facts import Fact, Question
    from memlayers.data.general_text import read_general_text
    from memlayers.editing.config import EditConfig
    from memlayers.editing.memory import Memory, load_memory
    from memlayers.editing.report import EditRefused, EditReport
    from memlayers.evaluation.asked_scores import evaluate_asked
    from memlayers.evaluation.diagnose import diagnose
    from memlayers.evaluation.evaluate import evaluate
    from memlayers.evaluation.probes import Diagnosis
    from memlayers.evaluation.results import Results
    from memlayers.inference.answering import Answer
    from memlayers.inference.generation import answer_questions
    from memlayers.linking.config import LinkConfig
    from memlayers.performance.planning import Plan, plan
    from memlayers.pool.row_adamw import RowAdamW
    from memlayers.teaching.regate import regate_memory
    from memlayers.teaching.teach import teach_facts
    from memlayers.teaching.teacher import Teacher
    from memlayers.tuner import MemoryConfig, MemoryLayer, MemoryModel, memory_layers, set_gate_enabled
    from memlayers.utils.errors import InputError, WorkError

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "DataConfig",
    "Diagnosis",
    "EditConfig",
    "EditRefused",
    "EditReport",
    "Fact",
    "GateConfig",
    "InputError",
    "LinkConfig",
    "MachineConfig",
    "Memory",
    "MemoryConfig",
    "MemoryLayer",
    "MemoryModel",
    "MemorySettings",
    "OptimizerConfig",
    "Plan",
    "Question",
    "Results",
    "RowAdamW",
    "ScheduleConfig",
    "TeachConfig",
    "Teacher",
    "WorkError",
    "answer_questions",
    "diagnose",
    "evaluate",
    "evaluate_asked",
    "load_backbone",
    "load_memory",
    "memory_layers",
    "plan",
    "read_facts",
    "read_general_text",
    "read_questions",
    "regate_memory",
    "set_gate_enabled",
    "teach_facts",
    "write_facts",
]

_HOME: Final = MappingProxyType(
    {
        "Answer": "inference.answering",
        "DataConfig": "config.sections",
        "Diagnosis": "evaluation.probes",
        "EditConfig": "editing.config",
        "EditRefused": "editing.report",
        "EditReport": "editing.report",
        "Fact": "data.facts",
        "GateConfig": "config.sections",
        "InputError": "utils.errors",
        "LinkConfig": "linking.config",
        "MachineConfig": "config.sections",
        "Memory": "editing.memory",
        "MemoryConfig": "tuner",
        "MemoryLayer": "tuner",
        "MemoryModel": "tuner",
        "MemorySettings": "config.sections",
        "OptimizerConfig": "config.sections",
        "Plan": "performance.planning",
        "Question": "data.facts",
        "Results": "evaluation.results",
        "RowAdamW": "pool.row_adamw",
        "ScheduleConfig": "config.sections",
        "TeachConfig": "config.teach",
        "Teacher": "teaching.teacher",
        "WorkError": "utils.errors",
        "answer_questions": "inference.generation",
        "diagnose": "evaluation.diagnose",
        "evaluate": "evaluation.evaluate",
        "evaluate_asked": "evaluation.asked_scores",
        "load_backbone": "backbones",
        "load_memory": "editing.memory",
        "memory_layers": "tuner",
        "plan": "performance.planning",
        "read_facts": "data.fact_files",
        "read_general_text": "data.general_text",
        "read_questions": "data.fact_files",
        "regate_memory": "teaching.regate",
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
