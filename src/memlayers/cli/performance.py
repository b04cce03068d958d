"""plan, bench: what fits, and what a step costs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from memlayers.cli.app import Json, Quiet, app
from memlayers.cli.flags import layer_numbers
from memlayers.utils.errors import InputError


@app.command(epilog="Example: memlayers plan --backbone Qwen/Qwen2.5-7B-Instruct --slots 500000")
def plan(
    backbone: Annotated[
        str,
        typer.Option(help="pocket, smollm2, qwen2.5-0.5b, -1.5b, -7b, or the path of a config.json or a .gguf file."),
    ],
    slots: Annotated[int, typer.Option(min=1, help="Rows of the value pool; rounded up to a square.")],
    vram: Annotated[float, typer.Option(min=0, help="Memory of the device, GiB.")] = 24,
    host: Annotated[float, typer.Option(min=0, help="Host memory that may be used, GiB.")] = 64,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences per step. [4; pocket: 32]", show_default=False)
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens of the longest sequence.")] = 64,
    answer: Annotated[int, typer.Option(min=1, help="Positions at which some sequence has an answer.")] = 16,
    heads: Annotated[int, typer.Option(min=1, help="Lookups per token and layer.")] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Slots read per head.")] = 8,
    key_dim: Annotated[int, typer.Option(min=2, help="Width of a head's query.")] = 64,
    layers: Annotated[str | None, typer.Option(help="Memory layers, as 6,14,22.")] = None,
    facts: Annotated[int, typer.Option(min=1, help="To be taught; says how many rows are touched.")] = 5000,
    phrasings: Annotated[
        int, typer.Option(min=1, help="Of each fact: calibration is shown up to 15,000 tokens of them.")
    ] = 10,
    tokens_per_fact: Annotated[int, typer.Option(min=1, help="Tokens of its sequences that differ.")] = 20,
    touched: Annotated[int | None, typer.Option(min=0, help="Rows touched, if you know.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the backbone: bfloat16, or float32 (pocket).")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Processes that share each step, with a device each.")] = 1,
    shard_pool: Annotated[str, typer.Option(help="columns: split the pool over the processes.")] = "none",
    as_json: Json = False,
) -> None:
    """What fits: weights, pool, optimizer state, read log and activations, and the flags to teach with."""
    from memlayers.config.teach import TeachConfig
    from memlayers.performance.planning import plan as plan_for
    from memlayers.performance.planning import usual_batch

    if dtype not in (None, "bfloat16", "float16", "float32"):
        raise InputError(f"--dtype {dtype}: take bfloat16, float16 or float32")
    if shard_pool not in ("none", "columns"):
        raise InputError(f"--shard-pool {shard_pool}: take columns or none")
    config = TeachConfig().with_flags(
        backbone=backbone, heads=heads, top_k=top_k, key_dim=key_dim, dtype=dtype or "auto",
        layers=layer_numbers(layers) if layers else None,
    )  # fmt: skip
    made = plan_for(
        config, slots=slots, batch_size=batch_size or usual_batch(backbone), vram=vram, host=host, length=length,
        answer=answer, facts=facts, phrasings=phrasings,
        tokens_per_fact=tokens_per_fact, touched=touched, gpus=gpus, split=shard_pool == "columns",
    )  # fmt: skip
    if as_json:
        print(json.dumps({
            "backbone": dataclasses.asdict(made.backbone),
            "work": {**dataclasses.asdict(made.work), "slots": made.work.slots},
            "lines": [dataclasses.asdict(line) for line in made.lines],
            "recommended": made.command,
        }))  # fmt: skip
        return
    _print_plan(made.backbone, made.work, made.lines, made.recommended, vram, host)


@app.command(epilog="Example: memlayers bench --out runs/bench")
def bench(
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json, bench.md and the roofline plot.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Rows of the value pool, a square number.")] = 50_176,
    dim: Annotated[int, typer.Option(min=1, help="Width of a value.")] = 3584,
    tokens: Annotated[int, typer.Option(min=1, help="Per step and memory layer.")] = 512,
    heads: Annotated[int, typer.Option(min=1, help="Lookups per token.")] = 1,
    top_k: Annotated[int, typer.Option(min=1, help="Slots read per head.")] = 8,
    layers: Annotated[int, typer.Option(min=1, help="Memory layers on one pool.")] = 3,
    dtype: Annotated[str, typer.Option(help="Of the pool: float32, bfloat16 or int8.")] = "float32",
    indices: Annotated[
        str, typer.Option(help="Some of uniform, zipf, real, with commas between.")
    ] = "uniform,zipf,real",
    peers: Annotated[bool, typer.Option(help="Also time the other ways that are installed here.")] = True,
    overhead: Annotated[bool, typer.Option(help="Also the memory's share of the backbone's own work.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs per figure.")] = 7,
    seed: Annotated[int, typer.Option(help="Of the reads.")] = 137,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time the memory, stage by stage, against this machine's roofs and against other ways to do the same."""
    from memlayers.utils.files import check_output_directory

    if out is not None:
        check_output_directory(out, replace=True)
    from memlayers.performance.bench import run_bench
    from memlayers.performance.figures import Shape, bench_text, write_bench
    from memlayers.performance.report import write_bench_report

    found = run_bench(
        Shape(slots, dim, tokens, heads, top_k, layers, dtype),
        device=device, indices=[kind.strip() for kind in indices.split(",")], peers=peers, overhead=overhead,
        repeats=repeats, seed=seed, note=lambda text: None if quiet else print(f"Measuring: {text}", file=sys.stderr),
    )  # fmt: skip
    if out is not None:
        write_bench(out / "bench.json", found)
        write_bench_report(out / "bench.json", out)
    if as_json:
        print(bench_text(found), end="")
    else:
        _print_bench(found)


