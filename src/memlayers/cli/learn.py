"""learn: tables and documents to a memory, with a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlayers.cli.app import Quiet, app, going_on_with_resume
from memlayers.cli.flags import read_settings, with_flags
from memlayers.cli.listing import NAMED, one_line
from memlayers.cli.teach import Resume, Settings
from memlayers.config.teach import flag_fields
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from memlayers.certificate.certificate import Certificate

_FILES = "Files and how they are read"


@app.command(
    epilog="Example: memlayers learn prices.xlsx --subject product --out memory\n\n"
    "Example: memlayers learn handbook.md --out memory"
)
@with_flags(flag_fields())
def learn(
    files: Annotated[
        list[str], typer.Argument(help="Tables, documents, facts files, database addresses.", metavar="FILE")
    ],
    *,
    out: Annotated[Path, typer.Option(help="The memory's folder; one that is there gets what has changed.")],
    subject: Annotated[
        str | None, typer.Option(help="Column that says what a table's row is about.", rich_help_panel=_FILES)
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns to read, with commas between. [all]", rich_help_panel=_FILES)
    ] = None,
    sheet: Annotated[str | None, typer.Option(help="Of workbooks. [the first]", rich_help_panel=_FILES)] = None,
    table: Annotated[str | None, typer.Option(help="Of databases. [the only one]", rich_help_panel=_FILES)] = None,
    about: Annotated[
        str, typer.Option(help="Whom a document is about whose title does not say it.", rich_help_panel=_FILES)
    ] = "",
    wordings: Annotated[
        Path | None, typer.Option(help="Your own wordings of relations, YAML.", rich_help_panel=_FILES)
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of texts that are not UTF-8, such as cp1252.", rich_help_panel=_FILES)
    ] = None,
    writer: Annotated[
        str | None, typer.Option(help="Writes documents' facts: a URL, or a backbone.", rich_help_panel=_FILES)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Of the writer's URL. [its only one]", rich_help_panel=_FILES)
    ] = None,
    config: Settings = None,
    resume: Resume = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Teach what tables and documents say, or what has changed in them, and certify that it is answered."""
    settings = read_settings(config, flags)
    from memlayers.inference.folder import CONFIG_FILE
    from memlayers.sources.reading import ReadOptions
    from memlayers.teaching.folders import check_folders, work_folder

    if not (out / CONFIG_FILE).is_file():
        check_folders(out, resume=resume, replace=False)
    elif resume:
        raise InputError(f"{out}: there is a memory, so nothing to resume; leave --resume out")
    if model is not None and writer is None:
        raise InputError("--model is for a writer: name one with --writer, or leave it out")
    chosen = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    options = ReadOptions(subject, chosen, sheet, table, about, encoding, wordings)
    from memlayers.certificate.learn import CERTIFICATE_FILE, PAGE_FILE
    from memlayers.certificate.learn import learn as learn_sources

    answers = None
    if writer is not None:
        from memlayers.sources.writer_answers import Answers
        from memlayers.sources.writer_client import open_writer

        answers = Answers(open_writer(writer, model, device=settings.machine.device), Path(f"{out}.writer"))
    with going_on_with_resume(work_folder(out)):
        _, certificate = learn_sources(
            files, out, settings, options=options, writer=answers, resume=resume, quiet=quiet
        )  # fmt: skip
    print(_text(certificate))
    print(f"the memory is in {out}, its certificate in {out / PAGE_FILE} and {out / CERTIFICATE_FILE}")


def _text(certificate: Certificate) -> str:
    facts = certificate.facts
    told = ", ".join(f"{number:,} {name}" for name, number in certificate.changes.items() if number)
    lines = [f"{len(certificate.passages):,} passages read: {len(facts):,} facts ({told})"]
    lines += [f"{number:,} left out: {why}" for why, number in certificate.reasons.items()]
    if found := certificate.summary.get("recall"):
        lines.append(
            f"wordings never taught: {found['value']:.1%} answered rightly ({found['low']:.1%} to {found['high']:.1%}, "
            f"{found['n']:,} facts)"
        )
    wrong = [each for each in facts if not each.answered]
    for each in wrong[:NAMED]:
        first = next((asked for asked in each.asked if not asked.right), None)
        if first is not None:
            lines.append(
                f"  {one_line(each.fact.id)}: {one_line(first.question)!r} gives {one_line(first.answer)!r} for "
                f"{one_line(each.fact.answer)!r}"
            )
    if len(wrong) > NAMED:
        lines.append(f"  and {len(wrong) - NAMED:,} more facts")
    return "\n".join(lines)
