"""One edit: under way, pending, and reported."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from memlayers.editing.journal import Change, Record
from memlayers.editing.report import EditReport
from memlayers.editing.rows import Kept
from memlayers.editing.subjects import KnownSubjects


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
