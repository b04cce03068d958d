"""results.json -> report.md and recall.png; several of them -> compare.md and compare.png. No torch."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayers.evaluation.results import HIGHER_IS_BETTER, Results, Row, read_results
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import StrPath, atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHARES = frozenset(
    "recall teacher_forced_recall known_facts qa_exact_match identical_logits answered fabricated "
    "unchanged_answers".split()
)
# Okabe and Ito's palette without its yellow: told apart by the colour-blind too, and each has its own marker.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#767676"
_SMALL = 9  # points


def write_report(results_path: StrPath, out_dir: StrPath) -> tuple[Path, Path]:
    """Write report.md (figures, answers, environment) and recall.png into `out_dir`.

    Returns:
        The two paths.

    Raises:
        InputError: the results cannot be read, or `out_dir` cannot be written.
        WorkError: matplotlib is missing, or the disk is full.
    """
    results = read_results(results_path)
    picture = to_png(_draw_one(results))
    paths = Path(out_dir) / "report.md", Path(out_dir) / "recall.png"
    atomic_write_bytes(paths[1], picture)
    atomic_write_text(paths[0], _markdown(results, Path(results_path).name, paths[1].name))
    return paths


def compare_report(runs: Sequence[tuple[str, StrPath]], out_dir: StrPath) -> tuple[Path, Path]:
    """Write compare.md (one column per run, the best figure of a row in bold) and compare.png into `out_dir`.

    Args:
        runs: (label, path of results.json), each label once, at most 7.
        out_dir: where the two files go.

    Returns:
        The two paths.

    Raises:
        InputError: no runs, too many, a label twice, unreadable results, or an unwritable `out_dir`.
        WorkError: matplotlib is missing, or the disk is full.
    """
    labels = [label for label, _ in runs]
    if not 1 <= len(runs) <= len(_COLOURS) or len(set(labels)) < len(labels):
        raise InputError(
            f"{len(runs)} runs to compare, {len(set(labels))} labels; give 1 to {len(_COLOURS)} runs, "
            "each with its own label"
        )
    results = [(label, read_results(path)) for label, path in runs]
    picture = to_png(_draw_many(results))
    paths = Path(out_dir) / "compare.md", Path(out_dir) / "compare.png"
    atomic_write_bytes(paths[1], picture)
    atomic_write_text(paths[0], _comparison(results, paths[1].name))
    return paths


# Text


def format_value(metric: str, value: float) -> str:
    """A figure as a person reads it: "99.6 %", "8.337", "1 min 23 s", "1.21 GB"."""
    if metric in _SHARES:
        return _percent(value)
    if metric == "perplexity_change":
        return f"{100 * value:+.3f} %"
    if metric == "teach_seconds":
        whole = round(value)
        return f"{value:.1f} s" if whole < 60 else f"{whole // 60:,} min {whole % 60} s"
    if metric == "peak_memory_bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    if metric == "exposures_per_fact":
        return f"{value:.2f}"
    if metric in ("auroc", "abstention_auroc"):
        return f"{value:.3f}" if value <= 0.9995 or value == 1.0 else f"{value:.5f}"  # 0.99990 is no 1.000
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:#,.4g}".rstrip(".")


def _percent(value: float) -> str:
    # Rounding must not turn 99.96 % into a full score.
    shown = f"{100 * value:.1f}"
    if (shown == "100.0" and value < 1.0) or (shown == "0.0" and value > 0.0):
        shown = f"{100 * value:.3f}"
    return f"{shown} %"


def _interval(row: Row) -> str:
    if row.ci_low is None or row.ci_high is None:
        return ""
    return f"{format_value(row.metric, row.ci_low)} to {format_value(row.metric, row.ci_high)}"


def _markdown(results: Results, source: str, picture: str) -> str:
    table = [
        (
            row.metric,
            row.split,
            format_value(row.metric, row.value),
            _interval(row),
            f"{row.n:,}",
            "higher" if row.higher_is_better else "lower",
        )
        for row in results.rows
    ]
    parts = [
        "# What the memory learned, and what it cost",
        "\n".join(f"- {line}" for line in _in_short(results)),
        f"![recall against exposures, perplexity, known facts]({picture})",
        "Small markers: measured between passes, recall and known facts on samples. Large markers: the rows below.",
        markdown_table(("metric", "split", "value", "95 % interval", "n", "better"), table, right=(2, 3, 4)),
    ]
    if results.examples:
        columns = list(dict.fromkeys(name for example in results.examples for name in example))
        rows = [[_plain(example.get(name, "")) for name in columns] for example in results.examples]
        parts += ["## Answers", markdown_table(columns, rows)]
    machine = [(name, _plain(value)) for name, value in results.environment.items() if value is not None]
    parts += [
        "## Environment",
        markdown_table(("", ""), machine),
        "## Configuration",
        f"```json\n{json.dumps(results.config, indent=1, ensure_ascii=False)}\n```",
        f"Drawn from `{source}` alone. Recall is strict exact match in free generation; intervals are 95 %, "
        "by bootstrap over the items.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _in_short(results: Results) -> list[str]:
    """The sentences a reader wants first; each only where its rows are there."""
    lines = []
    taught, unseen = results.find("recall", "taught"), results.find("recall", "unseen_phrasing")
    alone, passes = results.find("recall", "backbone"), results.find("exposures_per_fact", "all")
    if taught:
        line = f"Recall of {taught.n:,} facts: **{_percent(taught.value)}**"
        line += f" after {passes.value:.2f} exposures each" if passes else ""
        line += f"; **{_percent(unseen.value)}** on phrasings never taught" if unseen else ""
        lines.append(line + (f"; the backbone alone: {_percent(alone.value)}." if alone else "."))
    before, after = _pair(results, "known_facts")
    if before and after and before.value > 0:
        lines.append(
            f"Known facts kept: **{_percent(after.value / before.value)}** of the backbone's "
            f"({_percent(before.value)} before, {_percent(after.value)} after)."
        )
    before, after = _pair(results, "perplexity")
    if before and after:
        values = [format_value("perplexity", row.value) for row in (before, after)]
        change = _change(before.value, after.value)
        lines.append(f"Perplexity: {values[0]} before, {values[1]} after (**{change}**).")
    same = results.find("identical_logits", "general_text")
    if same:
        lines.append(f"General-text tokens with bit-identical logits: **{_percent(same.value)}**.")
    return lines


def _pair(results: Results, metric: str) -> tuple[Row | None, Row | None]:
    return results.find(metric, "backbone"), results.find(metric, "memory")


def _change(before: float, after: float) -> str:
    ratio = after / before
    return f"{ratio:,.1f} times" if ratio > 2 else f"{100 * (ratio - 1):+.2f} %"


def _comparison(runs: Sequence[tuple[str, Results]], picture: str) -> str:
    keys = list(dict.fromkeys((row.metric, row.split) for _, results in runs for row in results.rows))
    table = []
    for metric, split in keys:
        rows = [results.find(metric, split) for _, results in runs]
        values = [row.value for row in rows if row is not None]
        best = max(values) if HIGHER_IS_BETTER[metric] else min(values)
        # The backbone is the same in every run, so nothing in its rows is better than the rest.
        marked = split != "backbone" and len(set(values)) > 1
        cells = [_cell(row, bold=marked and row is not None and row.value == best) for row in rows]
        table.append((metric, split, *cells))
    head = ("metric", "split", *(label for label, _ in runs))
    parts = [
        "# Runs side by side",
        f"![recall against exposures, perplexity, known facts]({picture})",
        "Small markers: measured between passes, recall and known facts on samples. Large markers: the rows below.",
        markdown_table(head, table, right=range(2, len(head))),
        "Best of a row in bold; 95 % intervals in brackets.",
    ]
    return "\n\n".join(parts) + "\n"


def _cell(row: Row | None, bold: bool) -> str:
    if row is None:
        return ""
    value = format_value(row.metric, row.value)
    interval = _interval(row)
    return (f"**{value}**" if bold else value) + (f" [{interval}]" if interval else "")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A Markdown table; the columns numbered in `right` are set to the right."""
    right = set(right)
    lines = [head, ["---:" if i in right else "---" for i in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in line)} |" for line in lines)


