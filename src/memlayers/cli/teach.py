"""demo, teach, gate, ask: making a memory, and asking it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlayers.cli.app import (
    Backbone,
    Device,
    Folder,
    Gate,
    Json,
    Pool,
    Quiet,
    app,
    going_on_with_resume,
    open_memory,
    print_rows,
)
from memlayers.cli.flags import read_settings, with_flags
from memlayers.cli.listing import one_line
from memlayers.config.teach import flag_fields
from memlayers.data.conversations import Message
from memlayers.inference.folder import TEACHING_FILE
from memlayers.inference.record import TeachReport
from memlayers.linking.config import LinkConfig
from memlayers.utils.errors import InputError
from memlayers.utils.ranks import ALONE, join_ranks, launched

Settings = Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")]
NAMED = 10  # facts that are not held, by name at the end; teaching.json has all

Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]

_OF_A_GATE = [flag for flag, where in flag_fields().items() if where.section == "gate" and flag != "gate"]

if TYPE_CHECKING:
    from memlayers.inference.answering import Answer


@app.command(epilog="Example: memlayers demo --out runs/demo")
@with_flags(flag_fields())
def demo(
    out: Annotated[Path, typer.Option(help="A new folder for memory, results and report.")],
    facts: Annotated[int | None, typer.Option(min=1, help="Teach only so many facts.")] = None,
    config: Settings = None,
    resume: Resume = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Teach the embedded backbone (or another) 500 real facts, score it before and after, and draw the report."""
    settings = read_settings(config, flags)
    from memlayers.teaching.folders import check_work_folder, work_folder
    from memlayers.utils.files import check_output_directory

    check_output_directory(out)
    check_work_folder(out, resume=resume)
    from memlayers.demo import run_demo

    with going_on_with_resume(work_folder(out)):
        results = run_demo(out, settings, facts=facts, resume=resume, quiet=quiet)
    print_rows(results)
    print(f"\nThe report is {out / 'report.md'}; ask the memory with: memlayers ask {out / 'memory'}")


