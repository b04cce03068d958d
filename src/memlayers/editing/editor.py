"""Makes the edits of a memory: one at a time in the model, guarded, and saved with their lines in the journal.

Addressing is fixed, so a fact can be found again: what its phrasings read is where it lies. An edit writes chosen rows
of the pool (slot_use.py, rows.py), enters the subjects' fingerprints or takes them out (subjects.py), measures the
facts that read most of what it moved before and after, teaches those again that it broke (guard.py), and is saved in
one step with its line in the journal (saving.py). An edit that would change another fact's answer is refused, and
leaves nothing behind (edit.py).
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from safetensors.torch import load_file
from torch import Tensor

from memlayers.editing.edit import Edit, edit_under_way
from memlayers.editing.fact_book import both_sides
from memlayers.editing.forget import forget
from memlayers.editing.journal import Change, Record, apply_changes, reversed_changes, undo_metadata
from memlayers.editing.learn import learn
from memlayers.editing.rename import rename
from memlayers.editing.report import EditReport
from memlayers.editing.rows import Kept
from memlayers.editing.saving import POOL_BEFORE, Pending, save_edits
from memlayers.editing.session import EditSession
from memlayers.inference.folder import WEIGHTS_FILE
from memlayers.inference.scoring import answered
from memlayers.utils.errors import InputError
from memlayers.utils.progress import progress_bar


class Editor:
    """The edits of a memory, and those of them that are not saved yet.

    Args:
        session: what they stand on.

    Attributes:
        session: the same.
        written: called with the slots that an edit or an undo has changed; None for nobody.
    """

    def __init__(self, session: EditSession) -> None:
        self.session = session
        self.written: Callable[[Tensor], object] | None = None
        self._pending: list[Pending] = []

    def write(self, kind: str, changes: list[Change], *, autosave: bool, purge: bool = False) -> EditReport:
        """Makes one edit of these changes in the model, and saves it with `autosave`.

        Args:
            kind: "add", "update", "forget", "repair", "alias" or "sources".
            changes: at least one; all of them put facts in, or all take facts out; of "alias", of one subject; of
                "sources", of nothing else of the facts.
            autosave: otherwise `save` saves it.
            purge: drop all undo data when it is saved.

        Raises:
            InputError: the gate knows no subjects, whose aliases are to change.
            EditRefused: it would change another fact's answer, or does not take; the model is as it was.
        """
        session = self.session
        session.prepare()
        old, new = both_sides(changes)
        facts = tuple(new or old)
        report = EditReport(self._next_number(), kind, tuple(fact.id for fact in facts), facts)
        with edit_under_way(session, report) as edit:
            if kind == "alias":
                rename(edit, changes)
            elif kind == "sources":  # nothing of what the model holds
                edit.keep(torch.zeros(0, dtype=torch.int64))
            elif new:
                learn(edit, new)
            else:
                forget(edit, old)
            self._pending.append(self._finished(edit, changes, purge))
            kept = self._pending[-1].kept
            session.book.apply(changes)
            began = time.perf_counter()
            if autosave:
                try:
                    self.save()
                except BaseException:
                    session.book.apply(reversed_changes(changes))
                    self._pending.pop()
                    raise
                report.saving = time.perf_counter() - began
        if self.written is not None:
            self.written(kept.rows)
        session.account(changes)
        return report

    def repair(self, *, autosave: bool) -> EditReport:
        """Teaches again what is not answered any more; see `Memory.repair`."""
        session = self.session
        facts = session.book.facts
        examples = [session.encoded(fact) for fact in facts]
        asked = [one for phrasings in examples for one in phrasings]
        with progress_bar("Asking what is stored", len(asked), quiet=session.quiet) as advance:
            right = answered(session.model, session.tokenizer, asked, progress=advance)
        of_fact = right.split([len(phrasings) for phrasings in examples])
        lost = [place for place, each in enumerate(of_fact) if not bool(each.all())]
        if not lost:
            return EditReport(0, "repair", (), recalled=1.0, asked=len(asked))
        return self.write("repair", [Change(place, facts[place], facts[place]) for place in lost], autosave=autosave)

    def undo(self, record: Record, made: Sequence[Change]) -> EditReport:
        """Takes the last edit back; see `Memory.undo`.

        Args:
            record: its line in the journal.
            made: the changes that it made.
        """
        session = self.session
        began = time.perf_counter()
        path = session.folder / record.undo_file
        try:
            tensors = load_file(path)
        except Exception as error:  # the safetensors parser raises its own
            raise InputError(f"{path}: damaged ({error}); edit {record.number} cannot be taken back") from error
        changes = reversed_changes(made)
        facts = tuple(fact for change in changes if (fact := change.after or change.before))
        number, slots = self._next_number(), len(tensors["rows"])
        report = EditReport(number, "undo", record.ids, facts, undone=record.kind, slots=slots)
        pool, rows, digest = session.memory.pool, tensors["rows"], session.pool_digest
        earlier = (undo_metadata(path) or {}).get(POOL_BEFORE)  # None for an edit of before digests of pools
        with edit_under_way(session, report) as edit:
            edit.keep(rows)
            assert edit.kept is not None
            if earlier is not None and edit.kept.digest_after(earlier) != digest:
                raise InputError(
                    f"{session.folder}: the slots do not hold what edit {record.number} wrote; nothing was taken back"
                )
            stored = {name: value.to(pool.parameter.device) for name, value in tensors.items()}
            back = Kept(stored["rows"], stored["values"], stored.get("scales"))
            back.put_back(pool)
            session.subjects.undo(stored)
            before, expected = session.digests(), dict(record.before)
            if earlier is None:
                expected.pop(WEIGHTS_FILE, None)
            now = earlier or back.digest_after(digest)
            line = Record(number, "undo", _now(), record.ids, slots, undoes=record.number, before=before)
            report.seconds = time.perf_counter() - began
            after = apply_changes(session.book.facts, changes)
            save_edits(session.book, session.memory, session.known_use, [line], after, {}, rows, now, expected=expected)
            session.pool_digest = now
        if self.written is not None:
            self.written(tensors["rows"])
        session.book.apply(changes)
        if session.known_use is not None:
            session.account(changes)
        report.saving = time.perf_counter() - began - report.seconds
        return report

    def save(self) -> None:
        """Writes the edits made since the last saving into the folder, in one step."""
        session = self.session
        if not self._pending:
            return
        first = self._pending[0]
        first.record = replace(first.record, before=session.digests())
        records = [each.record for each in self._pending]
        by_number = {each.record.number: each for each in self._pending}
        purge = any(each.purge for each in self._pending)
        rows, pool = torch.cat([each.kept.rows for each in self._pending]).unique(), self._pending[-1].pool[1]
        save_edits(
            session.book, session.memory, session.known_use, records, session.book.facts, by_number, rows, pool,
            purge=purge,
        )  # fmt: skip
        session.pool_digest = pool
        self._pending = []

    def _finished(self, edit: Edit, changes: list[Change], purge: bool) -> Pending:
        """The edit as it is to be saved; its report gets what the journal says too."""
        session = self.session
        report = edit.report
        assert edit.kept is not None
        kept = edit.kept.changed(session.memory.pool)
        report.slots = len(kept.rows)
        report.seconds = time.perf_counter() - edit.began
        measured = ("steps", "recalled", "asked", "opened", "neighbours", "repaired", "changed")
        evidence = {name: getattr(report, name) for name in measured}
        evidence |= {"seconds": round(report.seconds, 3), "slots": session.config.slots, **report.evidence}
        record = Record(report.number, report.kind, _now(), report.ids, report.slots, evidence=evidence)
        before = self._pending[-1].pool[1] if self._pending else session.pool_digest
        pool = before, Kept.of(session.memory.pool, kept.rows).digest_after(before)
        return Pending(record, changes, kept, session.subjects.change(edit.subjects), purge, pool)

    def _next_number(self) -> int:
        records = [each.record for each in self._pending] or self.session.book.records
        return records[-1].number + 1 if records else 1


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
