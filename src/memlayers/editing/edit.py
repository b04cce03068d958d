"""One edit under way: what it works with, and what is put back should it fail."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memlayers.data.facts import Fact
from memlayers.editing.report import EditReport
from memlayers.editing.rows import Kept
from memlayers.editing.session import EditSession
from memlayers.editing.slot_use import OtherReads, choose_slots
from memlayers.editing.subjects import KnownSubjects


@dataclass(slots=True)
class Edit:
    """One edit under way. `learn`, `forget` and `guard` work on it.

    Attributes:
        session: the memory under edit, its facts and its settings.
        report: what the edit did so far.
        subjects: what the memory knew of its subjects before; None where it has no index of them.
        kept: the rows that the edit may write, as they were before; None until some were chosen.
        began: by `time.perf_counter`.
    """

    session: EditSession
    report: EditReport
    subjects: KnownSubjects | None
    kept: Kept | None = None
    began: float = field(default_factory=time.perf_counter)

    def keep(self, rows: Tensor) -> None:
        """Notes these rows, slots of the pool, as they are now, to be put back should the edit fail."""
        kept = Kept.of(self.session.memory.pool, rows)
        self.kept = kept if self.kept is None else self.kept.joined(kept)

    def choose(self, facts: Sequence[Fact], most: int | None) -> Tensor:
        """The slots that an edit of these facts may write, `most` of each, int64 ascending; they are kept."""
        session, config, use = self.session, self.session.config, self.session.use
        own, reads = {fact.id for fact in facts}, session.reads(facts)
        others, total = len(session.book.facts) + use.passages, use.all_reads(own)
        read = torch.cat([each for each, _ in reads])
        frequencies = (use.frequency_of(read, own) + use.general[read]).split([len(each) for each, _ in reads])
        chosen = []
        for (slots, counts), frequency in zip(reads, frequencies, strict=True):
            beside = OtherReads(frequency, others, total, len(use.general))
            chosen.append(choose_slots(slots, counts, beside, config.slots, most))
        rows: Tensor = torch.cat(chosen).unique()
        self.keep(rows)
        return rows

    def wider(self, rows: Tensor, facts: Sequence[Fact]) -> Tensor:
        """These slots and those that an edit of these facts may write, int64 ascending; they are kept."""
        wider: Tensor = torch.cat([rows, self.choose(facts, self.session.config.slot_count)]).unique()
        return wider

    def put_back(self) -> None:
        """Has rows and subjects be as they were before, bit for bit."""
        if self.kept is not None:
            self.kept.put_back(self.session.memory.pool)
        self.session.subjects.restore(self.subjects)


@contextmanager
def edit_under_way(session: EditSession, report: EditReport) -> Iterator[Edit]:
    """A new edit; should the block fail, the model is put back as it was, bit for bit."""
    edit = Edit(session, report, session.subjects.state())
    pool = session.memory.pool
    pool.parameter.requires_grad_(True)
    try:
        yield edit
    except BaseException:
        edit.put_back()
        raise
    finally:
        pool.parameter.requires_grad_(False)
