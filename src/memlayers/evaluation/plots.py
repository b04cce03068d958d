"""The pictures of an evaluation: recall, perplexity and known facts against exposures, of one run or more. No torch."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlayers.evaluation.asked import splits_in
from memlayers.evaluation.formatting import format_value, percent, relative_change
from memlayers.evaluation.results import Results, Row
from memlayers.utils.errors import WorkError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow: told apart by the colour-blind too, and each has its own marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#767676"
_SMALL = 9  # points

MOST_RUNS = len(COLOURS)


def draw_results(results: Results) -> bytes:
    """Recall, perplexity and known facts of one run against exposures, as PNG.

    Raises:
        WorkError: matplotlib is missing.
    """
    figure, (recall, perplexity, known) = _panels(height=3.6)
    _draw_recall(recall, results)
    named = results.find("exposures_per_fact", "all") is not None or bool(results.curve)
    for axes, metric in ((perplexity, "perplexity"), (known, "known_facts")):
        track = track_of(results, metric, "memory")
        _plot_track(axes, track, COLOURS[0], MARKERS[0])
        _baseline(axes, track.start)
        _fit(axes, metric, [track])
        if track.start and track.end and track.start.value > 0:
            _annotate_change(axes, metric, track.end_at, track.start, track.end)
    _title(perplexity, "Perplexity, held-out text", _n_note(results.find("perplexity", "memory"), " tokens"))
    watched = "; line: a sample" if any(point.known_facts is not None for point in results.curve) else ""
    _title(known, "Known facts, strict recall", _n_note(results.find("known_facts", "memory"), " questions") + watched)
    for axes in (recall, perplexity, known):
        _exposure_axis(axes, _last_exposure(results), named)
    return to_png(figure)


def draw_runs(runs: Sequence[tuple[str, Results]]) -> bytes:
    """The same of several runs, each with its label, in one picture, as PNG; at most `MOST_RUNS`.

    Raises:
        WorkError: matplotlib is missing.
    """
    figure, panels = _panels(height=4.1)
    splits = (("recall", "taught"), ("perplexity", "memory"), ("known_facts", "memory"))
    last = max(_last_exposure(results) for _, results in runs)
    handles = []
    for axes, (metric, end_split) in zip(panels, splits, strict=True):
        tracks = [track_of(results, metric, end_split) for _, results in runs]
        for (label, results), track, colour, marker in zip(runs, tracks, COLOURS, MARKERS, strict=False):
            _plot_track(axes, track, colour, marker)
            unseen = results.find("recall", "unseen_phrasing")
            if metric == "recall":
                name = label.replace("$", r"\$")  # or matplotlib reads mathematics
                handles += axes.plot([], [], color=colour, marker=marker, markersize=5, label=name)
                if unseen:
                    _plot_end(axes, track.end_at, unseen, colour, marker, hollow=True)
        _baseline(axes, next((track.start for track in tracks if track.start), None))
        if metric == "recall":
            _share_axis(axes, 0.0)
        else:
            _fit(axes, metric, tracks)
        _exposure_axis(axes, last, named=True)
    n_notes = [_n_note(runs[0][1].find(metric, end_split)) for metric, end_split in splits]
    _title(panels[0], "Recall in free generation", f"{n_notes[0]}; hollow: never-taught phrasings")
    _title(panels[1], "Perplexity, held-out text", f"{n_notes[1]} tokens; dashed: backbone")
    _title(panels[2], "Known facts, strict recall", f"{n_notes[2]}, lines: a sample; dashed: backbone")
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(runs), 4), frameon=False, fontsize=9)
    return to_png(figure)


def draw_asked(results: Results) -> bytes:
    """What is recalled in each split of `memlayers eval --asked`, and what is made up there, as PNG.

    Raises:
        WorkError: matplotlib is missing.
    """
    from matplotlib.ticker import PercentFormatter

    splits = splits_in([results])
    figure, panels = _panels(1.6 + 0.27 * len(splits), widths=(1, 1))
    shown = (
        ("Taught facts", (("recall", "recall"), ("answered_by_memory", "answered by memory"))),
        ("Entities never taught", (("fabricated", "made up"), ("fabricated_by_memory", "made up by memory"))),
    )
    for axes, (title, bars) in zip(panels, shown, strict=True):
        for number, (metric, label) in enumerate(bars):
            found = [(at, row) for at, split in enumerate(splits) if (row := results.find(metric, split))]
            axes.barh(
                [at + 0.4 * number - 0.2 for at, _ in found],
                [row.value for _, row in found],
                0.38,
                xerr=_whiskers([row for _, row in found]),
                color=COLOURS[number],
                ecolor=_GREY,
                label=label,
            )
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_yticks(range(len(splits)), splits)
        axes.set_ylim(len(splits) - 0.4, -0.6)
        axes.set_xlim(0.0, 1.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.grid(visible=False)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.7 / len(splits)), ncols=2, frameon=False, fontsize=_SMALL
        )
    return to_png(figure)


def to_png(figure: Figure) -> bytes:
    """A figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # else matplotlib's version is among the bytes
    return buffer.getvalue()


