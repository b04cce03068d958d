"""One writer at a time: the lock on a directory that is edited."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath, oserrors_in_one_line


@contextlib.contextmanager
def writing_alone(path: StrPath) -> Iterator[None]:
    """Hold a lock on writing the directory `path`, which lies beside it as `.NAME.memlayers-lock` meanwhile.

    The system takes the lock from a process that dies.

    Raises:
        InputError: another process holds it, or the parent cannot be written.
    """
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{target.name}.memlayers-lock")
    held = FileLock(lock, timeout=0, thread_local=False)
    with oserrors_in_one_line(path):
        lock.parent.stat()  # filelock would make it
        while not held.is_locked:
            try:
                held.acquire()
            except Timeout:
                if not lock.exists():  # its last holder has just removed it
                    continue
                raise InputError(
                    f"{path}: process {_holder(lock)} is editing it; wait until it is done, or end that process"
                ) from None
    try:
        with contextlib.suppress(OSError):  # Windows lets nobody write a locked file, or remove it
            # Where the system has no locks, the file is filelock's own marker, of more lines, and its to remove.
            if len(_lines(lock)) <= 1:
                lock.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        with contextlib.suppress(OSError):
            if len(_lines(lock)) <= 1:
                lock.unlink()
        held.release()


def _lines(lock: Path) -> list[str]:
    return lock.read_text(encoding="ascii", errors="replace").splitlines()


def _holder(lock: Path) -> str:
    """The process that holds a lock, which wrote its number there."""
    with contextlib.suppress(OSError):
        if lines := _lines(lock):
            return lines[0].strip()
    return "unknown"
