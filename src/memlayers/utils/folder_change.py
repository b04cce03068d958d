"""Changing files of a folder in one step, without writing anew what stays: a write-ahead record.

::

    DIR/.memlayers-change.tmp   a change that is being prepared
    DIR/.memlayers-change       one that counts: `changes`, and under `files` the new files
    DIR/...                     the files themselves, which it is then carried out on

A change is written beside the files and counts from one renaming on. Then it is carried out: bytes are written into the
file that is patched, new files take their places, others are removed. Each of these steps may be done twice. A process
killed at any moment leaves the old files, or a change that the next `recover_folder` carries out to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath, oserrors_in_one_line, raise_disk_error, sync_directory, sync_tree
from memlayers.utils.locks import writing_alone

_COUNTS, _PREPARED = ".memlayers-change", ".memlayers-change.tmp"
_PATIENCE = 10.0  # seconds that a change of another process may take to be carried out


@dataclass(frozen=True, slots=True)
class Patch:
    """What becomes of a file that changes in place.

    Attributes:
        pieces: new bytes, each with where they go.
        size: of the file afterwards.
    """

    pieces: Sequence[tuple[int, bytes]]
    size: int


@dataclass(slots=True)
class FolderChange:
    """A change that is being prepared.

    Attributes:
        files: a folder for new files, by the names that they have in the folder that changes.
        removed: names of files to be removed.
        patches: of files that are there already, by their names.
    """

    files: Path
    removed: list[str] = field(default_factory=list)
    patches: dict[str, Patch] = field(default_factory=dict)


@contextlib.contextmanager
def folder_change(path: StrPath) -> Iterator[FolderChange]:
    """A block in which a change of a folder is prepared; it is carried out at its end, wholly or not at all.

    The caller sees to it that nobody else changes the folder (`locks.writing_alone`). A change that counts and cannot
    be carried out, as on a full disk, is kept and warned of: the next change, or the next opening, carries it out.

    Args:
        path: the folder.

    Raises:
        InputError: it cannot be written.
        WorkError: the disk is full; nothing was changed.
    """
    folder = Path(path)
    recover_folder(folder)
    prepared = folder / _PREPARED
    with oserrors_in_one_line(path):
        (prepared / "files").mkdir(parents=True)
    try:
        change = FolderChange(prepared / "files")
        yield change
        with oserrors_in_one_line(path):
            _write_changes(prepared / "changes", change)
            sync_tree(prepared)
            os.rename(prepared, folder / _COUNTS)
    except BaseException as error:
        shutil.rmtree(prepared, ignore_errors=True)
        raise_disk_error(path, error)
        raise
    try:
        sync_directory(folder)
        _carry_out(folder)
    except OSError as error:
        warnings.warn(
            f"{path}: changed, but the files could not be written yet ({error.strerror}); the next opening does it",
            stacklevel=3,
        )


def recover_folder(path: StrPath) -> None:
    """Carries out a change that counts, and removes one that was being prepared. For who may write the folder alone.

    Raises:
        InputError: it cannot be written.
        WorkError: the disk is full.
    """
    folder = Path(path)
    with oserrors_in_one_line(path):
        shutil.rmtree(folder / _PREPARED, ignore_errors=True)
        _carry_out(folder)


def is_changing(path: StrPath) -> bool:
    """Whether a change of a folder counts and is not carried out to its end."""
    return (Path(path) / _COUNTS).is_dir()


def settle_folder(path: StrPath) -> None:
    """For who is about to read a folder: waits for a change of another process, or carries out one that it left.

    Raises:
        InputError: another process is still at it, or died over it and the folder cannot be written.
        WorkError: the disk is full.
    """
    until = time.monotonic() + _PATIENCE
    while is_changing(path):
        try:
            with writing_alone(path):
                recover_folder(path)
        except InputError:
            if time.monotonic() > until or not os.access(path, os.W_OK):
                raise
            time.sleep(0.05)


def check_changeable(path: StrPath) -> None:
    """Refuses, before any work, a folder that cannot be written; leaves nothing behind.

    Raises:
        InputError: it cannot be written.
        WorkError: the disk is full.
    """
    with oserrors_in_one_line(path):
        probe = Path(path) / _PREPARED
        probe.mkdir()
        probe.rmdir()


def _write_changes(path: Path, change: FolderChange) -> None:
    """One line of JSON, and behind it the bytes of all pieces."""
    words = {
        "removed": change.removed,
        "patches": {
            name: {"size": patch.size, "pieces": [[place, len(data)] for place, data in patch.pieces]}
            for name, patch in change.patches.items()
        },
    }
    with open(path, "wb") as file:
        file.write(json.dumps(words).encode() + b"\n")
        for patch in change.patches.values():
            for _, data in patch.pieces:
                file.write(data)


def _carry_out(folder: Path) -> None:
    stage = folder / _COUNTS
    changes, files = stage / "changes", stage / "files"
    if not stage.is_dir():
        return
    if changes.is_file():  # it goes last
        with open(changes, "rb") as file:
            words = json.loads(file.readline())
            for name, patch in words["patches"].items():
                with open(folder / name, "rb+", buffering=0) as patched:
                    for place, length in patch["pieces"]:
                        _overwrite(patched, place, file.read(length))
                    patched.truncate(patch["size"])
                    os.fsync(patched.fileno())
        changed = {folder}
        for name in words["removed"]:
            (folder / name).unlink(missing_ok=True)
            changed.add((folder / name).parent)
        for path in sorted(files.rglob("*")):
            target = folder / path.relative_to(files)
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
                changed.add(target.parent)
        for each in changed:
            if each != folder and each.is_dir() and not any(each.iterdir()):
                each.rmdir()
            if each.is_dir():
                sync_directory(each)
        changes.unlink()
    shutil.rmtree(stage)


def _overwrite(file: FileIO, place: int, data: bytes) -> None:
    """Writes all of some bytes to a place in a file."""
    file.seek(place)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
