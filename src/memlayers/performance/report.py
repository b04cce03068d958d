"""A bench's figures as a Markdown table and a roofline plot. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from memlayers.evaluation.plots import to_png
from memlayers.performance.figures import Bench, Timing, read_bench
from memlayers.utils.files import atomic_write_bytes, atomic_write_text

STEP = "teaching step"


def write_bench_report(bench_file: str | Path, out: str | Path) -> None:
    """Writes OUT/bench.md and OUT/roofline.png from the JSON file alone."""
    bench, folder = read_bench(bench_file), Path(out)
    atomic_write_text(folder / "bench.md", "\n".join(_lines(bench)) + "\n")
    _draw(bench, folder / "roofline.png")


def table_rows(timings: list[Timing]) -> Iterator[list[str]]:
    """One row of cells per figure, for a terminal or for Markdown."""
    for timing in timings:
        error = "" if timing.error is None else f"{timing.error:.0e}"
        peak = "" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e6:,.0f}"
        yield [
            timing.stage,
            timing.variant,
            timing.indices,
            f"{timing.ms:.2f}",
            f"{timing.bytes / 1e6:,.0f}" if timing.bytes else "",
            f"{timing.gb_per_s:.1f}" if timing.bytes else "",
            "" if timing.roof_share is None else f"{timing.roof_share:.0%} of {timing.roof}",
            "" if timing.unique_ratio is None else f"{timing.unique_ratio:.2f}",
            error,
            peak,
        ]


HEADER = ("stage", "by", "indices", "ms", "MB", "GB/s", "of the roof", "unique", "error", "grew by MB")


def ratios(bench: Bench) -> Iterator[tuple[str, str, str, str, float]]:
    """Per allocator setting, indices and peer: how many times our step is faster, the default semantics' and lazy's."""
    for malloc in bench.roofs:
        there = [timing for timing in bench.timings if timing.malloc == malloc]
        for ours in (timing for timing in there if timing.stage.startswith(f"{STEP}, ")):
            for peer in there:
                if peer.stage == STEP and peer.indices == ours.indices:
                    yield malloc, ours.indices, ours.stage.removeprefix(f"{STEP}, "), peer.variant, peer.ms / ours.ms
        for stage in ("top-k", "whole layers"):
            both = [timing for timing in there if timing.stage == stage]
            for ours in (timing for timing in both if timing.variant == "memlayers"):
                for peer in (timing for timing in both if timing.variant != "memlayers"):
                    yield malloc, ours.indices, stage, peer.variant, peer.ms / ours.ms


def _lines(bench: Bench) -> Iterator[str]:
    shape = bench.timings[0].shape
    yield "# Bench"
    yield ""
    where = bench.environment
    yield (
        f"{shape.slots:,} slots x {shape.dim}, {shape.dtype}; {shape.tokens} tokens, "
        f"{shape.heads} x top-{shape.top_k}, {shape.layers} layers on one pool. {where['cpu']}, "
        f"{where['cores']} cores, device {where['device']}; torch {where['torch']}, {where['date']}, "
        f"commit {where['commit']}. Median of the "
        "repetitions; a stage's time is for all layers. Error: largest difference from the float64 reference over the "
        "largest magnitude."
    )
    for malloc, roofs in bench.roofs.items():
        there = [timing for timing in bench.timings if timing.malloc == malloc]
        shown = ", ".join(f"{name} {value:.1f}" for name, value in roofs.items())
        yield from ("", f"## malloc: {malloc}", "", f"Roofs, GB/s (matmul: GFLOP/s): {shown}.", "")
        yield f"| {' | '.join(HEADER)} |"
        yield "|---|---|---|" + "---:|" * (len(HEADER) - 3)
        for cells in table_rows(there):
            yield f"| {' | '.join(cells)} |"
    yield from ("", "## How many times faster we are", "")
    yield "| malloc | indices | semantics, or stage | than | ratio |"
    yield "|---|---|---|---|---:|"
    for malloc, indices, semantics, peer, ratio in ratios(bench):
        yield f"| {malloc} | {indices} | {semantics} | {peer} | {ratio:.1f} |"
    if bench.overhead:
        yield from ("", "## The memory's share of the frozen backbone's own work", "")
        yield "| | share |"
        yield "|---|---:|"
        for name, value in bench.overhead.items():
            yield f"| {name} | {f'{value:.3f} ms' if name.endswith('_ms') else f'{value:.2%}'} |"


def _draw(bench: Bench, path: Path) -> None:
    """GFLOP/s against operations per byte, under the roofs of the first allocator setting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    malloc, roofs = next(iter(bench.roofs.items()))
    figure = Figure(figsize=(7.5, 4.6), dpi=130, layout="constrained")  # no pyplot: no state shared between calls
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    intensities = [10 ** (power / 10) for power in range(-20, 21)]
    for name in ("sequential", "random rows", "update rows"):
        axis.plot(intensities, [min(roofs["matmul"], each * roofs[name]) for each in intensities], lw=1, label=name)
    markers = {"uniform": "o", "zipf": "s", "real": "^"}
    colours: dict[str, str] = {}
    for timing in bench.timings:
        if timing.malloc != malloc or not (timing.flops and timing.bytes):
            continue
        colours.setdefault(timing.stage, f"C{len(colours) + 3}")
        axis.scatter(
            timing.flops / timing.bytes, timing.flops / timing.ms / 1e6, color=colours[timing.stage],
            marker=markers[timing.indices], s=28, zorder=3,
            label=timing.stage if timing.indices == "uniform" else None,
        )  # fmt: skip
    axis.set(
        xscale="log", yscale="log", xlabel="operations per byte moved", ylabel="GFLOP/s",
        title=f"circle: uniform, square: Zipf, triangle: real indices (malloc {malloc})",
    )  # fmt: skip
    axis.title.set_fontsize(9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    atomic_write_bytes(path, to_png(figure))
