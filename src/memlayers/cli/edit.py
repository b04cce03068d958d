"""list, add, update, forget, mend, undo: the facts of a memory."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from memlayers.cli.app import Backbone, Device, Folder, Json, app
from memlayers.utils.errors import InputError

Slots = Annotated[str, typer.Option(help="Which of the slots it reads an edit may write: tfidf, kl or all.")]


SlotCount = Annotated[int | None, typer.Option(min=1, help="At most so many of them per fact.", show_default=False)]


Rehearsed = Annotated[
    int, typer.Option(min=0, help="Stored facts taught again in each step: 16 for large batches into a full memory.")
]


@app.command("list", epilog="Example: memlayers list runs/demo/memory --json")
def list_facts(memory: Folder, as_json: Json = False) -> None:
    """List the facts that a memory holds: id, subject, first question, answer; with --json everything."""
    from memlayers.inference.folder import stored_facts

    for fact in stored_facts(memory):
        if as_json:
            print(json.dumps(dataclasses.asdict(fact), ensure_ascii=False))
        else:
            print(f"{fact.id}  {fact.subject or '-'}  {fact.questions[0]}  {fact.answer}")


@app.command(epilog="Example: memlayers add runs/demo/memory --facts more.jsonl")
def add(
    memory: Folder,
    facts: Annotated[Path, typer.Option(help="Facts: JSONL or CSV.")],
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    rehearsed: Rehearsed = 0,
    backbone: Backbone = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Add facts to a memory."""
    rows = _strict_facts(facts)
    _edit(
        memory, lambda opened: opened.add(rows), backbone, device, as_json,
        slots=slots, slot_count=slot_count, rehearsed=rehearsed,
    )  # fmt: skip


@app.command(epilog="Example: memlayers update runs/demo/memory --facts new.jsonl")
def update(
    memory: Folder,
    facts: Annotated[Path, typer.Option(help="The new answers: JSONL or CSV; found by id, subject or question.")],
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    rehearsed: Rehearsed = 0,
    backbone: Backbone = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Give stored facts new answers."""
    rows = _strict_facts(facts)
    _edit(
        memory, lambda opened: opened.update(rows), backbone, device, as_json,
        slots=slots, slot_count=slot_count, rehearsed=rehearsed,
    )  # fmt: skip


@app.command(epilog='Example: memlayers forget runs/demo/memory --subject "Chemikal Underground"')
def forget(
    memory: Folder,
    facts: Annotated[Path | None, typer.Option(help="Facts to forget: JSONL or CSV.")] = None,
    ids: Annotated[str | None, typer.Option(help="Their ids, with commas between.")] = None,
    subject: Annotated[str | None, typer.Option(help="All facts about it.")] = None,
    purge: Annotated[bool, typer.Option("--purge", help="Drop all undo data: it would hold the answers.")] = False,
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    backbone: Backbone = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Forget facts: the gate closes for their subjects, and what their slots held goes; the report has the evidence."""
    if facts is None and ids is None and subject is None:
        raise InputError("nothing to forget: give --facts, --ids or --subject")
    rows = _strict_facts(facts) if facts else []
    names = [name.strip() for name in ids.split(",") if name.strip()] if ids else []
    _edit(
        memory, lambda opened: opened.forget(ids=names, subject=subject, facts=rows, purge=purge),
        backbone, device, as_json, slots=slots, slot_count=slot_count,
    )  # fmt: skip


@app.command(epilog="Example: memlayers mend runs/demo/memory")
def mend(
    memory: Folder,
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    rehearsed: Rehearsed = 0,
    backbone: Backbone = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Ask a memory everything that it holds, and write again what it does not answer any more."""
    _edit(
        memory, lambda opened: opened.repair(), backbone, device, as_json,
        slots=slots, slot_count=slot_count, rehearsed=rehearsed,
    )  # fmt: skip


@app.command(epilog="Example: memlayers undo runs/demo/memory")
def undo(memory: Folder, backbone: Backbone = None, device: Device = None, as_json: Json = False) -> None:
    """Take the last edit back, bit for bit."""
    _edit(memory, lambda opened: opened.undo(), backbone, device, as_json)


def _strict_facts(path: Path) -> list[Any]:
    from memlayers.data.fact_files import read_facts

    return read_facts(path, strict=True)


def _edit(
    folder: Path, verb: Callable[[Any], Any], backbone: str | None, device: str | None, as_json: bool, **settings: Any
) -> None:  # fmt: skip
    """Opens a memory, makes one edit and says what came of it. Settings are `EditConfig`'s; None for the default."""
    from memlayers.editing.config import EditConfig
    from memlayers.editing.memory import load_memory

    config = EditConfig(**{name: value for name, value in settings.items() if value is not None})
    with load_memory(folder, backbone=backbone, device=device, edits=config, quiet=as_json, lazy=True) as opened:
        if opened.notice:
            print(f"memlayers: {opened.notice}", file=sys.stderr)
        report = verb(opened)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False))
        return
    if not report.number:
        print(f"nothing to {report.kind}: all {report.asked} taught phrasings are answered rightly")
        return
    print(f"edit {report.number} ({report.kind}): {len(report.ids)} facts, {report.slots:,} slots, "
          f"{report.seconds:.1f} s")  # fmt: skip
    if report.recalled is not None:
        print(f"  {report.recalled:.1%} of {report.asked} taught phrasings answered rightly, in free generation")
    if report.kind != "undo":
        print(f"  {report.neighbours} stored facts beside it measured, {len(report.repaired)} mended, "
              f"{len(report.changed)} changed")  # fmt: skip
    for name in ("taught", "unseen"):
        for when in ("before", "after", "backbone", "always_on"):
            standing = report.evidence.get(name, {}).get(when)
            if standing:
                print(f"  {name} phrasings, {when}: old answer given {standing['given']:.0%} of {standing['n']}, first "
                      f"token's rank {standing['rank']:g}, probability {standing['probability']:.2g}")  # fmt: skip