# What a picture shows of a run


@dataclass(frozen=True, slots=True)
class Track:
    """How one metric moved in one run: where it started, the curve of the teaching, where it ended.

    `sampled` where the curve is of a sample of what start and end are measured on: then it is not joined to them.
    """

    start: Row | None
    points: tuple[tuple[float, float], ...]
    end: Row | None
    end_at: float
    sampled: bool = False

    def line(self) -> list[tuple[float, float]]:
        """(exposures, value) from the backbone at 0 to the final evaluation, or of the sample alone."""
        if self.sampled and self.points:
            return sorted(self.points)
        points = sorted(point for point in self.points if 0 < point[0] < self.end_at)
        if self.start is not None:
            points.insert(0, (0.0, self.start.value))
        if self.end is not None:
            points.append((self.end_at, self.end.value))
        elif self.points:
            points.append(max(self.points))
        return points


def track_of(results: Results, metric: str, end_split: str) -> Track:
    """The track of a metric; its end is the row of `end_split`."""
    values = ((point.exposures, getattr(point, metric)) for point in results.curve)
    return Track(
        start=results.find(metric, "backbone"),
        points=tuple((at, value) for at, value in values if value is not None),
        end=results.find(metric, end_split),
        end_at=_last_exposure(results),
        sampled=metric == "known_facts",  # some are watched while it is taught (demo.py), all are asked at the end
    )


def _last_exposure(results: Results) -> float:
    """Where the final evaluation stands; 1 when the file does not say (an evaluation without a teaching)."""
    row = results.find("exposures_per_fact", "all")
    seen = [row.value] if row else [point.exposures for point in results.curve]
    return max(seen, default=0.0) or 1.0


# Parts of a picture


def _panels(height: float, widths: Sequence[float] = (1.5, 1, 1)) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise WorkError("matplotlib is not installed, which draws the report; pip install matplotlib") from None
    figure = Figure(figsize=(11.5, height), dpi=150, layout="constrained")  # no pyplot: no state shared between calls
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(widths), width_ratios=widths))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_GREY)
        axes.tick_params(colors="#444444", labelsize=9)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def _draw_recall(axes: Axes, results: Results) -> None:
    taught, unseen = track_of(results, "recall", "taught"), results.find("recall", "unseen_phrasing")
    _plot_track(axes, taught, COLOURS[0], MARKERS[0])
    _baseline(axes, taught.start)
    labels = []
    if taught.line():
        labels.append((taught.line()[-1][1], "taught phrasings", COLOURS[0]))
    if unseen:
        _plot_end(axes, taught.end_at, unseen, COLOURS[1], MARKERS[3])
        labels.append((unseen.value, "phrasings never taught", COLOURS[1]))
    if taught.start:
        labels.append((taught.start.value, "backbone alone", _GREY))
    _share_axis(axes, 0.0)
    _label_right(axes, labels)
    note = _n_note(taught.end, " taught") + (f", {unseen.n:,} never taught" if unseen else "")
    _title(axes, "Recall in free generation", note)


