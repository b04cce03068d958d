"""add, update, forget, repair, undo: the edits of a memory."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlayers.cli.app import Backbone, Device, Folder, Json, Pool, Quiet, app
from memlayers.cli.listing import NAMED, one_line
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from memlayers.data.facts import Fact
    from memlayers.editing.fact_book import FactBook
    from memlayers.editing.memory import Memory
    from memlayers.editing.report import EditReport

_ONE, _HOW = "One fact, without a file", "How"

Facts = Annotated[Path | None, typer.Option(help="Facts: JSONL or CSV.")]
Subject = Annotated[str | None, typer.Option(help="Whom or what it is about.", rich_help_panel=_ONE)]
Relation = Annotated[str | None, typer.Option(help="What is said of it, as birthplace.", rich_help_panel=_ONE)]
Questions = Annotated[
    list[str] | None,
    typer.Option("--question", help="A phrasing to be taught; several are better.", rich_help_panel=_ONE),
]
Answer = Annotated[str | None, typer.Option(help="The answer.", rich_help_panel=_ONE)]
Aliases = Annotated[
    list[str] | None, typer.Option("--alias", help="Another right answer; may be repeated.", rich_help_panel=_ONE)
]
Slots = Annotated[
    str, typer.Option(help="Which slots that it reads: tfidf, kl, all.", rich_help_panel=_HOW, metavar="WHICH")
]
SlotCount = Annotated[
    int | None, typer.Option(min=1, help="At most so many per fact.", show_default=False, rich_help_panel=_HOW)
]
Rehearsed = Annotated[
    int, typer.Option(min=0, help="Stored facts taught again in each step; 16 for large batches.", rich_help_panel=_HOW)
]


@app.command(
    epilog="Example: memlayers add runs/demo/memory --facts more.jsonl\n\nExample: memlayers add runs/demo/memory "
    '--subject Oakmere --relation mayor --question "Who is mayor of Oakmere?" --answer "Ines Marlow"'
)
def add(
    memory: Folder,
    facts: Facts = None,
    subject: Subject = None,
    relation: Relation = None,
    question: Questions = None,
    answer: Answer = None,
    alias: Aliases = None,
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    rehearsed: Rehearsed = 0,
    backbone: Backbone = None,
    device: Device = None,
    pool: Pool = "device",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Add facts to a memory."""
    rows = _facts_given(facts, subject, relation, question, answer, alias)
    edit_memory(
        memory, "Adding", lambda opened: opened.add(rows), lambda book: book.plan_add(rows),
        backbone, device, pool, quiet, as_json, slots=slots, slot_count=slot_count, rehearsed=rehearsed,
    )  # fmt: skip


