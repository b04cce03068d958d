"""The results page, drawn from the cells alone: results.md, recall.png, curves.png. No torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memlayers.evaluation.formatting import format_value
from memlayers.evaluation.plots import COLOURS, MARKERS, to_png
from memlayers.evaluation.report import markdown_table
from memlayers.evaluation.results import HIGHER_IS_BETTER, Results, Row
from memlayers.sweep.grid import HEADLINE, Cell, Grid
from memlayers.utils.errors import WorkError
from memlayers.utils.files import atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MISSING = "missing"

Cells = Mapping[Cell, Results]


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of results, as the page names it.

    Attributes:
        label: for the reader.
        metric: of the row.
        split: of the row.
        floor: the bar's, if there is one.
        goal: what it should reach, if there is one.
    """

    label: str
    metric: str
    split: str
    floor: float | None = None
    goal: float | None = None


RECALL = (
    Measure("recall, taught phrasings", "recall", "taught", 0.98, 0.995),
    Measure("recall, phrasings never taught", "recall", "unseen_phrasing", 0.85, 0.97),
    Measure("recall of the bare backbone", "recall", "backbone"),
)
ABSTENTION = (
    Measure("stored against never-taught entities, AUROC", "abstention_auroc", "untaught_entities", 0.95, 0.995),
    Measure("answers made up for never-taught entities", "fabricated", "untaught_entities", 0.10, 0.01),
    Measure("made up by the memory alone", "fabricated", "untaught_entities_by_memory"),
    Measure("answered from memory, taught phrasing", "answered", "taught", 0.98, 0.98),
    Measure("answered from memory, phrasing never taught", "answered", "unseen_phrasing", 0.98, 0.98),
    Measure("known questions not called unknown", "answered", "known"),
)
COST = (
    Measure("exposures per fact", "exposures_per_fact", "all", 12, 5),
    Measure("teaching time", "teach_seconds", "all"),
    Measure("peak memory, scoring included", "peak_memory_bytes", "all"),
)


def forgetting(cells: Cells) -> list[Measure]:
    """What a memory may spoil: of every text and every file of questions that some cell has."""
    splits = list(dict.fromkeys((row.metric, row.split) for results in cells.values() for row in results.rows))
    named = [(metric, *split.rpartition(":")[::2]) for metric, split in splits]
    texts = [name for metric, name, _ in named if metric == "perplexity_change"]
    sets = [name for metric, name, split in named if (metric, split) == ("qa_exact_match", "change")]
    measures = []
    for name in texts:
        start, title = (f"{name}:", name) if name else ("", "held-out articles")
        measures += [
            Measure(f"perplexity change, {title}", "perplexity_change", f"{start}general_text", 0.002, 0.0002),
            Measure(f"bit-identical logits, {title}", "identical_logits", f"{start}general_text", 0.95, 0.995),
            Measure(f"largest KL, {title}", "largest_kl", f"{start}general_text"),
        ]
    measures.append(Measure("known facts, change", "known_facts", "change", -0.005, -0.002))
    for name in sets:
        measures.append(Measure(f"{name}, change", "qa_exact_match", f"{name}:change", -0.005, -0.002))
    neighbours = Measure("never-taught neighbours, answers unchanged", "unchanged_answers", "untaught_entities")
    return [*measures, neighbours]


def write_page(out: str | Path, grid: Grid, cells: Cells) -> Path:
    """Writes OUT/results.md and, where there is a cell to draw, OUT/recall.png and OUT/curves.png.

    Args:
        out: the folder.
        grid: what was asked for; what of it is not among the cells is shown as missing.
        cells: what is there.

    Raises:
        WorkError: matplotlib is missing, or the disk is full.
    """
    grid, page = grid.joined(cells), Path(out) / "results.md"
    if cells:
        atomic_write_bytes(Path(out) / "recall.png", to_png(_draw_recall(grid, cells)))
        atomic_write_bytes(Path(out) / "curves.png", to_png(_draw_curves(grid, cells)))
    atomic_write_text(page, "\n\n".join(_parts(grid, cells)) + "\n")
    return page


