"""Writing that is either finished or not there: temporary name beside the target, fsync, rename.

A process killed at any moment leaves the old target or the new one, and at worst a hidden
`.memlayers-*.tmp` beside it.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from memlayers.utils.errors import InputError, WorkError

StrPath: TypeAlias = str | os.PathLike[str]

# The disk's fault, not the path's: the same command may succeed later.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def read_text(path: StrPath) -> str:
    """Read a UTF-8 file that is not empty.

    Raises:
        InputError: missing, a directory, unreadable, not UTF-8 (with the line), or empty.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: is a directory; give the path of a file")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    data = data.removeprefix(codecs.BOM_UTF8)  # Excel writes one
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty; give one with something in it")
    return text


def atomic_write_text(path: StrPath, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all; missing parent directories are made.

    Raises:
        InputError: the place cannot be written (a directory, a parent that is a file, no permission).
        WorkError: the disk is full or failed.
    """
    atomic_write_bytes(path, text.encode("utf-8"))


def sections_text(schema: str, sections: Mapping[str, Any]) -> str:
    """A JSON object of a schema and named sections; of a section that is a list each entry has a line of its own.

    Raises:
        ValueError: a figure is NaN or infinite.
        TypeError: something is not JSON.
    """

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    lines = [f'"schema": {line(schema)}']
    for name, value in sections.items():
        listed = isinstance(value, list) and value
        text = "[\n  " + ",\n  ".join(map(line, value)) + "\n]" if listed else line(value)
        lines.append(f"{line(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def atomic_write_bytes(path: StrPath, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; parents are made. Raises as `atomic_write_text`."""
    with atomic_file(path) as file, oserrors_in_one_line(path):
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: StrPath) -> Iterator[BinaryIO]:
    """Yield a file to write what is too long to be held; success renames it to `path`, failure removes it.

    Raises:
        InputError, WorkError: as `atomic_write_text`; an error of the block itself is passed on as it is, but for a
            disk that became full.
    """
    target = Path(os.path.realpath(path))  # follow a link: replace what it points to, keep the link
    with oserrors_in_one_line(path):
        _refuse_other_than_file(target, path)
    with _made_parents(target, path):
        temporary = _temporary_name(target)
        with oserrors_in_one_line(path):
            file = _opened_anew(temporary, _mode_of(target))
        try:
            with file:
                yield file
                with oserrors_in_one_line(path):
                    file.flush()
                    os.fsync(file.fileno())
            with oserrors_in_one_line(path):
                os.replace(temporary, target)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            raise_disk_error(path, error)
            raise
        with oserrors_in_one_line(path):
            sync_directory(target.parent)


