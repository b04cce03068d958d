"""What an edit did, and an edit that was refused. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memlayers.data.facts import Fact
from memlayers.utils.errors import WorkError


@dataclass(slots=True)
class EditReport:
    """What an edit did.

    Attributes:
        number: in the journal.
        kind: "add", "update", "forget", "repair", "alias", "sources" or "undo".
        ids: of the facts.
        facts: they themselves, as they are stored now; those that are not stored any more as they were.
        undone: of an undo, the kind of the edit that it took back. After "forget" the facts are stored again, after
            "add" they are gone again, after "update" they have the answers that they had before.
        slots: rows of the pool that changed.
        steps: optimizer steps.
        recalled: share of `asked` taught phrasings answered rightly afterwards, in free generation.
        asked: how many were asked.
        opened: share of them for which the gate opened.
        neighbours: stored facts whose answers were measured before and after.
        repaired: ids of those that the edit had broken and that were taught again.
        changed: ids of those whose answer is another one now; none, unless `EditConfig.refuse` is off.
        seconds: without opening the memory, and without saving.
        saving: seconds of saving; 0 where that is still to come.
        evidence: of forgetting, see `Memory.forget`; of aliases their "subject", and those "added" and "removed".
    """

    number: int
    kind: str
    ids: tuple[str, ...]
    facts: tuple[Fact, ...] = ()
    undone: str = ""
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
