"""How an edit writes, and every constant that was tuned for it. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memlayers.config.options import at_least, check_section, not_negative, option, positive


@dataclass(frozen=True, slots=True)
class EditConfig:
    """How an edit writes (docs/editing.md). The figures that chose the defaults are in docs/LOG.md."""

    slots: Literal["tfidf", "kl", "all"] = option(
        "tfidf",
        "Which of the rows that an edit reads it may write: by how often it reads them against the stored facts and "
        "general text (tfidf), by their share of the divergence between the two (kl), or all (editing/slot_use.py).",
    )
    slot_count: int | None = option(256, "So many rows per fact at most; no limit if not given.", check=at_least(1))
    rate: float = option(
        0.12,
        "Adam's learning rate, in units of the MLP output's RMS, as `OptimizerConfig.value_rate`.",
        flag=None,
        check=positive,
    )
    steps: int = option(30, "Most epochs over the facts of an edit.", flag=None, check=at_least(1))
    batch_size: int = option(32, "Sequences per step.", flag=None, check=at_least(1))
    enough: float = option(
        0.01,
        "Mean loss, in nats per token, at which an answer that is right is right enough.",
        flag=None,
        check=positive,
    )
    neighbours: int = option(
        32,
        "Stored facts measured before and after, per fact edited: of the same subject, and those that read most of "
        "what was moved.",
        flag=None,
        check=not_negative,
    )
    phrasings: int = option(2, "Of each of them.", flag=None, check=at_least(1))
    rehearsed: int = option(
        0,
        "Stored facts that each step teaches beside the edit's own, drawn by how many of the rows that may be written "
        "they read. Worth its time for batches into a full memory, not for a single fact.",
        check=not_negative,
    )
    sparing: float = option(
        10.0,
        "How strongly the steps of an edit keep out of what other facts read, where some are about its subjects "
        "(editing/projection.py); 0 for not at all.",
        flag=None,
        check=not_negative,
    )
    spared: int = option(
        48, "So many facts at most: those that read most of the rows that may be written.", flag=None, check=at_least(1)
    )
    spared_phrasings: int = option(3, "Phrasings of each of them.", flag=None, check=at_least(1))
    spared_slots: int = option(
        2048,
        "So many rows at most that such an edit may write, in place of `slot_count` for each fact if that is fewer: of "
        "a row that others read it has less.",
        flag=None,
        check=at_least(1),
    )
    repairs: int = option(
        3,
        "Times that neighbours whose answer changed are taught again, before an edit is refused.",
        flag=None,
        check=not_negative,
    )
    refuse: bool = option(
        True, "Refuse an edit that still changes a neighbour's answer; otherwise the report tells.", flag=None
    )
    seed: int = option(137, "Of the choices of phrasings.", flag=None)
    read_phrasings: int = option(
        2, "Phrasings of each stored fact by which it is known which slots it reads.", flag=None, check=at_least(1)
    )
    general_passages: int = option(
        200,
        "Passages of general text whose reads count beside the stored facts', where no gate that knows the subjects "
        "keeps the memory out of such text.",
        flag=None,
        check=not_negative,
    )
    most_neighbours: int = option(
        1024, "So many neighbours at most, however many facts an edit has.", flag=None, check=not_negative
    )
    generated: int = option(
        64,
        "So many taught phrasings at most are asked in free generation, to see what an edit has achieved.",
        flag=None,
        check=at_least(1),
    )
    least_recall: float = option(
        0.5,
        "Share of them that must be answered rightly; otherwise the edit is refused.",
        flag=None,
        check=lambda value: None if 0 <= value <= 1 else "give a share from 0 to 1",
    )
    near_backbone: float = option(
        0.6,
        "Of a forgotten fact, the mean divergence (KL, nats per token) from what the bare backbone says at which it is "
        "forgotten, where the gate closes for its subject.",
        flag=None,
        check=positive,
    )
    near_backbone_shared: float = option(
        0.2, "The same where another stored fact keeps the gate open for its subject.", flag=None, check=positive
    )

    def __post_init__(self) -> None:
        check_section(self)
