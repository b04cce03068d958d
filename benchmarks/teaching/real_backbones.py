"""What a memory learns on a real backbone, what it leaves alone, and what that costs.

A backbone is taught some of the demo's facts with the default settings, or those given, then scored beside itself
without the memory: recall by strict match, containment and token F1; the shipped public facts that it answers itself
(containment); TriviaQA and WikiText-2 *; questions of the facts' kind about what was never taught, and what is made up
to them at the shipped thresholds. One JSON a cell (backbone, facts, seed) in ``benchmarks/results/real``, written whole
or not at all; what is there is not run again, and a memory that was taught already (``runs/real``) is only scored, a
half-taught one taught on. The table is drawn from the files, with the mean of the seeds.

Example: ``python -m benchmarks.teaching.real_backbones --backbone smollm2 --facts 300 --seed 137``
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

from benchmarks import common
from memlayers.backbones import POCKET
from memlayers.config.named_backbones import NAMED_BACKBONES
from memlayers.config.teach import read_teach_config
from memlayers.data.fact_files import public_questions, read_questions
from memlayers.data.facts import Question
from memlayers.editing.memory import Memory
from memlayers.evaluation.evaluate import cost_rows, score_model
from memlayers.evaluation.formatting import format_value, percent
from memlayers.evaluation.known import known_text, questions_known
from memlayers.evaluation.plots import COLOURS, to_png
from memlayers.evaluation.results import Results, read_results, write_results
from memlayers.sweep.page import new_figure
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_bytes, atomic_write_text, read_text

RESULTS, MEMORIES = common.RESULTS / "real", common.WORK / "real"
COLUMNS = (
    ("recall, taught wordings", "recall", "taught"),
    ("recall, never taught", "recall", "unseen_phrasing"),
    ("the same, containment", "recall_containment", "unseen_phrasing"),
    ("bare backbone, containment", "recall_containment", "backbone"),
    ("known facts, containment, change", "known_facts_containment", "change"),
    ("known facts, same words", "unchanged_answers", "known"),
    ("TriviaQA, containment", "qa_containment", "backbone"),
    ("TriviaQA, change", "qa_containment", "change"),
    ("TriviaQA, same words", "unchanged_answers", "qa"),
    ("perplexity", "perplexity", "backbone"),
    ("perplexity, change", "perplexity_change", "general_text"),
    ("identical logits", "identical_logits", "general_text"),
    ("never-taught neighbours, same words", "unchanged_answers", "untaught_entities"),
    ("made up", "fabricated", "untaught_entities"),
    ("made up by the memory", "fabricated", "untaught_entities_by_memory"),
    ("known questions answered", "answered", "known"),
    ("taught, never-taught wording, from memory", "answered", "unseen_phrasing"),
    ("exposures", "exposures_per_fact", "all"),
)

HEADLINE = (  # what the README shows
    ("recall of the bare backbone", "recall", "backbone"),
    ("recall, taught wordings", "recall", "taught"),
    ("recall, wordings never taught", "recall", "unseen_phrasing"),
    ("known facts answered word for word as before", "unchanged_answers", "known"),
    ("TriviaQA answered word for word as before", "unchanged_answers", "qa"),
    ("WikiText-2 perplexity, change", "perplexity_change", "general_text"),
    ("WikiText-2 tokens with bit-identical logits", "identical_logits", "general_text"),
)
BARS = (  # the first is where the curve begins
    ("bare backbone\nrecalls", "recall", "backbone"),
    ("taught\nwordings", "recall", "taught"),
    ("wordings\nnever taught", "recall", "unseen_phrasing"),
    ("known facts,\nsame words", "unchanged_answers", "known"),
    ("TriviaQA,\nsame words", "unchanged_answers", "qa"),
    ("WikiText-2,\nsame logits", "identical_logits", "general_text"),
)

Item = TypeVar("Item")


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    arguments = common.drawing_parser(__doc__)
    add = arguments.add_argument
    add("--backbone", default="smollm2", help=f"{', '.join(NAMED_BACKBONES)}, or pocket [smollm2]")
    add("--facts", type=int, default=300, help="of the demo's 500 [300]")
    add("--seed", type=int, default=common.SEED, help="of the choice of facts, and of teaching [137]")
    add("--config", type=Path, help="YAML file of settings to teach with; the defaults otherwise")
    add("--label", default="", help="of other settings than the defaults, in the file's name")
    add("--qa", type=Path, default=common.DATA / "triviaqa" / "test.jsonl", help="questions and answers, if there")
    add("--text", type=Path, default=common.DATA / "wikitext2" / "test.txt", help="running text, if there")
    add("--asked", type=int, default=60, help="at most so many facts, known facts, QA and neighbours, each [60]")
    add("--public", type=int, default=500, help="public facts asked, once a backbone, for those that it knows [500]")
    add("--tokens", type=int, default=10_240, help="of the text [10,240]")
    return arguments


def place(options: argparse.Namespace) -> Path:
    """The file of a cell."""
    label = f"-{options.label}" if options.label else ""
    return RESULTS / f"{options.backbone}-{options.facts}{label}-{options.seed}.json"


def run(options: argparse.Namespace) -> Results:
    """Teaches and scores one cell."""
    config = read_teach_config(options.config, {"backbone": options.backbone, "seed": options.seed})
    facts = common.demo_facts(options.facts, options.seed)
    memory = common.taught_memory(facts, MEMORIES / place(options).stem, config)
    began, rng = time.process_time(), random.Random(options.seed)

    def some(items: Sequence[Item]) -> list[Item]:
        return rng.sample(list(items), min(options.asked, len(items)))

    rows, examples = score_model(
        memory.model, memory.tokenizer,
        facts=some(facts), phrasings=1, known=some(known(memory, options)),
        qa=some(read_questions(options.qa)) if options.qa.is_file() else (),
        untaught=some(read_questions(POCKET / "untaught.jsonl")),
        text=read_text(options.text) if options.text.is_file() else None,
        max_text_tokens=options.tokens, seed=options.seed,
    )  # fmt: skip
    report, device = memory.report, str(memory.model.device)
    rows += cost_rows(report, len(facts), device)
    cpu = sum(stage.cpu_seconds for stage in report.stages.values())
    told = {
        "facts": len(facts),
        "label": options.label,
        "asked": options.asked,
        "cpu_seconds": cpu,
        "cpu_over_steps": cpu / report.stages["steps"].cpu_seconds,
        "scoring_cpu_seconds": time.process_time() - began,
        "relations": None if report.relations is None else asdict(report.relations),
        "thresholds": report.thresholds,
        "stages": {name: asdict(stage) for name, stage in report.stages.items()},
    }
    return Results(environment(device), {**told, **config.flags()}, rows, report.curve, examples)


def known(memory: Memory, options: argparse.Namespace) -> list[Question]:
    """The public facts that the backbone answers by itself, the same for all of its cells; asked once."""
    path = MEMORIES / f"known-{options.backbone}-{options.public}.jsonl"
    if not path.exists():
        questions = random.Random(common.SEED).sample(public_questions(), options.public)
        atomic_write_text(path, known_text(questions_known(memory.model, memory.tokenizer, questions)))
    return read_questions(path)


def table(cells: Sequence[Results]) -> str:
    """The figures of all cells, those of one backbone, number of facts and label side by side over their seeds."""
    groups: dict[tuple[str, int, str], list[Results]] = defaultdict(list)
    for cell in cells:
        groups[cell.config["backbone"], cell.config["facts"], cell.config["label"]].append(cell)
    rows = [[name, *(_of_rows(each, metric, split) for each in groups.values())] for name, metric, split in COLUMNS]
    told: tuple[tuple[str, Callable[[dict[str, Any]], float | None], Callable[[float], str]], ...] = (
        ("questions for another relation accepted", lambda of: (of["relations"] or {}).get("accepted_others"), percent),
        ("CPU minutes of teaching", lambda of: of["cpu_seconds"] / 60, "{:.1f}".format),
        ("CPU time of teaching over that of its steps", lambda of: of["cpu_over_steps"], "{:.2f}".format),
    )
    for name, figure, shown in told:
        found = [[value for cell in each if (value := figure(cell.config)) is not None] for each in groups.values()]
        rows.append([name, *(shown(mean(values)) if values else "" for values in found)])
    head = [f"{name}, {facts} facts{label and f', {label}'}" for name, facts, label in groups]
    seeds = [", ".join(str(cell.config["seed"]) for cell in each) for each in groups.values()]
    note = (
        "Mean of the seeds; in brackets from the lowest to the highest end of their 95 % intervals, and the items of "
        "each seed. Known facts are public ones that the bare backbone answers itself, by containment. Changes are "
        "memory minus backbone, in points of a share, or per cent of a perplexity. *Made up* is the share of questions "
        "about what was never taught that get an answer, from memory or backbone, and a wrong one, at the shipped "
        "thresholds."
    )
    return f"{note}\n\n{common.markdown_table(['', *head], [['seeds', *seeds], *rows])}\n"


def headline(cells: Sequence[Results]) -> str:
    """The README's table: the default settings alone, one column a backbone and number of facts."""
    groups = _by_backbone(cells)
    minutes = [mean(cell.config["cpu_seconds"] for cell in each) / 60 for each in groups.values()]
    rows = [[name, *(_of_rows(each, metric, split) for each in groups.values())] for name, metric, split in HEADLINE]
    rows.append(["CPU minutes of teaching, one core", *(f"{each:.0f}" for each in minutes)])
    heads = [f"{name}, {len(each)} seed{'s' if len(each) > 1 else ''}" for name, each in groups.items()]
    return common.markdown_table(["", *heads], rows) + "\n"


