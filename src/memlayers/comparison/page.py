"""The page of a comparison, drawn from its results files alone: compare.md, compare.png. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from memlayers.comparison.names import BARE
from memlayers.evaluation.plots import COLOURS, MARKERS, to_png
from memlayers.evaluation.report import markdown_table
from memlayers.evaluation.results import Results, Row, read_results
from memlayers.sweep.page import Measure, distinct_table, new_figure, summary
from memlayers.utils.files import atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Mapping[str, Mapping[int, Results]]
"""Method -> seed -> its results."""

NEVER = Measure("recall, wordings never taught", "recall", "unseen_phrasing")
NEVER_CONTAINED = Measure("contained in the answer, never taught", "recall_containment", "unseen_phrasing")
LOST = Measure("known facts lost", "known_lost", "known")
SECONDS = Measure("teaching, wall clock", "teach_seconds", "all")
MEASURES = (
    Measure("recall, taught wordings", "recall", "taught"),
    NEVER,
    Measure("contained in the answer, taught", "recall_containment", "taught"),
    NEVER_CONTAINED,
    Measure("neighbours answered as by the backbone", "unchanged_answers", "untaught_entities"),
    LOST,
    Measure("perplexity of text", "perplexity", "text"),
    SECONDS,
    Measure("teaching, CPU seconds", "teach_cpu_seconds", "all"),
    Measure("teaching, tokens", "teach_tokens", "all"),
    Measure("seconds to an answer's first token", "first_token_seconds", "all"),
    Measure("memory to answer with", "inference_bytes", "all"),
    Measure("stored per fact", "bytes_per_fact", "all"),
    Measure("an update, wall clock", "update_seconds", "all"),
    Measure("new answer given after it", "recall_containment", "updated"),
    Measure("other facts answered after the updates", "recall_containment", "others_after_updates"),
)


def result_path(out: str | Path, method: str, seed: int) -> Path:
    """Where the results of a method lie."""
    return Path(out) / "methods" / f"{method}-{seed}.json"


def read_runs(out: str | Path) -> dict[str, dict[int, Results]]:
    """Reads every method's results, in the order in which they were made.

    Raises:
        InputError: a file is damaged.
    """
    found: dict[str, dict[int, Results]] = {}
    paths = (Path(out) / "methods").glob("*.json")
    for path in sorted(paths, key=lambda path: (not path.stem.startswith(BARE), path.stat().st_mtime_ns)):
        name, _, seed = path.stem.rpartition("-")
        found.setdefault(name, {})[int(seed)] = read_results(path)
    return found


def write_page(out: str | Path) -> Path:
    """Writes OUT/compare.md and OUT/compare.png.

    Raises:
        InputError: a results file is damaged.
        WorkError: matplotlib is missing, or the disk is full.
    """
    runs, page = read_runs(out), Path(out) / "compare.md"
    atomic_write_bytes(Path(out) / "compare.png", to_png(_draw(runs)))
    atomic_write_text(page, "\n\n".join(_parts(runs)) + "\n")
    return page


def _parts(runs: Runs) -> Iterator[str]:
    yield "# A memory and its alternatives"
    yield (
        "The same facts, wordings, neighbours, known questions and text for all, scored by the same code in free "
        "greedy generation. Recall is strict exact match; \"contained\": the answer stands in what is said, word for "
        "word. Known facts lost: of the known questions that the bare backbone answers (contained). In brackets the "
        "95 % interval (bootstrap, Wilson's where all or none), of several seeds the lowest and the highest end."
    )  # fmt: skip
    yield "![recall of wordings never taught against known facts lost, and against teaching time](compare.png)"
    good = {name: {seed: run for seed, run in each.items() if run.rows} for name, each in runs.items()}
    good = {name: each for name, each in good.items() if each}
    rows = [(measure.label, *(summary(measure, each) for each in good.values())) for measure in MEASURES]
    yield markdown_table(("", *good), rows)
    told = [
        f"- {name}, seed {seed}: {run.environment[key]}"
        for name, each in runs.items() for seed, run in each.items() for key in ("fault", "note")
        if run.environment.get(key) and name != BARE
    ]  # fmt: skip
    if told:
        yield "\n".join(told)
    every = [run for each in runs.values() for run in each.values()]
    yield "## Environment"
    hidden = ("fault", "note")
    yield distinct_table(
        "environment", [{k: v for k, v in run.environment.items() if k not in hidden} for run in every]
    )
    yield "## Configuration"
    yield distinct_table("setting", [run.config for run in every])
    yield "Drawn from `methods/*.json` alone; every question and answer is there."


def _draw(runs: Runs) -> Figure:
    """Recall of never-taught wordings (hollow: contained) against known facts lost, and against teaching time."""
    figure = new_figure(10, 4.2)
    lost, seconds = figure.subplots(1, 2, sharey=True)
    for number, (name, each) in enumerate(runs.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[(number * 8 // 7) % len(MARKERS)]}
        heights = [_mean(measure, each) for measure in (NEVER, NEVER_CONTAINED)]
        for axes, measure in ((lost, LOST), (seconds, SECONDS)):
            at = _mean(measure, each)
            at = 0.0 if at is None and name == BARE else at
            for height, filled in zip(heights, (True, False), strict=True):
                if at is not None and height is not None:
                    label = name if filled and axes is seconds else None
                    face = style["color"] if filled else "none"
                    axes.plot([at], [height], linestyle="", markersize=8, markerfacecolor=face, label=label, **style)
    lost.set_xlabel("share of known facts lost")
    seconds.set_xlabel("teaching, seconds (loading included)")
    seconds.set_xscale("log")
    lost.set_ylabel("recall, wordings never taught")
    lost.set_title("filled: exact answer; hollow: contained in it", loc="left", fontsize=9)
    for axes in (lost, seconds):
        axes.set_ylim(-0.03, 1.03)
        axes.grid(color="#e6e6e6")
    if seconds.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def _mean(measure: Measure, runs: Mapping[int, Results]) -> float | None:
    found: list[Row | None] = [run.find(measure.metric, measure.split) for run in runs.values()]
    values = [row.value for row in found if row is not None]
    return statistics.fmean(values) if values else None
