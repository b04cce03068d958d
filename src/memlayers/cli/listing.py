"""list, journal: the facts of a memory and its edits, and how a line of them is printed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from memlayers.cli.app import Folder, Json, app

if TYPE_CHECKING:
    from memlayers.data.facts import Fact
    from memlayers.editing.fact_book import FactBook

NAMED = 5  # facts that a line or a report names, at most


@app.command("list", epilog='Example: memlayers list runs/demo/memory --grep "founded"')
def list_facts(
    memory: Folder,
    subject: Annotated[str | None, typer.Option(help="Only facts about it.")] = None,
    grep: Annotated[str | None, typer.Option(help="Only facts with this text in any field.")] = None,
    as_json: Json = False,
) -> None:
    """List the facts that a memory holds: id, subject, first question, answer; with --json everything."""
    from memlayers.inference.folder import stored_facts

    facts = stored_facts(memory)
    if subject is not None:
        facts = [fact for fact in facts if fact.subject.casefold() == subject.casefold()]
    if grep is not None:
        facts = [fact for fact in facts if grep.casefold() in _all_text(fact).casefold()]
    if as_json:
        for fact in facts:
            print(json.dumps(dataclasses.asdict(fact), ensure_ascii=False))
        return
    if not facts:
        what = "no stored fact is like that" if subject or grep else "holds no facts"
        print(f"memlayers: {memory}: {what}", file=sys.stderr)
    print_columns([(fact.id, fact.subject or "-", fact.questions[0], fact.answer) for fact in facts])


@app.command(epilog="Example: memlayers journal runs/demo/memory")
def journal(memory: Folder, as_json: Json = False) -> None:
    """Show the edits of a memory, oldest first: number, when (UTC), what, of which facts."""
    from memlayers.editing.fact_book import FactBook

    book = FactBook(memory)
    if as_json:
        for record in book.records:
            print(record.line())
        return
    if not book.records:
        print(f"memlayers: {memory}: no edits yet", file=sys.stderr)
    names = _names(book)
    rows = [
        (
            str(record.number),
            record.time.replace("T", " ").removesuffix("+00:00"),
            record.kind + (f" of {record.undoes}" if record.undoes else ""),
            _in_short([names.get(each, each) for each in record.ids]),
        )
        for record in book.records
    ]
    print_columns([("edit", "time", "what", "facts"), *rows] if rows else [])


def _all_text(fact: Fact) -> str:
    names = (fact.subject, *fact.subject_aliases)
    return "\n".join((fact.id, *names, fact.relation, *fact.questions, *fact.unseen_questions, *fact.answers))


def _names(book: FactBook) -> dict[str, str]:
    """What each fact is called, by its id: those stored, and those that the undo files remember; others have an id."""
    from memlayers.editing.journal import changes_from_text, undo_metadata

    names = {}
    for record in book.records:
        words = undo_metadata(book.folder / record.undo_file)
        for change in changes_from_text(words["changes"]) if words else ():
            for fact in (change.before, change.after):
                if fact is not None:
                    names[fact.id] = _name(fact)
    return names | {fact.id: _name(fact) for fact in book.facts}


def _name(fact: Fact) -> str:
    about = f"{fact.subject}, {fact.relation}" if fact.subject and fact.relation else fact.subject
    return about or fact.questions[0]


def _in_short(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(map(one_line, names[:NAMED])) + more


def one_line(text: str) -> str:
    """A text with its line breaks, tabs and other control characters spelled out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows on stdout, one a line, their columns aligned; the last is as long as it is."""
    lines = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in list(zip(*lines, strict=True))[:-1]]
    for line in lines:
        cells = [cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=False)]
        print("  ".join([*cells, line[-1]]))


def _width(text: str) -> int:
    """The columns of a terminal that a text takes."""
    from rich.cells import cell_len

    return cell_len(text)