@contextlib.contextmanager
def atomic_directory(path: StrPath, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; success renames it to `path`, failure removes it.

    With `replace`, an existing directory changes places with the new one in one step and is deleted then. Where the
    system cannot do that (see `exchange`) it is moved aside first: a kill between the two renames leaves the old one
    under its `.tmp` name.

    Args:
        path: where the finished directory goes.
        replace: whether a non-empty directory may be replaced.

    Raises:
        InputError: `path` is a file, is non-empty without `replace`, or its parent cannot be written.
        WorkError: the disk became full, also when it did so inside the block.
    """
    target = Path(os.path.realpath(path))
    check_output_directory(path, replace=replace)
    with _made_parents(target, path):
        temporary = _temporary_name(target)
        with oserrors_in_one_line(path):
            temporary.mkdir()
        try:
            yield temporary
            with oserrors_in_one_line(path):
                sync_tree(temporary)
                _move_into_place(temporary, target, _temporary_name(target))
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise_disk_error(path, error)
            raise


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of one file system change places in one step; False where the system cannot."""
    import ctypes
    import sys

    library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(first, second, 2)  # type: ignore[union-attr]  # RENAME_SWAP
    elif hasattr(library, "renameat2"):
        here = -100  # AT_FDCWD; the 2 is RENAME_EXCHANGE
        failed = library.renameat2(here, first, here, second, 2)  # type: ignore[union-attr]
    else:
        return False
    number = ctypes.get_errno() if failed else 0
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # a file system that knows no exchange
        return False
    if number:
        raise OSError(number, os.strerror(number), str(other))
    return True


def check_output_directory(path: StrPath, replace: bool = False) -> None:
    """Check, before any work, that a directory can be written at `path`; leaves nothing behind.

    Args:
        path: the directory to be made. It may be missing (with its parents) or empty.
        replace: accept a non-empty directory too.

    Raises:
        InputError: `path` is a file, is non-empty without `replace`, or its nearest existing parent cannot
            be written.
        WorkError: the disk is full.
    """
    target = Path(os.path.realpath(path))
    with oserrors_in_one_line(path):
        if target.exists() and not target.is_dir():
            raise InputError(f"{path}: exists and is not a directory; give another output directory")
        if target.is_dir() and not replace and any(target.iterdir()):
            raise InputError(f"{path}: exists and is not empty; give another output directory or remove this one")
        _try_writing_beside(target)


def check_output_file(path: StrPath) -> None:
    """Refuse, before long work, a file that could not be written at its end; leaves nothing behind.

    Raises:
        InputError: `path` is a directory or a device, or its nearest existing parent cannot be written.
        WorkError: the disk is full.
    """
    target = Path(os.path.realpath(path))
    with oserrors_in_one_line(path):
        _refuse_other_than_file(target, path)
        _try_writing_beside(target)


def file_digest(path: StrPath) -> str:
    """SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _refuse_other_than_file(target: Path, path: StrPath) -> None:
    # Renaming over a device would destroy it (root can replace /dev/null); over a directory fails late.
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: not a regular file; give the path of a file to write")


def _try_writing_beside(target: Path) -> None:
    # Trying is the only honest check: os.access says yes to root even on a read-only file system.
    probe = _temporary_name(_nearest_existing(target.parent) / "probe")
    probe.mkdir()
    probe.rmdir()


@contextlib.contextmanager
def oserrors_in_one_line(path: StrPath) -> Iterator[None]:
    """A block in which a system's error becomes an `InputError` about `path`, or the disk's a `WorkError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _DISK_ERRORS:
            raise WorkError(_disk_line(path, reason)) from error
        raise InputError(f"{path}: cannot be written ({reason}); give a path you may write to") from error


def raise_disk_error(path: StrPath, error: BaseException) -> None:
    """Raises the disk's error that a block which wrote to `path` met as a `WorkError`; does nothing for other errors.

    Libraries in Rust (safetensors, tokenizers) wrap the system's error in a type of their own.
    """
    if isinstance(error, (InputError, WorkError)):
        return
    number = getattr(error, "errno", None)
    found = next((known for known in _DISK_ERRORS if known == number or os.strerror(known) in str(error)), None)
    if found is not None:
        raise WorkError(_disk_line(path, os.strerror(found))) from error


def _disk_line(path: StrPath, reason: str) -> str:
    return f"{path}: writing failed ({reason}); free some space or give another place, nothing was left there"


def _temporary_name(target: Path) -> Path:
    return target.parent / f".memlayers-{secrets.token_hex(8)}.tmp"


def _nearest_existing(directory: Path) -> Path:
    while not os.path.lexists(directory):
        directory = directory.parent
    return directory


@contextlib.contextmanager
def _made_parents(target: Path, path: StrPath) -> Iterator[None]:
    """Make the missing parents of `target`; take the ones made here away again if that or the block fails."""
    missing = [parent for parent in target.parents if not os.path.lexists(parent)]
    try:
        with oserrors_in_one_line(path):
            target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:  # innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _mode_of(target: Path) -> int:
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        return 0o666  # the umask takes its share


def _opened_anew(path: Path, mode: int) -> BinaryIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    return os.fdopen(descriptor, "wb")


def sync_tree(directory: Path) -> None:
    """Has the disk hold a directory with all that is in it."""
    for root, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(root, name), "rb+") as file:
                os.fsync(file.fileno())
        sync_directory(Path(root))


def sync_directory(directory: Path) -> None:
    """Has the disk hold which names a directory has."""
    if os.name != "posix":  # Windows cannot open a directory
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(new: Path, target: Path, aside: Path) -> None:
    """Has `new` be `target`, and removes what was there; by way of `aside` where they cannot change places."""
    if not target.exists():
        os.rename(new, target)
        sync_directory(target.parent)
        return
    if exchange(new, target):
        aside = new
    else:
        os.rename(target, aside)
        try:
            os.rename(new, target)
        except BaseException:
            os.rename(aside, target)
            raise
    sync_directory(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
