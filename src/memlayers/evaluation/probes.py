"""What `memlayers diagnose` finds: typed figures, their file, and its table and picture. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from memlayers.evaluation.formatting import percent
from memlayers.evaluation.plots import to_png
from memlayers.inference.record import CurvePoint
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import StrPath, atomic_write_bytes, atomic_write_text, sections_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from memlayers.evaluation.statistics import Estimate

SCHEMA: Final = "memlayers.diagnosis/1"

PROBES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "loss": ("number", "teaching's loss, nats per counted token, of the first and of the last pass"),
        "moved_rows": ("share", "slots whose value is not the one it started with"),
        "written_rows": ("share", "slots whose value is not zero"),
        "protected_rows": ("share", "slots kept at zero for a text that reads them"),
        "row_norm": ("number", "norm of a moved slot's value: now, at its start, and of what changed"),
        "projection_change": ("number", "norm of the change over the norm at the start (output: norm of the change)"),
        "read_tokens": ("share", "tokens for which the gate lets this layer read"),
        "output_ratio": ("number", "norm of what the memory adds over that of the MLP's output, at tokens that read"),
        "read_entropy": ("number", "bits, of one token's weights over the slots that it reads"),
        "slots_per_read": ("number", "2 to that: slots that a token's weights amount to"),
        "slots_in_use": ("number", "2 to the entropy, in bits, of all weights over slots: slots they amount to"),
        "slots_read": ("share", "slots that the facts' contexts read at all"),
        "reads_per_fact": ("number", "distinct slots that the contexts of one fact read, all layers"),
        "distinct_slots": ("number", "distinct slots that all entities read, at one token each"),
        "jaccard": ("number", "of the slots that two entities read: shared over all"),
        "cosine": ("number", "between two entities, mean of all pairs (n: entities); centred: less the tokens' mean"),
        "written_reads": ("share", "reads that meet a slot which is not zero, weights counted"),
        "protected_reads": ("share", "reads that meet a protected slot, weights counted"),
        "first_token_rank": ("number", "rank of the answer's first token, median; 1 is what greedy decoding takes"),
        "first_token_first": ("share", "answers whose first token has rank 1"),
        "first_token_nll": ("number", "nats, of the answer's first token"),
        "answer_nll": ("number", "nats, of the whole answer and its end"),
        "recall": ("share", "answered right in free generation, strict exact match"),
    }
)  # fmt: skip
"""Every probe: what its value is (a share of 1, or a number), and what it says."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One figure.

    Attributes:
        name: one of `PROBES`.
        split: what it was measured on, e.g. "layer 2" or "pool zeroed".
        value: shares are 0 to 1.
        n: number of items behind the value.
        ci_low: lower end of the 95 % interval, None where there is none.
        ci_high: upper end.

    Raises:
        InputError: an unknown name.
    """

    name: str
    split: str
    value: float
    n: int
    ci_low: float | None = None
    ci_high: float | None = None

    def __post_init__(self) -> None:
        if self.name not in PROBES:
            raise InputError(f"unknown probe {self.name!r}; known probes: {', '.join(PROBES)}")

    @classmethod
    def from_estimate(cls, name: str, split: str, estimate: Estimate) -> Probe:
        """The probe of a mean with its interval (`statistics.mean_interval`)."""
        return cls(name, split, estimate.value, estimate.n, estimate.ci_low, estimate.ci_high)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often a quantity fell between two neighbouring edges; one edge more than counts."""

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(slots=True)
class Diagnosis:
    """All that one memory was found to do; `curve` is its teaching's, where the memory has a record of it."""

    environment: dict[str, Any]
    config: dict[str, Any]
    probes: list[Probe] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)

    def find(self, name: str, split: str) -> Probe | None:
        """The probe of this name and split, if there is one."""
        return next((probe for probe in self.probes if (probe.name, probe.split) == (name, split)), None)


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """A diagnosis as JSON, one figure a line.

    Raises:
        WorkError: a figure is NaN or infinite.
    """
    sections = {
        "environment": diagnosis.environment,
        "config": diagnosis.config,
        "probes": [asdict(probe) for probe in diagnosis.probes],
        "histograms": [asdict(histogram) for histogram in diagnosis.histograms],
        "curve": [asdict(point) for point in diagnosis.curve],
    }
    try:
        return sections_text(SCHEMA, sections)
    except ValueError as error:
        raise WorkError(
            f"a figure of the diagnosis is not finite ({error}): the memory's values are damaged"
        ) from error


def read_diagnosis(path: StrPath) -> Diagnosis:
    """Reads what `diagnosis_text` wrote.

    Raises:
        InputError: it is not such a file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}")
        histograms = [Histogram(h["name"], tuple(h["edges"]), tuple(h["counts"])) for h in data["histograms"]]
        return Diagnosis(
            data["environment"],
            data["config"],
            [Probe(**probe) for probe in data["probes"]],
            histograms,
            [CurvePoint(**point) for point in data["curve"]],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of `memlayers diagnose` ({error}); run it again") from error


def write_diagnosis(folder: StrPath, diagnosis: Diagnosis) -> None:
    """Writes FOLDER/diagnosis.json, .md and .png; the latter two are drawn from the former's content alone."""
    folder = Path(folder)
    atomic_write_text(folder / "diagnosis.json", diagnosis_text(diagnosis))
    atomic_write_text(folder / "diagnosis.md", _markdown(diagnosis))
    atomic_write_bytes(folder / "diagnosis.png", _picture(diagnosis))


