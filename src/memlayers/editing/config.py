"""How an edit writes, and every constant that was tuned for it. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from memlayers.utils.errors import InputError

RULES: Final = ("tfidf", "kl", "all")
"""The names `slot_use.choose_slots` knows."""


@dataclass(frozen=True, slots=True)
class EditConfig:
    """How an edit writes.

    Attributes:
        slots: which of the rows that an edit reads it may write: "tfidf", "kl" or "all" (editing/slot_use.py).
        slot_count: most rows per fact; None for no limit.
        rate: Adam's learning rate, in units of the MLP output's RMS, as `TeachConfig.value_rate`.
        steps: most passes over the facts of an edit.
        batch_size: sequences per step.
        enough: mean loss, in nats per token, at which an answer that is right is right enough.
        neighbours: stored facts measured before and after, per fact edited: of the same subject, and those that read
            most of what was moved.
        phrasings: of each of them.
        rehearsed: stored facts that each step teaches beside the edit's own, drawn by how many of the rows that may be
            written they read. Worth its time for batches into a full memory (docs/LOG.md), not for a single fact.
        repairs: times that neighbours whose answer changed are taught again, before an edit is refused.
        refuse: refuse an edit that still changes a neighbour's answer; otherwise the report tells.
        seed: of the choices of phrasings.
        read_phrasings: phrasings of each stored fact by which it is known which slots it reads.
        general_passages: passages of general text whose reads count beside the stored facts', where no gate that knows
            the subjects keeps the memory out of such text.
        most_neighbours: most neighbours of an edit, however many facts it has.
        generated: most taught phrasings that are asked in free generation, to see whether an edit takes.
        least_recall: share of them that must be answered rightly; otherwise the edit is refused.
        near_backbone: of a forgotten fact, the mean divergence (KL, nats per token) from what the bare backbone says
            at which it is forgotten, where the gate closes for its subject.
        near_backbone_shared: the same where another stored fact keeps the gate open for its subject.
    """

    slots: str = "tfidf"
    slot_count: int | None = 256
    rate: float = 0.12
    steps: int = 30
    batch_size: int = 32
    enough: float = 0.01
    neighbours: int = 32
    phrasings: int = 2
    rehearsed: int = 0
    repairs: int = 3
    refuse: bool = True
    seed: int = 137
    read_phrasings: int = 2
    general_passages: int = 200
    most_neighbours: int = 1024
    generated: int = 64
    least_recall: float = 0.5
    near_backbone: float = 0.6
    near_backbone_shared: float = 0.2

    def __post_init__(self) -> None:
        if self.slots not in RULES:
            raise InputError(f"slots is {self.slots!r}: take one of {', '.join(RULES)}")
        for name in ("slot_count", "steps", "batch_size", "phrasings", "read_phrasings", "generated"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")
        for name in ("neighbours", "rehearsed", "repairs", "general_passages", "most_neighbours"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 0")
        for name in ("rate", "enough", "near_backbone", "near_backbone_shared"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be positive")
        if not 0 <= self.least_recall <= 1:
            raise InputError(f"least_recall is {self.least_recall}: give a share from 0 to 1")
