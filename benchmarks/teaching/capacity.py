"""How many facts a pool holds: taught in growing numbers until recall falls, for several pool sizes.

``--source synthetic``: a family of `memlayers.data.synthetic` (``--family``), whose answers are drawn uniformly
and on their own, so that the bits of one answer are known; this gives bits per parameter, to be held against the 2 bits
that language models store (Allen-Zhu and Li 2024, arXiv 2404.05405). ``--source real``: EntityQuestions facts of all 24
relations in the pocket's phrasings (20,376 of them), for how many facts are held at 98 % recall.

Two estimates of the bits learned from n facts whose answers have b bits each:

* by recall: n * recall * b, an answer counting only where it is given in full, in free generation;
* by loss: n * (b - NLL), the mean negative log-likelihood in bits of the answer and its end, teacher-forced. Whoever
  knows the family's grammar but not the fact needs b bits to write the answer down, with the memory it takes NLL bits.

Both are lower bounds. Parameters are the pool's values: all (slots x width), and those of the slots that were written.
Sub-keys, projection and gate are random, calibrated or trained without the answers, and are not counted.

Every fact is shown ``--exposures`` times, and nothing is taught further: what `memlayers teach` does after its last
exposure would make up for a pool that is too small by steps. A sample is asked; asking all facts in all wordings, as
`memlayers teach` does, would take longer than teaching 100,000 of them.

One results file a point in ``benchmarks/results/capacity``; what is there is not run again. A size is left once recall
has fallen below ``--until``. Plot and table are drawn from the files.

Examples (one core; about 0.02 s an exposure of a fact, and half a minute a point)::

    python -m benchmarks.teaching.capacity
    python -m benchmarks.teaching.capacity --sub-keys 256 --facts 1000,5000,20000 --exposures 4 --wordings 3
    python -m benchmarks.teaching.capacity --source real --sub-keys 256 --facts 5000 --exposures 5
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import SEED
from memlayers import Fact, TeachConfig
from memlayers.backbones import POCKET
from memlayers.data.entity_questions import read_entity_questions
from memlayers.data.fact_files import read_facts
from memlayers.data.synthetic import answer_bits, make_facts
from memlayers.evaluation.diagnose import gold_answers
from memlayers.evaluation.evaluate import cost_rows
from memlayers.evaluation.results import Results, Row, read_results, write_results
from memlayers.evaluation.statistics import Estimate, mean_interval
from memlayers.inference.generation import answer_questions
from memlayers.inference.record import CurvePoint
from memlayers.teaching.teacher import Teacher
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

RESULTS = common.RESULTS / "capacity"
LITERATURE = 2.0  # bits per parameter
COLUMNS = (
    ("recall, taught", "recall", "taught"),
    ("recall, never taught phrasings", "recall", "unseen_phrasing"),
    ("bits per parameter, by recall", "bits_per_parameter", "by_recall, all slots"),
    ("by loss", "bits_per_parameter", "by_loss, all slots"),
    ("by loss, written slots", "bits_per_parameter", "by_loss, written slots"),
)


def facts_of(source: str, family: str, n: int) -> list[Fact]:
    """The facts of a point; those of a smaller one are among them where they are synthetic."""
    if source == "synthetic":
        return make_facts(family, n, SEED)
    known = {fact.subject for fact in read_facts(POCKET / "known.jsonl")}
    return common.drawn(read_entity_questions(common.ENTITY_QUESTIONS, without=known, all_relations=True), n)


def run(path: Path, sub_keys: int, n: int, args: argparse.Namespace) -> None:
    """Teaches one pool n facts and measures what it holds."""
    facts = [
        dataclasses.replace(fact, questions=fact.questions[: args.wordings])
        for fact in facts_of(args.source, args.family, n)
    ]
    config = TeachConfig().with_flags(
        sub_keys=sub_keys, exposures=args.exposures, gate=args.gate, recall_sample=128, seed=SEED,
        gate_steps=500, checkpoint_seconds=3600,
        batch_size=min(args.batch_size, max(4, n // 16)),  # at least 16 steps an epoch
    )  # fmt: skip
    teacher = taught(facts, config, path)
    rng = random.Random(SEED)
    asked = rng.sample(facts, min(args.sample, n))
    model, tokenizer = teacher.model, teacher.tokenizer
    questions = [rng.choice(fact.questions) for fact in asked]
    unseen = [rng.choice(fact.unseen_questions) for fact in asked]
    recalled = recall(model, tokenizer, asked, questions)
    rows = [
        Row.from_estimate("recall", "taught", recalled),
        Row.from_estimate("recall", "unseen_phrasing", recall(model, tokenizer, asked, unseen)),
    ]
    pool = teacher.memory.pool
    written = int((pool.table.values != 0).any(1).sum())
    bits = answer_bits(args.family) if args.source == "synthetic" else None
    if bits is not None:
        nll = gold_answers(model, tokenizer, asked, questions)[2].double() / math.log(2)
        by_loss = mean_interval((bits - nll).numpy(), SEED)
        for split, share in (("by_recall", _times(recalled, bits)), ("by_loss", by_loss)):
            rows.append(Row.from_estimate("learned_bits", split, _times(share, n)))
            for which, slots in (("all", pool.slots), ("written", written)):
                held = _times(share, n / max(1, slots * pool.dim))
                rows.append(Row.from_estimate("bits_per_parameter", f"{split}, {which} slots", held))
    rows += cost_rows(teacher.report, n, "cpu")
    settings: dict[str, Any] = {
        "facts": n, "wordings": args.wordings, "source": args.source,
        "family": args.family if bits is not None else None, "bits_per_answer": bits,
        "slots": pool.slots, "width": pool.dim, "written_slots": written, **config.flags(),
    }  # fmt: skip
    write_results(path, Results(environment("cpu"), settings, rows, teacher.report.curve, []))


def taught(facts: list[Fact], config: TeachConfig, path: Path) -> Teacher:
    """A teacher after its exposures; recall of a sample after each one is printed."""
    teacher = common.prepared(Teacher(facts, config, quiet=True))
    schedule, report = teacher.schedule, teacher.report
    began = time.perf_counter()
    for epoch in range(config.exposures):
        for batch in schedule.batches(epoch):
            teacher.step(batch, 1 - report.steps / schedule.steps)
            report.steps += 1
        number = min(len(facts), config.schedule.recall_sample)
        sample = random.Random(f"{config.seed}:recall:{epoch}").sample(facts, number)
        asked = [random.Random(fact.id).choice(fact.questions) for fact in sample]
        found = recall(teacher.model, teacher.tokenizer, sample, asked).value
        report.exposures = float(epoch + 1)
        report.curve.append(CurvePoint(report.exposures, found, None, None, None))
        print(f"{path.stem}: {epoch + 1} exposures, recall {found:.1%}", flush=True)
    report.seconds = time.perf_counter() - began
    return teacher


def recall(model: Any, tokenizer: Any, facts: list[Fact], questions: list[str]) -> Estimate:
    """Strict recall in free generation."""
    answers = answer_questions(model, tokenizer, questions)
    return mean_interval(common.right(answers, [fact.answers for fact in facts]), SEED)


def _times(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.value * factor, estimate.ci_low * factor, estimate.ci_high * factor, estimate.n)


def table(points: list[Results]) -> str:
    """The points, pool by pool."""
    rows = []
    for results in points:
        config = results.config
        cells = [common.row_with_interval(results.find(metric, split)) for _, metric, split in COLUMNS]
        share = config["written_slots"] / config["slots"]
        shown = [f"{config['facts']:,}", _kind(results), config["exposures"], config.get("wordings", 10)]
        rows.append([f"{config['slots']:,}", f"{share:.0%}", *shown, *cells])
    n = max((row.n for results in points for row in results.rows if row.metric == "recall"), default=0)
    head = ["slots", "written", "facts", "of", "exposures", "wordings", *(name for name, *_ in COLUMNS)]
    note = f"Recall of a sample of up to {n} facts; 95 % intervals.\n\n![the points](capacity.png)"
    return f"{note}\n\n{common.markdown_table(head, rows)}\n"


def _kind(results: Results) -> str:
    return str(results.config["family"] or "EntityQuestions")


def _line(results: Results) -> tuple[int, str, int]:
    """What the points of one line share: slots, kind of facts, exposures."""
    return results.config["slots"], _kind(results), results.config["exposures"]


def draw(points: list[Results]) -> None:
    """Recall, and bits per parameter, against the number of facts, a line a pool."""
    pyplot = common.pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    kinds = sorted({_line(r) for r in points})
    for number, (slots, what, exposures) in enumerate(kinds):
        own = [r for r in points if _line(r) == (slots, what, exposures)]
        for axis, metric, split, style in (
            (axes[0], "recall", "taught", "o-"),
            (axes[1], "bits_per_parameter", "by_recall, all slots", "o-"),
            (axes[1], "bits_per_parameter", "by_loss, all slots", "s--"),
        ):
            there = sorted(
                (r.config["facts"], row.value)
                for r in own
                if (row := r.find(metric, split)) is not None and row.value > 0
            )
            if there:
                label = f"{slots:,} slots, {what}, {exposures} exposures" + (", by loss" if "--" in style else "")
                axis.plot(*zip(*there, strict=True), style, color=f"C{number}", label=label, markersize=4)
    axes[0].set(title="recall of taught facts", xlabel="facts", xscale="log", ylim=(0, 1.03))
    axes[0].axhline(0.98, color="#767676", ls=":")
    title = f"bits per value of the pool, where any (literature: {LITERATURE:g})"
    axes[1].set(title=title, xlabel="facts", xscale="log", yscale="log")
    axes[1].axhline(LITERATURE, color="#767676", ls=":")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(RESULTS / "capacity.png", dpi=130)


def main() -> None:
    """Runs the points that are missing, then draws all there are."""
    parser = common.drawing_parser(__doc__)
    parser.add_argument("--sub-keys", default="16,32,64", help="pools of m * m slots")
    parser.add_argument("--facts", default="50,100,200,400,800,1600,3200", help="ascending")
    parser.add_argument("--source", choices=("synthetic", "real"), default="synthetic")
    parser.add_argument("--family", default="person_craft")
    parser.add_argument("--exposures", type=int, default=8)
    parser.add_argument("--wordings", type=int, default=10, help="taught ones a fact")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences a step, at most")
    parser.add_argument("--sample", type=int, default=500, help="facts asked")
    parser.add_argument("--until", type=float, default=0.5, help="a pool is left once recall is below")
    parser.add_argument("--gate", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    for sub_keys in map(int, args.sub_keys.split(",") if not args.draw else ()):
        for n in map(int, args.facts.split(",")):
            kind = args.family if args.source == "synthetic" else "entityquestions"
            suffix = f"{'' if args.gate else '-no-gate'}{'' if args.exposures == 8 else f'-{args.exposures}x'}"
            path = RESULTS / f"{kind}-{sub_keys**2}-{n}{suffix}.json"
            if not path.exists():
                run(path, sub_keys, n, args)
            found = read_results(path)
            row = found.find("recall", "taught")
            assert row is not None
            print(f"{path.stem}: recall {row.value:.1%}", flush=True)
            if row.value < args.until:
                break
    points = [read_results(path) for path in RESULTS.glob("*.json")]
    points.sort(key=lambda r: (*_line(r), r.config["facts"]))
    atomic_write_text(RESULTS / "table.md", table(points))
    draw(points)


if __name__ == "__main__":
    common.start(main)
