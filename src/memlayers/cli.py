"""The command line: one thin command per verb. Heavy imports happen inside the commands.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong (one line: what, where, how to mend it).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from memlayers.errors import InputError, WorkError
from memlayers.teaching import TeachConfig, read_teach_config

app = typer.Typer(
    help="Teach a frozen language model new facts, without making it worse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
facts_app = typer.Typer(help="Make, check and convert files of facts.", no_args_is_help=True)
app.add_typer(facts_app, name="facts")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1 ...; chosen if not given.")]  # noqa: UP045
File = Annotated[Optional[Path], typer.Option()]  # noqa: UP045


def main() -> None:
    """Entry point of the command ``memlayers``."""
    warnings.simplefilter("ignore", FutureWarning)  # of the libraries beneath: not the user's to mend
    try:
        app()
    except InputError as error:
        _stop(error, 2)
    except WorkError as error:
        _stop(error, 1)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


def _stop(message: object, code: int) -> None:
    print(f"memlayers: {message}", file=sys.stderr)
    sys.exit(code)


def _with_teach_flags(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one flag per field of `TeachConfig`, with the help of its docstring; None means not given."""
    helps = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", inspect.getdoc(TeachConfig) or "", re.MULTILINE))
    helps |= dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(TeachConfig) or "", re.MULTILINE))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for field in dataclasses.fields(TeachConfig):
            if field.name in left_out:
                continue
            kind = {"int": int, "float": float, "bool": bool}.get(str(field.type).split(" |")[0], str)
            default = "from the recipe" if field.default is None else str(field.default)
            text = " ".join(helps.get(field.name, "").split()) + f" [{default}]"
            option = typer.Option(help=text, show_default=False)
            annotation = Annotated[Optional[kind], option]  # type: ignore[valid-type]  # noqa: UP045
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _config(path: Path | None, flags: dict[str, Any]) -> TeachConfig:
    if flags.get("layers") is not None:
        try:
            flags["layers"] = [int(number) for number in str(flags["layers"]).split(",")]
        except ValueError:
            raise InputError(f"--layers {flags['layers']}: give numbers with commas between, as 2,4,6") from None
    return read_teach_config(path, flags)


