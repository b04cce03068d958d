"""Teaching by several processes (gloo, one thread each): whether it ends in the same bytes, and how fast a step is.

``bytes``: the demo's facts taught by 1, 2 and 4 processes, each step split into 4 passes: the memory's weights
compared, with recall and the time taken. ``step``: 2 processes against 1, in turn in one run, on pocket: facts per
second of a teaching step with a batch of 32 for both, and with a batch of 32 for each process (the same work per core).

Leaves ``benchmarks/results/scale/ranks_bytes.json`` and ``ranks_step.json``.
Example: ``python -m benchmarks.performance.ranks`` (an hour on two cores; ``step`` alone takes five minutes)
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from memlayers.config.teach import TeachConfig
from memlayers.data.fact_files import write_facts
from memlayers.inference.folder import WEIGHTS_FILE
from memlayers.inference.record import read_teaching
from memlayers.teaching.folders import work_folder
from memlayers.teaching.teacher import Teacher
from memlayers.utils.environment import environment
from memlayers.utils.ranks import ALONE, Ranks, join_ranks

OUT = common.RESULTS / "scale"
PROCESSES, PASSES = (1, 2, 4), 4
BATCH, STEPS, ROUNDS = 32, 8, 9
STEP_FACTS = 200


def main() -> None:
    """Run one part, or both."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("part", nargs="?", choices=["bytes", "step"], help="which part; both if not given")
    parser.add_argument("--facts", type=int, default=500, help="facts that `bytes` teaches [500]")
    parser.add_argument("--measured", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measured:
        measure_steps(Path(given.measured))
        return
    if given.part != "step":
        compare_bytes(given.facts)
    if given.part != "bytes":
        compare_steps()


def launched(processes: int, *command: str) -> None:
    """Runs a module by torchrun, one thread a process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", *command]
    subprocess.run(launcher, cwd=common.ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def compare_bytes(facts: int) -> None:
    """Teach the same with each number of processes, by the command; what an earlier call taught is there."""
    from safetensors.torch import load_file

    folder = common.WORK / f"ranks-{facts}"
    folder.mkdir(parents=True, exist_ok=True)
    write_facts(folder / "facts.jsonl", common.demo_facts()[:facts])
    rows: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    for processes in PROCESSES:
        out = folder / f"memory-{processes}"
        if not out.is_dir():
            launched(
                processes, "memlayers.cli", "teach", "--facts", str(folder / "facts.jsonl"), "--out", str(out),
                "--device", "cpu", "--dtype", "float32", "--accumulation", str(PASSES), "--quiet",
                *(["--resume"] if work_folder(out).is_dir() else []),
            )  # fmt: skip
        tensors, teaching = load_file(out / WEIGHTS_FILE), read_teaching(out)
        assert teaching is not None
        first = first or tensors
        rows.append({
            "processes": processes,
            "sha256": hashlib.sha256((out / WEIGHTS_FILE).read_bytes()).hexdigest(),
            "largest_difference": max(
                float((tensors[name].double() - each.double()).abs().max()) for name, each in first.items()
                if each.numel()
            ),
            "recall": teaching.report.recall,
            "not_held": len(teaching.report.not_held),
            "steps": teaching.report.steps,
            "checks": teaching.report.checks,
            "seconds": round(teaching.report.seconds, 1),
        })  # fmt: skip
        print(json.dumps(rows[-1]))
    common.write_json(
        OUT / "ranks_bytes.json",
        {"environment": environment("cpu"), "facts": facts, "passes": PASSES, "seed": common.SEED, "rows": rows},
    )


def compare_steps() -> None:
    """Time steps of 2 processes and of 1, in turn."""
    found = common.WORK / "ranks_step.json"
    found.parent.mkdir(parents=True, exist_ok=True)
    launched(2, "benchmarks.performance.ranks", "--measured", str(found))
    measured = common.read_json(found)
    rows = []
    for name, (alone, shared) in measured["facts_per_second"].items():
        ratios = sorted(two / one for one, two in zip(alone, shared, strict=True))
        row = {
            "work": name, "alone": round(median(alone), 1), "two": round(median(shared), 1),
            "ratio": round(median(ratios), 3), "ratio_lowest": round(ratios[0], 3),
            "ratio_highest": round(ratios[-1], 3), "rounds": len(ratios),
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row))
    common.write_json(
        OUT / "ranks_step.json",
        {"environment": environment("cpu"), "batch": BATCH, "steps_per_round": STEPS,
         "gathering_ms": measured["gathering_ms"], "gathered_kb": measured["gathered_kb"], "rows": rows},
    )  # fmt: skip


def measure_steps(found: Path) -> None:
    """As one of two processes: rounds of steps, by the first alone and by both."""
    ranks = join_ranks("cpu")
    alone, same, double = (made(part, size) for part, size in ((ALONE, BATCH), (ranks, BATCH), (ranks, 2 * BATCH)))
    taken: dict[str, tuple[list[float], list[float]]] = {"batch of 32": ([], []), "32 for each process": ([], [])}
    gathering, sizes = watch_gathering(ranks)
    for number in range(ROUNDS + 1):
        ranks.meet()
        one = facts_per_second(alone) if ranks.first else 0.0
        ranks.meet()
        two, four = facts_per_second(same), facts_per_second(double)
        if number:  # the first round compiles
            for name, value in zip(taken, (two, four), strict=True):
                taken[name][0].append(one)
                taken[name][1].append(value)
    if ranks.first:
        common.write_json(found, {
            "facts_per_second": taken, "gathering_ms": round(1e3 * median(gathering), 2),
            "gathered_kb": round(median(sizes) / 1e3, 1),
        })  # fmt: skip
    ranks.meet()


def made(ranks: Ranks, batch_size: int) -> Teacher:
    """A teacher whose next stage is teaching."""
    config = TeachConfig().with_flags(device="cpu", dtype="float32", batch_size=batch_size, gate_steps=100)
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, respelled=0.0))
    return common.prepared(Teacher(common.demo_facts()[:STEP_FACTS], config, quiet=True, ranks=ranks))


def facts_per_second(teacher: Teacher) -> float:
    """Of some steps at the full rate."""
    batches = [batch for batch in teacher.schedule.batches(0) if len(batch) == teacher.config.schedule.batch_size]
    steps = [batches[number % len(batches)] for number in range(STEPS)]
    began = time.perf_counter()
    for batch in steps:
        teacher.step(batch, 1.0)
    return sum(map(len, steps)) / (time.perf_counter() - began)


def watch_gathering(ranks: Ranks) -> tuple[list[float], list[int]]:
    """Lists that fill with the seconds of each exchange of read logs, waiting included, and with its own bytes."""
    seconds: list[float] = []
    sizes: list[int] = []
    gather = ranks.gather_tensors

    def watched(tensors: Any, device: Any) -> Any:
        began = time.perf_counter()
        result = gather(tensors, device)
        seconds.append(time.perf_counter() - began)
        sizes.append(sum(each.numel() * each.element_size() for each in tensors))
        return result

    ranks.gather_tensors = watched  # type: ignore[method-assign]
    return seconds, sizes


if __name__ == "__main__":
    common.start(main)
