"""facts make, convert, choices: files of facts, and of questions made from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from memlayers.cli.app import app
from memlayers.utils.errors import InputError

facts_app = typer.Typer(
    help="Make, check and convert files of facts.",
    epilog="Example: memlayers facts check facts.jsonl",
    no_args_is_help=True,
)
app.add_typer(facts_app, name="facts")


@facts_app.command("make", epilog="Example: memlayers facts make sensor_calibration --n 300 --out facts.jsonl")
def facts_make(
    family: Annotated[str, typer.Argument(help="A synthetic family; `list` names them all.")],
    out: Annotated[Path | None, typer.Option(help="Where to write, a .jsonl file.")] = None,
    n: Annotated[int, typer.Option(help="How many facts.")] = 300,
    fakes: Annotated[Path | None, typer.Option(help="Also write as many same-shape fakes, never taught.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same facts on any machine.")] = 137,
) -> None:
    """Make facts of a synthetic family of known entropy."""
    from memlayers.data.fact_files import check_facts_target, write_facts
    from memlayers.data.synthetic import answer_bits, capacity, make_facts, make_fakes
    from memlayers.data.synthetic_families import FAMILIES

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


@facts_app.command("convert", epilog="Example: memlayers facts convert qa.csv facts.jsonl")
def facts_convert(
    source: Annotated[Path, typer.Argument(help="JSONL or CSV.")],
    target: Annotated[Path, typer.Argument(help="Where to write: .jsonl or .csv.")],
) -> None:
    """Convert between the formats that `teach` reads."""
    from memlayers.data.fact_files import read_facts, write_csv, write_facts

    facts = read_facts(source)
    if target.suffix == ".csv":
        write_csv(target, facts)
    else:
        write_facts(target, facts)
    print(f"{len(facts)} facts in {target}")


@facts_app.command("choices", epilog="Example: memlayers facts choices facts.jsonl --out choices.jsonl")
def facts_choices(
    source: Annotated[
        Path | None, typer.Argument(help="Facts with relations. [2,222 shipped public facts]", show_default=False)
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Where to write, a .jsonl file.")],
    seed: Annotated[int, typer.Option(help="Of the questions, the wrong answers, and their order.")] = 137,
) -> None:
    """Make multiple-choice questions for `lm-eval --choices`: three wrong answers from the same relation."""
    from memlayers.data.choices import choices_text, make_choices
    from memlayers.data.fact_files import check_facts_target, read_facts
    from memlayers.data.facts import PUBLIC_FACTS
    from memlayers.utils.files import atomic_write_text

    check_facts_target(out)
    made = make_choices(read_facts(PUBLIC_FACTS if source is None else source), seed)
    atomic_write_text(out, choices_text(made))
    print(f"{len(made)} questions in {out}")
