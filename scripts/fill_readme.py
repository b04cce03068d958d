"""Write the figures of README.md from the results files, between its markers; a test holds them there.

Example: ``python scripts/fill_readme.py``
"""

from __future__ import annotations

import re
from pathlib import Path

from memlayers.report import format_value
from memlayers.results import Results, read_results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "recipes"
COLUMNS = {
    "default (addressed, gate first)": "addressed",
    "without gate": "addressed-no-gate",
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
    ("exposures per fact", "exposures_per_fact", "all"),
    ("teaching time", "teach_seconds", "all"),
    ("peak memory", "peak_memory_bytes", "all"),
)
MARKED = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


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


def cell(results: Results, metric: str, split: str) -> str:
    """Format one figure."""
    row = results.find(metric, split)
    return "-" if row is None else format_value(metric, row.value)


def main() -> None:
    """Rewrite the README."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(MARKED.sub(lambda match: match[1] + table() + match[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
