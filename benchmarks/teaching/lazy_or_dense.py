"""Lazy against dense semantics of RowAdamW, in learning: recall against exposures, what is lost beside it, three seeds.

Runs ``memlayers demo`` per setting and seed, keeps ``benchmarks/results/semantics/*.json``, and draws the mean curves
and the table from them.

Example: ``python -m benchmarks.teaching.lazy_or_dense`` (about 25 minutes on two cores)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import copy
from statistics import mean

from benchmarks import common
from memlayers.evaluation.formatting import format_value
from memlayers.evaluation.results import Results, read_results
from memlayers.utils.files import atomic_write_text

RESULTS = common.RESULTS / "semantics"
SEEDS = (137, 7, 23)
SETTINGS = {"dense, rate 0.12": ("dense", 0.12), "lazy, rate 0.12": ("lazy", 0.12), "lazy, rate 0.2": ("lazy", 0.2)}
COLUMNS = (
    ("recall, taught", "recall", "taught"),
    ("recall, never taught phrasings", "recall", "unseen_phrasing"),
    ("known facts, change", "known_facts", "change"),
    ("teaching", "teach_seconds", "all"),
)


def main() -> None:
    """Run what is missing, then draw."""
    draw_only = common.drawing_parser(__doc__).parse_args().draw
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in () if draw_only else SEEDS:
        for semantics, rate in SETTINGS.values():
            kept = RESULTS / f"{semantics}-{rate}-{seed}.json"
            if kept.exists():
                continue
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "demo"
                flags = ["--seed", seed, "--optimizer-semantics", semantics, "--value-rate", rate, "--quiet"]
                command = [sys.executable, "-m", "memlayers.cli", "demo", "--out", out, *flags]
                subprocess.run([str(word) for word in command], check=True)
                copy(out / "results.json", kept)
    results = {
        label: [read_results(RESULTS / f"{semantics}-{rate}-{seed}.json") for seed in SEEDS]
        for label, (semantics, rate) in SETTINGS.items()
    }
    draw(results)
    atomic_write_text(RESULTS / "compare.md", table(results))


def table(results: dict[str, list[Results]]) -> str:
    """The figures of each setting: mean over seeds, and the seeds' own."""
    rows = []
    for label, runs in results.items():
        cells = []
        for _, metric, split in COLUMNS:
            values = [row.value for run in runs if (row := run.find(metric, split)) is not None]
            shown = ", ".join(format_value(metric, value) for value in values)
            cells.append(f"{format_value(metric, mean(values))} ({shown})")
        rows.append([label, *cells])
    head = [f"mean of seeds {', '.join(map(str, SEEDS))}", *(name for name, *_ in COLUMNS)]
    return f"{common.markdown_table(head, rows)}\n\n![recall and known facts against exposures](curves.png)\n"


def draw(results: dict[str, list[Results]]) -> None:
    """Recall, and known facts kept, against exposures."""
    pyplot = common.pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for label, runs in results.items():
        for axis, name in zip(axes, ("recall", "known_facts"), strict=True):
            points = [[getattr(point, name) for point in run.curve] for run in runs]
            exposures = [point.exposures for point in min((run.curve for run in runs), key=len)]
            line = [mean(values) for values in zip(*points, strict=False)][: len(exposures)]
            axis.plot(exposures, line, marker="o", label=label)
    for axis, title in zip(axes, ("recall of taught facts", "known facts kept"), strict=True):
        axis.set_xlabel("exposures per fact")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(RESULTS / "curves.png", dpi=130)


if __name__ == "__main__":
    common.start(main)