def _parts(grid: Grid, cells: Cells) -> Iterator[str]:
    planned = grid.cells()
    missing = [cell.name for cell in planned if cell not in cells]
    yield "# The full protocol"
    yield (
        f"{len(planned) - len(missing)} of {len(planned)} runs are there. Recall is strict exact match in free greedy "
        "generation; before and after are paired on the same items in one process. Mean of the seeds, ± their standard "
        "deviation; in brackets, for one seed its 95 % bootstrap interval, for several the lowest and the highest end "
        "of theirs; n per seed."
    )
    if not cells:
        return
    main = planned[0]
    yield f"## {main.facts:,} facts, {_kind(main)}, against the bars"
    if main.facts != HEADLINE:
        yield f"The bars are stated for {HEADLINE:,} facts, which this grid does not have."
    yield _headline(grid, cells, main)
    yield (
        "The bars hold together: few exposures are no merit where recall is not reached.\n\n"
        "Not part of this protocol, with bars of their own: a held-out family of phrasings through the gate, and the "
        "capacity of a pool."
    )
    yield f"## {main.facts:,} facts, side by side"
    kinds = list(dict.fromkeys((cell.recipe, cell.gate) for cell in planned))
    measures = (*RECALL, *forgetting(cells), *ABSTENTION, *COST)
    runs = {kind: _runs(grid, cells, Cell(*kind, main.facts, 0)) for kind in kinds}
    yield markdown_table(
        ("", *(_kind_name(*kind) for kind in kinds)),
        [(measure.label, *(summary(measure, runs[kind]) for kind in kinds)) for measure in measures],
    )
    yield "## Recall against the number of facts"
    yield "![recall against the number of facts](recall.png)"
    yield _by_size(grid, cells, RECALL)
    yield "## Recall against exposures"
    yield (
        "![recall against exposures](curves.png)\n\nMeasured after each pass, one taught phrasing of each fact of a "
        "sample; teaching stops where recall is full."
    )
    yield _by_size(grid, cells, COST)
    yield "## Forgetting"
    yield _by_size(grid, cells, forgetting(cells))
    yield "## Knowing what was taught"
    yield _by_size(grid, cells, ABSTENTION)
    yield "## Missing"
    yield "\n".join(f"- {name}" for name in missing) if missing else "Nothing: every run of the grid is there."
    yield "## Environment"
    yield distinct_table("environment", [results.environment for results in cells.values()])
    yield "## Configuration"
    yield distinct_table("setting", [results.config for results in cells.values()])
    yield "Drawn from `cells/*.json` alone; every row of every run, with n and interval, is there."


def _headline(grid: Grid, cells: Cells, main: Cell) -> str:
    """The bars: what was asked, the mean, every seed with n and interval, and whether it is reached."""
    runs = _runs(grid, cells, main)
    rows = []
    for measure in (*RECALL, *COST, *forgetting(cells), *ABSTENTION):
        if measure.floor is None or measure.goal is None:
            continue
        found = _found(measure, runs.values())
        signs = ">=" if HIGHER_IS_BETTER[measure.metric] else "<="
        bars = [f"{signs} {_value(measure, bar)}" for bar in (measure.floor, measure.goal)]
        each = [summary(measure, {seed: run}) for seed, run in runs.items()]
        rows.append((measure.label, *bars, _mean(measure, found), *each, _verdict(measure, found)))
    seeds = [f"seed {seed}" for seed in runs]
    return markdown_table(("", "floor", "goal", "mean", *seeds, "reached"), rows)


def _by_size(grid: Grid, cells: Cells, measures: Sequence[Measure]) -> str:
    rows = []
    for kind in dict.fromkeys((cell.recipe, cell.gate) for cell in grid.cells()):
        for size in sorted(grid.sizes):
            runs = _runs(grid, cells, Cell(*kind, size, 0))
            there = sum(run is not None for run in runs.values())
            figures = (summary(measure, runs) for measure in measures)
            rows.append((_kind_name(*kind), f"{size:,}", f"{there} of {len(runs)}", *figures))
    return markdown_table(("recipe", "facts", "seeds", *(measure.label for measure in measures)), rows, right=(1, 2))


def _runs(grid: Grid, cells: Cells, like: Cell) -> dict[int, Results | None]:
    """Seed -> the run of this recipe, gate and size; None where it is missing."""
    return {seed: cells.get(Cell(like.recipe, like.gate, like.facts, seed)) for seed in grid.seeds}


def _found(measure: Measure, runs: Iterable[Results | None]) -> list[Row]:
    rows = (run.find(measure.metric, measure.split) for run in runs if run is not None)
    return [row for row in rows if row is not None]


def summary(measure: Measure, runs: Mapping[int, Results | None]) -> str:
    """Mean, spread, interval and n; "missing" where no seed was run, "not measured" where none has such a row."""
    if not any(run is not None for run in runs.values()):
        return _MISSING
    rows = _found(measure, runs.values())
    if not rows:
        return "not measured"
    lows, highs = [row.ci_low for row in rows], [row.ci_high for row in rows]
    text = _mean(measure, rows)
    if None not in lows and None not in highs:
        ends = min(low for low in lows if low is not None), max(high for high in highs if high is not None)
        text += f" [{_value(measure, ends[0])} to {_value(measure, ends[1])}], n = {_span([row.n for row in rows])}"
    return text


