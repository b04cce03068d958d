"""Facts that arrive in batches, up to 10,000 in total: what is still recalled at the end, and what is lost beside it.

Real EntityQuestions facts on the pocket backbone, none of them known to it. An arm teaches one batch after another and
is never shown an earlier batch again, except where that is the arm's own way; at checkpoints it is asked, in free
generation, up to 400 of all facts so far (taught and never-taught phrasings), the first batch's, 400 known facts, and
the held-out articles are read. A fact has four taught phrasings. One JSON per arm, written at each checkpoint: an arm
that was cut off shows how far it got, and one with a memory goes on from there (``--work``) and is repaired at its end.

* ``memory-1``, ``memory-10``, ``memory-100``: `memlayers add`, batches of that size; the first 100 facts by `teach`.
  589,824 slots; 16 stored facts are rehearsed in each step.
* ``plain-100``: the same in the default pool of 147,456 slots, nothing rehearsed.
* ``smf-100``: Sparse Memory Finetuning's rule (Lin et al. 2025, arXiv 2510.15103) on the same pool: the top 2,048
  slots of a batch by TF-IDF, no gate, queries from the state alone, nothing guarded.
* ``lora-100``: peft's LoRA, rank 16 on every linear layer, 1e-3; ``full-100``: all weights, 1e-4. Adam, answers only;
  a batch has epochs until all of it is answered, thirty at most, as the memory's batches have.
* ``once``: `memlayers teach` of all facts at once.

Example: ``python -m benchmarks.editing.sequential memory-100``; without names all that is missing, then the plot.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import common
from benchmarks.common import SEED
from memlayers import EditConfig, Fact, TeachConfig, load_memory, teach_facts
from memlayers.backbones import load_backbone
from memlayers.comparison.tuning import trainable_model
from memlayers.data.encoding import encode_example
from memlayers.data.fact_files import public_questions
from memlayers.evaluation.statistics import mean_interval
from memlayers.evaluation.text_scores import perplexity_on
from memlayers.inference.folder import stored_facts
from memlayers.inference.generation import answer_questions
from memlayers.inference.scoring import answer_logits
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

RESULTS = common.RESULTS / "sequential"
REPAIRED = "mended"
"""The key, in a results file, of how many facts were repaired at the end of an arm."""
FIRST, ASKED, TEXT_TOKENS, PHRASINGS = 100, 400, 8192, 4
CHECKPOINTS = (100, 200, 300, 500, 1000, 2000, 3000, 5000, 7500, 10_000)
ARMS = {
    "memory-100": 10_000, "plain-100": 7500, "memory-10": 1000, "memory-1": 200, "smf-100": 2000, "lora-100": 1000,
    "full-100": 1000, "once": 1000,
}  # fmt: skip
"""Each arm, and how many facts it is taught unless --facts says otherwise."""
TEACH = TeachConfig().with_flags(seed=SEED, sub_keys=768, gate_steps=500, checkpoint_seconds=3600)
STREAM = EditConfig(slot_count=64, neighbours=2, phrasings=1, rehearsed=16, repairs=1, refuse=False)

Teach = Callable[[Sequence[Fact]], Any]


class Exam:
    """What every arm is asked, and the file that it is written to."""

    def __init__(self, arm: str, facts: Sequence[Fact], work: Path) -> None:
        self.arm, self.facts, self.work = arm, facts, work / "sequential" / arm
        self.known = random.Random(3).sample(public_questions(), ASKED)
        self.text = common.held_out_text()
        self.points: list[dict[str, Any]] = []
        self.seconds = 0.0

    def resume(self) -> int:
        """Takes up the points of a run that was cut off; how many facts its memory holds, 0 if there is none."""
        path = RESULTS / f"{self.arm}.json"
        stored = len(stored_facts(self.work)) if (self.work / "facts.jsonl").is_file() else 0
        found = common.read_json(path)["points"] if stored and path.exists() else []
        self.points = [point for point in found if point["facts"] <= stored]
        self.seconds = self.points[-1]["seconds"] if self.points else 0.0
        return stored

    def take(self, model: Any, tokenizer: Any, taught: int, **note: Any) -> None:
        """Asks everything once, and writes the file."""
        model.eval()
        point: dict[str, Any] = {"facts": taught, "seconds": round(self.seconds, 1), **note}
        some = random.Random(f"{SEED}:{taught}").sample(self.facts[:taught], min(taught, ASKED))
        for split, asked in (
            ("taught", [(fact.questions[i % len(fact.questions)], fact.answers) for i, fact in enumerate(some)]),
            ("unseen_phrasing", [(fact.unseen_questions[i % 2], fact.answers) for i, fact in enumerate(some)]),
            ("first_batch", [(fact.questions[0], fact.answers) for fact in self.facts[:FIRST]]),
            ("known_facts", [(each.question, each.answers) for each in self.known]),
        ):
            answers = answer_questions(model, tokenizer, [question for question, _ in asked])
            right = common.right(answers, [accepted for _, accepted in asked])
            point[split] = mean_interval(right)._asdict()
        point["perplexity"] = perplexity_on(model, tokenizer, self.text, max_tokens=TEXT_TOKENS)
        self.points.append(point)
        found = {"arm": self.arm, "seed": SEED, "environment": environment("cpu"), "points": self.points}
        common.write_json(RESULTS / f"{self.arm}.json", found)
        shown = {key: value["value"] if isinstance(value, dict) else value for key, value in point.items()}
        print(self.arm, shown, flush=True)

    def stream(
        self, size: int, model: Any, tokenizer: Any, teach: Teach, start: int = 0, save: Callable[[], Any] | None = None
    ) -> None:
        """Teaches the facts in batches, and saves and asks at the checkpoints."""
        done = start
        while done < len(self.facts):
            batch = self.facts[done : done + size]
            began = time.process_time()
            teach(batch)
            self.seconds += time.process_time() - began
            done += len(batch)
            if done in CHECKPOINTS:
                self.take(model, tokenizer, done)
                if save is not None:
                    save()


def memory_arm(exam: Exam, size: int, config: TeachConfig, edit: EditConfig) -> None:
    """A memory that batches are added to; the first is what it is calibrated on. At the end it is repaired."""
    done = exam.resume()
    if not done:
        began = time.process_time()
        teach_facts(exam.facts[:FIRST], exam.work, config, quiet=True)
        exam.seconds = time.process_time() - began
    with load_memory(exam.work, edits=edit, autosave=False) as memory:
        if not exam.points:
            exam.take(memory.model, memory.tokenizer, FIRST)
        exam.stream(size, memory.model, memory.tokenizer, memory.add, start=max(done, FIRST), save=memory.save)
        if not exam.arm.startswith("smf") and REPAIRED not in exam.points[-1]:
            began = time.process_time()
            repaired = memory.repair()
            exam.seconds += time.process_time() - began
            exam.take(memory.model, memory.tokenizer, len(exam.facts), **{REPAIRED: len(repaired.ids)})


def weights_arm(exam: Exam, size: int, lora: bool) -> None:
    """LoRA, or all weights: epochs of each batch, each in other phrasings, until one finds all answered."""
    backbone, tokenizer = load_backbone("pocket", "float32")
    model: Any = trainable_model(backbone, 16 if lora else None, SEED)
    if not lora:
        model.get_base_model = lambda: backbone  # as a PEFT model has it
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3 if lora else 1e-4, weight_decay=0.0
    )
    rng = random.Random(SEED)

    def teach(batch: Sequence[Fact]) -> None:
        for number in range(STREAM.steps):
            settled = True
            shown = [
                encode_example(tokenizer, fact.questions[(number + i) % len(fact.questions)], fact.answer)
                for i, fact in enumerate(batch)
            ]
            rng.shuffle(shown)
            for start in range(0, len(shown), 32):
                out = answer_logits(model, tokenizer, shown[start : start + 32])
                loss = F.cross_entropy(out.logits, out.labels)
                settled = settled and bool(out.right().all())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if settled:
                return

    exam.stream(size, model, tokenizer, teach)


def run(arm: str, number: int, work: Path) -> None:
    """One arm over the first `number` facts of the stream."""
    facts = [replace(fact, questions=fact.questions[:PHRASINGS]) for fact in common.new_facts(max(CHECKPOINTS))]
    exam = Exam(arm, facts[:number], work)
    kind, _, size = arm.partition("-")
    if kind == "memory":
        memory_arm(exam, int(size), TEACH, STREAM)
    elif kind == "plain":
        memory_arm(exam, int(size), TEACH.with_flags(sub_keys=None), replace(STREAM, rehearsed=0))
    elif kind == "smf":
        config = TEACH.with_flags(gate=False)
        memory_arm(exam, int(size), config, replace(STREAM, slot_count=2048, neighbours=0, rehearsed=0, repairs=0))
    elif kind == "once":
        began = time.process_time()
        teacher = common.teach(exam.facts, TEACH)
        exam.seconds = time.process_time() - began
        exam.take(teacher.model, teacher.tokenizer, number)
    else:
        weights_arm(exam, int(size), kind == "lora")


def draw() -> None:
    """Recall of everything so far, and known facts, against the number of facts; the table of the arms' ends."""
    pyplot = common.pyplot()
    arms = [common.read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    titles = {
        "taught": "recall of all so far", "unseen_phrasing": "in phrasings never taught", "known_facts": "known facts",
    }  # fmt: skip
    for axis, key in zip(axes, titles, strict=True):
        for arm in arms:
            points = [point for point in arm["points"] if REPAIRED not in point]
            values = [point[key]["value"] for point in points]
            axis.plot([point["facts"] for point in points], values, marker="o", markersize=3, label=arm["arm"])
        axis.set_xscale("log")
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("facts taught so far")
        axis.set_title(titles[key])
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(RESULTS / "curves.png", dpi=130)
    head = ["arm", "facts", "recall of all", "phrasings never taught", "first 100", "known facts", "perplexity"]
    rows = []
    for arm in arms:
        most = arm["points"][-1]["facts"]
        for last in (point for point in arm["points"] if point["facts"] == most):
            name = f"{arm['arm']}, {last[REPAIRED]:,} facts repaired" if REPAIRED in last else arm["arm"]
            cells = [f"{last[k]['value']:.1%}" for k in ("taught", "unseen_phrasing", "first_batch", "known_facts")]
            pace = f"{last['seconds'] / last['facts']:.2f}"
            rows.append([name, f"{last['facts']:,}", *cells, f"{last['perplexity']:.2f}", pace])
    atomic_write_text(RESULTS / "table.md", common.markdown_table([*head, "CPU s a fact"], rows) + "\n")


def main() -> None:
    """Run what is asked for, or what is missing; then draw all there is."""
    parser = common.drawing_parser(__doc__)
    common.some_of(parser, ARMS, "arm")
    parser.add_argument("--facts", type=int, help="how many, in place of the arm's own number")
    parser.add_argument("--work", type=Path, default=common.WORK, help="where an arm's memory is kept")
    given = parser.parse_args()
    missing = [arm for arm in ARMS if not (RESULTS / f"{arm}.json").exists()]
    for arm in given.names or (() if given.draw else missing):
        run(arm, given.facts or ARMS[arm], given.work)
    draw()


if __name__ == "__main__":
    common.start(main)
