"""CounterFact on the pocket backbone: the memory overrides what the backbone says, elsewhere it says the same.

Teaches so many counterfactual edits (Meng et al. 2022, arXiv 2202.05262) at once: each prompt as it stands and in two
wrappers that any sentence fits into. Scored as design/evaluation.md asks, in free generation: efficacy (the prompt),
rephrase (the data's own rephrase prompt, never taught), locality (the locality prompt's answer is the backbone's, word
for word). Edits whose prompt or subject another one shares are left out.

Example: ``python benchmarks/counterfact.py --edits 500``; typed rows in ``benchmarks/results/counterfact.json``
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path

from memlayers import Fact, TeachConfig, teach_facts
from memlayers.data.answers import exact_match
from memlayers.evaluation.results import Results, Row, write_results
from memlayers.evaluation.statistics import mean_interval
from memlayers.inference.generation import answer_questions
from memlayers.tuner.handle import without_memory
from memlayers.utils.environment import environment

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "counterfact.json"
EDITS = ROOT.parent / "shared" / "data" / "counterfact" / "edits.jsonl"
WRAPPERS = ("{}", "Complete the sentence: {}", "How does this go on? {}")
SEED = 137


def main() -> None:
    """Teaches and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=500)
    number = parser.parse_args().edits
    taken: set[str] = set()
    rows = []
    lines = EDITS.read_text(encoding="utf-8").splitlines()
    for row in random.Random(SEED).sample([json.loads(line) for line in lines], len(lines)):
        texts = {row["prompt"].strip(), row["rephrase_prompt"].strip(), row["subject"]}
        if len(texts) == 3 and taken.isdisjoint(texts) and row["subject"] in row["prompt"]:
            taken |= texts
            rows.append(row)
    rows = rows[:number]
    facts = [
        Fact(
            str(row["case_id"]), row["subject"], row["target_new"], tuple(w.format(row["prompt"]) for w in WRAPPERS),
            unseen_questions=(row["rephrase_prompt"],),
        )
        for row in rows
    ]  # fmt: skip
    config = TeachConfig().with_flags(seed=SEED)
    with tempfile.TemporaryDirectory() as folder:
        taught = teach_facts(facts, Path(folder) / "memory", config)
    model, tokenizer = taught.model, taught.tokenizer
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
            new = [exact_match(answer, [row["target_new"]]) for answer, row in zip(after, rows, strict=True)]
            old = [exact_match(answer, [row["target_new"]]) for answer, row in zip(before, rows, strict=True)]
            found.append(Row.from_estimate(metric, split, mean_interval(new)))
            found.append(Row.from_estimate(metric, f"backbone_{split}", mean_interval(old)))
        else:
            same = [now == then for now, then in zip(after, before, strict=True)]
            found.append(Row.from_estimate(metric, split, mean_interval(same)))
    report = taught.report
    found.append(Row("exposures_per_fact", "all", report.exposures, len(facts)))
    write_results(OUT, Results(environment("cpu"), {"edits": len(facts), **asdict(config)}, found, report.curve))
    for row in found:
        print(f"{row.metric:<20} {row.split:<28} {row.value:.4f}  n = {row.n}")


if __name__ == "__main__":
    main()
