"""eval, known, lm-eval, report: what a memory does, and what its backbone knows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from memlayers.cli.app import Backbone, Device, Folder, Gate, Quiet, app, open_memory, print_rows, print_table
from memlayers.utils.errors import InputError


@app.command("eval", epilog="Example: memlayers eval runs/demo/memory --facts facts.jsonl --out scores.json")
def evaluate(
    out: Annotated[Path, typer.Option(help="Where to write the results, a .json file.")],
    memory: Annotated[Path | None, typer.Argument(help="Folder of a memory.", show_default=False)] = None,
    facts: Annotated[Path | None, typer.Option(help="What was taught.")] = None,
    known: Annotated[
        Path | None, typer.Option(help="What the backbone knows: questions and answers (`memlayers known`).")
    ] = None,
    qa: Annotated[
        list[Path] | None, typer.Option(help="Questions and answers, e.g. TriviaQA; may be repeated.")
    ] = None,
    untaught: Annotated[
        Path | None, typer.Option(help="Questions like the facts', about what was never taught: abstention.")
    ] = None,
    text: Annotated[list[Path] | None, typer.Option(help="General text, e.g. WikiText-2; may be repeated.")] = None,
    asked: Annotated[
        bool,
        typer.Option("--asked", help="Ask for the facts as people ask, in many ways: only --facts and --untaught."),
    ] = False,
    questions: Annotated[
        int | None, typer.Option(min=1, help="With --asked: at most so many of each way to ask; all.")
    ] = None,
    phrasings: Annotated[int | None, typer.Option(min=1, help="Taught phrasings asked per fact; all.")] = None,
    max_text_tokens: Annotated[int | None, typer.Option(min=2, help="Read so much of each text; all.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also draw the report into this folder.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of questions and the bootstrap.")] = 137,
    protocol: Annotated[str | None, typer.Option(hidden=True)] = None,
    backbone: Backbone = None,
    gate: Gate = True,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Score a memory against its backbone on the same items."""
    if protocol is not None:
        raise InputError("--protocol is a command of its own now: use `memlayers sweep` with the same options")
    if memory is None:
        raise InputError("no memory to score: give its folder; `memlayers sweep` teaches and scores a grid of them")
    from memlayers.data.fact_files import read_facts, read_questions
    from memlayers.inference.folder import read_adapter_config
    from memlayers.utils.files import check_output_directory, check_output_file, read_text

    if asked:
        if known is not None or qa or text or phrasings is not None or max_text_tokens is not None:
            raise InputError("--asked asks for facts alone: leave out --known, --qa, --text and what belongs to them")
    elif questions is not None:
        raise InputError("--questions belongs to --asked: give both, or --phrasings")
    elif facts is None and known is None and not qa and not text:
        raise InputError("nothing to score: give --facts, --known, --qa or --text")
    elif untaught is not None and facts is None:
        raise InputError("--untaught is scored against what was taught: give --facts too")
    check_output_file(out)
    if report is not None:
        check_output_directory(report, replace=True)
    sets, texts = _named(qa or []), _named(text or [])
    taught = read_facts(facts) if facts else []
    never_taught: Any = (read_facts if asked else read_questions)(untaught) if untaught else []
    items: dict[str, Any] = {
        "known": read_questions(known) if known else [],
        "qa": {name: read_questions(path) for name, path in sets.items()},
        "text": {name: read_text(path) for name, path in texts.items()},
    }
    read_adapter_config(memory)
    from memlayers.evaluation.results import write_results

    opened = open_memory(memory, backbone=backbone, device=device, gate=gate, quiet=quiet)
    options: dict[str, Any] = {"untaught": never_taught, "seed": seed, "quiet": quiet}
    if asked:
        from memlayers.evaluation.asked_scores import evaluate_asked

        results = evaluate_asked(opened, taught if facts else opened.facts, limit=questions, **options)
    else:
        from memlayers.evaluation.evaluate import evaluate as score

        options |= {"phrasings": phrasings, "max_text_tokens": max_text_tokens}
        results = score(opened, facts=taught, **items, **options)
    results.config |= {"gate": gate}
    results.config |= {
        name: str(value) for name, value in (("facts", facts), ("known", known), ("untaught", untaught)) if value
    }
    results.config |= {name: ", ".join(map(str, paths)) for name, paths in (("qa", qa), ("text", text)) if paths}
    write_results(out, results)
    from memlayers.evaluation.report import asked_table, write_report

    if report is not None:
        write_report(out, report)
    if asked:
        print_table(*asked_table([results], intervals=False))
    else:
        print_rows(results)


