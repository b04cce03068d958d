"""What is written beside a memory's weights: the record of the teaching, the model card, the facts. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memlayers.data.fact_files import facts_text
from memlayers.data.facts import Fact
from memlayers.inference.folder import FACTS_FILE
from memlayers.inference.record import Teaching, write_teaching
from memlayers.teaching.model_card import write_model_card


def write_records(folder: Path, out: Path, teaching: Teaching, facts: Sequence[Fact], memory: Any) -> None:
    """Writes them into a memory's folder.

    Args:
        folder: where they are written, before it becomes `out`.
        out: what messages name.
        teaching: what was done.
        facts: what was taught; kept where the settings say so.
        memory: its `MemoryConfig`.
    """
    assert teaching.config is not None
    write_teaching(folder, teaching)
    write_model_card(folder, teaching, facts, memory)
    if teaching.config.data.keep_facts:
        (folder / FACTS_FILE).write_text(facts_text(out / FACTS_FILE, facts), encoding="utf-8")
