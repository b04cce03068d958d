"""Saving edits: a new folder beside the memory's takes its place in one step, with weights, facts, journal and undo."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from memlayers.data.facts import Fact
from memlayers.editing.fact_book import FactBook
from memlayers.editing.journal import (
    DIGESTED,
    Change,
    Record,
    carry_over,
    changes_text,
    digests,
    outdated_undo_files,
    write_facts_and_journal,
)
from memlayers.editing.rows import Kept
from memlayers.editing.slot_use import SlotUse
from memlayers.editing.subjects import KnownSubjects
from memlayers.inference.folder import CONFIG_FILE, JOURNAL_FILE, SLOT_USE_FILE, WEIGHTS_FILE
from memlayers.tuner.handle import MemoryHandle
from memlayers.utils.errors import WorkError
from memlayers.utils.files import replaced_directory


@dataclass(slots=True)
class Pending:
    """An edit that is in the model and not yet in the folder.

    Attributes:
        record: its line in the journal.
        changes: of the facts.
        kept: the rows that it changed, as they were.
        subjects: what the memory knew of its subjects before it and after it, where it changed that.
        purge: drop all undo data with it.
    """

    record: Record
    changes: list[Change]
    kept: Kept
    subjects: tuple[KnownSubjects, KnownSubjects] | None
    purge: bool


def save_edits(
    book: FactBook,
    memory: MemoryHandle,
    use: SlotUse | None,
    records: Sequence[Record],
    facts: Sequence[Fact],
    pending: Mapping[int, Pending],
    *,
    purge: bool = False,
    expected: Mapping[str, str] | None = None,
) -> None:
    """Replaces a memory's folder, in one step, by one with the model's weights, these facts, and more records.

    Args:
        book: of the folder; it is told what was saved.
        memory: as it is in the model.
        use: which slots the facts read, where that is known.
        records: new lines of the journal.
        facts: all that are stored now.
        pending: what undoing the edits needs, by their numbers.
        purge: write no undo data, and drop what there is.
        expected: SHA-256 of each of `journal.DIGESTED`; None for whatever they become.

    Raises:
        WorkError: the files are not what is `expected`, or the disk is full; the folder is as it was.
    """
    folder = book.folder
    history = [*book.records, *records]
    outdated = outdated_undo_files(history)
    dropped = [record.undo_file for record in history] if purge else outdated
    with replaced_directory(folder) as new:
        carry_over(folder, new, [*DIGESTED, JOURNAL_FILE, *dropped])
        state = get_peft_model_state_dict(memory.model, adapter_name=memory.adapter, save_embedding_layers=False)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(tensors, new / WEIGHTS_FILE, metadata={"format": "pt"})
        shutil.copy2(folder / CONFIG_FILE, new / CONFIG_FILE)
        if use is not None:
            (new / SLOT_USE_FILE).unlink(missing_ok=True)  # a link to the old one
            use.save(new / SLOT_USE_FILE, {fact.id for fact in facts})
        write_facts_and_journal(new, facts, [])
        found = digests(new)
        if expected and found != expected:
            raise WorkError(f"{folder}: the edit cannot be taken back bit for bit here; nothing was changed")
        history[-1] = replace(history[-1], after=found)
        for number, each in pending.items():
            record = next(record for record in history if record.number == number)
            if record.undo_file not in dropped:
                _write_undo(new / record.undo_file, record, each)
        write_facts_and_journal(new, facts, history)
    book.saved(history, found)


def _write_undo(path: Path, record: Record, pending: Pending) -> None:
    kept = pending.kept
    tensors = {"rows": kept.rows, "values": kept.values}
    if kept.scales is not None:
        tensors["scales"] = kept.scales
    if pending.subjects is not None:
        before, after = pending.subjects
        tensors |= before.undo_tensors(after)
    path.parent.mkdir(exist_ok=True)
    words = {"record": record.line(), "changes": changes_text(pending.changes)}
    save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, path, metadata=words)
