"""Saving edits: weights, facts, journal and undo data change in one step, the weights in place (`folder_change`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from memlayers.data.facts import Fact
from memlayers.editing.fact_book import FactBook
from memlayers.editing.journal import (
    Change,
    Record,
    changes_text,
    outdated_undo_files,
    write_journal,
)
from memlayers.editing.rows import Kept
from memlayers.editing.slot_use import SlotUse
from memlayers.editing.subjects import KnownSubjects
from memlayers.inference.folder import CONFIG_FILE, FACTS_FILE, SLOT_USE_FILE, WEIGHTS_FILE
from memlayers.pool.weights_file import patch_weights, write_weights
from memlayers.pool.weights_layout import weights_digest
from memlayers.tuner.handle import MemoryHandle
from memlayers.utils.errors import WorkError
from memlayers.utils.files import file_digest
from memlayers.utils.folder_change import FolderChange, folder_change

POOL_BEFORE = "pool"
"""The name of the pool's digest before an edit, in the edit's undo file."""


@dataclass(slots=True)
class Pending:
    """An edit that is in the model and not yet in the folder.

    Attributes:
        record: its line in the journal.
        changes: of the facts.
        kept: the rows that it changed, as they were.
        subjects: what the memory knew of its subjects before it and after it, where it changed that.
        purge: drop all undo data with it.
        pool: the pool's digests before and after it.
    """

    record: Record
    changes: list[Change]
    kept: Kept
    subjects: tuple[KnownSubjects, KnownSubjects] | None
    purge: bool
    pool: tuple[str, str]


def save_edits(
    book: FactBook,
    memory: MemoryHandle,
    use: SlotUse | None,
    records: Sequence[Record],
    facts: Sequence[Fact],
    pending: Mapping[int, Pending],
    rows: Tensor,
    pool: str,
    *,
    purge: bool = False,
    expected: Mapping[str, str] | None = None,
) -> None:
    """Has a memory's folder hold the model's weights, these facts, and more records, in one step.

    Args:
        book: of the folder; it is told what was saved.
        memory: as it is in the model.
        use: which slots the facts read, where that is known.
        records: new lines of the journal.
        facts: all that are stored now.
        pending: what undoing the edits needs, by their numbers.
        rows: slots whose values may differ from those in the folder, int64 [n], distinct.
        pool: the pool's digest as it is in the model.
        purge: write no undo data, and drop what there is.
        expected: SHA-256 of some of `journal.DIGESTED`; None for whatever they become.

    Raises:
        WorkError: the files are not what is `expected`, or the disk is full; the folder is as it was.
    """
    folder = book.folder
    history = [*book.records, *records]
    outdated = outdated_undo_files(history)
    dropped = [record.undo_file for record in history] if purge else outdated
    ids = {fact.id for fact in facts}
    with folder_change(folder) as change:
        new = change.files
        (new / FACTS_FILE).write_bytes(book.facts_text(facts).encode("utf-8"))
        found = {
            WEIGHTS_FILE: _stage_weights(change, folder, memory, rows, pool),
            CONFIG_FILE: file_digest(folder / CONFIG_FILE),
            FACTS_FILE: file_digest(new / FACTS_FILE),
        }
        if expected and any(found[name] != digest for name, digest in expected.items()):
            raise WorkError(f"{folder}: the edit cannot be taken back bit for bit here; nothing was changed")
        rewritten = use is not None and (purge or use.is_outdated(ids))
        if use is not None and rewritten:
            use.save(new / SLOT_USE_FILE, ids)
        history[-1] = replace(history[-1], after=found)
        for number, each in pending.items():
            record = next(record for record in history if record.number == number)
            if record.undo_file not in dropped:
                _write_undo(new / record.undo_file, record, each)
        write_journal(new, history)
        change.removed += [name for name in dropped if (folder / name).exists()]
    book.saved(history, found)
    if use is not None and rewritten:
        use.unsaved.clear()
    if memory.pool.mapped is not None:
        memory.pool.mapped.drop_written(rows, folder / WEIGHTS_FILE)


def _stage_weights(change: FolderChange, folder: Path, memory: MemoryHandle, rows: Tensor, pool: str) -> str:
    """Has the weights change in place, or a new file take their place where that cannot be; returns their digest."""
    tensors = memory.tensors
    patch = patch_weights(folder / WEIGHTS_FILE, tensors, rows, pool)
    if patch is None:
        write_weights(change.files / WEIGHTS_FILE, tensors, pool)
        return weights_digest(change.files / WEIGHTS_FILE)
    change.patches[WEIGHTS_FILE] = patch.patch
    return patch.digest


def _write_undo(path: Path, record: Record, pending: Pending) -> None:
    kept = pending.kept
    tensors = {"rows": kept.rows, "values": kept.values}
    if kept.scales is not None:
        tensors["scales"] = kept.scales
    if pending.subjects is not None:
        before, after = pending.subjects
        tensors |= before.undo_tensors(after)
    path.parent.mkdir(exist_ok=True)
    words = {"record": record.line(), "changes": changes_text(pending.changes), POOL_BEFORE: pending.pool[0]}
    save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, path, metadata=words)
