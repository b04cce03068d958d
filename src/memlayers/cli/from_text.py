"""facts from-text: facts found in documents."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlayers.cli.app import Json
from memlayers.cli.facts import facts_app
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from memlayers.sources.claims import Extraction


@facts_app.command("from-text", epilog="Example: memlayers facts from-text handbook.md --out facts.jsonl")
def from_text(
    files: Annotated[list[Path], typer.Argument(help="Documents: .txt, .md, .html, .pdf, .docx.", metavar="FILE")],
    *,
    out: Annotated[Path, typer.Option(help="Where to write, a .jsonl file.")],
    wordings: Annotated[Path | None, typer.Option(help="Your own wordings of relations, YAML.")] = None,
    subject: Annotated[str, typer.Option(help="Whom a document is about whose title does not say it.")] = "",
    encoding: Annotated[str | None, typer.Option(help="Of texts that are not UTF-8, such as cp1252.")] = None,
    most_words: Annotated[int, typer.Option(help="Of an answer; longer ones are left out.")] = 60,
    as_json: Json = False,
) -> None:
    """Find facts in documents: key and value, tables, definitions, and sentences that plainly state one."""
    from memlayers.data.fact_files import check_facts_target, write_facts
    from memlayers.sources.rules import from_documents
    from memlayers.sources.wordings import Wordings

    check_facts_target(out)
    found = from_documents(
        files, Wordings.load(wordings), subject=subject, encoding=encoding, most_words=most_words
    )  # fmt: skip
    if not found.facts:
        why = ", ".join(f"{number:,} {reason}" for reason, number in _reasons(found).items())
        raise InputError(
            f"{', '.join(map(str, files))}: no facts in {len(found.passages):,} passages ({why}); write them as "
            "key: value, in tables, or as plain sentences"
        )
    write_facts(out, found.facts)
    print(_as_json(found, out) if as_json else _as_text(found, out, len(files)))


def _as_text(found: Extraction, out: Path, documents: int) -> str:
    lines = [
        f"{len(found.facts):,} facts in {out}",
        f"{len(found.passages):,} passages read in {documents} {'document' if documents == 1 else 'documents'}",
    ]
    return "\n".join([*lines, *(f"{number:,} left out: {why}" for why, number in _reasons(found).items())])


def _reasons(found: Extraction) -> dict[str, int]:
    """How many passages were left out, by why; the commonest first."""
    return dict(Counter(each.why for each in found.left_out).most_common())


def _as_json(found: Extraction, out: Path) -> str:
    passages: list[dict[str, Any]] = [
        {
            "why": each.why,
            "document": each.source.document,
            "page": each.source.page,
            "start": each.source.start,
            "end": each.source.end,
            "text": each.source.evidence,
        }
        for each in found.left_out
    ]
    told = {"facts": len(found.facts), "out": str(out), "passages": len(found.passages), "left_out": _reasons(found)}
    return json.dumps({**told, "passages_left_out": passages}, ensure_ascii=False)
