"""eval, lm-eval, diagnose, report: what a memory does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from memlayers.cli.app import Device, Json, Quiet, app, print_rows, teach_config
from memlayers.config.teach import TeachConfig
from memlayers.utils.errors import InputError

_GRID = "The whole protocol"  # its options' panel in --help


@app.command(
    "eval",
    epilog="Example: memlayers eval runs/demo/memory --facts facts.jsonl --out scores.json\n\n"
    "Example: memlayers eval --protocol full --facts-dir entityquestions --qa triviaqa.jsonl --out runs/protocol",
)
def evaluate(
    out: Annotated[Path, typer.Option(help="Where to write the results, a .json file; with --protocol a folder.")],
    memory: Annotated[Path | None, typer.Argument(help="Folder of a memory; none with --protocol.")] = None,
    facts: Annotated[Path | None, typer.Option(help="What was taught.")] = None,
    known: Annotated[Path | None, typer.Option(help="What the backbone knows: questions and answers.")] = None,
    qa: Annotated[
        list[Path] | None, typer.Option(help="Any questions and answers, e.g. TriviaQA. May be given several times.")
    ] = None,
    untaught: Annotated[
        Path | None, typer.Option(help="Questions like the facts', about what was never taught: abstention.")
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="General text, e.g. WikiText-2. May be given several times.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Another place of the backbone; with --protocol, which.")] = None,
    gate: Annotated[bool, typer.Option(help="Off: the memory is read for every token.")] = True,
    phrasings: Annotated[
        int | None, typer.Option(min=1, help="Taught phrasings asked per fact; all, or 2 with --protocol.")
    ] = None,
    max_text_tokens: Annotated[
        int | None, typer.Option(min=2, help="Read so much of each text; all, or 32768 with --protocol.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also draw the report into this folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the choice of phrasings and the bootstrap. [137]")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="full: teach and score a grid of memories, and write the results page.", rich_help_panel=_GRID
        ),
    ] = None,
    recipes: Annotated[str | None, typer.Option(help="[addressed,dense]", rich_help_panel=_GRID)] = None,
    gates: Annotated[str | None, typer.Option(help="[on,off]", rich_help_panel=_GRID)] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Facts taught. [100,300,1000,5000; without --facts-dir 100,300,500]", rich_help_panel=_GRID),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="[137,7,23]", rich_help_panel=_GRID)] = None,
    facts_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of EntityQuestions (P19.jsonl ...); without it the demo's 500 facts are taught.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Asked of each kind, at most. [1000]", rich_help_panel=_GRID)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of `teach` settings for all runs.", rich_help_panel=_GRID)
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Score a memory against its backbone on the same items; or run the whole protocol, from teaching to the page."""
    grid = {"recipes": recipes, "gates": gates, "sizes": sizes, "seeds": seeds}
    if protocol is not None:
        single: dict[str, Any] = {
            "MEMORY": memory, "--facts": facts, "--untaught": untaught, "--no-gate": None if gate else True,
            "--report": report, "--seed": seed,
        }  # fmt: skip
        if given := [name for name, value in single.items() if value is not None]:
            raise InputError(
                f"{given[0]} scores one memory, --protocol {protocol} teaches its own: give one of the two"
            )
        if protocol != "full":
            raise InputError(f"--protocol {protocol}: there is one protocol; give --protocol full")
        bounds = {"questions": questions, "phrasings": phrasings, "max_text_tokens": max_text_tokens}
        teaching = {"backbone": backbone, "device": device}
        _run_protocol(out, grid, facts_dir, known, qa or [], text or [], bounds, config, teaching, quiet)
        return
    only = {**{f"--{name}": value for name, value in grid.items()}, "--facts-dir": facts_dir,
            "--questions": questions, "--config": config}  # fmt: skip
    if given := [name for name, value in only.items() if value is not None]:
        raise InputError(f"{given[0]} belongs to the whole protocol: give --protocol full too, or leave it out")
    if memory is None:
        raise InputError("no memory to score: give its folder, or --protocol full to run the whole protocol")
    from memlayers.data.fact_files import read_facts, read_questions
    from memlayers.utils.files import check_output_directory, check_output_file, read_text

    if facts is None and known is None and not qa and not text:
        raise InputError("nothing to score: give --facts, --known, --qa or --text")
    if untaught is not None and facts is None:
        raise InputError("--untaught is scored against what was taught: give --facts too")
    check_output_file(out)
    if report is not None:
        check_output_directory(report, replace=True)
    sets, texts = _named(qa or []), _named(text or [])
    items: dict[str, Any] = {
        "facts": read_facts(facts) if facts else [],
        "known": read_questions(known) if known else [],
        "qa": {name: read_questions(path) for name, path in sets.items()},
        "untaught": read_questions(untaught) if untaught else [],
        "text": {name: read_text(path) for name, path in texts.items()},
    }
    from memlayers.editing.memory import load_memory
    from memlayers.evaluation.evaluate import cost_rows, score_model
    from memlayers.evaluation.results import Results, write_results
    from memlayers.inference.record import read_teaching
    from memlayers.utils.environment import environment

    seed = 137 if seed is None else seed
    opened = load_memory(memory, backbone=backbone, device=device, gate=gate)
    rows, examples = score_model(
        opened.model, opened.tokenizer,
        **items, phrasings=phrasings, max_text_tokens=max_text_tokens, seed=seed, quiet=quiet,
    )  # fmt: skip
    taught = read_teaching(memory)
    where = str(opened.model.device)
    if taught is not None:
        rows += cost_rows(taught.report, taught.facts, where)
    settings = {"memory": str(memory), "gate": gate, "phrasings": phrasings, "seed": seed}
    settings |= {
        name: str(value) for name, value in (("facts", facts), ("known", known), ("untaught", untaught)) if value
    }
    settings |= {name: ", ".join(map(str, paths)) for name, paths in (("qa", qa), ("text", text)) if paths}
    results = Results(environment(where), settings, rows, taught.report.curve if taught else [], examples)
    write_results(out, results)
    if report is not None:
        from memlayers.evaluation.report import write_report

        write_report(out, report)
    print_rows(results)