HEADER = ("probe", "split", "value", "95 % interval", "n")


def table_rows(probes: Sequence[Probe]) -> Iterator[tuple[str, ...]]:
    """One row of cells per figure, for a terminal or for Markdown."""
    for probe in probes:
        ends = [format_probe(probe.name, end) for end in (probe.ci_low, probe.ci_high) if end is not None]
        value = format_probe(probe.name, probe.value)
        yield probe.name, probe.split, value, " to ".join(ends), f"{probe.n:,}"


def format_probe(name: str, value: float) -> str:
    """A figure as a person reads it."""
    if PROBES[name][0] == "share":
        return percent(value)
    if 0 < abs(value) < 0.01:
        return f"{value:.1g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _markdown(diagnosis: Diagnosis) -> str:
    lines = ["# What the memory does", "", "![the probes that matter most](diagnosis.png)", ""]
    lines += [f"| {' | '.join(HEADER)} |", "|---|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(cells)} |" for cells in table_rows(diagnosis.probes)]
    named = list(dict.fromkeys(probe.name for probe in diagnosis.probes))
    lines += ["", *(f"* `{name}`: {PROBES[name][1]}" for name in named)]
    lines += ["", f"```json\n{json.dumps(diagnosis.config, indent=1, ensure_ascii=False)}\n```"]
    return "\n".join(lines) + "\n"


def _picture(diagnosis: Diagnosis) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise WorkError("matplotlib is not installed, which draws the diagnosis; pip install matplotlib") from None
    figure = Figure(figsize=(12, 6.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    (loss, recall, nll), (ratio, alike, usage) = figure.subplots(2, 3)
    _draw_curve(loss, diagnosis.curve)
    _bars(recall, "Where do the facts live? Recall", diagnosis, ("recall",), share=True)
    _bars(nll, "NLL of the answer, nats", diagnosis, ("answer_nll",))
    _bars(ratio, "Memory's output over the MLP's, norms", diagnosis, ("output_ratio",))
    _bars(alike, "Two entities: cosine, Jaccard of reads", diagnosis, ("cosine", "jaccard"), at=", entity")
    _draw_histogram(usage, next((h for h in diagnosis.histograms if h.name == "reads per slot"), None))
    return to_png(figure)


def _bars(
    axes: Axes, title: str, diagnosis: Diagnosis, names: Sequence[str], share: bool = False, at: str = ""
) -> None:
    """A bar per probe of these names whose split holds `at`, which is left out of the labels."""
    probes = [probe for probe in diagnosis.probes if probe.name in names and at in probe.split][::-1]
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_axisbelow(True)
    for place, probe in enumerate(probes):
        colour = "#0072B2" if probe.name == names[0] else "#D55E00"
        low = probe.value if probe.ci_low is None else probe.ci_low
        high = probe.value if probe.ci_high is None else probe.ci_high
        error = [[max(0.0, probe.value - low)], [max(0.0, high - probe.value)]]
        axes.barh(place, probe.value, color=colour, xerr=error, error_kw={"capsize": 2, "elinewidth": 1})
    labels = [(p.split if p.name == names[0] else f"{p.split}, {p.name}").replace(at, "") for p in probes]
    axes.set_yticks(range(len(probes)), labels, fontsize=6 if len(probes) > 8 else 8)
    if share:
        axes.set_xlim(0, 1.02)


def _draw_curve(axes: Axes, curve: Sequence[CurvePoint]) -> None:
    axes.set_title("Teaching: loss (line, nats) and recall (dashed)", loc="left", fontsize=10)
    axes.set_xlabel("exposures", fontsize=8)
    told = [(point.exposures, point.loss) for point in curve if point.loss is not None]
    if told:
        axes.plot(*zip(*told, strict=True), "o-", color="#0072B2", markersize=3)
    if curve:
        other = axes.twinx()
        other.plot([p.exposures for p in curve], [p.recall for p in curve], "s--", color="#D55E00", markersize=3)
        other.set_ylim(0, 1.02)
    else:
        axes.text(0.5, 0.5, "no record of the teaching", transform=axes.transAxes, ha="center", color="#767676")


def _draw_histogram(axes: Axes, histogram: Histogram | None) -> None:
    axes.set_title("Slots by how often the facts read them", loc="left", fontsize=10)
    if histogram is None:
        return
    labels = [
        f"{low:g}" if high - low <= 1 else f"{low:g} to {high - 1:g}"
        for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)
    ]
    axes.bar(range(len(labels)), histogram.counts, color="#009E73")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=7)
    if max(histogram.counts) > 0:
        axes.set_yscale("symlog")


def reads_histogram(reads: Sequence[int]) -> Histogram:
    """Slots by their number of reads: 0, 1, 2 to 3, 4 to 7, and so on."""
    bins = [0 if count == 0 else 1 + math.floor(math.log2(count)) for count in reads]
    most = max(bins, default=0)
    edges = (0.0, *(float(2**power) for power in range(most + 1)))
    return Histogram("reads per slot", edges, tuple(bins.count(number) for number in range(most + 1)))