def _mean(measure: Measure, rows: Sequence[Row]) -> str:
    if not rows:
        return _MISSING
    values = [row.value for row in rows]
    text = _value(measure, statistics.fmean(values))
    if len(values) == 1:
        return text
    spread = statistics.stdev(values)
    return f"{text} ± {_spread(measure, spread)}"


def _value(measure: Measure, value: float) -> str:
    if measure.split.rpartition(":")[2] == "change":
        return f"{100 * value:+.2f} points"
    return format_value(measure.metric, value)


def _spread(measure: Measure, spread: float) -> str:
    if measure.metric.endswith(("_seconds", "_bytes", "bytes_per_fact")):
        return format_value(measure.metric, spread)
    percent = format_value(measure.metric, 0.5).endswith("%") or measure.split.endswith("change")
    return f"{100 * spread if percent else spread:.2g}"


def _verdict(measure: Measure, rows: Sequence[Row]) -> str:
    if not rows or measure.floor is None or measure.goal is None:
        return ""
    mean = statistics.fmean(row.value for row in rows)

    def reaches(bar: float) -> bool:
        return mean >= bar if HIGHER_IS_BETTER[measure.metric] else mean <= bar

    return "goal" if reaches(measure.goal) else "floor" if reaches(measure.floor) else "**no**"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _kind(cell: Cell) -> str:
    return _kind_name(cell.recipe, cell.gate)


def _kind_name(recipe: str, gate: bool) -> str:
    return f"{recipe}, {'gate' if gate else 'no gate'}"


def distinct_table(name: str, records: Sequence[Mapping[str, object]]) -> str:
    """One line per key: its value, or the values where runs differ, a few of them."""
    rows = []
    for key in dict.fromkeys(key for record in records for key in record):
        values = list(dict.fromkeys(_text(record[key]) for record in records if record.get(key) is not None))
        if values:
            rows.append((key, "; ".join(values[:4]) + (f"; ... ({len(values)} in all)" if len(values) > 4 else "")))
    return markdown_table((name, "value"), rows)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Pictures


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        WorkError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise WorkError("matplotlib is not installed, which draws the page; pip install matplotlib") from None
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")  # no pyplot: no state between calls
    FigureCanvasAgg(figure)
    return figure


def _draw_recall(grid: Grid, cells: Cells) -> Figure:
    """Recall against the number of facts: mean of the seeds, bars from the lowest to the highest."""
    figure = new_figure(10, 4)
    panels = list(figure.subplots(1, 2, sharey=True))
    kinds = list(dict.fromkeys((cell.recipe, cell.gate) for cell in grid.cells()))
    for axes, measure in zip(panels, RECALL[:2], strict=True):
        for number, kind in enumerate(kinds):
            points = []
            for size in sorted(grid.sizes):
                found = _found(measure, _runs(grid, cells, Cell(*kind, size, 0)).values())
                if values := [row.value for row in found]:
                    points.append((size, statistics.fmean(values), min(values), max(values)))
            if points:
                at, means, lows, highs = zip(*points, strict=True)
                below = [mean - low for mean, low in zip(means, lows, strict=True)]
                above = [high - mean for mean, high in zip(means, highs, strict=True)]
                axes.errorbar(
                    at, means, yerr=[[max(0.0, each) for each in side] for side in (below, above)], capsize=3,
                    color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)],
                    linestyle="-" if kind[1] else "--", label=_kind_name(*kind),
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(sorted(grid.sizes), [f"{size:,}" for size in sorted(grid.sizes)])
        axes.minorticks_off()
        axes.set_xlabel("facts taught")
        axes.set_title(measure.label, loc="left", fontsize=10)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="y", color="#e6e6e6")
    panels[0].set_ylabel("recall")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _draw_curves(grid: Grid, cells: Cells) -> Figure:
    """Recall against exposures, one panel per recipe and gate, one thin line per seed."""
    from matplotlib.ticker import MaxNLocator

    kinds = list(dict.fromkeys((cell.recipe, cell.gate) for cell in grid.cells()))
    figure = new_figure(3.2 * len(kinds) + 1, 3.6)
    panels = list(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0])
    for axes, kind in zip(panels, kinds, strict=True):
        for number, size in enumerate(sorted(grid.sizes)):
            found = [run for run in _runs(grid, cells, Cell(*kind, size, 0)).values() if run is not None]
            for place, run in enumerate(found):
                alone = run.find("recall", "backbone")
                points = [(0.0, alone.value)] if alone else []
                points += [(point.exposures, point.recall) for point in run.curve]
                axes.plot(
                    *zip(*points, strict=True),
                    color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], markersize=3,
                    linewidth=1, label=f"{size:,} facts" if place == 0 else None,
                )  # fmt: skip
        axes.set_title(_kind_name(*kind), loc="left", fontsize=10)
        axes.set_xlabel("exposures per fact")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="y", color="#e6e6e6")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("recall, taught phrasings (sample)")
    return figure
