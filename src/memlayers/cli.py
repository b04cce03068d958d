"""The command line: one thin command per verb. Heavy imports happen inside the commands.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong (one line: what, where, how to mend it).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from memlayers.errors import InputError, WorkError
from memlayers.teaching import TeachConfig, read_teach_config


class _Commands(TyperGroup):
    """The verbs. Ctrl-C ends each of them in one line; what typer does about it differs with its version."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _stop("interrupted", 130)


app = typer.Typer(
    cls=_Commands,
    help="Teach a frozen language model new facts, without making it worse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
facts_app = typer.Typer(help="Make, check and convert files of facts.", no_args_is_help=True)
app.add_typer(facts_app, name="facts")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; chosen if not given.")]


def main() -> None:
    """Entry point of the command ``memlayers``."""
    # What the libraries beneath have to say is not the user's to mend; what is, is said in our own line.
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty() or {"-q", "--quiet"} & set(sys.argv):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(prog_name="memlayers")
    except InputError as error:
        _stop(error, 2)
    except WorkError as error:
        _stop(error, 1)


def _stop(message: object, code: int) -> NoReturn:
    print(f"memlayers: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def _with_teach_flags(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one flag per field of `TeachConfig`, with the help of its docstring; None means not given."""
    helps = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(TeachConfig) or "", re.MULTILINE))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for field in dataclasses.fields(TeachConfig):
            if field.name in left_out:
                continue
            kind = {"int": int, "float": float, "bool": bool}.get(str(field.type).split(" |")[0], str)
            text = " ".join(helps.get(field.name, "").split())
            text += "" if field.default is None else f" [{field.default}]"  # where it is None, the text says what for
            option = typer.Option(help=text, show_default=False)
            annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _config(path: Path | None, flags: dict[str, Any]) -> TeachConfig:
    if flags.get("layers") is not None:
        flags["layers"] = _layer_numbers(str(flags["layers"]))
    return read_teach_config(path, flags)


def _layer_numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--layers {text}: give numbers with commas between, as 2,4,6") from None