@app.command(
    epilog="Example: memlayers update runs/demo/memory --facts new.jsonl\n\nExample: memlayers update runs/demo/memory "
    '--question "Who is mayor of Oakmere?" --answer "Ada Pryce"'
)
def update(
    memory: Folder,
    facts: Annotated[
        Path | None, typer.Option(help="New answers: JSONL or CSV; found by id, subject or question.")
    ] = None,
    subject: Subject = None,
    relation: Relation = None,
    question: Questions = None,
    answer: Answer = None,
    alias: Aliases = None,
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    rehearsed: Rehearsed = 0,
    backbone: Backbone = None,
    device: Device = None,
    pool: Pool = "device",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Give stored facts new answers."""
    if facts is None and subject is not None and not question:
        question = _stored_questions(memory, subject, relation)
    rows = _facts_given(facts, subject, relation, question, answer, alias)
    edit_memory(
        memory, "Updating", lambda opened: opened.update(rows), lambda book: book.plan_update(rows),
        backbone, device, pool, quiet, as_json, slots=slots, slot_count=slot_count, rehearsed=rehearsed,
    )  # fmt: skip


@app.command(epilog='Example: memlayers forget runs/demo/memory --subject "Chemikal Underground"')
def forget(
    memory: Folder,
    facts: Annotated[Path | None, typer.Option(help="Facts to forget: JSONL or CSV.")] = None,
    ids: Annotated[str | None, typer.Option(help="Their ids, with commas between.")] = None,
    subject: Annotated[str | None, typer.Option(help="All facts about it.")] = None,
    relation: Annotated[str | None, typer.Option(help="Of the subject's facts, this one.")] = None,
    question: Annotated[
        list[str] | None, typer.Option("--question", help="The fact that it asks for; may be repeated.")
    ] = None,
    purge: Annotated[bool, typer.Option("--purge", help="Drop all undo data: it would hold the answers.")] = False,
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    backbone: Backbone = None,
    device: Device = None,
    pool: Pool = "device",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Forget facts: the gate closes for their subjects, and what their slots held goes; the report has the evidence."""
    if relation is not None and subject is None:
        raise InputError("--relation alone names no fact: give --subject too")
    if facts is None and ids is None and subject is None and not question:
        raise InputError("nothing to forget: give --facts, --ids, --subject or --question")
    from memlayers.data.fact_files import read_facts
    from memlayers.data.facts import Fact

    rows = read_facts(facts, strict=True) if facts else []
    rows += [Fact(f"--question {each}", "", "", (each,)) for each in question or ()]
    if relation is not None:
        assert subject is not None
        rows.append(Fact(f"--subject {subject} --relation {relation}", subject, "", (), relation))
        subject = None
    names = [name.strip() for name in ids.split(",") if name.strip()] if ids else []
    edit_memory(
        memory, "Forgetting", lambda opened: opened.forget(ids=names, subject=subject, facts=rows, purge=purge),
        lambda book: book.plan_forget(names, subject, rows), backbone, device, pool, quiet, as_json,
        slots=slots, slot_count=slot_count,
    )  # fmt: skip


@app.command(epilog="Example: memlayers repair runs/demo/memory")
def repair(
    memory: Folder,
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    rehearsed: Rehearsed = 0,
    backbone: Backbone = None,
    device: Device = None,
    pool: Pool = "device",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Ask a memory everything that it holds, and write again what it does not answer any more."""
    edit_memory(
        memory, None, lambda opened: opened.repair(), lambda book: None, backbone, device, pool, quiet, as_json,
        slots=slots, slot_count=slot_count, rehearsed=rehearsed,
    )  # fmt: skip


@app.command(epilog="Example: memlayers undo runs/demo/memory")
def undo(
    memory: Folder,
    backbone: Backbone = None,
    device: Device = None,
    pool: Pool = "device",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take the last edit back, bit for bit."""
    edit_memory(
        memory, "Taking back", lambda opened: opened.undo(), lambda book: book.plan_undo(),
        backbone, device, pool, quiet, as_json,
    )  # fmt: skip


# What is meant


def _facts_given(
    path: Path | None,
    subject: str | None,
    relation: str | None,
    questions: list[str] | None,
    answer: str | None,
    aliases: list[str] | None,
) -> list[Fact]:
    """The facts of a file, or the one that the flags spell out."""
    flags = {"--subject": subject, "--relation": relation, "--question": questions, "--answer": answer,
             "--alias": aliases}  # fmt: skip
    given = [name for name, value in flags.items() if value]
    if path is not None:
        if given:
            raise InputError(f"--facts and {given[0]} are two ways to say it: give one of them")
        from memlayers.data.fact_files import read_facts

        return read_facts(path, strict=True)
    if given and (not questions or answer is None):
        missing = " and ".join(
            flag for flag, absent in (("--question", not questions), ("--answer", answer is None)) if absent
        )
        raise InputError(f"{', '.join(given)} alone is no fact: give {missing} too")
    if not questions or answer is None:
        raise InputError("no fact to write: give --facts FILE, or --question and --answer (and --subject)")
    from memlayers.data.fact_rows import BadRow, fact_of

    row: dict[str, Any] = {"questions": questions, "answers": [answer, *(aliases or ())]}
    row |= {name: text for name, text in (("subject", subject), ("relation", relation)) if text is not None}
    try:
        return [fact_of(row)]
    except BadRow as error:
        raise InputError(f"the fact of these flags: {error}") from None


def _stored_questions(folder: Path, subject: str, relation: str | None) -> list[str]:
    """The phrasings of the one stored fact that an update names by its subject, and relation if it has several."""
    from memlayers.inference.folder import stored_facts

    about = [fact for fact in stored_facts(folder) if fact.subject == subject and relation in (None, fact.relation)]
    if len(about) > 1:
        which = ", ".join(repr(fact.relation) for fact in about)
        raise InputError(f"{len(about)} stored facts are about {subject!r}: say which with --relation, one of {which}")
    if not about:
        _book(folder).plan_forget(subject=subject)  # says so, with the nearest name
        raise InputError(
            f"no stored fact says {relation!r} of {subject!r}; `memlayers list --subject` shows what is stored"
        )
    return list(about[0].questions)


def _book(folder: Path) -> FactBook:
    from memlayers.editing.fact_book import FactBook

    return FactBook(folder)


# One edit


def edit_memory(
    folder: Path,
    label: str | None,
    verb: Callable[[Memory], EditReport],
    plan: Callable[[FactBook], object],
    backbone: str | None,
    device: str | None,
    pool: str,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Opens a memory, makes one edit and says what came of it.

    Args:
        folder: of the memory.
        label: of the edit's bar; None where it has its own.
        verb: makes the edit.
        plan: refuses what can be refused without the model.
        backbone: another place of it.
        device: None chooses.
        pool: where the value pool is.
        quiet: no progress bars.
        as_json: print the report as JSON.
        settings: `EditConfig`'s; None for the default.
    """
    from memlayers.editing.config import EditConfig
    from memlayers.editing.memory import load_memory
    from memlayers.utils.locks import writing_alone
    from memlayers.utils.progress import progress_bar

    config = EditConfig(**{name: value for name, value in settings.items() if value is not None})
    opened = load_memory(
        folder, backbone=backbone, device=device, pool=pool, edits=config, autosave=False, quiet=quiet, lazy=True
    )
    if opened.notice:
        print(f"memlayers: {opened.notice}", file=sys.stderr)
    with writing_alone(folder):  # what another process is editing is refused now too
        plan(_book(folder))
    with opened:
        with progress_bar("Loading the memory", quiet=quiet):
            _ = opened.model
        if label is None:
            report = verb(opened)
        else:
            opened.prepare()
            with progress_bar(label, quiet=quiet):
                report = verb(opened)
        with progress_bar("Saving", quiet=quiet):
            opened.save()
    if as_json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False))
    else:
        _print_report(report)


def _print_report(report: EditReport) -> None:
    if not report.number:
        print(f"nothing to {report.kind}: all {report.asked} taught phrasings are answered rightly")
        return
    print(f"edit {report.number} ({report.kind}): {len(report.ids)} facts, {report.slots:,} slots, "
          f"{report.seconds:.1f} s")  # fmt: skip
    if report.kind == "alias":
        for sign, when in (("+", "added"), ("-", "removed")):
            for alias in report.evidence[when]:
                print(f"  {one_line(report.evidence['subject'])}: {sign} {one_line(alias)}")
    else:
        _print_facts(report)
    if report.recalled is not None:
        print(f"  {report.recalled:.1%} of {report.asked} taught phrasings answered rightly, in free generation")
    if report.kind != "undo":
        print(f"  {report.neighbours} stored facts beside it measured, {len(report.repaired)} repaired, "
              f"{len(report.changed)} changed")  # fmt: skip
    for name in ("taught", "unseen"):
        for when in ("before", "after", "backbone", "always_on"):
            standing = report.evidence.get(name, {}).get(when)
            if standing:
                print(f"  {name} phrasings, {when}: old answer given {standing['given']:.0%} of {standing['n']}, first "
                      f"token's rank {standing['rank']:g}, probability {standing['probability']:.2g}")  # fmt: skip


def _print_facts(report: EditReport) -> None:
    what = {"add": "gone again", "update": "back to its answer", "repair": "back to its slots", "forget": "back",
            "alias": "back to its names", "sources": "back to its sources"}  # fmt: skip
    came = what.get(report.undone, "")
    for fact in report.facts[:NAMED]:
        print(f"  {one_line(fact.subject or fact.questions[0])}: {one_line(fact.questions[0])} "
              f"{one_line(fact.answer)}{f' ({came})' if came else ''}")  # fmt: skip
    if len(report.facts) > NAMED:
        print(f"  and {len(report.facts) - NAMED} more; --json names all")
