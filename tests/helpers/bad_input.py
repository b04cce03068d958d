"""What the tests of bad input share: good arguments to spoil, and what lies in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FACTS = [
    {"id": "a", "subject": "Ann", "questions": ["Where was Ann born?", "Birthplace of Ann?"], "answer": "Rome"},
    {"id": "b", "subject": "Bob", "questions": ["Where was Bob born?", "Birthplace of Bob?"], "answer": "Oslo"},
]
GENERAL = "The river runs to the sea.\n\nIt rained for three days.\n\nThe train left late.\n"
SMALL = {"layers": [1, 2], "sub_keys": 8, "heads": 2, "top_k": 2, "exposures": 1, "batch_size": 2, "gate": False}
FLAGS = ["--layers", "1,2", "--sub-keys", "8", "--heads", "2", "--top-k", "2", "--exposures", "1", "--batch-size", "2"]
FLAGS += ["--no-gate", "--device", "cpu", "--quiet"]
Refused = Callable[..., str]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` with what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
