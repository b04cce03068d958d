"""How an edit writes. Loads no torch."""

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
        slot_count: so many rows per fact at most; None for no limit.
        rate: Adam's learning rate, in units of the MLP output's RMS, as `TeachConfig.value_rate`.
        steps: most passes over the facts of an edit.
        batch_size: sequences per step.
        enough: mean loss, in nats per token, at which an answer that is right is right enough.
        neighbours: stored facts measured before and after, per fact edited: of the same subject, and those that read
            most of what was moved.
        phrasings: of each of them.
        rehearsed: stored facts that each step teaches beside the edit's own, drawn by how many of the rows that may be
            written they read. Worth its time for batches into a full memory (docs/LOG.md), not for a single fact.
        repairs: rounds of mending neighbours, before an edit is refused.
        refuse: refuse an edit that still changes a neighbour's answer; otherwise the report tells.
        seed: of the choices of phrasings.
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

    def __post_init__(self) -> None:
        if self.slots not in RULES:
            raise InputError(f"slots is {self.slots!r}: take one of {', '.join(RULES)}")
        for name in ("slot_count", "steps", "batch_size", "phrasings"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")
        for name in ("neighbours", "rehearsed", "repairs"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if self.rate <= 0 or self.enough <= 0:
            raise InputError("rate and enough must be positive")
