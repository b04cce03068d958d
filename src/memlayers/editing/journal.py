"""What an edited memory keeps beside its weights: its facts, the journal of its edits, and what undo needs. No torch.

::

    DIR/facts.jsonl            the stored facts, in order
    DIR/journal.jsonl          one line per edit: what, when, how many slots, hashes before and after, evidence
    DIR/undo/00000012.safetensors   of edit 12: the old values of the slots it changed, its facts before and after

All of it lies in the adapter's folder and changes with the weights in one step (`folder_change`), so it always belongs
to the weights beside it. An undo file also holds the edit's line of the journal: a line that was cut off comes back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from memlayers.data.facts import Fact, Source
from memlayers.inference.folder import FACTS_FILE, JOURNAL_FILE, UNDO_FOLDER
from memlayers.pool.weights_layout import weights_digest
from memlayers.utils.errors import InputError
from memlayers.utils.files import file_digest
from memlayers.utils.tensor_file import read_metadata

UNDO_KEPT = 100
"""Edits that can be taken back, the last ones."""

DIGESTED = ("adapter_model.safetensors", "adapter_config.json", FACTS_FILE)
"""The files that make up the memory, as the journal's hashes see it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One fact's part in an edit, applied in order: taken out of its place, and put there.

    Attributes:
        place: in the list of stored facts, from 0.
        before: the fact that was there; None where one is put in.
        after: the fact that is there now; None where one is taken out.
    """

    place: int
    before: Fact | None
    after: Fact | None


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal.

    Attributes:
        number: of the edit, from 1.
        kind: "add", "update", "forget", "repair" (in older journals "mend", read as "repair"), "alias", "sources" or
            "undo".
        time: UTC, ISO 8601.
        ids: of the facts.
        slots: rows of the pool that changed; which ones, the undo file says.
        undoes: the number of the edit that an undo took back.
        before: SHA-256 of each of `DIGESTED` before it, of the weights as `weights_digest` takes it; empty where the
            edit was saved together with later ones, and without the weights where peft wrote them.
        after: the same after it.
        evidence: what was measured, flat.
    """

    number: int
    kind: str
    time: str
    ids: tuple[str, ...]
    slots: int
    undoes: int | None = None
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The line, without its end."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> Record:
        """What `line` wrote; raises ValueError for anything else."""
        values = json.loads(line)
        names = {item.name for item in fields(cls)}
        if not isinstance(values, dict) or set(values) != names or not isinstance(values["number"], int):
            raise ValueError("not a line of the journal")
        kind = "repair" if values["kind"] == "mend" else values["kind"]  # its name in version 0.1
        return cls(**{**values, "kind": kind, "ids": tuple(values["ids"])})

    @property
    def undo_file(self) -> str:
        """The name of its undo file, seen from the memory's folder."""
        return f"{UNDO_FOLDER}/{self.number:08d}.safetensors"


def apply_changes(facts: Sequence[Fact], changes: Sequence[Change]) -> list[Fact]:
    """The stored facts after an edit."""
    found = list(facts)
    for change in changes:
        found[change.place : change.place + (change.before is not None)] = [change.after] if change.after else []
    return found


def reversed_changes(changes: Sequence[Change]) -> list[Change]:
    """What takes these changes back."""
    return [Change(change.place, change.after, change.before) for change in reversed(changes)]


def changes_text(changes: Sequence[Change]) -> str:
    """Changes as JSON."""
    return json.dumps([asdict(change) for change in changes], ensure_ascii=False)


def changes_from_text(text: str) -> list[Change]:
    """What `changes_text` wrote."""
    return [Change(row["place"], _fact(row["before"]), _fact(row["after"])) for row in json.loads(text)]


def _fact(values: dict[str, Any] | None) -> Fact | None:
    if values is None:
        return None
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    lists["sources"] = tuple(Source(**source) for source in values.get("sources", ()))
    return Fact(**{**values, **lists})


def read_journal(folder: str | Path) -> tuple[list[Record], str | None]:
    """The journal of a memory's folder, oldest first, and one line about what was wrong with it, if anything was.

    A last line that was cut off is taken from its undo file where that is there; the memory itself does not depend on
    the journal.

    Raises:
        InputError: a line before the last one is damaged.
    """
    path = Path(folder) / JOURNAL_FILE
    if not path.is_file():
        return [], None
    text = path.read_bytes().decode("utf-8", "replace")
    records: list[Record] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(Record.from_line(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            if any(lines[number:]):
                raise InputError(
                    f"{path}:{number}: damaged line; restore it from a copy, or delete the journal (the memory stays "
                    "as it is, but nothing can be undone)"
                ) from None
            restored = _from_undo_file(folder, records[-1].number + 1 if records else number)
            if restored is None:
                return records, (
                    f"{path}:{number}: the last line was cut off; the memory is whole, but that edit cannot be undone"
                )
            return [*records, restored], f"{path}:{number}: the last line was cut off; restored from its undo file"
    missing = _from_undo_file(folder, records[-1].number + 1) if records else None
    if missing is not None:
        return [*records, missing], f"{path}: the last line is missing; restored from its undo file"
    return records, None


def last_undoable(records: Sequence[Record]) -> Record | None:
    """The last edit that no undo took back."""
    undone = {record.undoes for record in records}
    return next((r for r in reversed(records) if r.kind != "undo" and r.number not in undone), None)


def undo_metadata(path: str | Path) -> dict[str, str] | None:
    """What an undo file says in words; None where it is not there or damaged.

    "record", the line of the journal; "changes" of the facts; and, where it was noted, the "pool"'s digest before.
    """
    try:
        found = read_metadata(path)
    except (OSError, ValueError):
        return None
    return found if {"record", "changes"} <= set(found) else None


def _from_undo_file(folder: str | Path, number: int) -> Record | None:
    """The last line, as the undo file of that edit has it (without the hashes after it, which were not known yet)."""
    found = undo_metadata(Path(folder) / UNDO_FOLDER / f"{number:08d}.safetensors")
    try:
        return None if found is None else Record.from_line(found["record"])
    except (ValueError, TypeError, KeyError):
        return None


def digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each file of `DIGESTED`, of the weights as `weights_digest` takes it."""
    weights, *others = DIGESTED
    return {weights: weights_digest(Path(folder) / weights)} | {
        name: file_digest(Path(folder) / name) for name in others
    }


def write_journal(folder: Path, records: Sequence[Record]) -> None:
    """Writes the journal."""
    (folder / JOURNAL_FILE).write_bytes("".join(record.line() + "\n" for record in records).encode("utf-8"))


def outdated_undo_files(records: Sequence[Record]) -> list[str]:
    """Undo files that are not needed any more: of edits taken back, and of all but the last `UNDO_KEPT` others."""
    undone = {record.undoes for record in records}
    edits = [record for record in records if record.kind != "undo"]
    current = [record for record in edits if record.number not in undone][-UNDO_KEPT:]
    keep = {record.number for record in current}
    return [record.undo_file for record in edits if record.number not in keep]
