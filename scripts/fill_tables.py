"""Write the tables of README.md, docs/results.md and docs/asked.md from the results files, between their markers.

A test compares the pages with the files.

Example: ``python scripts/fill_tables.py``
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from memlayers.evaluation.formatting import format_value
from memlayers.evaluation.results import Results, read_results
from memlayers.performance.figures import Bench, Timing, read_bench

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "recipes"
BENCH = ROOT / "benchmarks" / "results" / "bench" / "7b-shape" / "bench.json"
EDITS = ROOT / "benchmarks" / "results" / "edits" / "1000-tfidf.json"
GPU = ROOT / "benchmarks" / "results" / "gpu"
STREAM = ROOT / "benchmarks" / "results" / "sequential"
PEERS = {
    "embedding_bag, fused AdamW": "`embedding_bag`, fused AdamW",
    "embedding_bag sparse, SparseAdam": "`embedding_bag(sparse=True)`, SparseAdam",
    "fbgemm-gpu-cpu, row-wise Adagrad": "fbgemm-gpu-cpu 1.8.0, row-wise Adagrad (one number of state a row)",
}
GPU_STAGES = (
    "forward", "weight gradient (dense recipe)", "fused step, 32-bit state", "fused step, 8-bit state",
    "teaching step, lazy",
)  # fmt: skip
COLUMNS = {
    "default (addressed, gate first)": "addressed",
    "without gate": "addressed-no-gate",
    "soft gate of the v0.2 reference recipe, after teaching": "addressed-soft-gate",
    "dense (v0.2 reference recipe)": "dense",
}
SEEDS = (7, 23)  # beside 137
REAL = ROOT / "benchmarks" / "results" / "real"
ASKED = ROOT / "benchmarks" / "results" / "asked" / "table.md"
SOURCES = ROOT / "benchmarks" / "results" / "sources"
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
    ("known questions answered, with abstention", "answered", "known"),
    ("exposures per fact", "exposures_per_fact", "all"),
    ("peak memory", "peak_memory_bytes", "all"),
)
EDITED = (
    ("new answer in taught phrasings", ("recall", "updated_taught"), None),
    ("new answer in phrasings never taught", ("recall", "updated_unseen"), None),
    (
        "old answer still given, taught phrasings (forgotten: where the backbone does not give it itself)",
        ("old_answer_given", "updated_taught"), ("old_answer_given", "forgotten_taught_and_not_by_the_backbone"),
    ),
    (
        "old answer still given, phrasings never taught",
        ("old_answer_given", "updated_unseen"), ("old_answer_given", "forgotten_unseen_and_not_by_the_backbone"),
    ),
    (
        "other facts whose answer changed, per edit, taught phrasings",
        ("others_changed", "update_taught_per_edit"), ("others_changed", "forget_taught_per_edit"),
    ),
    (
        "other facts whose answer changed, per edit, phrasings never taught",
        ("others_changed", "update_unseen_per_edit"), ("others_changed", "forget_unseen_per_edit"),
    ),
    ("CPU seconds an edit, one thread, without saving", ("edit_cpu_seconds", "update"), ("edit_cpu_seconds", "forget")),
)  # fmt: skip
ARMS = {
    "memory-100": "memory, batches of 100, stored facts rehearsed", "memory-10": "the same, batches of 10",
    "memory-1": "the same, one at a time", "plain-100": "a quarter of the slots, nothing rehearsed, batches of 100",
    "smf-100": "same memory, Sparse Memory Finetuning's rule", "lora-100": "LoRA (peft), rank 16",
    "full-100": "all weights", "once": "memory, all at once",
}  # fmt: skip


def section(name: str) -> re.Pattern[str]:
    """What lies between a section's markers, and these as groups 1 and 2."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)


def headline() -> str:
    """The README's table, as `python -m benchmarks.teaching.real_backbones` left it."""
    return (REAL / "headline.md").read_text(encoding="utf-8")


def teaching() -> str:
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


