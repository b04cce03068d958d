"""sweep: a grid of memories, taught and scored, on one page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from memlayers.cli.app import Device, Quiet, app
from memlayers.cli.evaluate import labelled
from memlayers.cli.flags import read_settings
from memlayers.config.teach import TeachConfig
from memlayers.utils.errors import InputError


@app.command(
    epilog="Example: memlayers sweep --facts-dir entityquestions --qa triviaqa.jsonl --out runs/protocol\n\n"
    "Example: memlayers sweep --sizes 60 --seeds 137 --questions 100 --out runs/small"
)
def sweep(
    out: Annotated[Path, typer.Option(help="Folder of the results page; the same command continues a killed one.")],
    recipes: Annotated[str | None, typer.Option(help="[addressed,dense]")] = None,
    gates: Annotated[str | None, typer.Option(help="[on,off]")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Facts taught. [100,300,1000,5000; without --facts-dir 100,300,500]")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="[137,7,23]")] = None,
    facts_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of EntityQuestions (P19.jsonl ...); without it the demo's 500 facts are taught."),
    ] = None,
    known: Annotated[Path | None, typer.Option(help="What the backbone knows: questions and answers.")] = None,
    qa: Annotated[
        list[Path] | None, typer.Option(help="Questions and answers, e.g. TriviaQA; may be repeated.")
    ] = None,
    text: Annotated[list[Path] | None, typer.Option(help="General text, e.g. WikiText-2; may be repeated.")] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Asked of each kind, at most. [1000]")] = None,
    phrasings: Annotated[int | None, typer.Option(min=1, help="Taught phrasings asked per fact. [2]")] = None,
    max_text_tokens: Annotated[int | None, typer.Option(min=2, help="Read so much of each text. [32768]")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of `teach` settings for all runs.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Which is taught. [pocket]")] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Teach a grid of memories, score each against its backbone, and write the results page."""
    grid = {"recipes": recipes, "gates": gates, "sizes": sizes, "seeds": seeds}
    bounds = {"questions": questions, "phrasings": phrasings, "max_text_tokens": max_text_tokens}
    from memlayers.sweep.grid import Grid
    from memlayers.sweep.run import MADE_BY_THE_GRID, Bounds, read_materials, run_protocol

    chosen: dict[str, Any] = {} if facts_dir else {"sizes": (100, 300, 500)}
    chosen |= {name: _values(name, words) for name, words in grid.items() if words is not None}
    settings = read_settings(config, {"backbone": backbone, "device": device})
    for name in MADE_BY_THE_GRID:
        if settings.flags()[name] != TeachConfig().flags()[name]:
            raise InputError(f"{config}: {name} is the grid's to set; take it out, and choose with --{name}s")
    materials = read_materials(facts_dir, known, labelled(qa or []), labelled(text or []))
    page = run_protocol(
        out, Grid(**chosen), materials, settings, Bounds(**{k: v for k, v in bounds.items() if v is not None}),
        note=lambda line: None if quiet else print(f"memlayers: {line}", file=sys.stderr), quiet=quiet,
    )  # fmt: skip
    print(f"the results page is {page}")


def _values(name: str, words: str) -> tuple[Any, ...]:
    """What an option of the grid says, with commas between.

    Raises:
        InputError: something that is no such value.
    """
    read: dict[str, Callable[[str], Any]] = {
        "recipes": lambda word: TeachConfig().with_flags(recipe=word).memory.recipe,
        "gates": {"on": True, "off": False}.__getitem__,
        "sizes": int,
        "seeds": lambda word: TeachConfig(seed=int(word)).seed,
    }
    try:
        return tuple(read[name](word.strip()) for word in words.split(","))
    except InputError:
        raise
    except (KeyError, ValueError):
        example = {"gates": "on,off"}.get(name, "100,300")
        raise InputError(f"--{name} {words}: give some with commas between, as {example}") from None
