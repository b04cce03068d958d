"""How sure must the backbone be of its own answer, so that it is not one about an entity that nobody taught?

The threshold is settled on wrong answers that the bare backbone gives to 500 facts about to be taught
(`gate.settle_thresholds`: all but a share of them stay below). For several such shares: how many wrong answers to 500
questions about other entities pass, and how many questions that the backbone knows are still answered. Seeds 137, 7,
23; facts and entities are those of `memlayers eval --protocol full` at 1,000 facts. No memory is taught, since the
question is put to the bare backbone.

Example: ``python benchmarks/backbone_threshold.py``; writes benchmarks/results/gate/backbone_threshold.json
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import torch

from memlayers.backbones import load_backbone
from memlayers.facts import Question
from memlayers.generate import generate_answers
from memlayers.metrics import exact_match, mean_interval
from memlayers.protocol.grid import Cell
from memlayers.protocol.run import read_materials
from memlayers.results import Row, environment

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "gate" / "backbone_threshold.json"
SHARES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
SEEDS, ASKED = (137, 7, 23), 500


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    backbone, tokenizer = load_backbone("pocket", "float32")
    materials = read_materials(ROOT.parent / "shared" / "data" / "entityquestions", None, {}, {})
    runs = []
    for seed in SEEDS:
        rng = random.Random(seed)
        facts, untaught = materials.split(Cell("addressed", True, 1000, seed))
        sets = {
            "taught": [Question(rng.choice(f.questions), f.answers) for f in rng.sample(facts, ASKED)],
            "untaught": untaught,
            "known": rng.sample(list(materials.known), ASKED),
        }
        sure: dict[str, torch.Tensor] = {}
        wrong: dict[str, torch.Tensor] = {}
        for split, items in sets.items():
            given = generate_answers(backbone, tokenizer, [item.question for item in items])
            sure[split] = torch.tensor([answer.confidence for answer in given])
            pairs = zip(given, items, strict=True)
            wrong[split] = torch.tensor([not exact_match(answer.text, item.answers) for answer, item in pairs])
        for share in SHARES:
            threshold = float(sure["taught"][wrong["taught"]].quantile(1 - share))
            passed = {split: sure[split] >= threshold for split in sets}
            fabricated = passed["untaught"] & wrong["untaught"]
            rows = [
                Row.from_estimate("fabricated", "untaught_entities", mean_interval(fabricated.tolist(), seed)),
                Row.from_estimate("answered", "known", mean_interval(passed["known"].tolist(), seed)),
            ]  # fmt: skip
            runs.append({"seed": seed, "share": share, "threshold": threshold, "rows": [asdict(row) for row in rows]})
            print(
                seed,
                share,
                f"threshold {threshold:.4f}",
                *(f"{row.metric} {row.value:.3f}" for row in rows),
                flush=True,
            )
    result = {"command": "python benchmarks/backbone_threshold.py", "environment": environment("cpu"), "runs": runs}
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