def gpu() -> str:
    """Draw the kernels' shares of the card's copying bandwidth, and a 7B model's teaching steps."""
    bench = read_bench(GPU / "bench-1m.json")
    shares = json.loads((GPU / "shares.json").read_text(encoding="utf-8"))["bench-1m"]
    card, copying = bench.environment["device"].removeprefix("cuda "), bench.roofs["default"]["sequential"]
    lines = [f"| {card}, copying {copying:,.0f} GB/s | ms | share of copying |", "|---|---:|---:|"]
    for stage in GPU_STAGES:
        timing = _step(bench, "default", stage, "memlayers")
        share = shares.get(f"{stage}, uniform")
        lines.append(f"| {stage} | {timing.ms:.2f} | {'-' if share is None else f'{share:.0%}'.replace('%', ' %')} |")
    lines += [
        "",
        "| teaching step of Qwen2.5-7B's shape, capped at 24 GiB | ms | without the memory | peak GiB |",
        "|---|---:|---:|---:|",
    ]
    rows: dict[str, Any] = {}
    for name in ("steps-before", "steps"):  # a later run's rows take the place of an earlier's
        rows.update(json.loads((GPU / f"{name}.json").read_text(encoding="utf-8")))
    for name, row in rows.items():
        if "step_ms" not in row:
            continue
        lines.append(f"| {name} | {row['step_ms']:.0f} | {row['backbone_step_ms']:.0f} | {row['peak_gib']:.1f} |")
    return "\n".join(lines) + "\n"


def cell(results: Results, metric: str, split: str) -> str:
    """Format one figure."""
    row = results.find(metric, split)
    return "-" if row is None else format_value(metric, row.value)


def edits() -> str:
    """Draw the table of single edits among 1,000 facts, and that of facts that arrive in batches."""
    found = read_results(EDITS)
    lines = [f"| {found.config['edits']} edits among 1,000 facts | update | forget |", "|---|---:|---:|"]
    for label, *keys in EDITED:
        shape = "{:.1f}" if "seconds" in label else "{:.4%}" if "per edit" in label else "{:.1%}"
        rows = [None if key is None else found.find(*key) for key in keys]
        cells = ["-" if row is None else shape.format(row.value).replace("%", " %") for row in rows]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [
        "",
        "| facts in batches | facts | recall of all at the end | never taught phrasings | known facts | perplexity |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, label in ARMS.items():
        path = STREAM / f"{name}.json"
        if path.exists():
            points = json.loads(path.read_text(encoding="utf-8"))["points"]
            for end in (point for point in points if point["facts"] == points[-1]["facts"]):
                after = ", then `memlayers repair`" if "mended" in end else ""
                cells = [f"{100 * end[key]['value']:.1f} %" for key in ("taught", "unseen_phrasing", "known_facts")]
                lines.append(f"| {label}{after} | {end['facts']:,} | {' | '.join(cells)} | {end['perplexity']:.1f} |")
    return "\n".join(lines) + "\n"


def asked() -> str:
    """The tables that `python -m benchmarks.asking.asked` left, if it has been run."""
    return ASKED.read_text(encoding="utf-8") if ASKED.exists() else "Not measured yet.\n"


def learned_tables() -> str:
    """What `python -m benchmarks.sources.learned_table` left."""
    return (SOURCES / "learned_table" / "table.md").read_text(encoding="utf-8")


def long_answers() -> str:
    """What `python -m benchmarks.sources.long_answers` left."""
    return (SOURCES / "long_answers" / "table.md").read_text(encoding="utf-8")


PAGES = {
    "README.md": {"headline": headline},
    "docs/results.md": {
        "teaching": teaching,
        "learned tables": learned_tables,
        "long answers": long_answers,
        "speed": speed,
        "gpu": gpu,
        "edits": edits,
    },
    "docs/asked.md": {"asked": asked},
}
"""The pages and their sections, each with what draws it."""


def filled(page: str, text: str) -> str:
    """The text of a page with its sections made anew."""
    for name, made in PAGES[page].items():
        if found := section(name).search(text):
            text = text[: found.end(1)] + made() + text[found.start(2) :]
    return text


def main() -> None:
    """Rewrite the pages."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(page, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
