"""compare: a memory and its alternatives, on one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from memlayers.cli.app import Quiet, app
from memlayers.cli.flags import read_settings, with_flags
from memlayers.cli.teach import Settings
from memlayers.config.teach import flag_fields


@app.command(epilog="Example: memlayers compare --backbone smollm2 --facts facts.jsonl --out runs/compare")
@with_flags(flag_fields())
def compare(
    out: Annotated[Path, typer.Option(help="Folder of the page; the same command continues a killed one.")],
    facts: Annotated[Path | None, typer.Option(help="What all are taught; the demo's facts if not given.")] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Some of memory, dense, lora (or lora-RANK), full, rag (or rag-FACTS), context, memit, bare; with "
            "commas between. [all but dense]",
            show_default=False,
        ),
    ] = "memory,lora,full,rag,context,memit,bare",
    untaught: Annotated[
        Path | None, typer.Option(help="Questions like the facts', about what is never taught; the demo's.")
    ] = None,
    known: Annotated[
        Path | None, typer.Option(help="Questions that the backbone may know; the pocket backbone's.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="General text; the demo's held-out articles.")] = None,
    facts_limit: Annotated[int | None, typer.Option(min=1, help="Teach so many facts at most. [100]")] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Ask so many neighbours, and known. [100]")] = None,
    phrasings: Annotated[int | None, typer.Option(min=1, help="Taught phrasings asked per fact. [2]")] = None,
    text_tokens: Annotated[int | None, typer.Option(min=2, help="Read so much of the text. [4096]")] = None,
    updates: Annotated[int | None, typer.Option(min=0, help="Facts that are then changed. [3]")] = None,
    config: Settings = None,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Set a memory beside LoRA, fine-tuning, retrieval, facts in the prompt and MEMIT: same facts, same scoring."""
    settings = read_settings(config, flags)
    from memlayers.comparison.names import methods_named
    from memlayers.comparison.run import Bounds, Materials, run_comparison
    from memlayers.data.fact_files import read_facts, read_questions
    from memlayers.sweep.run import POCKET, read_materials
    from memlayers.utils.files import read_text

    named = methods_named(methods)
    usual = read_materials(None, known, {}, {})
    materials = Materials(
        usual.facts if facts is None else read_facts(facts, strict=True),
        read_questions(POCKET / "untaught.jsonl" if untaught is None else untaught),
        usual.known,
        usual.texts[""] if text is None else read_text(text),
    )
    bounds = {
        "facts": facts_limit, "questions": questions, "phrasings": phrasings, "text_tokens": text_tokens,
        "updates": updates,
    }  # fmt: skip
    page = run_comparison(
        out, named, materials, settings, Bounds(**{k: v for k, v in bounds.items() if v is not None}),
        note=lambda line: None if quiet else print(f"memlayers: {line}", file=sys.stderr), quiet=quiet,
    )  # fmt: skip
    print(f"the page is {page}")
