"""How far must the backbone's own answer be believed, so that it is not one about an entity that nobody taught?

The threshold is settled on wrong answers that the bare backbone gives about 1,000 facts to be taught
(`gate.settle_thresholds`: all but a share of them stay below), by the answer's confidence alone, and by what is left of
it where the answer was such a wrong guess to others (guesses.py; shipped). For several shares: how many wrong answers
about 500 other entities pass, and how many of 500 questions that the backbone knows are still answered. Facts and
entities are those of ``memlayers eval --protocol full`` at 1,000 facts (seeds 137, 7, 23; the shipped share was chosen
looking at these), and those of three seeds that nothing was chosen on (1, 2, 3). No memory is taught, since the
question is put to the bare backbone.

Example: ``python benchmarks/backbone_threshold.py``; writes benchmarks/results/gate/backbone_threshold.json
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memlayers.backbones import load_backbone
from memlayers.facts import Question
from memlayers.gate import guessing_questions
from memlayers.generate import Generated, generate_answers
from memlayers.guesses import belief, count_guesses, place_of
from memlayers.metrics import exact_match, mean_interval
from memlayers.protocol.grid import Cell
from memlayers.protocol.run import read_materials
from memlayers.results import Row, environment

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "gate" / "backbone_threshold.json"
SHARES = (0.02, 0.01, 0.005, 0.002)
SEEDS, ASKED = (137, 7, 23, 1, 2, 3), 500


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    backbone, tokenizer = load_backbone("pocket", "float32")
    materials = read_materials(ROOT.parent / "shared" / "data" / "entityquestions", None, {}, {})

    def ask(items: Sequence[Question]) -> tuple[list[Generated], Tensor]:
        given = generate_answers(backbone, tokenizer, [item.question for item in items])
        pairs = zip(given, items, strict=True)
        return given, torch.tensor([not exact_match(answer.text, item.answers) for answer, item in pairs])

    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        facts, untaught = materials.split(Cell("addressed", True, 1000, seed))
        of_one_fact = guessing_questions(facts, seed)
        assert all(len(each) == 1 for each in of_one_fact)  # so that answers can be counted one by one below
        settled, settled_wrong = ask([each for fact in of_one_fact for each in fact])
        others, others_wrong = ask(untaught)
        known, _ = ask(random.Random(seed).sample(list(materials.known), ASKED))
        guesses = count_guesses([[a.text] for a, w in zip(settled, settled_wrong.tolist(), strict=True) if w]).tolist()
        for score in ("confidence", "belief"):
            heeded = guesses if score == "belief" else None
            wrong = scores([a for a, w in zip(settled, settled_wrong.tolist(), strict=True) if w], heeded, own=1)
            for share in SHARES:
                threshold = float(wrong.quantile(1 - share))
                fabricated = (scores(others, heeded) >= threshold) & others_wrong
                answered = scores(known, heeded) >= threshold
                rows = [
                    Row.from_estimate("fabricated", "untaught_entities", mean_interval(fabricated.tolist(), seed)),
                    Row.from_estimate("answered", "known", mean_interval(answered.tolist(), seed)),
                ]
                told = {"seed": seed, "score": score, "share": share, "threshold": threshold}
                runs.append({**told, "rows": [asdict(row) for row in rows]})
                print(*told.values(), *(f"{row.metric} {row.value:.3f}" for row in rows), flush=True)
    result = {"command": "python benchmarks/backbone_threshold.py", "environment": environment("cpu"), "runs": runs}
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def scores(given: Sequence[Generated], guesses: Sequence[int] | None, own: int = 0) -> Tensor:
    """How far each answer is believed, given the count of guesses by place, `own` of them its own; None: no matter."""
    counts = [0 if guesses is None else guesses[place_of(answer.text)] - own for answer in given]
    return torch.tensor([belief(answer.confidence, count) for answer, count in zip(given, counts, strict=True)])


if __name__ == "__main__":
    main()