def _annotate_change(axes: Axes, metric: str, at: float, before: Row, after: Row) -> None:
    kept = f"{percent(after.value / before.value)} kept"
    change = kept if metric == "known_facts" else relative_change(before.value, after.value)
    text = f"{format_value(metric, after.value)}\n({change})"
    own = [value for value in (after.value, after.ci_low, after.ci_high) if value is not None]
    top = max(*own, before.value)  # clear of the interval and of the baseline, or below where the panel ends
    below = axes.transAxes.inverted().transform(axes.transData.transform((at, top)))[1] > 0.8
    axes.annotate(
        text,
        (at, min(own) if below else top),
        (0, -9 if below else 7),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        color=COLOURS[0],
        fontsize=_SMALL,
    )


def _plot_track(axes: Axes, track: Track, colour: str, marker: str) -> None:
    line = track.line()
    if line:
        axes.plot(*zip(*line, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.8)
    if track.end:
        _plot_end(axes, track.end_at, track.end, colour, marker)


def _plot_end(axes: Axes, at: float, row: Row, colour: str, marker: str, hollow: bool = False) -> None:
    axes.errorbar(
        [at],
        [row.value],
        yerr=_whiskers([row]),
        color=colour,
        marker=marker,
        markersize=7,
        markerfacecolor="white" if hollow else colour,
        capsize=3,
        elinewidth=1.2,
        clip_on=False,
        zorder=3,
    )


def _whiskers(rows: Sequence[Row]) -> list[list[float]]:
    """How far the intervals reach below the values, and above them; 0 where there is none."""
    below = [0.0 if row.ci_low is None else max(row.value - row.ci_low, 0.0) for row in rows]
    above = [0.0 if row.ci_high is None else max(row.ci_high - row.value, 0.0) for row in rows]
    return [below, above]


def _baseline(axes: Axes, row: Row | None) -> None:
    if row:
        axes.axhline(row.value, color=_GREY, linestyle=(0, (4, 3)), linewidth=1, zorder=1)


def _share_axis(axes: Axes, low: float) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_ylim(low, 1.0 + 0.03 * (1.0 - low))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _fit(axes: Axes, metric: str, tracks: Sequence[Track]) -> None:
    """Limits that neither hide a loss nor blow up noise: 2 % around a perplexity, 8 points of known facts."""
    values = [value for track in tracks for _, value in track.line()]
    bounds = [
        bound
        for track in tracks
        for row in (track.start, track.end)
        if row
        for bound in (row.value, row.ci_low, row.ci_high)
        if bound is not None
    ]
    values += bounds
    if not values:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_GREY, fontsize=_SMALL)
        axes.set_yticks([])
        return
    low, high = min(values), max(values)
    if metric == "known_facts":
        _share_axis(axes, max(0.0, math.floor(20 * min(low - 0.01, 0.92)) / 20))
    elif low > 0 and high / low > 10:
        axes.set_yscale("log")
        axes.set_ylim(low * 0.8, high * (high / low) ** 0.3)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    else:
        margin = max(0.02 * high, 0.15 * (high - low))
        axes.set_ylim(low - margin, high + 2.2 * margin)


def _label_right(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Name each line beside the axes at its height (a share), with its value."""
    ordered = sorted(labels, reverse=True)
    for height, (value, name, colour) in zip(spread_apart([value for value, _, _ in ordered]), ordered, strict=True):
        axes.text(
            1.03,
            height,
            f"{percent(value)}\n{name}",
            transform=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            fontsize=_SMALL,
        )


def spread_apart(heights: Sequence[float], gap: float = 0.16, lowest: float = 0.05) -> list[float]:
    """Falling heights (shares of the axes) moved apart by at least `gap`, none below `lowest`."""
    placed: list[float] = []
    for height in heights:
        placed.append(min(height, placed[-1] - gap) if placed else height)
    floor = lowest
    for i in reversed(range(len(placed))):
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    return placed


def _n_note(row: Row | None, unit: str = "") -> str:
    return f"n = {row.n:,}{unit}" if row else "not measured"


def _title(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=20)
    axes.text(0.0, 1.035, note, transform=axes.transAxes, color="#555555", fontsize=_SMALL)


def _exposure_axis(axes: Axes, last: float, named: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-0.05 * last, 1.05 * last)
    if named:
        axes.set_xlabel("exposures per fact", fontsize=_SMALL)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    else:
        axes.set_xticks([0.0, last], ["backbone", "with memory"])
