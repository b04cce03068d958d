"""How far must the backbone's own answer be believed, so that it is not one about an entity that nobody taught?

The threshold is settled on wrong answers that the bare backbone gives to up to 1,000 questions about the facts to be
taught (`gate.settle_thresholds`: all but a share of such answers stay below). Three ways, the last one shipped:
``confidence``, a quantile of the answers' confidence; ``belief``, of what is left of it where the answer was a wrong
guess to other facts (guesses.py); ``fitted belief``, the same from a fitted tail (`guesses.belief_exceeded_by`). For
several shares and numbers of facts: how many wrong answers about 500 other entities pass, and how many of 500 questions
that the backbone knows are still answered. Facts and entities are those of ``memlayers sweep`` (seeds
137, 7, 23; ways and share were chosen looking at these), and those of three seeds that nothing was chosen on (1, 2, 3).
No memory is taught, since the question is put to the bare backbone.

Example: ``python benchmarks/backbone_threshold.py``; writes backbone_threshold.json and .md to benchmarks/results/gate
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from memlayers.backbones import load_backbone
from memlayers.config.sections import AbstentionConfig
from memlayers.data.answers import exact_match
from memlayers.data.facts import Question
from memlayers.gating.abstention import guessing_questions
from memlayers.inference.confidence import belief, belief_exceeded_by, count_guesses, place_of
from memlayers.inference.generation import Generated, generate_answers
from memlayers.sweep.grid import Cell
from memlayers.sweep.run import read_materials
from memlayers.utils.environment import environment

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "gate"
SIZES, SHARES, WAYS = (100, 300, 1000), (0.02, 0.01, 0.006, 0.003), ("confidence", "belief", "fitted belief")
CHOSEN_ON, FRESH, ASKED = (137, 7, 23), (1, 2, 3), 500


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    backbone, tokenizer = load_backbone("pocket", "float32")
    materials = read_materials(ROOT.parent / "shared" / "data" / "entityquestions", None, {}, {})

    def ask(items: Sequence[Question]) -> tuple[list[Generated], Tensor]:
        """The answers, and which are wrong."""
        given = generate_answers(backbone, tokenizer, [item.question for item in items])
        pairs = zip(given, items, strict=True)
        return given, torch.tensor([not exact_match(answer.text, item.answers) for answer, item in pairs])

    runs: list[dict[str, Any]] = []
    for seed in (*CHOSEN_ON, *FRESH):
        others, others_wrong = ask(materials.split(Cell("addressed", True, 1000, seed))[1])
        known, _ = ask(random.Random(seed).sample(list(materials.known), ASKED))
        for size in SIZES:
            facts, _ = materials.split(Cell("addressed", True, size, seed))
            guessing = guessing_questions(facts, AbstentionConfig(), seed)
            given, wrong = ask([each for fact in guessing for each in fact])
            of_fact = iter(zip(given, wrong.tolist(), strict=True))
            by_fact = [[a for a, w in (next(of_fact) for _ in fact) if w] for fact in guessing]
            guesses = count_guesses([a.text for a in fact] for fact in by_fact).tolist()
            settled = [answer for fact in by_fact for answer in fact]
            for way in WAYS:
                heeded = None if way == "confidence" else guesses
                beliefs = scores(settled, heeded, own=1)
                of_others, of_known = (torch.tensor(scores(each, heeded)) for each in (others, known))
                for share in SHARES:
                    fitted = way == "fitted belief"
                    threshold = belief_exceeded_by(share, beliefs) if fitted else quantile(beliefs, 1 - share)
                    found = {
                        "fabricated": float(((of_others >= threshold) & others_wrong).float().mean()),
                        "answered": float((of_known >= threshold).float().mean()),
                    }
                    runs.append(
                        {"seed": seed, "facts": size, "way": way, "share": share, "threshold": threshold, **found}
                    )
            print(f"seed {seed}, {size} facts", flush=True)
    result = {"command": "python benchmarks/backbone_threshold.py", "environment": environment("cpu"), "runs": runs}
    (OUT / "backbone_threshold.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (OUT / "backbone_threshold.md").write_text(table(runs), encoding="utf-8")


def scores(given: Sequence[Generated], guesses: Sequence[int] | None, own: int = 0) -> list[float]:
    """How far each answer is believed, given the count of guesses by place, `own` of them its own; None: no matter."""
    counts = [0 if guesses is None else guesses[place_of(answer.text)] - own for answer in given]
    return [belief(answer.confidence, count) for answer, count in zip(given, counts, strict=True)]


def quantile(values: Sequence[float], share: float) -> float:
    """The plain quantile."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds that the way was chosen on, and over the fresh ones, with the worst seed."""
    lines = [
        "| facts | way | share | made up, chosen on | known answered | made up, fresh | known answered |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        for way in WAYS:
            for share in SHARES:
                cells = []
                for seeds in (CHOSEN_ON, FRESH):
                    those = [
                        run
                        for run in runs
                        if (run["facts"], run["way"], run["share"]) == (size, way, share) and run["seed"] in seeds
                    ]
                    made_up, answered = ([run[key] for run in those] for key in ("fabricated", "answered"))
                    cells.append(f"{fmean(made_up):.2%} (worst {max(made_up):.1%})")
                    cells.append(f"{fmean(answered):.1%} (worst {min(answered):.1%})")
                lines.append(f"| {size:,} | {way} | {share:.1%} | {' | '.join(cells)} |")
    return "\n".join(lines).replace("%", " %") + "\n"


if __name__ == "__main__":
    main()
