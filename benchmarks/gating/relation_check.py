"""Does the check of what is asked tell a stored fact's question from another question about its subject?

For each backbone and the seeds 137, 7 and 23: 300 of the 500 demo facts (18 relations), and all facts of 6 of the
relations; nothing is taught, since the check sees the bare backbone alone. Asked are the facts in one of their taught
wordings and in the two that were never shown; their subjects, asked for another of the relations that the facts hold
("seen"), and for one that they hold none of ("new"), in any of its twelve wordings.

Example: ``python -m benchmarks.gating.relation_check pocket smollm2``; writes
``benchmarks/results/gate/relations-BACKBONE.json``
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from peft import get_peft_model

from benchmarks import common
from memlayers import Fact
from memlayers.backbones import load_backbone
from memlayers.config.sections import RelationConfig
from memlayers.data.encoding import encode_prompt
from memlayers.evaluation.results import Row
from memlayers.evaluation.statistics import auroc_interval, mean_interval
from memlayers.gating.relations import fit_relations, relation_examples
from memlayers.inference.confidence import relation_scores
from memlayers.linking.mention_forms import subject_forms
from memlayers.tuner import MemoryConfig, memory_handle
from memlayers.utils.environment import environment

OUT = common.RESULTS / "gate"
BACKBONES = ("pocket", "smollm2")
SEEDS, TAUGHT, FEW = (137, 7, 23), 300, 6


def measure(backbone: Any, tokenizer: Any, facts: Sequence[Fact], wordings: dict[str, Any], seed: int) -> list[Row]:
    """The rows for some facts; `backbone` is left as it was."""
    contexts = [[encode_prompt(tokenizer, question) for question in fact.questions] for fact in facts]
    subjects = subject_forms(tokenizer, facts, contexts)
    config = MemoryConfig(sub_keys=8, heads=1, subjects=True, relations=True)
    model = get_peft_model(backbone, config)
    memory = memory_handle(model, "default")
    assert memory.index is not None
    memory.index.fill(subjects.forms, subjects.scope, subjects.flags, subjects.letters)
    report = fit_relations(memory, tokenizer, facts, subjects, relation_examples(facts, RelationConfig(), seed))
    rng = random.Random(seed)
    held = {fact.relation for fact in facts}

    def ask_for(others: set[str]) -> list[str]:
        asked = []
        for fact in facts:
            other = wordings[rng.choice(sorted(others - {fact.relation}))]
            asked.append(rng.choice(other["taught"] + other["unseen"]).format(s=fact.subject))
        return asked

    asked = {
        "stored_taught": [rng.choice(fact.questions) for fact in facts],
        "stored": [question for fact in facts for question in fact.unseen_questions],
        "seen": ask_for(held),
        "new": ask_for(set(wordings) - held),
    }
    scores = {split: relation_scores(model, tokenizer, questions)[0] for split, questions in asked.items()}
    model.unload()
    rows = [
        Row.from_estimate("answered", split, mean_interval([score >= report.threshold for score in each], seed))
        for split, each in scores.items()
    ]
    rows += [
        Row.from_estimate("auroc", f"stored_against_{split}", auroc_interval(scores["stored"], scores[split], seed))
        for split in ("seen", "new")
    ]
    return rows


def main() -> None:
    """Measure and write."""
    parser = common.argument_parser(__doc__)
    common.some_of(parser, BACKBONES, "backbone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wordings = {each["label"]: each for each in common.phrasings().values()}
    demo = common.demo_facts()
    relations = sorted({fact.relation for fact in demo})
    for name in arguments.names or BACKBONES:
        backbone, tokenizer = load_backbone(name)
        runs = []
        for seed in SEEDS:
            few = set(random.Random(seed).sample(relations, FEW))
            for facts in (random.Random(seed).sample(demo, TAUGHT), [fact for fact in demo if fact.relation in few]):
                rows = [asdict(row) for row in measure(backbone, tokenizer, facts, wordings, seed)]
                names = {fact.relation for fact in facts}
                runs.append({"seed": seed, "facts": len(facts), "relations": len(names), "rows": rows})
                shown = {f"{r['metric']} {r['split']}": round(r["value"], 4) for r in rows}
                print(name, runs[-1] | {"rows": shown}, flush=True)
        command = f"python -m benchmarks.gating.relation_check {name}"
        found = {"command": command, "backbone": name, "environment": environment("cpu"), "runs": runs}
        common.write_json(OUT / f"relations-{name}.json", found)


if __name__ == "__main__":
    common.start(main)
