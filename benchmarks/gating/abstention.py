"""How often the gate opens, and what is answered, made up or left unknown as the memory's threshold moves.

``sets``: a memory taught 300 of the demo's facts, asked about stored entities and about all that it must not answer;
and what general text that names stored subjects keeps of its logits (``abstention.json``). ``thousand``: 1,000
EntityQuestions facts taught, 1,000 others asked (``thousand.json``). Both in ``benchmarks/results/gate``; the memories
are kept in ``--work``.

Example: ``python -m benchmarks.gating.abstention`` (about 15 minutes on one core)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from benchmarks.common import SEED
from benchmarks.gating.prompts import RESULTS, STORED, TAUGHT, opened_memory, prompt_sets, split_demo
from memlayers import Fact, Memory
from memlayers.backbones import POCKET
from memlayers.data.answers import exact_match
from memlayers.data.fact_files import public_questions, read_facts
from memlayers.data.facts import Question
from memlayers.evaluation.evaluate import score_model
from memlayers.evaluation.statistics import auroc
from memlayers.evaluation.text_scores import score_text
from memlayers.inference.confidence import answer_thresholds
from memlayers.tuner import memory_handle


def asked_everything(work: Path) -> dict[str, Any]:
    """Ask a memory with the subject gate everything, and move the memory's threshold."""
    taught, untaught = split_demo()
    memory = opened_memory(work / "subjects", taught)
    questions = prompt_sets(taught, untaught)
    right = {q: f.answers for f in [*taught, *untaught] for q in (*f.questions, *f.unseen_questions)}
    right |= {q: f.answers for f in read_facts(POCKET / "known.jsonl") for q in (*f.questions, *f.unseen_questions)}
    given = {name: memory.ask(asked) for name, asked in questions.items()}
    stored = [answer.score for name in STORED for answer in given[name]]
    shipped, backbone = answer_thresholds(memory.model)
    sets = {}
    for name, answers in given.items():
        sets[name] = {
            "n": len(answers),
            "opened": _share(answer.score > 0 for answer in answers),
            "same_answer_as_backbone": _share(answer.memory == answer.backbone for answer in answers),
            "source": {s: _share(answer.source == s for answer in answers) for s in ("memory", "backbone", "unknown")},
            "auroc_stored_against_it": round(auroc(stored, [answer.score for answer in answers]), 4),
        }
        if any(answer.question in right for answer in answers):
            said = [(answer.text, right.get(answer.question, ())) for answer in answers]
            sets[name]["right"] = _share(exact_match(text, accepted) for text, accepted in said)
    curve = []
    for threshold in sorted({0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, round(shipped, 3)}):
        point: dict[str, Any] = {"threshold": threshold}
        for name, answers in given.items():
            point[name] = _share(answer.score >= threshold and answer.score > 0 for answer in answers)
        point["stored"] = round((point["stored_taught"] + point["stored_unseen"]) / 2, 4)
        curve.append(point)
    return {
        "command": "python -m benchmarks.gating.abstention sets", "taught": TAUGHT, "seed": SEED,
        "thresholds": {"memory": shipped, "backbone": backbone},
        "sets": sets, "taken_from_memory_at_threshold": curve, "text_that_names_subjects": naming_text(memory, taught),
    }  # fmt: skip


def naming_text(memory: Memory, taught: Sequence[Fact]) -> list[dict[str, Any]]:
    """Held-out articles, each window beginning with a sentence's start that names a stored subject."""
    passages = common.held_out_text().split("\n\n")[:100]
    (gate,) = memory_handle(memory.model).gates
    rows = []
    for label, trained in (("subjects and trained gate", 1), ("subjects alone", 0)):
        gate.trained.fill_(trained)
        same, before, after = [], [], []
        rng = random.Random(SEED)
        for passage in passages:
            text = f"{rng.choice(taught).subject} is mentioned here. {passage}"
            scores = score_text(memory.model, memory.tokenizer, text, window=256, max_tokens=256, quiet=True)
            same.append(float(scores.identical.float().mean()))
            before.append(float(scores.nll_backbone.mean()))
            after.append(float(scores.nll_memory.mean()))
        perplexities = [round(float(np.exp(np.mean(nll))), 3) for nll in (before, after)]
        rows.append(
            {"gate": label, "n": len(same), "identical_logits": round(float(np.mean(same)), 4),
             "perplexity_backbone": perplexities[0], "perplexity_memory": perplexities[1]}
        )  # fmt: skip
    gate.trained.fill_(1)
    return rows


def thousand(work: Path) -> dict[str, Any]:
    """1,000 EntityQuestions facts taught, 1,000 others asked: the rows of `score_model`."""
    facts = common.new_facts(2000)
    rng = random.Random(SEED)
    facts, others = facts[:1000], facts[1000:]
    untaught = [Question(rng.choice((*f.questions, *f.unseen_questions)), f.answers) for f in others]
    memory = opened_memory(work / "thousand", facts)
    rows, _ = score_model(
        memory.model, memory.tokenizer, facts=facts, untaught=untaught, phrasings=2,
        known=rng.sample(public_questions(), 1000), text=common.held_out_text(),
        max_text_tokens=16_384, seed=SEED, quiet=True,
    )  # fmt: skip
    return {
        "command": "python -m benchmarks.gating.abstention thousand",
        "seed": SEED,
        "rows": [asdict(row) for row in rows],
    }


def _share(flags: Iterable[bool]) -> float:
    return round(float(np.mean(list(flags))), 4)


PARTS: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "sets": ("abstention", asked_everything), "thousand": ("thousand", thousand),
}  # fmt: skip


def main() -> None:
    """Run the parts that are named, or both."""
    parser = common.argument_parser(__doc__)
    common.some_of(parser, PARTS, "part")
    parser.add_argument("--work", type=Path, default=common.WORK / "gate", help="where the taught memories are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.names or PARTS:
        name, measure = PARTS[part]
        common.write_json(RESULTS / f"{name}.json", measure(arguments.work))


if __name__ == "__main__":
    common.start(main)
