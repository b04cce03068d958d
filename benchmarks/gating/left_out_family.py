"""Does the gate do its work on kinds of facts that it never saw? Leave one family out.

For every synthetic family and every EntityQuestions relation (a cell): the gate's network is trained on facts of all
the others, with half of their wordings, and general text; then the cell's facts are stored (their subjects indexed),
and their questions, in wordings kept apart, are put to it.

``gates`` needs no teaching, and asks the network token by token. Per cell, n = 500 stored entities (as many as a
relation has, half of its subjects, where these are fewer) and as many of the same shape that are not stored: the share
of tokens after the subject that it opens for, of prompts for which it opens for all of them, of prompts of either kind
for which it opens at the last token, AUROC of stored entities against those that are not by that, and the share of
held-out articles' tokens whose logits stay the backbone's: those before the first open token of their window.

``recall`` teaches: the cell's facts and some of the other families', the gate's network and the thresholds made from
the others alone (`teach_facts(gate_facts=...)`). Slow (minutes a cell); ``--cells`` picks some. ``control`` teaches the
same, with the gate made from all of them: what of the recall is the gate's, and what the family's own.

Each cell is one file under benchmarks/results/generality; a cell whose file is there is not computed again. table.md is
drawn from the files.

Examples::

    python -m benchmarks.gating.left_out_family gates
    python -m benchmarks.gating.left_out_family recall --cells person_craft P50
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

from benchmarks import common
from benchmarks.common import ENTITY_QUESTIONS, SEED
from memlayers import Fact, MemoryConfig, TeachConfig, teach_facts
from memlayers.backbones import load_backbone
from memlayers.config.sections import GateConfig
from memlayers.data.encoding import encode_example, encode_prompt, plain_text_ids
from memlayers.data.facts import Question
from memlayers.data.general_text import SHIPPED, read_general_text
from memlayers.data.synthetic import make_facts, make_fakes
from memlayers.data.synthetic_families import FAMILIES
from memlayers.evaluation.evaluate import cost_rows, score_model
from memlayers.evaluation.results import Row
from memlayers.evaluation.statistics import auroc_interval, mean_interval
from memlayers.gating.train import train_gates
from memlayers.inference.capture import LayerFeatures, collect_features
from memlayers.linking.mention_forms import SubjectForms, subject_forms
from memlayers.tuner import RelevanceGate, memory_handle
from memlayers.tuner.subject_index import SubjectIndex
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

RESULTS = common.RESULTS / "generality"
STORED, SHOWN, WINDOW, TEXT_TOKENS = 500, 80, 256, 16_384
TAUGHT_OF_OTHERS = 20  # facts of each other cell, when recall is measured
EXPOSURES = 5  # no second round, so that all cells are alike
REFERENCE = (
    "The reference recipe's v0.3.1 battery, as far as its figures are known: a held-out natural-language family is "
    "recalled to 7.5 % through its gate (-93 points); stored against never-taught entities AUROC 0.69; perplexity with "
    "gate +0.82 %, no token's logits unchanged. On Qwen2.5-7B; ours on the pocket backbone."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A family or a relation: what is stored, and entities of the same shape that are not."""

    name: str
    kind: str
    stored: list[Fact]
    not_stored: list[Fact]


def synthetic_cells() -> list[Cell]:
    """All synthetic families."""
    return [
        Cell(name, "synthetic", make_facts(name, STORED, SEED), make_fakes(name, STORED, SEED)) for name in FAMILIES
    ]


