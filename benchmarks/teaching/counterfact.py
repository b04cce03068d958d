"""CounterFact on the pocket backbone: the memory overrides what the backbone says, elsewhere it says the same.

Teaches so many counterfactual edits (Meng et al. 2022, arXiv 2202.05262) at once: each prompt as it stands and in two
wrappers that any sentence fits into. Scored as docs/evaluation.md says, in free generation: efficacy (the prompt),
rephrase (the data's own rephrase prompt, never taught), locality (the locality prompt's answer is the backbone's, word
for word). Edits whose prompt or subject another one shares are left out.

Example: ``python -m benchmarks.teaching.counterfact --edits 500``; rows in ``benchmarks/results/counterfact.json``
"""

from __future__ import annotations

import json
import random

from benchmarks import common
from benchmarks.common import SEED
from memlayers import Fact, TeachConfig
from memlayers.evaluation.results import Results, Row, write_results
from memlayers.evaluation.statistics import mean_interval
from memlayers.inference.generation import answer_questions
from memlayers.tuner import without_memory
from memlayers.utils.environment import environment
from memlayers.utils.files import read_text

OUT = common.RESULTS / "counterfact.json"
EDITS = common.DATA / "counterfact" / "edits.jsonl"
WRAPPERS = ("{}", "Complete the sentence: {}", "How does this go on? {}")


def edits(number: int) -> list[dict[str, str]]:
    """The data's rows, at random, none sharing a prompt or a subject with one before it."""
    taken: set[str] = set()
    rows = []
    lines = read_text(EDITS).splitlines()
    for row in random.Random(SEED).sample([json.loads(line) for line in lines], len(lines)):
        texts = {row["prompt"].strip(), row["rephrase_prompt"].strip(), row["subject"]}
        if len(texts) == 3 and taken.isdisjoint(texts) and row["subject"] in row["prompt"]:
            taken |= texts
            rows.append(row)
    return rows[:number]


def main() -> None:
    """Teaches and scores."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--edits", type=int, default=500, help="how many are taught at once")
    rows = edits(parser.parse_args().edits)
    facts = [
        Fact(
            str(row["case_id"]), row["subject"], row["target_new"], tuple(w.format(row["prompt"]) for w in WRAPPERS),
            unseen_questions=(row["rephrase_prompt"],),
        )
        for row in rows
    ]  # fmt: skip
    config = TeachConfig().with_flags(seed=SEED)
    teacher = common.teach(facts, config, quiet=False)
    model, tokenizer = teacher.model, teacher.tokenizer
    found = []
    for metric, split, prompts in (
        ("recall", "taught", [row["prompt"] for row in rows]),
        ("recall", "unseen_phrasing", [row["rephrase_prompt"] for row in rows]),
        ("unchanged_answers", "locality_prompts", [row["locality_prompt"] for row in rows]),
    ):
        after = answer_questions(model, tokenizer, prompts)
        with without_memory(model):
            before = answer_questions(model, tokenizer, prompts)
        if metric == "recall":
            accepted = [[row["target_new"]] for row in rows]
            for each, answers in ((split, after), (f"backbone_{split}", before)):
                found.append(Row.from_estimate(metric, each, mean_interval(common.right(answers, accepted))))
        else:
            same = [now == then for now, then in zip(after, before, strict=True)]
            found.append(Row.from_estimate(metric, split, mean_interval(same)))
    report = teacher.report
    found.append(Row("exposures_per_fact", "all", report.exposures, len(facts)))
    write_results(OUT, Results(environment("cpu"), {"edits": len(facts), **config.flags()}, found, report.curve))
    for row in found:
        print(f"{row.metric:<20} {row.split:<28} {row.value:.4f}  n = {row.n}")


if __name__ == "__main__":
    common.start(main)