def _escape(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Pictures


@dataclass(frozen=True, slots=True)
class _Track:
    """How one metric moved in one run: where it started, the curve of the teaching, where it ended."""

    start: Row | None
    points: tuple[tuple[float, float], ...]
    end: Row | None
    end_at: float

    def line(self) -> list[tuple[float, float]]:
        """(exposures, value) from the backbone at 0 to the final evaluation."""
        points = sorted(point for point in self.points if 0 < point[0] < self.end_at)
        if self.start is not None:
            points.insert(0, (0.0, self.start.value))
        if self.end is not None:
            points.append((self.end_at, self.end.value))
        elif self.points:
            points.append(max(self.points))
        return points


def _track(results: Results, metric: str, end_split: str) -> _Track:
    values = ((point.exposures, getattr(point, metric)) for point in results.curve)
    return _Track(
        start=results.find(metric, "backbone"),
        points=tuple((at, value) for at, value in values if value is not None),
        end=results.find(metric, end_split),
        end_at=_last_exposure(results),
    )


def _last_exposure(results: Results) -> float:
    """Where the final evaluation stands; 1 when the file does not say (an evaluation without a teaching)."""
    row = results.find("exposures_per_fact", "all")
    seen = [row.value] if row else [point.exposures for point in results.curve]
    return max(seen, default=0.0) or 1.0


def _draw_one(results: Results) -> Figure:
    figure, (recall, perplexity, known) = _three_panels(height=3.6)
    _draw_recall(recall, results)
    named = results.find("exposures_per_fact", "all") is not None or bool(results.curve)
    for axes, metric in ((perplexity, "perplexity"), (known, "known_facts")):
        track = _track(results, metric, "memory")
        _plot_track(axes, track, _COLOURS[0], _MARKERS[0])
        _baseline(axes, track.start)
        _fit(axes, metric, [track])
        if track.start and track.end and track.start.value > 0:
            _annotate_change(axes, metric, track.end_at, track.start, track.end)
    _title(perplexity, "Perplexity, held-out text", _n_note(results.find("perplexity", "memory"), " tokens"))
    _title(known, "Known facts, strict recall", _n_note(results.find("known_facts", "memory"), " questions"))
    for axes in (recall, perplexity, known):
        _exposure_axis(axes, _last_exposure(results), named)
    return figure


def _draw_recall(axes: Axes, results: Results) -> None:
    taught, unseen = _track(results, "recall", "taught"), results.find("recall", "unseen_phrasing")
    _plot_track(axes, taught, _COLOURS[0], _MARKERS[0])
    _baseline(axes, taught.start)
    labels = []
    if taught.line():
        labels.append((taught.line()[-1][1], "taught phrasings", _COLOURS[0]))
    if unseen:
        _plot_end(axes, taught.end_at, unseen, _COLOURS[1], _MARKERS[3])
        labels.append((unseen.value, "phrasings never taught", _COLOURS[1]))
    if taught.start:
        labels.append((taught.start.value, "backbone alone", _GREY))
    _share_axis(axes, 0.0)
    _label_right(axes, labels)
    note = _n_note(taught.end, " taught") + (f", {unseen.n:,} never taught" if unseen else "")
    _title(axes, "Recall in free generation", note)


def _annotate_change(axes: Axes, metric: str, at: float, before: Row, after: Row) -> None:
    kept = f"{_percent(after.value / before.value)} kept"
    change = kept if metric == "known_facts" else _change(before.value, after.value)
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
        color=_COLOURS[0],
        fontsize=_SMALL,
    )


