"""What carries recall over to phrasings never taught: one experiment per name, one JSON each.

Teaches real EntityQuestions facts to the pocket backbone, one setting away from the default each time, and asks, in
free generation, all facts in a taught and in both never-taught phrasings, and 400 known ones; after each pass the
never-taught phrasings of 200 facts. ``several-*``: 50 real subjects, five facts each (relations and answers dealt out
at random).

Example: ``python benchmarks/phrasings.py`` (everything that is missing; about an hour on one core), or
``python benchmarks/phrasings.py weight-2 weight-0``; results, table and plot in ``benchmarks/results/phrasings``.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gate import entity_questions
from learned_query import learned_query

from memlayers import Fact, TeachConfig, teach_facts
from memlayers.backbones import POCKET
from memlayers.data.answers import exact_match
from memlayers.data.fact_files import read_facts
from memlayers.demo import known_questions
from memlayers.evaluation.statistics import mean_interval, paired_difference
from memlayers.inference.generation import answer_questions
from memlayers.tuner.handle import without_memory
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

RESULTS = Path(__file__).resolve().parent / "results" / "phrasings"
FACTS, KNOWN, WATCHED = 1000, 400, 200
BASE = TeachConfig().with_flags(exposures=5, gate_steps=500, stop_at_recall=2.0, checkpoint_seconds=3600)
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "weight-2": {},
    "weight-0": {"subject_weight": 0.0},
    "weight-1": {"subject_weight": 1.0},
    "weight-4": {"subject_weight": 4.0},
    "rate-0.2": {"value_rate": 0.2},
    "rate-0.06": {"value_rate": 0.06},
    "earlier-layers": {"layers": [0, 2, 4]},
    "four-heads": {"heads": 4},
    "65536-slots": {"sub_keys": 256},
    "three-wordings": {"wordings": 3},
    "learned-query": {"learned_rank": 32},
    "learned-query-weight-0": {"learned_rank": 32, "subject_weight": 0.0},
    "several-weight-2": {"several": True},
    "several-twelve-exposures": {"several": True, "exposures": 12},
    "several-two-rounds": {"several": True, "exposures": None},
    "several-weight-1": {"several": True, "subject_weight": 1.0},
    "several-weight-0": {"several": True, "subject_weight": 0.0},
    "several-learned-query": {"several": True, "learned_rank": 32, "subject_weight": 1.0},
}


def main(names: Sequence[str]) -> None:
    """Run what is asked for, or what is missing; then the table and the plot of all there is."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names or [name for name in EXPERIMENTS if not (RESULTS / f"{name}.json").exists()]:
        found = run(**EXPERIMENTS[name])
        atomic_write_text(RESULTS / f"{name}.json", json.dumps({"experiment": name, **found}, indent=1) + "\n")
        print(name, found["recall_unseen"]["value"], flush=True)
    results = {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in EXPERIMENTS
        if (RESULTS / f"{name}.json").exists()
    }
    atomic_write_text(RESULTS / "table.md", table(results))
    draw(results)


def run(
    wordings: int | None = None, several: bool = False, learned_rank: int | None = None, **settings: Any
) -> dict[str, Any]:
    """Teaches and asks."""
    config = BASE.with_flags(**settings)
    facts = several_facts() if several else some_facts()
    facts = [replace(fact, questions=fact.questions[:wordings]) for fact in facts]
    watched = random.Random(1).sample(facts, min(WATCHED, len(facts)))
    unseen: list[float] = []

    def watch(model: Any, tokenizer: Any) -> tuple[None, None]:
        unseen.append(sum(map(sum, recalled(model, tokenizer, watched, True))) / 2 / len(watched))
        return None, None

    with tempfile.TemporaryDirectory() as folder, learned_query(facts, learned_rank) as agreement:
        memory = teach_facts(facts, Path(folder) / "memory", config, watch=watch, quiet=True)
    known = random.Random(3).sample(known_questions(), KNOWN)
    scores = []
    for after in (False, True):
        questions = [each.question for each in known]
        if after:
            answers = answer_questions(memory.model, memory.tokenizer, questions)
        else:
            with without_memory(memory.model):
                answers = answer_questions(memory.model, memory.tokenizer, questions)
        scores.append([exact_match(answer, each.answers) for answer, each in zip(answers, known, strict=True)])
    taught = recalled(memory.model, memory.tokenizer, facts, False)
    never = recalled(memory.model, memory.tokenizer, facts, True)
    return {
        "facts": len(facts),
        "config": asdict(config) | {"wordings": len(facts[0].questions), "learned_rank": learned_rank},
        "environment": environment("cpu"),
        "wordings_find_each_other": agreement,
        "recall_taught": mean_interval([sum(each) / len(each) for each in taught])._asdict(),
        "recall_unseen": mean_interval([sum(each) / len(each) for each in never])._asdict(),
        "known_facts_change": paired_difference(scores[0], scores[1])._asdict(),
        "curve": [
            {"exposures": point.exposures, "taught": point.recall, "unseen": asked}
            for point, asked in zip(memory.report.curve, unseen, strict=True)
        ],
    }


