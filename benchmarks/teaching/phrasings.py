"""What carries recall over to phrasings never taught: one experiment per name, one JSON each.

Teaches real EntityQuestions facts to the pocket backbone, one setting away from the default each time, and asks, in
free generation, all facts in a taught and in both never-taught phrasings, and 400 known ones; after each epoch the
never-taught phrasings of 200 facts. ``several-*``: 50 real subjects, five facts each (relations and answers dealt out
at random).

Example: ``python -m benchmarks.teaching.phrasings`` (everything that is missing; about an hour on one core), or
``python -m benchmarks.teaching.phrasings weight-2``; results, table and plot in ``benchmarks/results/phrasings``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks import common
from memlayers import Fact, TeachConfig
from memlayers.config.sections import QueryConfig
from memlayers.data.fact_files import public_questions
from memlayers.evaluation.formatting import percent
from memlayers.evaluation.statistics import mean_interval, paired_difference
from memlayers.inference.generation import answer_questions
from memlayers.teaching.teacher import Teacher
from memlayers.tuner import without_memory
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

RESULTS = common.RESULTS / "phrasings"
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
    "several-weight-2": {"several": True},
    "several-twelve-exposures": {"several": True, "exposures": 12},
    **{
        f"several-further{name}{seed}": {"several": True, "exposures": None, "learned": learned, "seed": number}
        for seed, number in (("", common.SEED), ("-seed-7", 7), ("-seed-23", 23))
        for name, learned in (("", True), ("-whitened", False))
    },
    "several-weight-1": {"several": True, "subject_weight": 1.0},
    "several-weight-0": {"several": True, "subject_weight": 0.0},
}


def main() -> None:
    """Run what is asked for, or what is missing; then the table and the plot of all there is."""
    parser = common.drawing_parser(__doc__)
    common.some_of(parser, EXPERIMENTS, "experiment")
    given = parser.parse_args()
    missing = [name for name in EXPERIMENTS if not (RESULTS / f"{name}.json").exists()]
    for name in given.names or (() if given.draw else missing):
        found = run(**EXPERIMENTS[name])
        common.write_json(RESULTS / f"{name}.json", {"experiment": name, **found})
        print(name, found["recall_unseen"]["value"], flush=True)
    places = {name: RESULTS / f"{name}.json" for name in EXPERIMENTS}
    results = {name: common.read_json(place) for name, place in places.items() if place.exists()}
    atomic_write_text(RESULTS / "table.md", table(results))
    draw(results)


def run(wordings: int | None = None, several: bool = False, learned: bool = False, **settings: Any) -> dict[str, Any]:
    """Teaches and asks."""
    config = replace(BASE.with_flags(**settings), queries=QueryConfig(learned=learned))
    facts = several_facts() if several else common.new_facts(FACTS)
    facts = [replace(fact, questions=fact.questions[:wordings]) for fact in facts]
    watched = random.Random(1).sample(facts, min(WATCHED, len(facts)))
    unseen: list[float] = []

    def watch(model: Any, tokenizer: Any) -> tuple[None, None]:
        unseen.append(sum(map(sum, recalled(model, tokenizer, watched, True))) / 2 / len(watched))
        return None, None

    teacher = common.taught(Teacher(facts, config, watch=watch, quiet=True))
    model, tokenizer = teacher.model, teacher.tokenizer
    known = random.Random(3).sample(public_questions(), KNOWN)
    questions, accepted = [each.question for each in known], [each.answers for each in known]
    with without_memory(model):
        before = common.right(answer_questions(model, tokenizer, questions), accepted)
    after = common.right(answer_questions(model, tokenizer, questions), accepted)
    taught = recalled(model, tokenizer, facts, False)
    never = recalled(model, tokenizer, facts, True)
    return {
        "facts": len(facts),
        "config": config.flags() | {"wordings": len(facts[0].questions), "learned_queries": learned},
        "environment": environment("cpu"),
        "recall_taught": mean_interval([sum(each) / len(each) for each in taught])._asdict(),
        "recall_unseen": mean_interval([sum(each) / len(each) for each in never])._asdict(),
        "known_facts_change": paired_difference(before, after)._asdict(),
        "curve": [
            {"exposures": point.exposures, "taught": point.recall, "unseen": asked}
            for point, asked in zip(teacher.report.curve, unseen, strict=True)
        ],
    }


def recalled(model: Any, tokenizer: Any, facts: Sequence[Fact], unseen: bool) -> list[list[bool]]:
    """Per fact whether it is answered: in one taught phrasing, or in all that were never taught."""
    asked = [
        fact.unseen_questions if unseen else (fact.questions[i * 3 % len(fact.questions)],)
        for i, fact in enumerate(facts)
    ]
    answers = answer_questions(model, tokenizer, [question for each in asked for question in each])
    accepted = [fact.answers for fact, each in zip(facts, asked, strict=True) for _ in each]
    right = iter(common.right(answers, accepted))
    return [[next(right) for _ in each] for each in asked]


def several_facts() -> list[Fact]:
    """50 subjects with five facts each."""
    facts, rng, phrasings = common.new_facts(FACTS), random.Random(9), common.phrasings()
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
    head = [
        "experiment",
        "facts",
        "exposures",
        "taught",
        "never taught phrasings",
        "after 2 exposures",
        "known, points",
    ]
    rows = []
    for name, found in results.items():
        figures = (found["recall_taught"], found["recall_unseen"])
        shown = [common.with_interval(percent, each["value"], each["ci_low"], each["ci_high"]) for each in figures]
        second = next(point["unseen"] for point in found["curve"] if point["exposures"] == 2)
        cells = [name, found["facts"], f"{found['curve'][-1]['exposures']:g}", *shown, percent(second)]
        rows.append([*cells, f"{100 * found['known_facts_change']['value']:+.1f}"])
    return f"{common.markdown_table(head, rows)}\n\n![recall against exposures](curves.png)\n"


def draw(results: dict[str, dict[str, Any]]) -> None:
    """Recall on never-taught phrasings against exposures, by the weight of the subject."""
    pyplot = common.pyplot()
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
    common.start(main)
