"""What a memory answers to its facts asked as people ask: docs/asked.md's splits, on pocket and on a real backbone *.

A backbone is taught some of the demo's facts with the default settings: pocket 500, another 100. Each subject gets an
alias of its own, a code name such as "Velvet Bluebird", entered before teaching. Then the facts are asked as `memlayers
eval --asked` does, beside 150 facts of the same relations about entities that neither pocket nor the demo knows. One
JSON a cell (backbone, facts, seed) in ``benchmarks/results/asked``, written whole or not at all; what is there is not
run again, and a memory that was taught already (``runs/asked``) is only asked, a half-taught one taught on. The table
is drawn from the files, one a backbone, with the mean of the seeds. Minutes a cell on pocket, some hours on SmolLM2.

Example: ``python -m benchmarks.asking.asked --backbone pocket --seed 137``
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import Any, Final

from benchmarks import common
from memlayers import TeachConfig, evaluate_asked
from memlayers.config.named_backbones import NAMED_BACKBONES
from memlayers.data.facts import Fact
from memlayers.evaluation.report import asked_table
from memlayers.evaluation.results import Results, read_results, write_results
from memlayers.utils.files import atomic_write_text

RESULTS, MEMORIES = common.RESULTS / "asked", common.WORK / "asked"
NEVER_TAUGHT = 150
FIRST: Final = (
    "Amber Brisk Cobalt Dusty Ember Frosty Gentle Hollow Indigo Jolly Keen Lunar Mellow Nimble Opal Plaid Quiet Rusty "
    "Saffron Tidal Umber Velvet Woven Yonder Zesty"
).split()
SECOND: Final = (
    "Anvil Bluebird Clover Dormouse Egret Ferret Gosling Heron Ibis Juniper Kettle Lantern Marmot Nutmeg Otter Pebble "
    "Quince Rudder Sparrow Thistle Urchin Vole Walnut Yarrow Zephyr"
).split()


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    arguments = common.drawing_parser(__doc__)
    add = arguments.add_argument
    add("--backbone", default="pocket", help=f"pocket, {', '.join(NAMED_BACKBONES)} [pocket]")
    add("--facts", type=int, help="of the demo's 500 [500 on pocket, otherwise 100]")
    add("--seed", type=int, default=common.SEED, help="of the facts, of teaching and of the questions [137]")
    add("--asked", type=int, help="at most so many questions a split, of taught and never-taught entities each [all]")
    add("--out", type=Path, default=RESULTS, help="folder of the cells and the table [benchmarks/results/asked]")
    return arguments


def run(options: argparse.Namespace) -> Results:
    """Teaches one cell, and asks."""
    config = TeachConfig().with_flags(backbone=options.backbone, seed=options.seed)
    facts = with_code_names(common.demo_facts(options.facts, options.seed), options.seed)
    memory = common.taught_memory(facts, MEMORIES / place(options).stem, config)
    never = common.new_facts(NEVER_TAUGHT, options.seed)
    results = evaluate_asked(memory, facts, never, seed=options.seed, limit=options.asked)
    told = {"facts": len(facts), "never_taught": len(never), "questions": options.asked}
    return replace(results, config={**told, **config.flags()})


def with_code_names(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """The facts, each subject with a made-up name of its own as an alias."""
    subjects = list(dict.fromkeys(fact.subject for fact in facts))
    names = random.Random(seed).sample([" ".join(pair) for pair in product(FIRST, SECOND)], len(subjects))
    aliases: dict[str, dict[str, Any]] = {
        subject: {"subject_aliases": (name,)} for subject, name in zip(subjects, names, strict=True)
    }
    return [replace(fact, **aliases[fact.subject]) for fact in facts]


def place(options: argparse.Namespace) -> Path:
    """The file of a cell."""
    return Path(options.out) / f"{options.backbone}-{options.facts}-{options.seed}.json"


def tables(cells: Sequence[Results]) -> str:
    """One table for each backbone and number of facts, with the mean of its seeds."""
    parts = []
    for name, group in groupby(sorted(cells, key=_name), key=_name):
        each = list(group)
        seeds = ", ".join(str(cell.config["seed"]) for cell in each)
        parts.append(
            f"{name}, seed{'s' if len(each) > 1 else ''} {seeds}:\n\n{common.markdown_table(*asked_table(each))}\n"
        )
    return "\n".join(parts)


def _name(cell: Results) -> str:
    return f"{cell.config['backbone']}, {cell.config['facts']} facts"


def main() -> None:
    """Runs the cell that is asked for where it is missing, then draws all there are."""
    options = parser().parse_args()
    if options.facts is None:
        options.facts = 500 if options.backbone == "pocket" else 100
    if not options.draw and not place(options).exists():
        write_results(place(options), run(options))
    cells = [read_results(path) for path in sorted(options.out.glob("*.json"))]
    if cells:
        atomic_write_text(options.out / "table.md", tables(cells))


if __name__ == "__main__":
    common.start(main)
