"""Write the figures of README.md from the results files, between its markers; a test holds them there.

Example: ``python scripts/fill_readme.py``
"""

from __future__ import annotations

import re
from pathlib import Path

from memlayers.bench.figures import Bench, Timing, read_bench
from memlayers.report import format_value
from memlayers.results import Results, read_results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "recipes"
BENCH = ROOT / "benchmarks" / "results" / "bench" / "7b-shape" / "bench.json"
PEERS = {
    "embedding_bag, fused AdamW": "`embedding_bag`, fused AdamW",
    "embedding_bag sparse, SparseAdam": "`embedding_bag(sparse=True)`, SparseAdam",
    "fbgemm-gpu-cpu, row-wise Adagrad": "fbgemm-gpu-cpu 1.8.0, row-wise Adagrad (one number of state a row)",
}
COLUMNS = {
    "default (addressed, gate first)": "addressed",
    "without gate": "addressed-no-gate",
    "with the seed's soft gate, after teaching": "addressed-soft-gate",
    "seed's `dense`": "dense",
}
SEEDS = (7, 23)  # beside 137
ROWS = (
    ("recall, taught phrasings", "recall", "taught"),
    ("recall, phrasings never taught", "recall", "unseen_phrasing"),
    ("recall of the bare backbone", "recall", "backbone"),
    ("known facts: backbone", "known_facts", "backbone"),
    ("known facts: with memory", "known_facts", "memory"),
    ("perplexity: backbone", "perplexity", "backbone"),
    ("perplexity: with memory", "perplexity", "memory"),
    ("held-out tokens with bit-identical logits", "identical_logits", "general_text"),
    ("stored against never-taught entities, AUROC", "abstention_auroc", "untaught_entities"),
    ("answers made up for never-taught entities", "fabricated", "untaught_entities"),
    ("exposures per fact", "exposures_per_fact", "all"),
    ("peak memory", "peak_memory_bytes", "all"),
)
MARKED = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
SPEED = re.compile(r"(<!-- speed -->\n).*?(<!-- end of speed -->)", re.DOTALL)


def table() -> str:
    """Draw the table of the three ways to teach, one seed, and the spread of the default over three seeds."""
    results = {name: read_results(RESULTS / f"{name}.json") for name in COLUMNS.values()}
    seeds = [read_results(RESULTS / f"addressed-seed-{seed}.json") for seed in SEEDS]
    others = ", ".join(map(str, SEEDS))
    lines = [f"| | {' | '.join(COLUMNS)} | default, seeds {others} |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for label, metric, split in ROWS:
        cells = [cell(results[name], metric, split) for name in COLUMNS.values()]
        lines.append(f"| {label} | {' | '.join(cells)} | {', '.join(cell(seed, metric, split) for seed in seeds)} |")
    return "\n".join(lines) + "\n"


def speed() -> str:
    """Draw the table of the teaching step against its peers, uniform reads, both allocator settings."""
    bench = read_bench(BENCH)
    ours = {malloc: _step(bench, malloc, "teaching step, dense", "memlayers") for malloc in bench.roofs}
    lines = ["| memory part of a teaching step | default malloc | retained malloc |", "|---|---:|---:|"]
    lines.append("| RowAdamW | " + " | ".join(f"{ours[malloc].ms:.0f} ms" for malloc in bench.roofs) + " |")
    for variant, label in PEERS.items():
        peers = {malloc: _step(bench, malloc, "teaching step", variant) for malloc in bench.roofs}
        cells = [f"{peers[malloc].ms:.0f} ms ({peers[malloc].ms / ours[malloc].ms:.1f} x)" for malloc in bench.roofs]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _step(bench: Bench, malloc: str, stage: str, variant: str) -> Timing:
    wanted = (malloc, "uniform", stage, variant)
    return next(t for t in bench.timings if (t.malloc, t.indices, t.stage, t.variant) == wanted)


def cell(results: Results, metric: str, split: str) -> str:
    """Format one figure."""
    row = results.find(metric, split)
    return "-" if row is None else format_value(metric, row.value)


def main() -> None:
    """Rewrite the README."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    text = MARKED.sub(lambda match: match[1] + table() + match[2], text)
    path.write_text(SPEED.sub(lambda match: match[1] + speed() + match[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