@app.command(epilog="Example: memlayers known --backbone smollm2 --questions triviaqa.jsonl --out known.jsonl")
def known(
    backbone: Annotated[str, typer.Option(help="pocket, smollm2, qwen, gemma, a folder, a GGUF file, or a hub name.")],
    out: Annotated[Path, typer.Option(help="Where to write the known questions, a .jsonl file.")],
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="Questions and answers, or facts; may be repeated. [2,222 shipped public facts]"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only so many, a seeded sample.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Strict match; otherwise by containment.")] = False,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 137,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Ask a bare backbone, and keep the questions that it answers itself: what a memory must leave alone."""
    from memlayers.data.fact_files import check_facts_target, read_questions
    from memlayers.utils.files import atomic_write_text, check_output_file

    record = out.with_suffix(".record.json")
    check_facts_target(out)
    check_output_file(record)
    read = [question for path in questions or () for question in read_questions(path)]
    from memlayers.backbones import device_chosen, load_backbone
    from memlayers.data.fact_files import public_questions
    from memlayers.evaluation.known import known_record, known_text, questions_known

    asked = read if questions else public_questions()
    if limit is not None:
        asked = random.Random(seed).sample(asked, min(limit, len(asked)))
    model, tokenizer = load_backbone(backbone, device=device_chosen(device))
    found = questions_known(model, tokenizer, asked, strict=strict, quiet=quiet)
    text = known_text(found)
    kept = known_record(model, backbone, asked=len(asked), known=len(found), strict=strict)
    atomic_write_text(record, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    atomic_write_text(out, text)
    print(f"{backbone} knows {len(found):,} of {len(asked):,} questions: {out}; how it was asked: {record}")


@app.command(
    "lm-eval", epilog="Example: memlayers lm-eval runs/demo/memory --tasks hellaswag,triviaqa --limit 200 --out lm.json"
)
def lm_eval(
    memory: Folder,
    tasks: Annotated[str | None, typer.Option(help="Names of tasks or groups, with commas between.")] = None,
    choices: Annotated[
        Path | None, typer.Option(help="In place of tasks: multiple-choice questions (`memlayers facts choices`).")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder of further task files (YAML).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")] = None,
    fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each item; the task's own choice.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Through the chat template, as facts are taught.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Items per forward.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Where to write the results, a .json file.")] = None,
    backbone: Backbone = None,
    gate: Gate = True,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Run EleutherAI's lm-evaluation-harness on a memory and its backbone, side by side on the same items."""
    from memlayers.utils.files import check_output_file

    if out is not None:
        check_output_file(out)
    if (tasks is None) == (choices is None):
        raise InputError("give either --tasks, as hellaswag,triviaqa, or --choices, a file of questions")
    named = [task.strip() for task in (tasks or "").split(",") if task.strip()]
    if tasks is not None and not named:
        raise InputError("--tasks names none: give some with commas between, as hellaswag,triviaqa")
    if choices is not None:
        from memlayers.data.choices import read_choices

        read_choices(choices)  # before the memory is loaded
    from memlayers.inference.folder import read_adapter_config

    read_adapter_config(memory)
    from memlayers.evaluation.lm_eval import choices_task, harness_rows
    from memlayers.evaluation.results import Results, write_results
    from memlayers.utils.environment import environment

    opened = open_memory(memory, backbone=backbone, device=device, gate=gate, quiet=quiet)
    options: dict[str, Any] = {"limit": limit, "fewshot": fewshot, "chat": chat, "batch_size": batch_size}
    with nullcontext(("", include_path)) if choices is None else choices_task(choices, chat=chat) as (task, folder):
        rows = harness_rows(
            opened.model, opened.tokenizer, named or [task], include_path=folder, quiet=quiet, **options
        )
    settings = {"memory": str(memory), "gate": gate, "tasks": named, **options}
    if choices is not None:
        settings["choices"] = str(choices)
    results = Results(environment(str(opened.model.device)), settings, rows)
    if out is not None:
        write_results(out, results)
    print_rows(results)


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
    return {"": paths[0]} if len(paths) == 1 else labelled(paths)


def labelled(paths: Sequence[Path]) -> dict[str, Path]:
    """The files of a repeated option, each by a name of its own."""
    return dict(zip(_labels(paths), paths, strict=True))


def _labels(paths: Sequence[Path]) -> list[str]:
    """A name for each path: its folder's, its own, or all of it, whichever first tells all of them apart."""
    folders = [path.absolute().parent.name for path in paths]
    for labels in (folders, [path.stem for path in paths]):
        if len(set(labels)) == len(paths):
            return labels
    return [str(path) for path in paths]