def _print_plan(backbone: Any, work: Any, lines: Any, best: Any, vram: float, host: float) -> None:
    """The plan as a table on stdout, what it assumes, and the command it comes to."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from memlayers.performance import plan as planning
    from memlayers.performance.backbone_size import GIB

    header = (name.format(dtype=work.dtype) for name in planning.HEADER)
    table = Table(title=f"{backbone.name}, {work.slots:,} slots x {backbone.hidden}, GiB", box=SIMPLE, padding=(0, 1))
    for number, name in enumerate(header):  # in a narrow terminal the first column breaks, not the figures
        table.add_column(name, no_wrap=number > 0 and "beside" not in name, min_width=10 if "beside" in name else None)
    for cells in planning.table_cells(lines):
        table.add_row(*cells)
    Console().print(table)
    prose = [
        f"Weights: {lines[0].weights / GIB:.2f} in {work.dtype}, {lines[-1].weights / GIB:.2f} in 4-bit (through PEFT "
        f"and bitsandbytes). A step of {work.batch} sequences of {work.length} tokens, memory at layers "
        f"{', '.join(map(str, work.layers))}, {work.heads} x top-{work.top_k} reads a token; {work.touched:,} rows "
        "touched at the end.",
        "step: read log, scores, activations and logits. recall: in place of a step, between the passes, "
        f"{planning.QUESTIONS} questions answered at a time. beside: the device's peak next to the backbone, with 5 % "
        f"for fragmentation and 0.6 GiB for a CUDA context, against {vram:g} GiB. host: features of "
        f"{work.contexts:,} tokens of facts (at most) and {work.general:,} of general text while gates are trained, or "
        f"the state where it lies there, against {host:g} GiB.",
    ]
    if work.gpus > 1:
        pool = f"holds {work.columns(backbone.hidden)} columns of the pool" if work.split else "holds the whole pool"
        prose.append(
            f"Figures but the host's are those of each of {work.gpus} processes, with a device each: it reads "
            f"{work.own_batch} of a step's sequences and {pool}. A step has it send {lines[0].traffic / 2**20:.1f} MiB "
            "to the others."
        )
    width = min(shutil.get_terminal_size().columns, 120)
    for paragraph in prose:
        print(textwrap.fill(paragraph, width, break_on_hyphens=False, break_long_words=False))
    if best is None:
        print("\nNothing fits: take fewer slots or facts, a smaller batch, or more memory.")
    elif best.weights_dtype == work.dtype:
        print(f"\nRecommended:\n{planning.command(backbone, work, best)}")  # one line, to be copied
    else:
        print(f"\nFits only beside a 4-bit backbone: {best.scheme.name}.")


def _print_bench(found: Any) -> None:
    """The bench's figures as tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    from memlayers.performance.report import HEADER, ratios, table_rows

    console = Console()
    for malloc in found.roofs:
        table = Table(*HEADER, title=f"malloc: {malloc}" if len(found.roofs) > 1 else None)
        for cells in table_rows([timing for timing in found.timings if timing.malloc == malloc]):
            table.add_row(*cells)
        console.print(table)
    table = Table("malloc", "indices", "semantics, or stage", "than", "times faster")
    for malloc, kind, semantics, peer, ratio in ratios(found):
        table.add_row(malloc, kind, semantics, peer, f"{ratio:.1f}")
    if table.rows:
        console.print(table)
    for name, value in found.overhead.items():
        print(f"{name:<28} {value:.3f} ms" if name.endswith("_ms") else f"{name:<28} {value:.2%}")