def recalled(model: Any, tokenizer: Any, facts: Sequence[Fact], unseen: bool) -> list[list[bool]]:
    """Per fact whether it is answered: in one taught phrasing, or in all that were never taught."""
    asked = [
        fact.unseen_questions if unseen else (fact.questions[i * 3 % len(fact.questions)],)
        for i, fact in enumerate(facts)
    ]
    answers = iter(answer_questions(model, tokenizer, [question for each in asked for question in each]))
    return [[exact_match(next(answers), fact.answers) for _ in each] for fact, each in zip(facts, asked, strict=True)]


def some_facts() -> list[Fact]:
    """1,000 real facts about entities that neither the backbone nor the demo knows."""
    return entity_questions(
        {f.subject for name in ("known", "demo") for f in read_facts(POCKET / f"{name}.jsonl")}, FACTS
    )


def several_facts() -> list[Fact]:
    """50 subjects with five facts each."""
    facts, rng = some_facts(), random.Random(9)
    phrasings = json.loads((POCKET / "phrasings.json").read_text(encoding="utf-8"))
    answers: dict[str, list[str]] = {}
    for fact in facts:
        answers.setdefault(fact.id.split("-")[0], []).append(fact.answer)
    return [
        Fact(
            f"{relation}-{subject}", subject, rng.choice(answers[relation]),
            tuple(text.format(s=subject) for text in phrasings[relation]["taught"]), phrasings[relation]["label"],
            tuple(text.format(s=subject) for text in phrasings[relation]["unseen"]),
        )
        for subject in rng.sample([fact.subject for fact in facts], 50)
        for relation in rng.sample(sorted(answers), 5)
    ]  # fmt: skip


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line per experiment."""
    lines = ["| experiment | facts | exposures | taught | never taught phrasings | after 2 exposures | known, points |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, found in results.items():
        taught, unseen, known = (found[key] for key in ("recall_taught", "recall_unseen", "known_facts_change"))
        shown = [f"{each['value']:.1%} ({each['ci_low']:.1%} to {each['ci_high']:.1%})" for each in (taught, unseen)]
        second = next(point["unseen"] for point in found["curve"] if point["exposures"] == 2)
        cells = [name, found["facts"], f"{found['curve'][-1]['exposures']:g}", *shown, f"{second:.1%}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {100 * known['value']:+.1f} |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, dict[str, Any]]) -> None:
    """Recall on never-taught phrasings against exposures, by the weight of the subject."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for axis, prefix, title in (
        (axes[0], "weight-", "1,000 subjects"),
        (axes[1], "several-", "50 subjects, 5 facts each"),
    ):
        for name, found in results.items():
            if name.startswith(prefix):
                points = [[point[key] for point in found["curve"]] for key in ("exposures", "unseen")]
                axis.plot(*points, marker="o", label=name.removeprefix("several-"))
        axis.set_title(title)
        axis.set_xlabel("exposures per fact")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("recall, phrasings never taught")
    figure.savefig(RESULTS / "curves.png", dpi=130)


if __name__ == "__main__":
    main(sys.argv[1:])
