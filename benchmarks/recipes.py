"""The three ways to teach at one budget: addressed with its gate (the default), without it, and the seed's dense.

The default also with torch's AdamW and its dense gradient of the whole pool, for the time it takes.

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

from memlayers.report import compare_report, write_report

RESULTS = Path(__file__).resolve().parent / "results" / "recipes"
RUNS = {
    "addressed": ["--seed", "137"],
    "addressed-seed-7": ["--seed", "7"],
    "addressed-seed-23": ["--seed", "23"],
    "addressed-stock-adamw": ["--seed", "137", "--optimizer", "adamw"],
    "addressed-no-gate": ["--seed", "137", "--no-gate"],
    "dense": ["--seed", "137", "--recipe", "dense"],
}
COMPARED = ("addressed", "addressed-no-gate", "dense")


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
    write_report(RESULTS / "addressed.json", RESULTS)
    compare_report([(name, RESULTS / f"{name}.json") for name in COMPARED], RESULTS)


if __name__ == "__main__":
    main()
