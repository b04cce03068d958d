"""Where teaching leaves its memory and its unfinished work, and what must not be in the way. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from memlayers.inference.folder import CONFIG_FILE
from memlayers.utils.errors import InputError
from memlayers.utils.files import check_output_directory


def work_folder(out: str | Path) -> Path:
    """Where unfinished work lies: ``OUT.teaching`` beside `out`."""
    return Path(f"{Path(out)}.teaching")


def check_folders(out: str | Path, *, resume: bool, replace: bool) -> None:
    """Checks, before any work, that a memory can be taught into `out`.

    Args:
        out: folder of the memory.
        resume: an interrupted run is continued.
        replace: an existing memory may be replaced.

    Raises:
        InputError: something is in the way, or there is nothing to resume.
    """
    if not replace and (Path(out) / CONFIG_FILE).is_file():
        raise InputError(f"{out}: exists and is not empty: a memory is there; --replace replaces it")
    check_output_directory(out, replace=replace)
    if Path(out).is_dir() and any(Path(out).iterdir()) and not (Path(out) / CONFIG_FILE).is_file():
        raise InputError(f"{out}: not a memory, so it is not replaced; give another folder or remove this one")
    check_work_folder(out, resume=resume)


def check_work_folder(out: str | Path, *, resume: bool) -> None:
    """Checks that there is unfinished work where it is resumed, and none where it is not.

    Raises:
        InputError: it is otherwise.
    """
    work = work_folder(out)
    if work.exists() and not resume:
        raise InputError(f"{work}: an interrupted run is there; continue it with --resume, or delete the folder")
    if resume and not work.is_dir():
        raise InputError(f"{work}: no interrupted run there; start without --resume")