@app.command(epilog="Example: memlayers demo --out runs/demo")
@_with_teach_flags("backbone")
def demo(
    out: Annotated[Path, typer.Option(help="A new folder for the memory, the results and the report.")],
    facts: Annotated[int | None, typer.Option(min=1, help="Teach only so many of the 500 facts.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of the flags below.")] = None,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Teach the embedded backbone 500 real facts, score it before and after, and draw the report."""
    settings = _config(config, flags)
    from memlayers.demo import run_demo

    results = run_demo(out, settings, facts=facts, quiet=quiet)
    _print_rows(results)
    print(f"\nThe report is {out / 'report.md'}; ask the memory with: memlayers ask {out / 'memory'}")


@app.command(epilog="Example: memlayers teach --backbone Qwen/Qwen2.5-7B-Instruct --facts facts.jsonl --out memory")
@_with_teach_flags()
def teach(
    facts: Annotated[Path, typer.Option(help="Facts: JSONL or CSV (see `memlayers facts`).")],
    out: Annotated[Path, typer.Option(help="Folder for the memory, a PEFT adapter.")],
    config: Annotated[Path | None, typer.Option(help="YAML file of the flags below.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing memory.")] = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Teach facts to a frozen backbone: calibrate, train the gate, write the value pool."""
    settings = _config(config, flags)
    from memlayers.facts import read_facts

    rows = read_facts(facts, strict=True)
    from memlayers.teach import teach_facts

    report = teach_facts(rows, out, settings, resume=resume, replace=replace, quiet=quiet).report
    skipped = f", {report.skipped_steps} steps skipped (not finite)" if report.skipped_steps else ""
    print(
        f"{len(rows)} facts, {report.exposures:g} exposures each, recall on a sample {report.recall:.1%}, "
        f"{report.seconds:.0f} s{skipped}; the memory is in {out}"
    )


@app.command("gate", epilog="Example: memlayers gate memory --facts facts.jsonl --negatives fakes.jsonl")
def gate_command(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    facts: Annotated[Path, typer.Option(help="What it was taught.")],
    negatives: Annotated[
        Path | None, typer.Option(help="Questions about what was never taught: the thresholds heed them.")
    ] = None,
    general_text: Annotated[
        str | None, typer.Option(help="The gate's own not-mine: a file, or `sampled`; the shipped sample if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder; if not given the memory is replaced.")] = None,
    soft: Annotated[
        bool, typer.Option("--soft", help="The seed's gate, whose sigmoid multiplies what the memory adds.")
    ] = False,
    gate_subjects: Annotated[bool, typer.Option(help="It opens at the names of the stored subjects alone.")] = True,
    gate_relations: Annotated[
        bool, typer.Option(help="What is asked of a subject is compared with what was taught of it.")
    ] = True,
    gate_threshold: Annotated[float, typer.Option(help="Logit above which it is open.")] = 1.0,
    gate_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps per gate.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 137,
    backbone: Annotated[str | None, typer.Option(help="Another place of the backbone.")] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Make or retrain the gate of a memory that was taught already; what it was taught stays as it is."""
    from memlayers.facts import read_facts, read_questions

    rows = read_facts(facts, strict=True)
    others = read_questions(negatives) if negatives else []
    from memlayers.regate import GateConfig, regate_memory

    settings = GateConfig(soft, gate_subjects, gate_relations, gate_threshold, gate_steps, general_text, seed)
    made = regate_memory(
        memory, rows, settings, negatives=others, out=out, backbone=backbone, device=device, quiet=quiet
    )
    if not soft:
        for number, gate in enumerate(made.gates):
            print(
                f"gate {number}: open on {gate.open_on_facts:.1%} of the facts' tokens and {gate.open_on_general:.1%} "
                f"of general text's, threshold {gate.threshold:.2f}"
            )
    if made.relations is not None:
        check = made.relations
        print(
            f"what is asked: {check.accepted_stored:.1%} of the facts' questions pass, {check.accepted_others:.1%} of "
            f"others about their subjects, threshold {check.threshold:.2f}"
        )
    if made.thresholds is not None:
        print("an answer is given from a confidence of {:.4f} (memory), {:.4f} (backbone) on".format(*made.thresholds))
    print(f"the memory is in {out or memory}")


@app.command(epilog='Example: memlayers ask runs/demo/memory "Who founded Chemikal Underground?"')
def ask(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    question: Annotated[str | None, typer.Argument(help="Without one: a chat, a question per line.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Another place of the backbone.")] = None,
    gate: Annotated[bool, typer.Option(help="Off: the memory is read for every token.")] = True,
    abstain: Annotated[
        bool,
        typer.Option("--abstain", help="Give one answer, the memory's or the backbone's, or say that it is unknown."),
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Ask a question; shows the answer with the memory and without."""
    from memlayers.session import load_memory

    opened = load_memory(memory, backbone=backbone, device=device, gate=gate)
    for line in [question] if question is not None else _prompted_lines(echo=not as_json):
        (answer,) = opened.ask([line.strip()])
        if as_json:
            print(json.dumps({**dataclasses.asdict(answer), "text": answer.text}, ensure_ascii=False))
        elif abstain:
            print(f"  {answer.text}")
            print(f"  (source: {answer.source}; score {answer.score:.3f}, threshold {answer.threshold:.3f})")
        else:
            print(f"  without memory  {answer.backbone}\n  with memory     {answer.memory}")


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
    from memlayers.facts import read_facts, read_questions
    from memlayers.files import check_output_directory, check_output_file, read_text

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
    from memlayers.evaluate import cost_rows, evaluate_memory
    from memlayers.results import Results, environment, write_results
    from memlayers.session import load_memory
    from memlayers.teaching import read_teaching

    seed = 137 if seed is None else seed
    opened = load_memory(memory, backbone=backbone, device=device, gate=gate)
    rows, examples = evaluate_memory(
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
        from memlayers.report import write_report

        write_report(out, report)
    _print_rows(results)


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
    from memlayers.protocol.grid import Grid
    from memlayers.protocol.run import MADE_BY_THE_GRID, Bounds, read_materials, run_protocol

    read: dict[str, Callable[[str], Any]] = {
        "recipes": lambda word: TeachConfig(recipe=word).recipe,
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
    settings = _config(config, dict(teaching))
    for name in MADE_BY_THE_GRID:
        if getattr(settings, name) != getattr(TeachConfig(), name):
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
    from memlayers.files import check_output_file

    if out is not None:
        check_output_file(out)
    named = [task.strip() for task in tasks.split(",") if task.strip()]
    if not named:
        raise InputError("--tasks names none: give some with commas between, as hellaswag,triviaqa")
    from memlayers.harness import harness_rows
    from memlayers.results import Results, environment, write_results
    from memlayers.session import load_memory

    opened = load_memory(memory, backbone=backbone, device=device, gate=gate)
    options: dict[str, Any] = {"limit": limit, "fewshot": fewshot, "chat": chat, "batch_size": batch_size}
    rows = harness_rows(opened.model, opened.tokenizer, named, include_path=include_path, quiet=quiet, **options)
    settings = {"memory": str(memory), "gate": gate, "tasks": named, **options}
    results = Results(environment(str(opened.model.device)), settings, rows)
    if out is not None:
        write_results(out, results)
    _print_rows(results)


Folder = Annotated[Path, typer.Argument(help="Folder of a memory.")]
Backbone = Annotated[str | None, typer.Option(help="Another place of the backbone.")]
Slots = Annotated[str, typer.Option(help="Which of the slots it reads an edit may write: tfidf, kl or all.")]
SlotCount = Annotated[int | None, typer.Option(min=1, help="At most so many of them per fact.", show_default=False)]


@app.command("list", epilog="Example: memlayers list runs/demo/memory --json")
def list_facts(memory: Folder, as_json: Json = False) -> None:
    """List the facts that a memory holds: id, subject, first question, answer; with --json everything."""
    from memlayers.journal import stored_facts

    for fact in stored_facts(memory):
        if as_json:
            print(json.dumps(dataclasses.asdict(fact), ensure_ascii=False))
        else:
            print(f"{fact.id}  {fact.subject or '-'}  {fact.questions[0]}  {fact.answer}")


@app.command(epilog="Example: memlayers add runs/demo/memory --facts more.jsonl")
def add(
    memory: Folder,
    facts: Annotated[Path, typer.Option(help="Facts: JSONL or CSV.")],
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    backbone: Backbone = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Add facts to a memory."""
    rows = _strict_facts(facts)
    _edit(memory, lambda opened: opened.add(rows), backbone, device, as_json, slots, slot_count)


@app.command(epilog="Example: memlayers update runs/demo/memory --facts new.jsonl")
def update(
    memory: Folder,
    facts: Annotated[Path, typer.Option(help="The new answers: JSONL or CSV; found by id, subject or question.")],
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    backbone: Backbone = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Give stored facts new answers."""
    rows = _strict_facts(facts)
    _edit(memory, lambda opened: opened.update(rows), backbone, device, as_json, slots, slot_count)


@app.command(epilog='Example: memlayers forget runs/demo/memory --subject "Chemikal Underground"')
def forget(
    memory: Folder,
    facts: Annotated[Path | None, typer.Option(help="Facts to forget: JSONL or CSV.")] = None,
    ids: Annotated[str | None, typer.Option(help="Their ids, with commas between.")] = None,
    subject: Annotated[str | None, typer.Option(help="All facts about it.")] = None,
    purge: Annotated[bool, typer.Option("--purge", help="Drop all undo data: it would hold the answers.")] = False,
    slots: Slots = "tfidf",
    slot_count: SlotCount = None,
    backbone: Backbone = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Forget facts: the gate closes for their subjects, and what their slots held goes; the report has the evidence."""
    if facts is None and ids is None and subject is None:
        raise InputError("nothing to forget: give --facts, --ids or --subject")
    rows = _strict_facts(facts) if facts else []
    names = [name.strip() for name in ids.split(",") if name.strip()] if ids else []
    _edit(
        memory, lambda opened: opened.forget(ids=names, subject=subject, facts=rows, purge=purge),
        backbone, device, as_json, slots, slot_count,
    )  # fmt: skip


@app.command(epilog="Example: memlayers undo runs/demo/memory")
def undo(memory: Folder, backbone: Backbone = None, device: Device = None, as_json: Json = False) -> None:
    """Take the last edit back, bit for bit."""
    _edit(memory, lambda opened: opened.undo(), backbone, device, as_json)


def _strict_facts(path: Path) -> list[Any]:
    from memlayers.facts import read_facts

    return read_facts(path, strict=True)


def _edit(
    folder: Path, verb: Callable[[Any], Any], backbone: str | None, device: str | None, as_json: bool,
    slots: str = "tfidf", slot_count: int | None = None,
) -> None:  # fmt: skip
    """Opens a memory, makes one edit and says what came of it."""
    from memlayers.editing import EditConfig, open_memory

    config = EditConfig(slots=slots)
    if slot_count is not None:
        config = dataclasses.replace(config, slot_count=slot_count)
    with open_memory(folder, config, backbone=backbone, device=device) as opened:
        if opened.notice:
            print(f"memlayers: {opened.notice}", file=sys.stderr)
        report = verb(opened)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False))
        return
    print(f"edit {report.number} ({report.kind}): {len(report.ids)} facts, {report.slots:,} slots, "
          f"{report.seconds:.1f} s")  # fmt: skip
    if report.recalled is not None:
        print(f"  {report.recalled:.1%} of {report.asked} taught phrasings answered rightly, in free generation")
    if report.kind != "undo":
        print(f"  {report.neighbours} stored facts beside it measured, {len(report.repaired)} mended, "
              f"{len(report.changed)} changed")  # fmt: skip
    for name in ("taught", "unseen"):
        for when in ("before", "after", "backbone", "always_on"):
            standing = report.evidence.get(name, {}).get(when)
            if standing:
                print(f"  {name} phrasings, {when}: old answer given {standing['given']:.0%} of {standing['n']}, first "
                      f"token's rank {standing['rank']:g}, probability {standing['probability']:.2g}")  # fmt: skip


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
    from memlayers.facts import read_facts
    from memlayers.files import check_output_directory

    own = memory / "facts.jsonl"
    if facts is None and memory.is_dir() and not own.is_file():
        raise InputError(f"{memory}: remembers no facts of its own; say what was taught with --facts FILE")
    if out is not None:
        check_output_directory(out, replace=True)
    rows = read_facts(facts or own) if facts is not None or own.is_file() else []
    from memlayers.diagnose import diagnose_memory
    from memlayers.general_text import read_general_text
    from memlayers.probes import Diagnosis, diagnosis_text, write_diagnosis
    from memlayers.results import environment
    from memlayers.session import load_memory
    from memlayers.teaching import read_teaching

    source = read_general_text(text) if text else None
    opened = load_memory(memory, backbone=backbone, device=device, gate=gate)
    general: list[list[int]] = []
    for ids in source.encode(opened.tokenizer, 256) if source else []:
        general.append(ids[: max_text_tokens - sum(map(len, general))])
        if sum(map(len, general)) >= max_text_tokens:
            break
    probes, histograms = diagnose_memory(opened, rows, general=general, most=most, seed=seed, quiet=quiet)
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


@facts_app.command("make", epilog="Example: memlayers facts make sensor_calibration --n 300 --out facts.jsonl")
def facts_make(
    family: Annotated[str, typer.Argument(help="A synthetic family; `list` names them all.")],
    out: Annotated[Path | None, typer.Option(help="Where to write, a .jsonl file.")] = None,
    n: Annotated[int, typer.Option(help="How many facts.")] = 300,
    fakes: Annotated[Path | None, typer.Option(help="Also write as many same-shape fakes, never taught.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same facts on any machine.")] = 137,
) -> None:
    """Make facts of a synthetic family of known entropy."""
    from memlayers.facts import check_facts_target, write_facts
    from memlayers.synthetic import FAMILIES, answer_bits, capacity, make_facts, make_fakes

    if family == "list":
        for name in FAMILIES:
            print(f"{name:<16} {answer_bits(name):5.1f} bits an answer, at most {capacity(name):,} facts")
        return
    if out is None:
        raise InputError("no place to write: give --out FILE.jsonl")
    made = {out: make_facts(family, n, seed)}
    if fakes is not None:
        if os.path.realpath(fakes) == os.path.realpath(out):
            raise InputError(f"{out}: facts and fakes cannot go into one file; give --fakes another")
        made[fakes] = make_fakes(family, n, seed, avoid=made[out])
    for path in made:  # both or neither
        check_facts_target(path)
    for path, facts in made.items():
        write_facts(path, facts)
    print(f"{n} facts in {out}" + (f", {n} fakes in {fakes}" if fakes else ""))


@facts_app.command("check", epilog="Example: memlayers facts check facts.jsonl")
def facts_check(file: Annotated[Path, typer.Argument(help="JSONL or CSV.")], as_json: Json = False) -> None:
    """Check a file: format, duplicates, contradictions. Exit code 2 where facts contradict each other."""
    from memlayers.facts import check_facts, read_facts_with_lines

    facts, lines = read_facts_with_lines(file)
    report = check_facts(facts, lines)
    if as_json:
        print(json.dumps({"facts": len(facts), **dataclasses.asdict(report)}, ensure_ascii=False))
    else:
        phrasings = sum(len(fact.questions) for fact in facts)
        print(f"{file}: {len(facts)} facts, {phrasings} phrasings, {len(report.duplicates)} duplicates, "
              f"{len(report.contradictions)} contradictions")  # fmt: skip
        for kind, clashes in (("duplicate", report.duplicates), ("contradiction", report.contradictions)):
            for clash in clashes:
                where, answers = (", ".join(map(str, each)) for each in (clash.lines, map(repr, clash.answers)))
                print(f"  {kind}, lines {where}: {clash.question!r} is answered {answers}")
    if report.contradictions:
        sys.exit(2)


@facts_app.command("convert", epilog="Example: memlayers facts convert qa.csv facts.jsonl")
def facts_convert(
    source: Annotated[Path, typer.Argument(help="JSONL or CSV.")],
    target: Annotated[Path, typer.Argument(help="Where to write: .jsonl or .csv.")],
) -> None:
    """Convert between the formats that `teach` reads."""
    from memlayers.facts import read_facts, write_csv, write_facts

    facts = read_facts(source)
    if target.suffix == ".csv":
        write_csv(target, facts)
    else:
        write_facts(target, facts)
    print(f"{len(facts)} facts in {target}")


@app.command(epilog="Example: memlayers report runs/demo/results.json --out runs/demo")
def report(
    results: Annotated[list[Path], typer.Argument(help="One results.json, or several to set side by side.")],
    out: Annotated[Path, typer.Option(help="Folder for report.md and its pictures.")],
) -> None:
    """Draw the report of a results file, or compare several, from the JSON alone."""
    from memlayers.report import compare_report, write_report

    if len(results) == 1:
        write_report(results[0], out)
    else:
        compare_report(list(zip(_labels(results), results, strict=True)), out)
    print(f"the report is in {out}")


@app.command(epilog="Example: memlayers plan --backbone Qwen/Qwen2.5-7B-Instruct --slots 500000")
def plan(
    backbone: Annotated[str, typer.Option(help="pocket, qwen2.5-0.5b, -1.5b, -7b, or the path of a config.json.")],
    slots: Annotated[int, typer.Option(min=1, help="Rows of the value pool; rounded up to a square.")],
    vram: Annotated[float, typer.Option(min=0, help="Memory of the device, GiB.")] = 24,
    host: Annotated[float, typer.Option(min=0, help="Host memory that may be used, GiB.")] = 64,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences per step. [4; pocket: 32]", show_default=False)
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens of the longest sequence.")] = 64,
    answer: Annotated[int, typer.Option(min=1, help="Positions at which some sequence has an answer.")] = 16,
    heads: Annotated[int, typer.Option(min=1, help="Lookups per token and layer.")] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Slots read per head.")] = 8,
    key_dim: Annotated[int, typer.Option(min=2, help="Width of a head's query.")] = 64,
    layers: Annotated[str | None, typer.Option(help="Memory layers, as 6,14,22.")] = None,
    facts: Annotated[int, typer.Option(min=1, help="To be taught; says how many rows are touched.")] = 5000,
    phrasings: Annotated[int, typer.Option(min=1, help="Of each fact: calibration is shown up to 2000 in all.")] = 10,
    tokens_per_fact: Annotated[int, typer.Option(min=1, help="Tokens of its sequences that differ.")] = 20,
    touched: Annotated[int | None, typer.Option(min=0, help="Rows touched, if you know.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the backbone: bfloat16, or float32 (pocket).")] = None,
    as_json: Json = False,
) -> None:
    """What fits: weights, pool, optimizer state, read log and activations, and the flags to teach with."""
    import math

    from memlayers import plan as planning

    shape = planning.read_backbone(backbone)
    dtype = dtype or ("float32" if backbone == "pocket" else "bfloat16")
    if dtype not in ("bfloat16", "float16", "float32"):
        raise InputError(f"--dtype {dtype}: take bfloat16, float16 or float32")
    numbers = tuple(sorted(_layer_numbers(layers))) if layers else planning.default_layers(shape.depth)
    if numbers[0] < 0 or numbers[-1] >= shape.depth or len(set(numbers)) < len(numbers):
        raise InputError(f"--layers {layers}: give distinct layers of this backbone's, 0 to {shape.depth - 1}")
    sub_keys = math.isqrt(slots - 1) + 1
    reads = heads * top_k
    if touched is None:
        touched = planning.touched_rows(sub_keys**2, facts, tokens_per_fact, len(numbers), reads)
    work = planning.Work(
        sub_keys, heads, top_k, key_dim, numbers, batch_size or (32 if backbone == "pocket" else 4), length,
        min(answer, length), dtype, min(touched, sub_keys**2),
        contexts=min(planning.MOST_CONTEXTS, facts * phrasings) * length,
    )  # fmt: skip
    lines = planning.make_plan(shape, work, vram=vram, host=host)
    best = planning.recommended(lines)
    if as_json:
        print(json.dumps({
            "backbone": dataclasses.asdict(shape), "work": {**dataclasses.asdict(work), "slots": work.slots},
            "lines": [dataclasses.asdict(line) for line in lines],
            "recommended": None if best is None else planning.command(shape, work, best),
        }))  # fmt: skip
        return
    _print_plan(shape, work, lines, best, vram, host)


@app.command(epilog="Example: memlayers bench --out runs/bench")
def bench(
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json, bench.md and the roofline plot.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Rows of the value pool, a square number.")] = 50_176,
    dim: Annotated[int, typer.Option(min=1, help="Width of a value.")] = 3584,
    tokens: Annotated[int, typer.Option(min=1, help="Per step and memory layer.")] = 512,
    heads: Annotated[int, typer.Option(min=1, help="Lookups per token.")] = 1,
    top_k: Annotated[int, typer.Option(min=1, help="Slots read per head.")] = 8,
    layers: Annotated[int, typer.Option(min=1, help="Memory layers on one pool.")] = 3,
    dtype: Annotated[str, typer.Option(help="Of the pool: float32, bfloat16 or int8.")] = "float32",
    indices: Annotated[
        str, typer.Option(help="Some of uniform, zipf, real, with commas between.")
    ] = "uniform,zipf,real",
    peers: Annotated[bool, typer.Option(help="Also time the other ways that are installed here.")] = True,
    overhead: Annotated[bool, typer.Option(help="Also the memory's share of the backbone's own work.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs per figure.")] = 7,
    seed: Annotated[int, typer.Option(help="Of the reads.")] = 137,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time the memory, stage by stage, against this machine's roofs and against other ways to do the same."""
    from memlayers.files import check_output_directory

    if out is not None:
        check_output_directory(out, replace=True)
    from memlayers.bench.figures import Shape, bench_text, write_bench
    from memlayers.bench.report import write_bench_report
    from memlayers.bench.run import run_bench

    found = run_bench(
        Shape(slots, dim, tokens, heads, top_k, layers, dtype),
        device=device, indices=[kind.strip() for kind in indices.split(",")], peers=peers, overhead=overhead,
        repeats=repeats, seed=seed, note=lambda text: None if quiet else print(f"Measuring: {text}", file=sys.stderr),
    )  # fmt: skip
    if out is not None:
        write_bench(out / "bench.json", found)
        write_bench_report(out / "bench.json", out)
    if as_json:
        print(bench_text(found), end="")
    else:
        _print_bench(found)


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


def _prompted_lines(*, echo: bool) -> Iterator[str]:
    """Lines from the terminal or a pipe, until its end; `echo` shows those of a pipe among the answers."""
    if not sys.stdin.isatty():
        for number, raw in enumerate(sys.stdin.buffer, start=1):
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError:
                raise InputError(f"standard input:{number}: not UTF-8; send text in UTF-8") from None
            if line:
                if echo:
                    print(f"> {line}")
                yield line
        return
    print("Ask; an empty line or Ctrl-D ends.")
    with suppress(EOFError):
        while line := input("> ").strip():
            yield line


def _print_plan(backbone: Any, work: Any, lines: Any, best: Any, vram: float, host: float) -> None:
    """The plan as a table on stdout, what it assumes, and the command it comes to."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from memlayers import plan as planning

    header = (name.format(dtype=work.dtype) for name in planning.HEADER)
    table = Table(title=f"{backbone.name}, {work.slots:,} slots x {backbone.hidden}, GiB", box=SIMPLE, padding=(0, 1))
    for number, name in enumerate(header):  # in a narrow terminal the first column breaks, not the figures
        table.add_column(name, no_wrap=number > 0 and "beside" not in name, min_width=10 if "beside" in name else None)
    for cells in planning.table_cells(lines):
        table.add_row(*cells)
    Console().print(table)
    print(
        f"Weights: {lines[0].weights / planning.GIB:.2f} in {work.dtype}, {lines[-1].weights / planning.GIB:.2f} in "
        f"4-bit (through PEFT and bitsandbytes). A step of {work.batch} sequences of {work.length} tokens, memory at "
        f"layers {', '.join(map(str, work.layers))}, {work.heads} x top-{work.top_k} reads a token; {work.touched:,} "
        f"rows touched at the end.\nstep: read log, scores, activations and logits. recall: in place of a step, "
        f"between the passes, {planning.QUESTIONS} questions answered at a time. beside: the device's peak next to the "
        f"backbone, with 5 % for fragmentation and 0.6 GiB for a CUDA context, against {vram:g} GiB. host: features of "
        f"{work.contexts:,} tokens of facts (at most) and {work.general:,} of general text while gates are trained, or "
        f"the state where it lies there, against {host:g} GiB."
    )
    if best is None:
        print("\nNothing fits: take fewer slots or facts, a smaller batch, or more memory.")
    elif best.weights_dtype == work.dtype:
        print(f"\nRecommended: {planning.command(backbone, work, best)}")
    else:
        print(f"\nFits only beside a 4-bit backbone: {best.scheme.name}.")


def _print_bench(found: Any) -> None:
    """The bench's figures as tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    from memlayers.bench.report import HEADER, ratios, table_rows

    console = Console()
    for malloc in found.roofs:
        table = Table(*HEADER, title=f"malloc: {malloc}" if len(found.roofs) > 1 else None)
        for cells in table_rows([timing for timing in found.timings if timing.malloc == malloc]):
            table.add_row(*cells)
        console.print(table)
    table = Table("malloc", "indices", "semantics, or stage", "than", "times faster")
    for malloc, kind, semantics, peer, ratio in ratios(found):
        table.add_row(malloc, kind, semantics, peer, f"{ratio:.1f}")
    if table.rows:
        console.print(table)
    for name, value in found.overhead.items():
        print(f"{name:<28} {value:.3f} ms" if name.endswith("_ms") else f"{name:<28} {value:.2%}")


def _print_probes(diagnosis: Any) -> None:
    """The probes as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    from memlayers.probes import HEADER, table_rows

    table = Table(*HEADER)
    for cells in table_rows(diagnosis.probes):
        table.add_row(*cells)
    Console().print(table)


def _print_rows(results: Any) -> None:
    """The rows as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    from memlayers.report import format_value

    table = Table("metric", "split", "value", "n", "95 % interval")
    for row in results.rows:
        ends = [format_value(row.metric, end) for end in (row.ci_low, row.ci_high) if end is not None]
        table.add_row(row.metric, row.split, format_value(row.metric, row.value), f"{row.n:,}", " to ".join(ends))
    Console().print(table)


if __name__ == "__main__":
    main()