def _run_protocol(
    out: Path,
    grid: dict[str, str | None],
    facts_dir: Path | None,
    known: Path | None,
    qa: list[Path],
    text: list[Path],
    bounds: dict[str, int | None],
    config: Path | None,
    teaching: dict[str, str | None],
    quiet: bool,
) -> None:
    from memlayers.sweep.grid import Grid
    from memlayers.sweep.run import MADE_BY_THE_GRID, Bounds, read_materials, run_protocol

    read: dict[str, Callable[[str], Any]] = {
        "recipes": lambda word: TeachConfig().with_flags(recipe=word).memory.recipe,
        "gates": {"on": True, "off": False}.__getitem__,
        "sizes": int,
        "seeds": lambda word: TeachConfig(seed=int(word)).seed,
    }
    chosen: dict[str, Any] = {} if facts_dir else {"sizes": (100, 300, 500)}
    for name, words in grid.items():
        if words is not None:
            try:
                chosen[name] = tuple(read[name](word.strip()) for word in words.split(","))
            except InputError:
                raise
            except (KeyError, ValueError):
                example = {"gates": "on,off"}.get(name, "100,300")
                raise InputError(f"--{name} {words}: give some with commas between, as {example}") from None
    settings = teach_config(config, dict(teaching))
    for name in MADE_BY_THE_GRID:
        if settings.flags()[name] != TeachConfig().flags()[name]:
            raise InputError(f"{config}: {name} is the grid's to set; take it out, and choose with --{name}s")
    materials = read_materials(facts_dir, known, _labelled(qa), _labelled(text))
    page = run_protocol(
        out, Grid(**chosen), materials, settings, Bounds(**{k: v for k, v in bounds.items() if v is not None}),
        note=lambda line: None if quiet else print(f"memlayers: {line}", file=sys.stderr), quiet=quiet,
    )  # fmt: skip
    print(f"the results page is {page}")


