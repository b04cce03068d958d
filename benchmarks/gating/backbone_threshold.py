"""How confident must the backbone be of its own answer, so that it is not one about an entity that nobody taught?

The threshold is settled on wrong answers that the bare backbone gives to up to 1,000 questions about the facts to be
taught (`gating.abstention`: all but a share of such answers stay below). Three ways, the last one shipped:
``confidence``, a quantile of the answers' confidence, which is that of their least likely token; ``calibrated``, one
of the calibrated confidence, which takes into account to how many other facts an answer was a wrong one;
``calibrated, fitted tail``, the same from a fitted tail. For several shares and numbers of facts: how many wrong
answers about 500 other entities pass, and how many of 500 questions that the backbone knows are still answered. Facts
and entities are those of ``memlayers sweep`` (seeds 137, 7, 23; ways and share were chosen looking at these), and
those of three seeds that nothing was chosen on (1, 2, 3). No memory is taught, since the question is put to the bare
backbone.

Example: ``python -m benchmarks.gating.backbone_threshold``; results and table in ``benchmarks/results/gate``
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from memlayers.backbones import load_backbone
from memlayers.config.sections import AbstentionConfig
from memlayers.data.facts import Question
from memlayers.gating.abstention import guessing_questions
from memlayers.inference.confidence import (
    calibrated_confidence,
    confidence_exceeded_by,
    count_wrong_answers,
    prior_entry,
)
from memlayers.inference.generation import Generated, generate_answers
from memlayers.sweep.grid import Cell
from memlayers.sweep.run import read_materials
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

OUT = common.RESULTS / "gate"
SIZES, SHARES = (100, 300, 1000), (0.02, 0.01, 0.006, 0.003)
WAYS = {"confidence": "confidence", "belief": "calibrated", "fitted belief": "calibrated, fitted tail"}
"""Each way by its name in the results file, and as the table has it."""
CHOSEN_ON, FRESH, ASKED = (137, 7, 23), (1, 2, 3), 500


def main() -> None:
    """Measure and write; then the table."""
    place = OUT / "backbone_threshold.json"
    if not common.drawing_parser(__doc__).parse_args().draw:
        torch.set_num_threads(1)
        command = "python -m benchmarks.gating.backbone_threshold"
        common.write_json(place, {"command": command, "environment": environment("cpu"), "runs": measure()})
    atomic_write_text(OUT / "backbone_threshold.md", table(common.read_json(place)["runs"]))


def measure() -> list[dict[str, Any]]:
    """One entry per seed, number of facts, way and share."""
    backbone, tokenizer = load_backbone("pocket", "float32")
    materials = read_materials(common.ENTITY_QUESTIONS, None, {}, {})

    def ask(items: Sequence[Question]) -> tuple[list[Generated], Tensor]:
        """The answers, and which are wrong."""
        given = generate_answers(backbone, tokenizer, [item.question for item in items])
        right = common.right([answer.text for answer in given], [item.answers for item in items])
        return given, ~torch.tensor(right)

    runs: list[dict[str, Any]] = []
    for seed in (*CHOSEN_ON, *FRESH):
        others, others_wrong = ask(materials.split(Cell("addressed", True, 1000, seed))[1])
        known, _ = ask(random.Random(seed).sample(list(materials.known), ASKED))
        for size in SIZES:
            facts, _ = materials.split(Cell("addressed", True, size, seed))
            asked = guessing_questions(facts, AbstentionConfig(), seed)
            given, wrong = ask([each for fact in asked for each in fact])
            of_fact = iter(zip(given, wrong.tolist(), strict=True))
            by_fact = [[a for a, w in (next(of_fact) for _ in fact) if w] for fact in asked]
            counts = count_wrong_answers([a.text for a in fact] for fact in by_fact).tolist()
            settled = [answer for fact in by_fact for answer in fact]
            for way in WAYS:
                heeded = None if way == "confidence" else counts
                calibrated = scores(settled, heeded, own=1)
                of_others, of_known = (torch.tensor(scores(each, heeded)) for each in (others, known))
                for share in SHARES:
                    fitted = way == "fitted belief"
                    threshold = confidence_exceeded_by(share, calibrated) if fitted else quantile(calibrated, 1 - share)
                    found = {
                        "fabricated": float(((of_others >= threshold) & others_wrong).float().mean()),
                        "answered": float((of_known >= threshold).float().mean()),
                    }
                    runs.append(
                        {"seed": seed, "facts": size, "way": way, "share": share, "threshold": threshold, **found}
                    )
            print(f"seed {seed}, {size} facts", flush=True)
    return runs


def scores(given: Sequence[Generated], counted: Sequence[int] | None, own: int = 0) -> list[float]:
    """Each answer's calibrated confidence, given the counts of wrong answers (None: not counted), `own` its own."""
    counts = [0 if counted is None else counted[prior_entry(answer.text)] - own for answer in given]
    return [calibrated_confidence(answer.least, count) for answer, count in zip(given, counts, strict=True)]


def quantile(values: Sequence[float], share: float) -> float:
    """The plain quantile."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds that the way was chosen on, and over the fresh ones, with the worst seed."""
    head = ["facts", "way", "share"]
    for which in ("chosen on", "fresh"):
        head += [f"made up, {which}", "known answered"]
    rows = []
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
                rows.append([f"{size:,}", WAYS[way], f"{share:.1%}", *cells])
    return common.markdown_table(head, rows).replace("%", " %") + "\n"


if __name__ == "__main__":
    common.start(main)
