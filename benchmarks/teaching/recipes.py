"""Recall and what is lost beside it by way to teach: addressed with its gate (the default), without one, and dense.

The memory that was taught without a gate is given the soft gate of the v0.2 reference recipe afterwards (``memlayers
gate --soft``), and scored again. The default also with torch's AdamW and its dense gradient of the whole pool, for the
time it takes.

Runs ``memlayers demo`` once per way (and per seed for the default) and keeps what the README quotes:
``benchmarks/results/recipes/*.json`` and the comparison drawn from them.

Example: ``python -m benchmarks.teaching.recipes`` (about 15 minutes on two cores)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import common
from memlayers.config.sections import GateConfig
from memlayers.demo import score_demo
from memlayers.evaluation.report import compare_report, write_report
from memlayers.evaluation.results import Results, read_results, write_results
from memlayers.teaching.regate import regate_memory
from memlayers.utils.environment import environment

RESULTS = common.RESULTS / "recipes"
UNGATED, SOFT = "addressed-no-gate", "addressed-soft-gate"
RUNS = {
    "addressed": ["--seed", "137"],
    "addressed-seed-7": ["--seed", "7"],
    "addressed-seed-23": ["--seed", "23"],
    "addressed-stock-adamw": ["--seed", "137", "--optimizer", "adamw"],
    UNGATED: ["--seed", "137", "--no-gate"],
    "dense": ["--seed", "137", "--recipe", "dense"],
}
COMPARED = ("addressed", UNGATED, SOFT, "dense")


def soften(out: Path) -> None:
    """Gives the demo's memory the soft gate, and scores it as the demo does."""
    facts = common.demo_facts()
    before = read_results(out / "results.json")
    seed = before.config["seed"]
    memory = regate_memory(out / "memory", facts, GateConfig(soft=True), seed=seed)
    rows, examples = score_demo(memory.model, memory.tokenizer, facts, seed)
    rows += [row for row in before.rows if row.metric == "exposures_per_fact"]
    settings = {**before.config, "gate": "soft, afterwards"}
    write_results(RESULTS / f"{SOFT}.json", Results(environment("cpu"), settings, rows, [], examples))


def main() -> None:
    """Run what is missing, then compare."""
    parser = common.drawing_parser(__doc__)
    common.some_of(parser, RUNS, "run")
    given = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, flags in RUNS.items():
        kept = RESULTS / f"{name}.json"
        if name in given.names or not (given.names or given.draw or kept.exists()):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / name
                command = [sys.executable, "-m", "memlayers.cli", "demo", "--out", str(out), *flags]
                subprocess.run(command, check=True)
                shutil.copy(out / "results.json", kept)
                if name == UNGATED:
                    soften(out)
    write_report(RESULTS / "addressed.json", RESULTS)
    compare_report([(name, RESULTS / f"{name}.json") for name in COMPARED], RESULTS)


if __name__ == "__main__":
    common.start(main)