def relation_cells() -> list[Cell]:
    """The EntityQuestions relations: half of a relation's entities are stored, the other half are not."""
    phrasings = common.phrasings()
    cells = []
    for path in sorted(ENTITY_QUESTIONS.glob("P*.jsonl")):
        if path.stem not in phrasings:
            continue
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        questions = [row["question"] for row in rows]
        before = len(os.path.commonprefix(questions))
        after = len(os.path.commonprefix([question[::-1] for question in questions]))
        facts: dict[str, Fact] = {}
        for row in rows:
            subject = row["question"][before : len(row["question"]) - after]
            if 3 <= len(subject) <= 60 and subject not in facts:
                wordings = phrasings[path.stem]
                facts[subject] = Fact(
                    f"{path.stem}-{len(facts)}", subject, row["answers"][0],
                    tuple(w.format(s=subject) for w in wordings["taught"]), wordings["label"],
                    tuple(w.format(s=subject) for w in wordings["unseen"]), tuple(row["answers"][1:]),
                )  # fmt: skip
        shuffled = random.Random(SEED).sample(list(facts.values()), len(facts))
        half = min(STORED, len(shuffled) // 2)
        cells.append(Cell(path.stem, "EntityQuestions", shuffled[:half], shuffled[half : 2 * half]))
    return cells


class Bench:
    """The pocket backbone with one memory layer, and everything's features on it."""

    def __init__(self, cells: Sequence[Cell], chats: bool) -> None:
        self.chats = chats
        torch.set_num_threads(1)
        backbone, self.tokenizer = load_backbone("pocket", "float32")
        self.model = get_peft_model(backbone, MemoryConfig(layers=[2], sub_keys=8, heads=1, gate=True, seed=SEED))
        text = plain_text_ids(self.tokenizer, common.held_out_text())[:TEXT_TOKENS]
        self.windows = [text[i : i + WINDOW] for i in range(0, len(text) - WINDOW + 1, WINDOW)]
        self.text = self._by_sequence(self.windows)
        general = read_general_text(SHIPPED)
        self.passages = len(general.passages)
        self.general = collect_features(memory_handle(self.model, "default"), general.encode(self.tokenizer, WINDOW))[0]
        self.shown = {cell.name: self._shown(cell) for cell in cells}

    def _by_sequence(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        features = collect_features(memory_handle(self.model, "default"), sequences)[0]
        order = torch.argsort(features.sequence, stable=True)
        return list(features.inputs[order].float().split([len(ids) for ids in sequences]))

    def _shown(self, cell: Cell) -> tuple[list[list[int]], list[Tensor]]:
        """What the other cells' gates learn of this one: some facts, in wordings of the first half.

        The rows are those after the subject, the answer's among them.
        """
        facts = cell.stored[:SHOWN]
        contexts = [
            [encode_example(self.tokenizer, q, fact.answer).input_ids for q in fact.questions] for fact in facts
        ]
        index = self._index(subject_forms(self.tokenizer, facts, contexts))
        chosen = [each[i % (len(each) // 2)] for i, each in enumerate(contexts)]
        rows = self._by_sequence(chosen)
        return chosen, [r[index.subjects_in(torch.tensor([ids]))[0] != 0] for r, ids in zip(rows, chosen, strict=True)]

    def _index(self, subjects: SubjectForms) -> SubjectIndex:
        index = SubjectIndex(len(self.tokenizer))
        index.fill(subjects.forms, subjects.scope, subjects.flags, subjects.letters)
        return index

    def train(self, left_out: str, steps: int) -> RelevanceGate:
        """A gate that never saw the cell: trained on all the others."""
        rows = [r for name, (_, each) in self.shown.items() if name != left_out for r in each]
        sequence = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(r) for r in rows]))
        kept = self.general.sequence < self.passages
        if self.chats:
            rows.append(self.general.inputs[~kept])
            sequence = torch.cat([sequence, self.general.sequence[~kept]])
        facts = LayerFeatures(torch.cat(rows), sequence, 1.0)
        general = LayerFeatures(self.general.inputs[kept], self.general.sequence[kept], 1.0)
        train_gates(
            memory_handle(self.model, "default"),
            [facts],
            [general],
            GateConfig(steps=steps),
            passages=self.passages,
            seed=SEED,
        )
        (gate,) = memory_handle(self.model).gates
        return gate

    def measure(self, cell: Cell, steps: int) -> list[Row]:
        """The rows of a cell."""
        gate = self.train(cell.name, steps)
        contexts = [[encode_prompt(self.tokenizer, q) for q in fact.questions] for fact in cell.stored]
        subjects = subject_forms(self.tokenizer, cell.stored, contexts)
        index = self._index(subjects)
        stored = self._opened(gate, index, [fact.unseen_questions[0] for fact in cell.stored])
        not_stored = self._opened(gate, index, [fact.unseen_questions[0] for fact in cell.not_stored])
        tokens = [float(opened[needed].float().mean()) for opened, needed in stored if bool(needed.any())]
        whole = [bool(needed.any()) and bool(opened[needed].all()) for opened, needed in stored]
        ends = [[float(opened[-1]) for opened, _ in each] for each in (stored, not_stored)]
        same = []
        for ids, rows in zip(self.windows, self.text, strict=True):
            opened, _ = _gated(gate, index, ids, rows)
            first = int(opened.nonzero()[0]) if bool(opened.any()) else len(ids)
            same.append(first / len(ids))
        whole_text = WINDOW * len(same)
        kept = mean_interval(same)
        return [
            Row.from_estimate("gate_open", "stored_tokens", mean_interval(tokens)),
            Row.from_estimate("gate_open", "stored_prompts", mean_interval(whole)),
            Row.from_estimate("gate_open", "stored_end", mean_interval(ends[0])),
            Row.from_estimate("gate_open", "strangers_end", mean_interval(ends[1])),
            Row.from_estimate("auroc", "stored_against_strangers", auroc_interval(ends[0], ends[1])),
            Row("identical_logits", "general_text", kept.value, whole_text, kept.ci_low, kept.ci_high),
        ]  # fmt: skip

    def _opened(
        self, gate: RelevanceGate, index: SubjectIndex, questions: Sequence[str]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per question and token: whether the gate opens, and whether it comes after a stored subject's name."""
        prompts = [encode_prompt(self.tokenizer, question) for question in questions]
        return [_gated(gate, index, *pair) for pair in zip(prompts, self._by_sequence(prompts), strict=True)]


def _gated(gate: RelevanceGate, index: SubjectIndex, ids: Sequence[int], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens of a text the network opens for, and which come after a stored subject's name, bool [t] each."""
    may_read = index.subjects_in(torch.tensor([list(ids)]))[0] != 0
    return may_read & gate.is_open(rows), may_read


def recall(cell: Cell, others: Sequence[Cell], work: Path, exposures: int, control: bool) -> list[Row]:
    """Teach the cell's facts under a gate that was made from the others' alone, or from all, and ask them."""
    shown = [fact for other in others for fact in other.stored[:TAUGHT_OF_OTHERS]]
    config = TeachConfig().with_flags(seed=SEED, exposures=exposures)
    out = work / (f"{cell.name}-control" if control else cell.name)  # neither resumes the other's run
    memory = teach_facts(
        [*cell.stored, *shown], out, config, gate_facts=None if control else shown, replace=True, quiet=True,
        resume=Path(f"{out}.teaching").is_dir(),
    )  # fmt: skip
    rng = random.Random(SEED)
    not_stored = [Question(rng.choice(f.questions + f.unseen_questions), f.answers) for f in cell.not_stored]
    rows, _ = score_model(
        memory.model, memory.tokenizer, facts=cell.stored, untaught=not_stored, phrasings=1,
        text=common.held_out_text(), max_text_tokens=TEXT_TOKENS, seed=SEED, quiet=True,
    )  # fmt: skip
    return [*rows, *cost_rows(memory.report, len(cell.stored), "cpu")]


def write_table(results: Path) -> None:
    """table.md from the cells' files."""
    columns = (
        ("gates", "gate_open", "stored_tokens", "tokens open"),
        ("gates", "gate_open", "stored_prompts", "prompts wholly open"),
        ("gates", "gate_open", "stored_end", "open at the end"),
        ("gates", "gate_open", "strangers_end", "not stored: open"),
        ("gates", "auroc", "stored_against_strangers", "AUROC of the gate"),
        ("gates", "identical_logits", "general_text", "identical logits"),
        ("recall", "recall", "taught", "recall, taught wording"),
        ("recall", "recall", "unseen_phrasing", "recall, unseen wording"),
        ("recall", "abstention_auroc", "untaught_entities", "AUROC with the answer"),
        ("recall", "exposures_per_fact", "all", "exposures"),
        ("control", "recall", "taught", "gate from all: recall, taught wording"),
        ("control", "recall", "unseen_phrasing", "gate from all: unseen wording"),
    )
    found: dict[str, dict[tuple[str, str, str], dict[str, Any]]] = {}
    kinds: dict[str, str] = {}
    for path in sorted(results.glob("*.json")):
        read = common.read_json(path)
        name = path.stem.partition("-")[2].replace("-", ", ")
        kinds[name] = read["kind"]
        for row in read["rows"]:
            found.setdefault(name, {})[read["part"], row["metric"], row["split"]] = row
    rows = []
    for name in sorted(found, key=lambda each: (kinds[each] != "synthetic", each)):
        figures = [found[name].get(column[:3]) for column in columns]
        n = next((str(figure["n"]) for figure in figures[1:] if figure is not None), "")
        rows.append([name, n, *map(_shown_value, figures)])
    parts = [
        "# Leave one family out",
        "Made by `python -m benchmarks.gating.left_out_family`, which says what is measured.",
        common.markdown_table(["left out", "n", *(label for *_, label in columns)], rows),
        "Ranges are 95 % intervals (bootstrap over facts, or over windows of text).",
        REFERENCE,
    ]
    atomic_write_text(results / "table.md", "\n\n".join(parts) + "\n")


def _shown_value(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["metric"] == "exposures_per_fact":
        return f"{row['value']:g}"
    share = "auroc" not in row["metric"]
    shown = "{:.1f}" if share else "{:.3f}"
    percents = [100 * row[name] if share else row[name] for name in ("value", "ci_low", "ci_high")]
    return common.with_interval(shown.format, *percents) + (" %" if share else "")


def main() -> None:
    """Run a part for all cells, or for those named."""
    parser = common.drawing_parser(__doc__)
    parser.add_argument("part", nargs="?", choices=("gates", "recall", "control"), default="gates")
    parser.add_argument("--cells", nargs="*", help="names of families or relations; all if not given")
    parser.add_argument("--steps", type=int, default=GateConfig().steps, help="of the gate's training")
    parser.add_argument("--exposures", type=int, default=EXPOSURES, help="of teaching")
    parser.add_argument("--no-chats", dest="chats", action="store_false", help="not among the gate's positives")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=common.WORK / "generality", help="where memories are kept")
    arguments = parser.parse_args()
    cells = [] if arguments.draw else [*synthetic_cells(), *relation_cells()]
    bench: Bench | None = None
    for cell in cells:
        often = "" if arguments.exposures == EXPOSURES else f"-{arguments.exposures}x"
        path = arguments.results / f"{arguments.part}-{cell.name}{often}.json"
        if path.exists() or (arguments.cells and cell.name not in arguments.cells):
            continue
        if arguments.part == "gates":
            bench = bench or Bench(cells, arguments.chats)
            rows = bench.measure(cell, arguments.steps)
        else:
            others = [other for other in cells if other.kind == cell.kind and other is not cell]
            rows = recall(cell, others, arguments.work, arguments.exposures, arguments.part == "control")
        command = f"python -m benchmarks.gating.left_out_family {arguments.part} --cells {cell.name}"
        result = {
            "command": command, "cell": cell.name,
            "kind": cell.kind, "part": arguments.part, "seed": SEED, "steps": arguments.steps, "chats": arguments.chats,
            "environment": environment("cpu"), "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        common.write_json(path, result)
        print(cell.name, {f"{row.metric} {row.split}": round(row.value, 4) for row in rows}, flush=True)
        write_table(arguments.results)
    write_table(arguments.results)


if __name__ == "__main__":
    common.start(main)
