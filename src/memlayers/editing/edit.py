"""One edit: under way, pending, and reported."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from memlayers.editing.journal import Change, Record
from memlayers.editing.rows import Kept
from memlayers.editing.subjects import KnownSubjects
from memlayers.utils.errors import WorkError


@dataclass(slots=True)
class EditReport:
    """What an edit did.

    Attributes:
        number: in the journal.
        kind: "add", "update", "forget", "mend" or "undo".
        ids: of the facts.
        slots: rows of the pool that changed.
        steps: optimizer steps.
        recalled: share of `asked` taught phrasings answered rightly afterwards, in free generation.
        asked: how many were asked.
        opened: share of them for which the gate opened.
        neighbours: stored facts whose answers were measured before and after.
        repaired: ids of those that had to be mended.
        changed: ids of those whose answer is another one now; none, unless `EditConfig.refuse` is off.
        seconds: without opening the memory, and without saving.
        saving: seconds of saving; 0 where that is still to come.
        evidence: of forgetting, see `EditableMemory.forget`.
    """

    number: int
    kind: str
    ids: tuple[str, ...]
    slots: int = 0
    steps: int = 0
    recalled: float | None = None
    asked: int = 0
    opened: float | None = None
    neighbours: int = 0
    repaired: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    seconds: float = 0.0
    saving: float = 0.0
    evidence: dict[str, Any] = field(default_factory=dict)


class EditRefused(WorkError):
    """An edit that was taken back before it was saved; `report` says why."""

    def __init__(self, message: str, report: EditReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass(slots=True)
class _Pending:
    """An edit that is in the model and not yet in the folder."""

    record: Record
    changes: list[Change]
    kept: Kept
    index: tuple[KnownSubjects, KnownSubjects] | None
    """Before it and after it, where it changed the index."""
    purge: bool


@dataclass(slots=True)
class _Open:
    """An edit under way: what to put back should it fail."""

    report: EditReport
    index: KnownSubjects | None
    kept: Kept | None = None
    began: float = field(default_factory=time.perf_counter)
