"""facts check: whether facts are fit to be taught, and what can be done about those that are not."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlayers.cli.app import Device, Json, Quiet, print_table
from memlayers.cli.facts import facts_app
from memlayers.utils.errors import InputError, WorkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memlayers.data.facts import Fact
    from memlayers.sources.checks import CheckReport, Mended

_SHOWN = 5  # findings of a kind


@facts_app.command("check", epilog="Example: memlayers facts check facts.jsonl --fix checked.jsonl --html check.html")
def facts_check(
    file: Annotated[Path, typer.Argument(help="JSONL or CSV.")],
    fix: Annotated[
        Path | None, typer.Option(help="Write the facts with what was found dropped, merged or corrected: a .jsonl.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page that shows each finding and the evidence.")] = None,
    documents: Annotated[
        list[Path] | None,
        typer.Option(help="The document or table that facts are from, if it is not where they say; may be repeated."),
    ] = None,
    memory: Annotated[Path | None, typer.Option(help="Compare with the facts of this memory.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Ask it which answers it knows already.")] = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check facts before they are taught. Exit code 2 where some are refused and not fixed."""
    from memlayers.data.fact_files import check_facts_target, read_facts_with_lines
    from memlayers.inference.folder import stored_facts
    from memlayers.sources.check_page import page_text
    from memlayers.sources.checks import check, fixed
    from memlayers.utils.files import atomic_write_text, check_output_file
    from memlayers.utils.progress import progress_bar

    if fix is not None:
        check_facts_target(fix)
    if html is not None:
        check_output_file(html)
        if fix is not None and os.path.realpath(html) == os.path.realpath(fix):
            raise InputError(f"{html}: page and facts cannot go into one file; give --html another")
    facts, lines = read_facts_with_lines(file)
    given = _documents(documents or (), facts)
    stored = None if memory is None else stored_facts(memory)
    options: dict[str, Any] = {}
    if backbone is not None:
        from memlayers.backbones import device_chosen, load_backbone
        from memlayers.evaluation.known import questions_known

        model, options["tokenizer"] = load_backbone(backbone, device=device_chosen(device))
        options["knows"] = partial(questions_known, model, options["tokenizer"], quiet=quiet)
    with progress_bar("Checking the facts", quiet=quiet or backbone is not None):  # which has a bar of its own
        report = check(facts, lines, documents=given, memory=stored, **options)
    if html is not None:
        atomic_write_text(html, page_text(str(file), facts, report))
    left, did = fixed(facts, report) if fix is not None else ([], [])
    written = _write_fixed(fix, left, stored) if fix is not None else {}

    if as_json:
        found = {
            "facts": len(facts), **dataclasses.asdict(report.clashes), "unlinked_forms": report.unlinked_forms,
            "findings": [finding.as_json() for finding in report.findings],
        }  # fmt: skip
        if fix is not None:
            found["fixed"] = {"written": written, "did": [dataclasses.asdict(each) for each in did]}
        print(json.dumps(found, ensure_ascii=False))
    else:
        _print_report(file, facts, report)
        if fix is not None:
            _print_fixed(fix, did, written, memory)
        if html is not None:
            print(f"The page is {html}")
    if fix is None and report.refused:
        sys.exit(2)


def _documents(paths: Sequence[Path], facts: Sequence[Fact]) -> dict[str, Path]:
    """Where documents and tables lie, by the names that the facts' sources have for them: by the file's name alone.

    Raises:
        InputError: there is none, or no source names it.
    """
    from memlayers.sources.originals import file_and_part

    names = {source.document: file_and_part(source.document)[0] for fact in facts for source in fact.sources}
    found: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the path")
        exact = [name for name, file in names.items() if file == str(path)]
        own = exact or [name for name, file in names.items() if Path(file).name == path.name]
        if not own:
            raise InputError(f"{path}: no fact is from it; give the documents that the facts' sources name")
        found |= dict.fromkeys(own, path)
    return found


def _write_fixed(out: Path, facts: Sequence[Fact], stored: Sequence[Fact] | None) -> dict[str, int]:
    """Writes what is left, updates of a memory apart from what is new to it; how many facts each file has.

    Raises:
        WorkError: nothing is left.
    """
    from memlayers.data.fact_files import write_facts
    from memlayers.sources.stored import StoredFacts, is_update

    held = StoredFacts(stored or ())
    files: dict[Path, list[Fact]] = {out: [], out.with_name(f"{out.stem}.updates{out.suffix}"): []}
    for fact in facts:
        files[list(files)[is_update(fact, held)]].append(fact)
    if not facts:
        raise WorkError(f"{out}: no fact is left, so nothing was written; `facts check` without --fix says why")
    for path, own in files.items():
        if own:
            write_facts(path, own)
    return {str(path): len(own) for path, own in files.items() if own}


def _print_report(file: Path, facts: Sequence[Fact], report: CheckReport) -> None:
    from memlayers.sources.findings import KINDS

    wordings = sum(len(fact.questions) for fact in facts)
    refused = sum(finding.refused for finding in report.findings)
    found = (
        f"{refused:,} refused, {len(report.findings) - refused:,} to look at" if report.findings else "nothing found"
    )
    print(f"{file}: {len(facts):,} facts, {wordings:,} wordings: {found}")
    if not report.findings:
        return
    print_table(
        ["finding", "", "number", "--fix"],
        [
            [KINDS[kind].title, "refused" if KINDS[kind].refused else "to look at", f"{count:,}", KINDS[kind].mended]
            for kind, count in report.counts.items()
        ],
    )
    for kind, count in report.counts.items():
        for finding in report.of(kind)[:_SHOWN]:
            which = f"{'line' if len(finding.lines) == 1 else 'lines'} {_numbers(finding.lines)}"
            print(f"  {KINDS[kind].title}, {which}: {finding.said}")
        if count > _SHOWN:
            print(f"  {KINDS[kind].title}: and {count - _SHOWN:,} more; --json names all")


def _numbers(lines: Sequence[int]) -> str:
    return ", ".join(map(str, lines[:_SHOWN])) + (f" and {len(lines) - _SHOWN:,} more" if len(lines) > _SHOWN else "")


def _print_fixed(out: Path, did: Sequence[Mended], written: dict[str, int], memory: Path | None) -> None:
    from collections import Counter

    from memlayers.sources.findings import KINDS

    for (kind, dropped), count in Counter((each.kind, each.dropped) for each in did).items():
        what = "made one with others" if kind == "duplicate" else "dropped" if dropped else KINDS[kind].mended
        print(f"  {count:,} facts, {KINDS[kind].title}: {what}")
    for path, count in written.items():
        verb = "add" if path == str(out) else "update"
        how = "" if memory is None else f": memlayers {verb} {memory} --facts {path}"
        print(f"{count:,} facts in {path}{how}")