def _draw_many(runs: Sequence[tuple[str, Results]]) -> Figure:
    figure, panels = _three_panels(height=4.1)
    splits = (("recall", "taught"), ("perplexity", "memory"), ("known_facts", "memory"))
    last = max(_last_exposure(results) for _, results in runs)
    handles = []
    for axes, (metric, end_split) in zip(panels, splits, strict=True):
        tracks = [_track(results, metric, end_split) for _, results in runs]
        for (label, results), track, colour, marker in zip(runs, tracks, _COLOURS, _MARKERS, strict=False):
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
    _title(panels[2], "Known facts, strict recall", f"{n_notes[2]}; dashed: backbone")
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(runs), 4), frameon=False, fontsize=9)
    return figure


def _three_panels(height: float) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise WorkError("matplotlib is not installed, which draws the report; pip install matplotlib") from None
    figure = Figure(figsize=(11.5, height), dpi=150, layout="constrained")  # no pyplot: no state shared between calls
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, 3, width_ratios=(1.5, 1, 1)))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_GREY)
        axes.tick_params(colors="#444444", labelsize=9)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def to_png(figure: Figure) -> bytes:
    """A figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same bytes from the same results
    return buffer.getvalue()


def _plot_track(axes: Axes, track: _Track, colour: str, marker: str) -> None:
    line = track.line()
    if line:
        axes.plot(*zip(*line, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.8)
    if track.end:
        _plot_end(axes, track.end_at, track.end, colour, marker)


def _plot_end(axes: Axes, at: float, row: Row, colour: str, marker: str, hollow: bool = False) -> None:
    low = row.value if row.ci_low is None else row.ci_low
    high = row.value if row.ci_high is None else row.ci_high
    axes.errorbar(
        [at],
        [row.value],
        yerr=[[max(row.value - low, 0.0)], [max(high - row.value, 0.0)]],
        color=colour,
        marker=marker,
        markersize=7,
        markerfacecolor="white" if hollow else colour,
        capsize=3,
        elinewidth=1.2,
        clip_on=False,
        zorder=3,
    )


def _baseline(axes: Axes, row: Row | None) -> None:
    if row:
        axes.axhline(row.value, color=_GREY, linestyle=(0, (4, 3)), linewidth=1, zorder=1)


def _share_axis(axes: Axes, low: float) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_ylim(low, 1.0 + 0.03 * (1.0 - low))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _fit(axes: Axes, metric: str, tracks: Sequence[_Track]) -> None:
    """Limits that neither hide a loss nor blow up noise: 2 % around a perplexity, 8 points of known facts."""
    values = [value for track in tracks for _, value in track.line()]
    bounds = [
        bound
        for track in tracks
        for row in (track.start, track.end)
        if row
        for bound in (row.ci_low, row.ci_high)
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
    for height, (value, name, colour) in zip(_spread([value for value, _, _ in ordered]), ordered, strict=True):
        axes.text(
            1.03,
            height,
            f"{_percent(value)}\n{name}",
            transform=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            fontsize=_SMALL,
        )


def _spread(heights: Sequence[float], gap: float = 0.16, lowest: float = 0.05) -> list[float]:
    """Falling heights moved apart by at least `gap`, none below `lowest`."""
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