def _by_backbone(cells: Sequence[Results]) -> dict[str, list[Results]]:
    """The cells of default settings on real backbones, by the backbone's name and the number of facts."""
    groups: dict[str, list[Results]] = {}
    for name, backbone in NAMED_BACKBONES.items():
        for cell in cells:
            if cell.config["backbone"] == name and not cell.config["label"]:
                groups.setdefault(f"{backbone.model}, {cell.config['facts']} facts", []).append(cell)
    return groups


def _of_rows(cells: Sequence[Results], metric: str, split: str) -> str:
    found = [row for cell in cells if (row := cell.find(metric, split)) is not None]
    if not found:
        return ""
    lows, highs = ([end for row in found if (end := getattr(row, name)) is not None] for name in ("ci_low", "ci_high"))
    shown = common.with_interval(
        partial(format_value, metric), mean(row.value for row in found), min(lows, default=None),
        max(highs, default=None),
    )  # fmt: skip
    numbers = sorted({row.n for row in found})
    return f"{shown}, n {'-'.join(f'{n:,}' for n in dict.fromkeys((numbers[0], numbers[-1])))}" if lows else shown


def picture(cells: Sequence[Results]) -> bytes:
    """Recall after each exposure, and what is recalled, kept and left alone at the end; the means of the seeds, PNG."""
    groups = _by_backbone(cells)
    figure = new_figure(11, 3.8)
    curve, bars = figure.subplots(1, 2, width_ratios=(1, 1.5))
    for number, (name, each) in enumerate(groups.items()):
        colour = COLOURS[number % len(COLOURS)]
        last = min(len(cell.curve) for cell in each)
        values = [mean(cell.curve[i].recall for cell in each) for i in range(last)]
        shown = [[row for cell in each if (row := cell.find(metric, split))] for _, metric, split in BARS]
        heights = [100 * mean(row.value for row in rows) if rows else 0.0 for rows in shown]
        curve.plot(range(last + 1), [heights[0], *(100 * value for value in values)], "o-", color=colour, label=name)
        lows, highs = (
            [100 * pick(getattr(row, end) for row in rows if getattr(row, end) is not None) if rows else 0.0
             for rows in shown]
            for pick, end in ((min, "ci_low"), (max, "ci_high"))
        )  # fmt: skip
        error = [[h - low for h, low in zip(heights, lows, strict=True)],
                 [high - h for h, high in zip(heights, highs, strict=True)]]  # fmt: skip
        at = [i + 0.8 * (number - (len(groups) - 1) / 2) / len(groups) for i in range(len(BARS))]
        bars.bar(at, heights, 0.75 / len(groups), yerr=error, color=colour, ecolor="#767676", capsize=2)
    curve.set_title("Recall of a sample, taught wordings, %", loc="left", fontsize=10)
    curve.set_xlabel("exposures", fontsize=9)
    bars.set_title("At the end, %; bars: mean of the seeds, whiskers: their 95 % intervals", loc="left", fontsize=10)
    bars.set_xticks(range(len(BARS)), [label for label, *_ in BARS], fontsize=8)
    for axes in (curve, bars):
        axes.set_ylim(0, 105)
        axes.grid(axis="y", color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return to_png(figure)


def main() -> None:
    """Runs the cell that is asked for where it is missing, then draws all there are."""
    options = parser().parse_args()
    if not options.draw and not place(options).exists():
        write_results(place(options), run(options))
    cells = [read_results(path) for path in sorted(RESULTS.glob("*.json"))]
    if cells:
        atomic_write_text(RESULTS / "table.md", "# Real backbones\n\n" + table(cells))
        atomic_write_text(RESULTS / "headline.md", headline(cells))
        atomic_write_bytes(RESULTS / "recall.png", picture(cells))


if __name__ == "__main__":
    common.start(main)
