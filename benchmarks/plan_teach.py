"""The plan's phases against a real ``memlayers teach`` of pocket on a CPU: 200 demo facts, one pass.

Each case runs the command in a process of its own. Before the backbone is loaded the process has imported everything
that teaching uses and compiled its kernels: what it holds then is the libraries', and is left out. The kernel's mark of
the peak is set back between the phases (Linux, /proc/self/clear_refs), so that preparation, steps and answers are each
held against their own prediction. Token counts and touched rows are the run's own, so that what is tested is the
arithmetic; how far the plan's estimate of the touched rows is off stands beside it.

glibc keeps freed blocks unless it is told not to (MALLOC_MMAP_THRESHOLD_): the first figure is of a process that gives
them back, so holds what is alive; the second of one that runs as it comes.

Leaves ``benchmarks/results/plan_teach.json``. Example: ``python benchmarks/plan_teach.py`` (6 minutes; Linux)
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memlayers.performance.backbone_size import default_layers, read_backbone
from memlayers.performance.plan import Scheme, Work, phases_on_cpu, touched_rows
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

RESULTS = Path(__file__).resolve().parent / "results" / "plan_teach.json"
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
FACTS = 200
SCHEMES = {
    "row-adamw": Scheme("float32"),
    "adamw": Scheme("float32", "adamw"),
    "8-bit": Scheme("bfloat16", optimizer_bits=8, half_rounding="stochastic"),
    "int8, host": Scheme("int8", optimizer_device="host"),
}
CASES = ((256, True, "row-adamw"), (1024, True, "row-adamw"), (1024, False, "int8, host"))


def main() -> None:
    """Measure every case, twice."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]), sys.argv[2] == "True", SCHEMES[sys.argv[3]])))
        return
    rows = []
    for case in CASES:
        found = []
        for variables in (GIVE_BACK, {}):
            command = [sys.executable, __file__, *map(str, case)]
            done = subprocess.run(
                command, env={**os.environ, **variables}, check=True, stdout=subprocess.PIPE, text=True
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
        row = {**found[0], "default_malloc_mb": found[1]["measured_mb"], "default_malloc_peak": found[1]["peak"]}
        rows.append(row)
        print(f"{case}: {row['peak']}; default malloc {row['default_malloc_peak']}; {row['ratio']}", flush=True)
        head, lines = json.dumps(environment("cpu")), ",\n  ".join(map(json.dumps, rows))
        atomic_write_text(RESULTS, f'{{"environment": {head},\n"rows": [\n  {lines}\n]}}\n')


def measure(sub_keys: int, gated: bool, scheme: Scheme) -> dict[str, Any]:
    """Teach in this process; megabytes are 10^6, without the libraries'."""
    import gc
    import random
    import warnings

    import memlayers.teaching.teach as teaching
    from memlayers.backbones import POCKET
    from memlayers.config.teach import TeachConfig
    from memlayers.data.fact_files import read_facts

    warnings.simplefilter("ignore")  # as the command does
    facts = random.Random(0).sample(read_facts(POCKET / "demo.jsonl"), FACTS)
    config = TeachConfig().with_flags(
        sub_keys=sub_keys, gate=gated, exposures=1, pool_dtype=scheme.pool_dtype, optimizer=scheme.optimizer,
        optimizer_bits=scheme.optimizer_bits, optimizer_device=scheme.optimizer_device,
        half_rounding=scheme.half_rounding,
    )  # fmt: skip
    peaks: dict[str, int] = {}
    shapes: list[tuple[int, int, int]] = []
    tokens: list[int] = []

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")
        yield
        peaks[name] = max(peaks.get(name, 0), _status("VmHWM"))

    def watched(owner: Any, attribute: str, name: str) -> None:
        original = getattr(owner, attribute)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with phase(name):
                return original(*arguments, **keywords)

        setattr(owner, attribute, call)

    run: Any = teaching._Run
    with tempfile.TemporaryDirectory() as folder:
        # The libraries' own: a run of the same kind on three facts, in a pool of 64 slots and with little general text.
        general = Path(folder) / "general.jsonl"
        general.write_text("".join(json.dumps({"text": f"It is the year {n}."}) + "\n" for n in range(1900, 1920)))
        few = config.with_flags(sub_keys=8, gate_steps=2, gate_threshold=-100.0, general_text=str(general))
        teaching.teach_facts(facts[:3], Path(folder) / "small", few, quiet=True)
        gc.collect()
        libraries = _status("VmRSS")
        watched(run, "prepare", "preparation")
        watched(run, "_step", "step")
        watched(run, "_measure", "answers")
        original_loss, original_teach = run._loss, run.teach
        state: dict[str, int] = {}

        def loss(self: Any, inputs: Any) -> Any:
            counted = inputs["labels"][:, 1:] != -100
            shapes.append((*inputs["input_ids"].shape, int(counted.any(0).sum())))
            return original_loss(self, inputs)

        def teach(self: Any) -> None:
            tokens.append(sum(len(e.input_ids) for fact in self.encoded for e in fact))
            tokens.append(sum(map(len, self.general_source.encode(self.tokenizer, 256))))
            original_teach(self)
            for each in self.optimizer.state.values():
                state["touched"] = len(each["touched"].rows) if "touched" in each else sub_keys**2

        run._loss, run.teach = loss, teach
        teaching.teach_facts(facts, Path(folder) / "memory", config, quiet=True)
    batch, length, answer = max(shapes, key=lambda shape: shape[0] * shape[1])
    backbone = read_backbone("pocket")
    work = Work(
        sub_keys, 8, 8, 64, default_layers(backbone.depth), batch, length, answer, "float32", state["touched"],
        contexts=tokens[0], general=tokens[1], gated=gated,
    )  # fmt: skip
    predicted = phases_on_cpu(backbone, work, scheme)
    measured = {name: peak - libraries for name, peak in peaks.items()}
    top_predicted, top_measured = max(predicted.values()), max(measured.values())
    return {
        "scheme": scheme.name, "slots": sub_keys**2, "gated": gated, "libraries_mb": libraries / 1e6,
        "predicted_mb": {name: round(value / 1e6, 1) for name, value in predicted.items()},
        "measured_mb": {name: round(value / 1e6, 1) for name, value in measured.items()},
        "ratio": {name: round(predicted[name] / measured[name], 3) for name in predicted},
        "peak": {"predicted_mb": round(top_predicted / 1e6, 1), "measured_mb": round(top_measured / 1e6, 1),
                 "ratio": round(top_predicted / top_measured, 3),
                 "ratio_with_libraries": round((top_predicted + libraries) / (top_measured + libraries), 3)},
        "batch": [batch, length, answer], "context_tokens": tokens[0], "general_tokens": tokens[1],
        "touched": state["touched"],
        "touched_estimated": touched_rows(sub_keys**2, FACTS, 20, len(work.layers), 64),
    }  # fmt: skip


def _status(name: str) -> int:
    """A line of /proc/self/status, bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