@app.command(epilog="Example: memlayers demo --out runs/demo")
@_with_teach_flags("backbone")
def demo(
    out: Annotated[Path, typer.Option(help="A new folder for the memory, the results and the report.")],
    facts: Annotated[Optional[int], typer.Option(help="Teach only so many of the 500 facts.")] = None,  # noqa: UP045
    config: Annotated[Optional[Path], typer.Option(help="YAML file of the flags below.")] = None,  # noqa: UP045
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
    config: Annotated[Optional[Path], typer.Option(help="YAML file of the flags below.")] = None,  # noqa: UP045
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


@app.command(epilog='Example: memlayers ask runs/demo/memory "Who founded Chemikal Underground?"')
def ask(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    question: Annotated[str | None, typer.Argument(help="Without one: a chat, a question per line.")] = None,  # noqa: UP045
    backbone: Annotated[Optional[str], typer.Option(help="Another place of the backbone.")] = None,  # noqa: UP045
    gate: Annotated[bool, typer.Option(help="Off: the memory is read for every token.")] = True,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Ask a question; shows the answer with the memory and without."""
    from memlayers.session import load_memory

    opened = load_memory(memory, backbone=backbone, device=device, gate=gate)
    lines = [question] if question is not None else _prompted_lines()
    for line in lines:
        if not line.strip():
            continue
        (answer,) = opened.ask([line.strip()])
        if as_json:
            print(json.dumps(dataclasses.asdict(answer), ensure_ascii=False))
        else:
            print(f"  without memory  {answer.backbone}\n  with memory     {answer.memory}")


@app.command("eval", epilog="Example: memlayers eval runs/demo/memory --facts facts.jsonl --out scores.json")
def evaluate(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    out: Annotated[Path, typer.Option(help="Where to write the results, a .json file.")],
    facts: Annotated[Optional[Path], typer.Option(help="What was taught.")] = None,  # noqa: UP045
    known: Annotated[Path | None, typer.Option(help="What the backbone knows: questions and answers.")] = None,  # noqa: UP045
    qa: Annotated[Optional[Path], typer.Option(help="Any questions and answers, e.g. TriviaQA.")] = None,  # noqa: UP045
    text: Annotated[Optional[Path], typer.Option(help="General text, e.g. WikiText-2.")] = None,  # noqa: UP045
    backbone: Annotated[Optional[str], typer.Option(help="Another place of the backbone.")] = None,  # noqa: UP045
    gate: Annotated[bool, typer.Option(help="Off: the memory is read for every token.")] = True,
    phrasings: Annotated[int | None, typer.Option(help="Taught phrasings asked per fact; all if not given.")] = None,  # noqa: UP045
    max_text_tokens: Annotated[Optional[int], typer.Option(help="Read so much of the text.")] = None,  # noqa: UP045
    report: Annotated[Optional[Path], typer.Option(help="Also draw the report into this folder.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Of the choice of phrasings and the bootstrap.")] = 137,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Score a memory against its backbone on the same items: recall, known facts, perplexity, locality."""
    from memlayers.facts import read_facts, read_questions
    from memlayers.files import check_output_file, read_text

    if facts is None and known is None and qa is None and text is None:
        raise InputError("nothing to score: give --facts, --known, --qa or --text")
    check_output_file(out)
    items: dict[str, Any] = {
        "facts": read_facts(facts) if facts else [],
        "known": read_questions(known) if known else [],
        "qa": read_questions(qa) if qa else [],
        "text": read_text(text) if text else None,
    }
    from memlayers.evaluate import cost_rows, evaluate_memory
    from memlayers.results import Results, environment, write_results
    from memlayers.session import load_memory
    from memlayers.teaching import read_teaching

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
        name: str(value) for name, value in (("facts", facts), ("known", known), ("qa", qa), ("text", text)) if value
    }
    results = Results(environment(where), settings, rows, taught.report.curve if taught else [], examples)
    write_results(out, results)
    if report is not None:
        from memlayers.report import write_report

        write_report(out, report)
    _print_rows(results)


@facts_app.command("make", epilog="Example: memlayers facts make sensor --n 300 --out facts.jsonl")
def facts_make(
    family: Annotated[str, typer.Argument(help="A synthetic family; `list` names them all.")],
    out: Annotated[Optional[Path], typer.Option(help="Where to write, a .jsonl file.")] = None,  # noqa: UP045
    n: Annotated[int, typer.Option(help="How many facts.")] = 300,
    fakes: Annotated[Path | None, typer.Option(help="Also write as many same-shape fakes, never taught.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="The same seed makes the same facts on any machine.")] = 137,
) -> None:
    """Make facts of a synthetic family of known entropy."""
    from memlayers.facts import write_facts
    from memlayers.synthetic import FAMILIES, answer_bits, capacity, make_facts, make_fakes

    if family == "list":
        for name in FAMILIES:
            print(f"{name:<16} {answer_bits(name):5.1f} bits an answer, at most {capacity(name):,} facts")
        return
    if out is None:
        raise InputError("no place to write: give --out FILE.jsonl")
    made = make_facts(family, n, seed)
    write_facts(out, made)
    if fakes is not None:
        write_facts(fakes, make_fakes(family, n, seed, avoid=made))
    print(f"{len(made)} facts in {out}" + (f", {n} fakes in {fakes}" if fakes else ""))


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
                print(f"  {kind}: {clash}")
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
        compare_report([(path.parent.name, path) for path in results], out)
    print(f"the report is in {out}")


def _prompted_lines() -> Any:
    """Lines from the terminal or a pipe, until its end."""
    if sys.stdin.isatty():
        print("Ask; an empty line or Ctrl-D ends.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip() and sys.stdin.isatty():
            return
        if not sys.stdin.isatty():
            print(f"> {line}")
        yield line


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
