"""A process of its own for each case that is measured, and what the kernel says of its memory (Linux).

glibc keeps freed blocks unless it is told not to: a case is measured once in a process that gives them back, so holds
what is alive, and once in one that runs as it comes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import common

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measured_twice(module: str, case: int, *further: str) -> list[dict[str, Any]]:
    """What ``python -m MODULE --case N ...`` prints as its last line, with blocks given back and as it comes."""
    found = []
    command = [sys.executable, "-m", module, "--case", str(case), *further]
    for variables in (GIVE_BACK, {}):
        done = subprocess.run(
            command, cwd=common.ROOT, env={**os.environ, **variables}, check=True, stdout=subprocess.PIPE, text=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def memory_bytes(name: str) -> int:
    """A line of /proc/self/status in bytes: "VmRSS" is what the process holds, "VmHWM" its peak."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


def forget_peak() -> None:
    """Has the kernel count the peak from now on."""
    Path("/proc/self/clear_refs").write_text("5")
