"""demo, teach, gate, ask: making a memory, and asking it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from memlayers.cli.app import Device, Json, Quiet, app, print_rows, teach_config, with_teach_flags
from memlayers.utils.errors import InputError


@app.command(epilog="Example: memlayers demo --out runs/demo")
@with_teach_flags("backbone")
def demo(
    out: Annotated[Path, typer.Option(help="A new folder for the memory, the results and the report.")],
    facts: Annotated[int | None, typer.Option(min=1, help="Teach only so many of the 500 facts.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of the flags below.")] = None,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Teach the embedded backbone 500 real facts, score it before and after, and draw the report."""
    settings = teach_config(config, flags)
    from memlayers.demo import run_demo

    results = run_demo(out, settings, facts=facts, quiet=quiet)
    print_rows(results)
    print(f"\nThe report is {out / 'report.md'}; ask the memory with: memlayers ask {out / 'memory'}")


@app.command(epilog="Example: memlayers teach --backbone Qwen/Qwen2.5-7B-Instruct --facts facts.jsonl --out memory")
@with_teach_flags()
def teach(
    facts: Annotated[Path, typer.Option(help="Facts: JSONL or CSV (see `memlayers facts`).")],
    out: Annotated[Path, typer.Option(help="Folder for the memory, a PEFT adapter.")],
    config: Annotated[Path | None, typer.Option(help="YAML file of the flags below.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing memory.")] = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Teach facts to a frozen backbone: calibrate, train the gate, write the value pool."""
    settings = teach_config(config, flags)
    from memlayers.data.fact_files import read_facts

    rows = read_facts(facts, strict=True)
    from memlayers.teaching.teach import teach_facts

    report = teach_facts(rows, out, settings, resume=resume, replace=replace, quiet=quiet).report
    skipped = f", {report.skipped_steps} steps skipped (not finite)" if report.skipped_steps else ""
    print(
        f"{len(rows)} facts, {report.exposures:g} exposures each, recall on a sample {report.recall:.1%}, "
        f"{report.seconds:.0f} s{skipped}; the memory is in {out}"
    )


@app.command("gate", epilog="Example: memlayers gate memory --facts facts.jsonl --negatives fakes.jsonl")
def gate_command(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    facts: Annotated[Path, typer.Option(help="What it was taught.")],
    negatives: Annotated[
        Path | None, typer.Option(help="Questions about what was never taught: the thresholds heed them.")
    ] = None,
    general_text: Annotated[
        str | None, typer.Option(help="The gate's own not-mine: a file, or `sampled`; the shipped sample if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder; if not given the memory is replaced.")] = None,
    soft: Annotated[
        bool, typer.Option("--soft", help="The seed's gate, whose sigmoid multiplies what the memory adds.")
    ] = False,
    gate_subjects: Annotated[bool, typer.Option(help="It opens at the names of the stored subjects alone.")] = True,
    gate_relations: Annotated[
        bool, typer.Option(help="What is asked of a subject is compared with what was taught of it.")
    ] = True,
    gate_threshold: Annotated[float, typer.Option(help="Logit above which it is open.")] = 1.0,
    gate_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps per gate.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 137,
    backbone: Annotated[str | None, typer.Option(help="Another place of the backbone.")] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Make or retrain the gate of a memory that was taught already; what it was taught stays as it is."""
    from memlayers.data.fact_files import read_facts, read_questions

    rows = read_facts(facts, strict=True)
    others = read_questions(negatives) if negatives else []
    from memlayers.config.sections import GateConfig
    from memlayers.teaching.regate import regate_memory

    settings = GateConfig(
        soft=soft, subjects=gate_subjects, relations=gate_relations, threshold=gate_threshold, steps=gate_steps
    )
    made = regate_memory(
        memory, rows, settings, general_text=general_text, seed=seed, negatives=others, out=out, backbone=backbone,
        device=device, quiet=quiet,
    )  # fmt: skip
    if not soft:
        for number, gate in enumerate(made.report.gates):
            print(
                f"gate {number}: open on {gate.open_on_facts:.1%} of the facts' tokens and {gate.open_on_general:.1%} "
                f"of general text's, threshold {gate.threshold:.2f}"
            )
    if made.report.relations is not None:
        check = made.report.relations
        print(
            f"what is asked: {check.accepted_stored:.1%} of the facts' questions pass, {check.accepted_others:.1%} of "
            f"others about their subjects, threshold {check.threshold:.2f}"
        )
    if made.report.thresholds is not None:
        print(
            "an answer is given from a confidence of {:.4f} (memory), {:.4f} (backbone) on".format(
                *made.report.thresholds
            )
        )
    print(f"the memory is in {out or memory}")


@app.command(epilog='Example: memlayers ask runs/demo/memory "Who founded Chemikal Underground?"')
def ask(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    question: Annotated[str | None, typer.Argument(help="Without one: a chat, a question per line.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Another place of the backbone.")] = None,
    gate: Annotated[bool, typer.Option(help="Off: the memory is read for every token.")] = True,
    abstain: Annotated[
        bool,
        typer.Option("--abstain", help="Give one answer, the memory's or the backbone's, or say that it is unknown."),
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Ask a question; shows the answer with the memory and without."""
    from memlayers.editing.memory import load_memory

    opened = load_memory(memory, backbone=backbone, device=device, gate=gate)
    for line in [question] if question is not None else _prompted_lines(echo=not as_json):
        (answer,) = opened.ask([line.strip()])
        if as_json:
            print(json.dumps({**dataclasses.asdict(answer), "text": answer.text}, ensure_ascii=False))
        elif abstain:
            print(f"  {answer.text}")
            print(f"  (source: {answer.source}; score {answer.score:.3f}, threshold {answer.threshold:.3f})")
        else:
            print(f"  without memory  {answer.backbone}\n  with memory     {answer.memory}")


def _prompted_lines(*, echo: bool) -> Iterator[str]:
    """Lines from the terminal or a pipe, until its end; `echo` shows those of a pipe among the answers."""
    if not sys.stdin.isatty():
        for number, raw in enumerate(sys.stdin.buffer, start=1):
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError:
                raise InputError(f"standard input:{number}: not UTF-8; send text in UTF-8") from None
            if line:
                if echo:
                    print(f"> {line}")
                yield line
        return
    print("Ask; an empty line or Ctrl-D ends.")
    with suppress(EOFError):
        while line := input("> ").strip():
            yield line