@app.command(
    "lm-eval", epilog="Example: memlayers lm-eval runs/demo/memory --tasks hellaswag,triviaqa --limit 200 --out lm.json"
)
def lm_eval(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    tasks: Annotated[str, typer.Option(help="Names of tasks or groups, with commas between.")],
    include_path: Annotated[Path | None, typer.Option(help="Folder of further task files (YAML).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")] = None,
    fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each item; the task's own choice.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Through the chat template, as facts are taught.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Items per forward.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Where to write the results, a .json file.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Another place of the backbone.")] = None,
    gate: Annotated[bool, typer.Option(help="Off: the memory is read for every token.")] = True,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Run EleutherAI's lm-evaluation-harness on a memory and its backbone, side by side on the same items."""
    from memlayers.utils.files import check_output_file

    if out is not None:
        check_output_file(out)
    named = [task.strip() for task in tasks.split(",") if task.strip()]
    if not named:
        raise InputError("--tasks names none: give some with commas between, as hellaswag,triviaqa")
    from memlayers.editing.memory import load_memory
    from memlayers.evaluation.lm_eval import harness_rows
    from memlayers.evaluation.results import Results, write_results
    from memlayers.utils.environment import environment

    opened = load_memory(memory, backbone=backbone, device=device, gate=gate)
    options: dict[str, Any] = {"limit": limit, "fewshot": fewshot, "chat": chat, "batch_size": batch_size}
    rows = harness_rows(opened.model, opened.tokenizer, named, include_path=include_path, quiet=quiet, **options)
    settings = {"memory": str(memory), "gate": gate, "tasks": named, **options}
    results = Results(environment(str(opened.model.device)), settings, rows)
    if out is not None:
        write_results(out, results)
    print_rows(results)


@app.command(epilog="Example: memlayers diagnose runs/demo/memory --facts facts.jsonl --out runs/diagnosis")
def diagnose(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    facts: Annotated[Path | None, typer.Option(help="What was taught; its own facts.jsonl if not given.")] = None,
    text: Annotated[Path | None, typer.Option(help="General text: what it reads, and what it is given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for diagnosis.json, diagnosis.md and a picture.")] = None,
    most: Annotated[int, typer.Option(min=2, help="So many facts are probed.")] = 300,
    max_text_tokens: Annotated[int, typer.Option(min=2, help="Read so much of the text.")] = 16_384,
    backbone: Annotated[str | None, typer.Option(help="Another place of the backbone.")] = None,
    gate: Annotated[bool, typer.Option(help="Off: the memory is read for every token.")] = True,
    seed: Annotated[int, typer.Option(help="Of the choice of facts and the intervals.")] = 137,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what a memory does and where its facts live: pool, reads, queries, answers, with the pool zeroed too."""
    from memlayers.data.fact_files import read_facts
    from memlayers.utils.files import check_output_directory

    own = memory / "facts.jsonl"
    if facts is None and memory.is_dir() and not own.is_file():
        raise InputError(f"{memory}: remembers no facts of its own; say what was taught with --facts FILE")
    if out is not None:
        check_output_directory(out, replace=True)
    rows = read_facts(facts or own) if facts is not None or own.is_file() else []
    from memlayers.data.general_text import read_general_text
    from memlayers.editing.memory import load_memory
    from memlayers.evaluation.diagnose import probe_memory
    from memlayers.evaluation.probes import Diagnosis, diagnosis_text, write_diagnosis
    from memlayers.inference.record import read_teaching
    from memlayers.utils.environment import environment

    source = read_general_text(text) if text else None
    opened = load_memory(memory, backbone=backbone, device=device, gate=gate)
    general: list[list[int]] = []
    for ids in source.encode(opened.tokenizer, 256) if source else []:
        general.append(ids[: max_text_tokens - sum(map(len, general))])
        if sum(map(len, general)) >= max_text_tokens:
            break
    probes, histograms = probe_memory(opened, rows, general=general, most=most, seed=seed, quiet=quiet)
    taught = read_teaching(memory)
    settings = {
        "memory": str(memory),
        "facts": str(facts or own),
        "text": text and str(text),
        "gate": gate,
        "most": most,
    }
    settings |= {"max_text_tokens": max_text_tokens, "seed": seed}
    curve = taught.report.curve if taught else []
    found = Diagnosis(environment(str(opened.model.device)), settings, probes, histograms, curve)
    if out is not None:
        write_diagnosis(out, found)
    if as_json:
        print(diagnosis_text(found), end="")
        return
    _print_probes(found)
    if out is not None:
        print(f"\nThe table and the picture are in {out}")


@app.command(epilog="Example: memlayers report runs/demo/results.json --out runs/demo")
def report(
    results: Annotated[list[Path], typer.Argument(help="One results.json, or several to set side by side.")],
    out: Annotated[Path, typer.Option(help="Folder for report.md and its pictures.")],
) -> None:
    """Draw the report of a results file, or compare several, from the JSON alone."""
    from memlayers.evaluation.report import compare_report, write_report

    if len(results) == 1:
        write_report(results[0], out)
    else:
        compare_report(list(zip(_labels(results), results, strict=True)), out)
    print(f"the report is in {out}")


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """The files of a repeated option: one stands for itself, several get names."""
    return {"": paths[0]} if len(paths) == 1 else _labelled(paths)


def _labelled(paths: Sequence[Path]) -> dict[str, Path]:
    return dict(zip(_labels(paths), paths, strict=True))


def _labels(paths: Sequence[Path]) -> list[str]:
    """A name for each path: its folder's, its own, or all of it, whichever first tells all of them apart."""
    folders = [path.absolute().parent.name for path in paths]
    for labels in (folders, [path.stem for path in paths]):
        if len(set(labels)) == len(paths):
            return labels
    return [str(path) for path in paths]


def _print_probes(diagnosis: Any) -> None:
    """The probes as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    from memlayers.evaluation.probes import HEADER, table_rows

    table = Table(*HEADER)
    for cells in table_rows(diagnosis.probes):
        table.add_row(*cells)
    Console().print(table)
