"""diagnose: what a memory does, and where its facts live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memlayers.cli.app import Backbone, Device, Folder, Gate, Json, Quiet, app, open_memory
from memlayers.utils.errors import InputError


@app.command(epilog="Example: memlayers diagnose runs/demo/memory --facts facts.jsonl --out runs/diagnosis")
def diagnose(
    memory: Folder,
    facts: Annotated[Path | None, typer.Option(help="What was taught; its own facts.jsonl if not given.")] = None,
    text: Annotated[Path | None, typer.Option(help="General text: what it reads, and what it is given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for diagnosis.json, diagnosis.md and a picture.")] = None,
    most: Annotated[int, typer.Option(min=2, help="So many facts are probed.")] = 300,
    max_text_tokens: Annotated[int, typer.Option(min=2, help="Read so much of the text.")] = 16_384,
    backbone: Backbone = None,
    gate: Gate = True,
    seed: Annotated[int, typer.Option(help="Of the choice of facts and the intervals.")] = 137,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what a memory does and where its facts live: pool, reads, queries, answers, with the pool zeroed too."""
    from memlayers.data.fact_files import read_facts
    from memlayers.inference.folder import FACTS_FILE, read_adapter_config
    from memlayers.utils.files import check_output_directory

    own = memory / FACTS_FILE
    if facts is None and memory.is_dir() and not own.is_file():
        raise InputError(f"{memory}: remembers no facts of its own; say what was taught with --facts FILE")
    if out is not None:
        check_output_directory(out, replace=True)
    read_adapter_config(memory)
    rows = read_facts(facts or own) if facts is not None or own.is_file() else []
    from memlayers.data.general_text import read_general_text
    from memlayers.evaluation.diagnose import diagnose as probe
    from memlayers.evaluation.probes import diagnosis_text, write_diagnosis

    source = read_general_text(text) if text else None
    opened = open_memory(memory, backbone=backbone, device=device, gate=gate, quiet=quiet)
    found = probe(opened, facts=rows, text=source, most=most, max_text_tokens=max_text_tokens, seed=seed, quiet=quiet)
    found.config |= {"facts": str(facts or own), "text": text and str(text), "gate": gate}
    if out is not None:
        write_diagnosis(out, found)
    if as_json:
        print(diagnosis_text(found), end="")
        return
    _print_probes(found)
    if out is not None:
        print(f"\nThe table and the picture are in {out}")


def _print_probes(diagnosis: Any) -> None:
    """The probes as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    from memlayers.evaluation.probes import HEADER, table_rows

    table = Table(*HEADER)
    for cells in table_rows(diagnosis.probes):
        table.add_row(*cells)
    Console().print(table)
