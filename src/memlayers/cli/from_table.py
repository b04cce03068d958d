"""facts from-table: a table's cells as facts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from memlayers.cli.app import Json, Quiet
from memlayers.cli.facts import facts_app

_MOST_SHOWN = 20


@facts_app.command(
    "from-table", epilog="Example: memlayers facts from-table products.csv --subject name --out facts.jsonl"
)
def facts_from_table(
    file: Annotated[str, typer.Argument(help="CSV, TSV, JSON, JSONL, Parquet, XLSX, SQLite, or a database's address.")],
    *,
    subject: Annotated[str, typer.Option(help="The column that names what a row is about.")],
    out: Annotated[Path, typer.Option(help="Where to write, a .jsonl file.")],
    columns: Annotated[str | None, typer.Option(help="Those to read, by commas. [all]", show_default=False)] = None,
    wordings: Annotated[Path | None, typer.Option(help="YAML: wordings of your own.")] = None,
    sheet: Annotated[str | None, typer.Option(help="Of a workbook. [its first]", show_default=False)] = None,
    table: Annotated[str | None, typer.Option(help="Of a database.")] = None,
    query: Annotated[str | None, typer.Option(help="SQL that selects the rows.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a text file. [UTF-8]", show_default=False)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make facts of a table: one per cell, with the questions that ask for it."""
    from memlayers.data.fact_files import check_facts_target, facts_text
    from memlayers.data.facts import Fact
    from memlayers.sources.tables import EMPTY, NO_SUBJECT, open_table
    from memlayers.sources.wordings import Wordings
    from memlayers.utils.errors import InputError
    from memlayers.utils.files import atomic_file
    from memlayers.utils.progress import progress_bar

    check_facts_target(out)
    library = Wordings.load(wordings)
    chosen = None if columns is None else [each.strip() for each in columns.split(",")]
    opened = open_table(file, subject=subject, columns=chosen, sheet=sheet, table=table, query=query, encoding=encoding)
    facts = cells = 0
    left_out: Counter[str] = Counter()
    examples: list[str] = []  # of what a person may want to put right
    with atomic_file(out) as target, progress_bar("Reading the table", quiet=quiet) as advance:
        for each in opened.facts(library):
            advance()
            if isinstance(each, Fact):
                facts += 1
                cells += len(each.sources)
                target.write(facts_text(out, [each]).encode())
                continue
            left_out[each.why] += 1
            cells += each.why not in (EMPTY, NO_SUBJECT)
            if each.why not in (EMPTY, NO_SUBJECT) and len(examples) < _MOST_SHOWN:
                said = f": {each.source.evidence[:60]!r}" if each.source.evidence else ""
                examples.append(f"{each.why}: row {each.source.row}, column {each.source.column}{said}")
        if not facts:
            why = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
            raise InputError(f"{opened.rows.name}: no facts ({why}); choose other columns, or fill the table")
    if as_json:
        found = {"facts": facts, "out": str(out), "table": opened.rows.name, "cells": cells, "left_out": left_out}
        print(json.dumps({**found, "examples": examples}, ensure_ascii=False))
        return
    print(f"{facts:,} facts in {out}\n{cells:,} cells read of {opened.rows.name}")
    for reason, count in left_out.most_common():
        print(f"{count:,} left out: {reason}")
    for line in examples:
        print(f"  {line}")
