"""What a teaching step costs, stage by stage, against the machine's own limits (roofs) and other implementations.

Everything is measured in one run on one machine: first the roofs (copying, reading random rows, updating random rows),
then every stage of the memory on uniform, Zipf and real indices, then the same step by other libraries (peers), on the
same shapes. On a CPU each allocator setting is a process of its own: glibc gives large blocks back to the kernel by
default, and page faults are then most of the cost of stock torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, Final

import torch

from memlayers.performance.figures import Bench, Clock, Shape, Timing
from memlayers.performance.overhead import measure_overhead
from memlayers.performance.peers import peer_steps
from memlayers.performance.reads import make_reads
from memlayers.performance.stages import measure_roofs, memory_stages
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError, WorkError

MALLOC: Final = MappingProxyType(
    {
        "default": {},
        # Blocks stay with the process once they were its own.
        "retained": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)},
    }
)


def run_bench(
    shape: Shape,
    *,
    device: str = "cpu",
    indices: Sequence[str] = ("uniform", "zipf", "real"),
    peers: bool = True,
    overhead: bool = True,
    repeats: int = 7,
    seed: int = 137,
    note: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Measures a shape; on a CPU once per allocator setting, each in a process of its own.

    Args:
        shape: of the pool and its reads.
        device: "cpu", "cuda", ...
        indices: kinds of reads.
        peers: also time the other libraries that are installed here.
        overhead: also measure the memory's share of the pocket backbone's work, and compute it for a 7B model.
        repeats: timed runs per figure, after one that is not counted.
        seed: of the reads.
        note: told what is being measured.

    Raises:
        InputError: an impossible shape or unknown indices.
        WorkError: a measuring process failed.
    """
    _check(shape, indices)
    settings = {
        "shape": asdict(shape), "device": device, "indices": list(indices), "peers": peers, "repeats": repeats,
        "seed": seed,
    }  # fmt: skip
    bench = Bench(environment(device), {}, [], {})
    for malloc in MALLOC if device == "cpu" else ("default",):
        note(f"malloc {malloc}" if device == "cpu" else device)
        found = _in_process("measure", {**settings, "malloc": malloc}, MALLOC[malloc])
        bench.roofs[malloc] = found["roofs"]
        bench.timings += [Timing(**{**row, "shape": Shape(**row["shape"])}) for row in found["timings"]]
    if overhead:
        note("share of the backbone's work")
        bench.overhead = _in_process("overhead", {"device": device, "repeats": repeats, "seed": seed}, {})
    return bench


def _check(shape: Shape, indices: Sequence[str]) -> None:
    for name in ("slots", "dim", "tokens", "heads", "top_k", "layers"):
        if getattr(shape, name) < 1:
            raise InputError(f"{name} is {getattr(shape, name)}: it must be at least 1")
    if shape.sub_keys**2 != shape.slots:
        nearest = round(shape.slots**0.5) ** 2
        raise InputError(f"{shape.slots} slots are not a square: product keys give m * m; take {nearest}")
    if shape.top_k > shape.sub_keys:
        raise InputError(f"top_k {shape.top_k} exceeds the {shape.sub_keys} sub-keys of {shape.slots} slots")
    if shape.dtype not in ("float32", "bfloat16", "int8"):
        raise InputError(f"dtype is {shape.dtype!r}: take float32, bfloat16 or int8")
    unknown = [kind for kind in indices if kind not in ("uniform", "zipf", "real")]
    if unknown or not indices:
        raise InputError(f"indices {', '.join(unknown) or 'none'}: take some of uniform, zipf, real")


def _in_process(what: str, settings: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    """Runs `_worker` in a fresh process under some environment variables; its last line is the result."""
    command = [sys.executable, "-m", "memlayers.performance.bench", what, json.dumps(settings)]
    done = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise WorkError(f"the bench's {what} process ended with exit code {done.returncode}; its message is above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _worker(what: str, settings: dict[str, Any]) -> dict[str, Any]:
    if what == "overhead":
        return measure_overhead(**settings)
    shape = Shape(**settings.pop("shape"))
    roofs, timings = measure(shape, **settings)
    return {"roofs": roofs, "timings": [asdict(timing) for timing in timings]}


def measure(
    shape: Shape, *, device: str, indices: Sequence[str], peers: bool, repeats: int, seed: int, malloc: str
) -> tuple[dict[str, float], list[Timing]]:
    """Everything in this process: roofs in GB/s, then the figures."""
    clock = Clock(torch.device(device), repeats)
    roofs = measure_roofs(shape, clock)
    timings: list[Timing] = []
    for kind in indices:
        reads = make_reads(shape, kind, clock.device, seed)
        timings += memory_stages(shape, kind, reads, clock, roofs)
        if peers:
            timings += peer_steps(shape, kind, reads, clock)
    return roofs, [replace(timing, malloc=malloc) for timing in timings]


if __name__ == "__main__":
    print(json.dumps(_worker(sys.argv[1], json.loads(sys.argv[2]))))
