"""Fixtures of the tests of teaching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.teaching import Configure
from memlayers.config.teach import TeachConfig


@pytest.fixture(scope="session")
def configure(chat_backbone: Path, general_file: Path) -> Configure:
    """`configure(**changes)`: one pass of two steps on the tiny backbone, without a gate."""

    def build(**changes: Any) -> TeachConfig:
        settings: dict[str, Any] = {
            "backbone": str(chat_backbone), "general_text": str(general_file), "recipe": "addressed", "layers": None,
            "sub_keys": 16, "heads": 2, "top_k": 4, "key_dim": 8, "pool_dtype": "float32", "gate": False,
            "gate_threshold": -1e9, "gate_steps": 20, "exposures": 1, "batch_size": 3, "accumulation": 1,
            "value_rate": 1.0, "dense_rate": 0.02, "warmup": 1, "optimizer": "row-adamw", "clip": None,
            "loss": "answer", "pack": None, "anchors": None, "fluency": None, "stop_at_recall": 1.0,
            "recall_sample": 6, "checkpoint_seconds": 1e9, "dtype": "float32", "device": "cpu", "seed": 1,
        }  # fmt: skip
        return TeachConfig().with_flags(**{**settings, **changes})

    return build
