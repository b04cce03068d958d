"""The ways to teach at one budget: addressed with its gate (the default), without one, and the seed's dense.

The memory that was taught without a gate is given the seed's soft gate afterwards (``memlayers gate --soft``), and
scored again. The default also with torch's AdamW and its dense gradient of the whole pool, for the time it takes.

Runs ``memlayers demo`` once per way (and per seed for the default) and keeps what the README quotes:
``benchmarks/results/recipes/*.json`` and the comparison drawn from them.

Example: ``python benchmarks/recipes.py`` (about 15 minutes on two cores)
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from memlayers.backbones import POCKET
from memlayers.config.sections import GateConfig
from memlayers.data.fact_files import read_facts
from memlayers.demo import score_demo
from memlayers.evaluation.report import compare_report, write_report
from memlayers.evaluation.results import Results, read_results, write_results
from memlayers.teaching.regate import regate_memory
from memlayers.utils.environment import environment

RESULTS = Path(__file__).resolve().parent / "results" / "recipes"
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
    facts = read_facts(POCKET / "demo.jsonl")
    before = read_results(out / "results.json")
    gated = regate_memory(out / "memory", facts, GateConfig(soft=True, seed=before.config["seed"]))
    rows, examples = score_demo(gated.memory.model, gated.memory.tokenizer, facts, before.config["seed"])
    rows += [row for row in before.rows if row.metric == "exposures_per_fact"]
    settings = {**before.config, "gate": "soft, afterwards"}
    write_results(RESULTS / f"{SOFT}.json", Results(environment("cpu"), settings, rows, [], examples))


def main() -> None:
    """Run what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help=f"only these, anew: {', '.join(RUNS)}")
    wanted = parser.parse_args().runs
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, flags in RUNS.items():
        kept = RESULTS / f"{name}.json"
        if name in wanted or (not wanted and not kept.exists()):
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
    main()
