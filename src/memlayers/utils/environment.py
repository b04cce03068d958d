"""Where a run was made: the commit, the versions of the libraries, the machine. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def environment(device: str) -> dict[str, Any]:
    """Where and with what a run is made: commit, versions, machine, date (UTC), command line.

    Args:
        device: the device used, e.g. "cpu" or "cuda:0"; a GPU's name is added.

    Returns:
        A JSON object; None for what is not known (no git checkout, a package that is not installed).
    """
    import datetime
    import os
    import platform
    import shlex
    import sys

    packages = ("memlayers", "torch", "transformers", "peft", "numpy")
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": _device_name(device),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    }


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}"


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this file is tracked in, with "-dirty" when tracked files differ from it."""
    import subprocess

    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An environment inside somebody else's repository must not lend us its commit.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _cpu_model() -> str | None:
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None
