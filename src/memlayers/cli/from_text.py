"""facts from-text: facts found in documents."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlayers.cli.app import Device, Json, Quiet, stop
from memlayers.cli.facts import facts_app
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from memlayers.sources.chunks import Chunk
    from memlayers.sources.claims import Claim, Extraction
    from memlayers.sources.writer_answers import Answers, Request

_CHARACTERS_A_TOKEN = 4  # of English, about


@facts_app.command("from-text", epilog="Example: memlayers facts from-text handbook.md --out facts.jsonl")
def from_text(
    files: Annotated[list[Path], typer.Argument(help="Documents: .txt, .md, .html, .pdf, .docx.", metavar="FILE")],
    *,
    out: Annotated[Path, typer.Option(help="Where to write, a .jsonl file.")],
    wordings: Annotated[Path | None, typer.Option(help="Your own wordings of relations, YAML.")] = None,
    subject: Annotated[str, typer.Option(help="Whom a document is about whose title does not say it.")] = "",
    encoding: Annotated[str | None, typer.Option(help="Of texts that are not UTF-8, such as cp1252.")] = None,
    most_words: Annotated[int, typer.Option(help="Of an answer; longer ones are left out.")] = 60,
    writer: Annotated[
        str | None, typer.Option(help="Writes the facts: an OpenAI-compatible URL, or a backbone.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of the URL. [its only one]", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what a writer would be sent; send nothing.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the writer's answers. [OUT.writer]", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(help="Requests to a URL at the same time.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer of a URL.")] = 120,
    price_in: Annotated[float, typer.Option(help="Of a million tokens that the writer reads.")] = 0,
    price_out: Annotated[float, typer.Option(help="Of a million tokens that it writes.")] = 0,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find facts in documents: key and value, tables, definitions, and sentences that plainly state one."""
    from memlayers.data.fact_files import check_facts_target, write_facts
    from memlayers.sources.documents import read_document
    from memlayers.sources.rules import from_documents
    from memlayers.sources.wordings import Wordings
    from memlayers.sources.writer import from_writer, read_requests
    from memlayers.sources.writer_answers import Answers
    from memlayers.sources.writer_client import open_writer
    from memlayers.utils.files import check_output_file

    check_facts_target(out)
    if not (workers >= 1 and timeout > 0 and price_in >= 0 and price_out >= 0):
        raise InputError("--workers, --timeout, --price-in, --price-out: give at least 1 worker, more than 0 s, and no "
                         "negative price")  # fmt: skip
    library = Wordings.load(wordings)
    told: dict[str, Any] = {}
    if writer is None:
        if model is not None or dry_run or cache is not None:
            raise InputError(
                "--model, --dry-run and --cache are for a writer: name one with --writer, or leave them out"
            )
        found = from_documents(files, library, subject=subject, encoding=encoding, most_words=most_words)
        remedy = "write them as key: value, in tables, or as plain sentences"
    else:
        answers = Answers(
            open_writer(writer, model, device=device, seconds=timeout), cache or Path(f"{out}.writer"), workers
        )
        documents = [read_document(path, encoding) for path in files]
        if dry_run:
            asks = model is not None or "://" not in writer  # else the URL would have to be asked for its model
            print(_would_send(read_requests(documents, subject, most_words), answers if asks else None, as_json))
            return
        check_output_file(answers.folder / "answer.json")
        with _telling_what_is_kept(answers.folder):
            found = from_writer(documents, answers, library, subject=subject, most_words=most_words, quiet=quiet)
        told = {"model": answers.writer.model, **dataclasses.asdict(answers.usage)}
        if price_in or price_out:
            told["cost"] = answers.usage.cost(price_in, price_out)
        remedy = "name another --model, or a larger one"
    if not found.facts:
        why = ", ".join(f"{number:,} {reason}" for reason, number in _reasons(found).items())
        raise InputError(
            f"{', '.join(map(str, files))}: no facts in {len(found.passages):,} passages ({why}); {remedy}"
        )
    write_facts(out, found.facts)
    print(_as_json(found, out, told) if as_json else _as_text(found, out, len(files), told))


@contextmanager
def _telling_what_is_kept(folder: Path) -> Iterator[None]:
    """Has Ctrl-C in the block say that the writer's answers until then are kept, where there are some."""
    try:
        yield
    except KeyboardInterrupt:
        if folder.is_dir():
            stop(f"interrupted; the writer's answers are kept in {folder}; the same command goes on from there", 130)
        raise


def _would_send(requests: Sequence[tuple[Chunk, Request[Claim]]], answers: Answers | None, as_json: bool) -> str:
    """What a dry run tells: how much would be sent, and the first request of it."""
    new = [request for _, request in requests if answers is None or not answers.is_kept(request)]
    tokens = sum(request.characters for request in new) // _CHARACTERS_A_TOKEN
    first: dict[str, Any] = {"messages": list(new[0].messages), "schema": new[0].schema} if new else {}
    if as_json:
        told = {"chunks": len(requests), "requests": len(new), "estimated_tokens": tokens, "first": first}
        return json.dumps(told, ensure_ascii=False)
    lines = [
        f"{len(new):,} requests would be sent for {len(requests):,} chunks, about {tokens:,} tokens to read; "
        f"the answers to {len(requests) - len(new):,} are kept",
        "then requests for wordings, one for at most 5 facts that are found",
    ]
    if new:
        lines += ["the first request:", *(f"\n[{each['role']}]\n{each['content']}" for each in new[0].messages)]
    return "\n".join(lines)


def _as_text(found: Extraction, out: Path, documents: int, writer: Mapping[str, Any]) -> str:
    lines = [
        f"{len(found.facts):,} facts in {out}",
        f"{len(found.passages):,} passages read in {documents} {'document' if documents == 1 else 'documents'}",
        *(f"{number:,} left out: {why}" for why, number in _reasons(found).items()),
    ]
    if writer:
        lines.append(
            f"writer {writer['model']}: {writer['requests']:,} requests, {writer['prompt_tokens']:,} tokens read, "
            f"{writer['completion_tokens']:,} written" + (f", cost {writer['cost']:.4f}" if "cost" in writer else "")
        )
        if writer["kept_requests"]:
            lines.append(
                f"kept from before, not asked again: {writer['kept_requests']:,} requests, "
                f"{writer['kept_prompt_tokens']:,} tokens read, {writer['kept_completion_tokens']:,} written"
            )
    return "\n".join(lines)


def _reasons(found: Extraction) -> dict[str, int]:
    """How many passages were left out, by why; the commonest first."""
    return dict(Counter(each.why for each in found.left_out).most_common())


def _as_json(found: Extraction, out: Path, writer: Mapping[str, Any]) -> str:
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
    if writer:
        told["writer"] = dict(writer)
    return json.dumps({**told, "passages_left_out": passages}, ensure_ascii=False)