@app.command(epilog="Example: memlayers teach --backbone Qwen/Qwen2.5-7B-Instruct --facts facts.jsonl --out memory")
@with_flags(flag_fields())
def teach(
    facts: Annotated[Path, typer.Option(help="Facts: JSONL or CSV (see `memlayers facts`).")],
    out: Annotated[Path, typer.Option(help="Folder for the memory, a PEFT adapter.")],
    config: Settings = None,
    resume: Resume = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing memory.")] = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Teach facts to a frozen backbone: calibrate, train the gate, write the value pool."""
    settings = read_settings(config, flags)
    from memlayers.data.fact_files import read_facts
    from memlayers.teaching.folders import check_folders, work_folder

    ranks = join_ranks(settings.machine.device) if launched() else ALONE
    with ranks.ending_together():
        rows = read_facts(facts, strict=True)
        if ranks.first:
            check_folders(out, resume=resume, replace=replace)
        ranks.meet()
    from memlayers.teaching.stages import stages_table
    from memlayers.teaching.teach import teach_facts

    with going_on_with_resume(work_folder(out)):
        report = teach_facts(rows, out, settings, resume=resume, replace=replace, quiet=quiet).report
    if not ranks.first:
        return
    skipped = f", {report.skipped_steps} steps skipped (not finite)" if report.skipped_steps else ""
    further = f", {report.checks[0]} not held then, taught further" if len(report.checks) > 1 else ""
    print(
        f"{len(rows)} facts, {report.exposures:g} exposures each{further}, {report.seconds:.0f} s{skipped}; "
        f"the memory is in {out}"
    )
    print(_held_text(report, len(rows), out))
    if not quiet:
        print(f"\n{stages_table(report.stages)}")


def _held_text(report: TeachReport, facts: int, out: Path) -> str:
    """Whether every fact is held, or which ones are not, with what they answer."""
    lost = report.not_held
    if not lost:
        return "every fact is answered rightly in every taught wording"
    lines = [f"{len(lost)} of {facts} facts are not answered rightly in every taught wording:"]
    lines += [
        f"  {fact.id}: {fact.question!r} gives {fact.given!r} for {fact.answer!r} "
        f"({fact.wrong} of {fact.wordings} wordings)"
        for fact in lost[:NAMED]
    ]
    if len(lost) > NAMED:
        lines.append(f"  and {len(lost) - NAMED} more: all are in {out / TEACHING_FILE}")
    return "\n".join(lines)


@app.command("gate", epilog="Example: memlayers gate memory --facts facts.jsonl --negatives fakes.jsonl")
@with_flags(["general_text", *_OF_A_GATE, "seed", "device"])
def gate_command(
    memory: Folder,
    facts: Annotated[Path, typer.Option(help="What it was taught.")],
    negatives: Annotated[
        Path | None, typer.Option(help="Questions about what was never taught: the thresholds heed them.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder; if not given the memory is replaced.")] = None,
    config: Settings = None,
    soft: Annotated[
        bool,
        typer.Option("--soft", help="The v0.2 reference recipe's gate: its sigmoid multiplies what the memory adds."),
    ] = False,
    backbone: Backbone = None,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Make or retrain the gate of a memory that was taught already; what it was taught stays as it is."""
    settings = read_settings(config, flags)
    from memlayers.data.fact_files import read_facts, read_questions
    from memlayers.inference.folder import read_adapter_config
    from memlayers.utils.files import check_output_directory

    rows = read_facts(facts, strict=True)
    others = read_questions(negatives) if negatives else []
    read_adapter_config(memory)
    check_output_directory(memory if out is None else out, replace=out is None)
    from memlayers.teaching.regate import regate_memory

    made = regate_memory(
        memory, rows, dataclasses.replace(settings.gate, soft=soft or settings.gate.soft),
        general_text=settings.data.general_text, seed=settings.seed, negatives=others, out=out, backbone=backbone,
        device=settings.machine.device, quiet=quiet,
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
    memory: Folder,
    question: Annotated[str | None, typer.Argument(help="Without one: a chat, a question per line.")] = None,
    backbone: Backbone = None,
    gate: Gate = True,
    abstain: Annotated[
        bool,
        typer.Option("--abstain", help="Give one answer, the memory's or the backbone's, or say that it is unknown."),
    ] = False,
    link: Annotated[
        bool, typer.Option(help="Find the stored names in any spelling, and those that a chat's pronouns stand for.")
    ] = True,
    misspellings: Annotated[bool, typer.Option(help="Take what is nearly a stored name for it.")] = True,
    chat: Annotated[
        bool | None,
        typer.Option(help="Lines go on from one another, or each stands alone. [at a terminal: chat]"),
    ] = None,
    device: Device = None,
    pool: Pool = "device",
    as_json: Json = False,
) -> None:
    """Ask a question; shows the answer with the memory and without."""
    if question is not None and not question.strip():
        raise InputError("a question is empty: ask something")
    from memlayers.utils.progress import progress_bar

    links = LinkConfig(enabled=link, misspellings=misspellings)
    opened = open_memory(memory, backbone=backbone, device=device, gate=gate, pool=pool, links=links)
    said: list[Message] = []  # in the chat so far
    in_chat = sys.stdin.isatty() if chat is None else chat
    for line in [question] if question is not None else _prompted_lines(echo=not as_json):
        messages: list[Message] = [*said, {"role": "user", "content": line.strip()}]
        with progress_bar("Asking"):
            answer = opened.ask(messages)
        if in_chat:
            said = [*messages, {"role": "assistant", "content": answer.text if abstain else answer.memory}]
        if as_json:
            print(json.dumps({**dataclasses.asdict(answer), "text": answer.text}, ensure_ascii=False))
        else:
            _print_answer(answer, abstain)


def _print_answer(answer: Answer, abstain: bool) -> None:
    for taken, subject in answer.taken:
        print(f"  ({taken} taken for {subject})")
    if abstain:
        print(f"  {answer.text}")
        print(f"  (source: {answer.source}; score {answer.score:.3f}, threshold {answer.threshold:.3f})")
    else:
        print(f"  without memory  {answer.backbone}\n  with memory     {answer.memory}")
    if not abstain or answer.source == "memory":
        for fact in answer.facts:
            places = "; ".join(source.place for source in fact.sources)
            print(f"  (fact {one_line(fact.id)}{f': {one_line(places)}' if places else ''})")


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
    with suppress(ImportError):  # which Windows lacks
        import readline  # noqa: F401  # gives input() the arrow keys and a history
    print("Ask; an empty line or Ctrl-D ends.")
    with suppress(EOFError):
        while line := input("> ").strip():
            yield line
