"""Which settings a real backbone is taught best with: the defaults, and each of them changed alone.

100 real facts about entities that are not the demo's * are taught for five exposures; nothing is taught further. Then
every taught and every never-taught wording is asked, by one forward pass each. The setting to take is the one that
holds most, on every seed. One JSON a cell (settings, seed) in ``benchmarks/results/defaults``; what is there is not run
again. The curve of recall over calibration tokens is among the cells.

Example: ``python -m benchmarks.teaching.defaults --seed 7 defaults batch-16``
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import common
from memlayers import TeachConfig
from memlayers.config.named_backbones import NAMED_BACKBONES
from memlayers.data.encoding import encode_example
from memlayers.data.facts import Fact
from memlayers.evaluation.formatting import percent
from memlayers.evaluation.statistics import mean_interval
from memlayers.performance.backbone_size import read_backbone
from memlayers.teaching.held import Checked, check_wordings
from memlayers.teaching.teacher import Teacher
from memlayers.utils.files import atomic_write_text

RESULTS = common.RESULTS / "defaults"
SEEDS = (7, 23, 137)
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    **{f"batch-{size}": {"batch_size": size} for size in (8, 16, 64)},
    **{f"rate-{rate}": {"value_rate": rate} for rate in (0.06, 0.24)},
    "no-warmup": {"warmup": 0},
    "layers-early": {"layers": (2 / 28, 6 / 28, 10 / 28)},
    "layers-late": {"layers": (12 / 28, 17 / 28, 22 / 28)},
    "layers-late-heads-16": {"layers": (12 / 28, 17 / 28, 22 / 28), "heads": 16},
    "layers-middle": {"layers": (10 / 28, 16 / 28, 22 / 28)},
    "layers-one": {"layers": (14 / 28,)},
    "layers-five": {"layers": (6 / 28, 10 / 28, 14 / 28, 18 / 28, 22 / 28)},
    **{f"heads-{heads}": {"heads": heads} for heads in (4, 16)},
    **{f"subject-weight-{weight:g}": {"subject_weight": weight} for weight in (1.0, 4.0)},
    **{f"slots-{keys}x{keys}": {"sub_keys": keys} for keys in (192, 768)},
    **{f"gate-threshold-{logit}": {"gate_threshold": logit} for logit in (0.0, 2.0)},
    **{f"calibration-{tokens}": {"tokens": tokens} for tokens in (2_500, 5_000, 10_000, 20_000, 60_000)},
}
"""Flags by name; layers as shares of the depth, and the tokens of calibration and gate, which have no flag."""


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    arguments = common.drawing_parser(__doc__)
    arguments.add_argument("--backbone", default="smollm2", help=f"{', '.join(NAMED_BACKBONES)}, or pocket [smollm2]")
    arguments.add_argument("--facts", type=int, default=100, help="[100]")
    arguments.add_argument("--seed", type=int, action="append", help="again for more [7, 23 and 137]")
    common.some_of(arguments, SETTINGS, "setting")
    return arguments


def run(backbone: str, number: int, name: str, seed: int) -> dict[str, Any]:
    """Teaches and asks one cell."""
    facts = common.new_facts(number, seed)
    flags = dict(SETTINGS[name])
    tokens = flags.pop("tokens", None)
    if "layers" in flags:
        depth = read_backbone(backbone).depth
        flags["layers"] = [round(share * depth) for share in flags["layers"]]
    # Recall beyond any that can be measured: no cell stops early.
    config = TeachConfig().with_flags(backbone=backbone, seed=seed, exposures=5, stop_at_recall=1.01, **flags)
    if tokens is not None:
        config = dataclasses.replace(config, gate=dataclasses.replace(config.gate, tokens=tokens))
    teacher = common.prepared(Teacher(facts, config, quiet=True))
    teacher.teach()
    taught, unseen = (asked(teacher, facts, wordings) for wordings in ("questions", "unseen_questions"))
    return {
        "backbone": backbone,
        "facts": number,
        "settings": name,
        "seed": seed,
        "curve": [point.recall for point in teacher.report.curve],
        "wordings": sum(map(len, taught.right)),
        "taught": taught.recall,
        "not_held": len(taught.wrong),
        "unseen_wordings": sum(map(len, unseen.right)),
        "unseen": unseen.recall,
        "log_probability": mean(math.log(max(sure, 1e-30)) for each in unseen.confidence for sure in each),
        "open_on_general": [gate.open_on_general for gate in teacher.report.gates],
    }


def asked(teacher: Teacher, facts: Sequence[Fact], wordings: str) -> Checked:
    """What is answered to some wordings of each fact."""
    examples = [
        [encode_example(teacher.tokenizer, question, fact.answer) for question in getattr(fact, wordings)]
        for fact in facts
    ]
    return check_wordings(teacher.model, teacher.tokenizer, examples)


def place(backbone: str, number: int, name: str, seed: int) -> Path:
    """The file of a cell."""
    return RESULTS / f"{backbone}-{number}-{name}-{seed}.json"


def table(cells: Sequence[dict[str, Any]]) -> str:
    """One row per backbone, number of facts and settings, the mean of its seeds."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    known = [cell for cell in cells if cell["settings"] in SETTINGS]
    for cell in sorted(known, key=lambda cell: list(SETTINGS).index(cell["settings"])):
        groups[cell["backbone"], cell["facts"], cell["settings"]].append(cell)
    columns: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
        "seeds": lambda each: ", ".join(str(seed) for seed in sorted(cell["seed"] for cell in each)),
        "recall after 2, 3, 4 exposures": lambda each: ", ".join(
            percent(mean(cell["curve"][i] for cell in each)) for i in (1, 2, 3)
        ),
        "taught": lambda each: _share(each, "taught", "wordings"),
        "facts not held": lambda each: f"{mean(cell['not_held'] for cell in each):.1f}",
        "never taught": lambda each: _share(each, "unseen", "unseen_wordings"),
        "log-probability": lambda each: f"{mean(cell['log_probability'] for cell in each):.3f}",
        "gate open, general text": lambda each: percent(mean(mean(cell["open_on_general"]) for cell in each)),
    }
    rows = [
        [f"{backbone}, {number}", name, *(of(each) for of in columns.values())]
        for (backbone, number, name), each in groups.items()
    ]
    note = (
        "Mean of the seeds after five exposures, nothing taught further; of all wordings, with the 95 % interval "
        "of all seeds' wordings together; log-probability of the answers to never-taught wordings, in nats."
    )
    return f"{note}\n\n{common.markdown_table(['backbone, facts', 'settings', *columns], rows)}\n"


def _share(cells: Sequence[dict[str, Any]], value: str, number: str) -> str:
    right = [i < cell[value] * cell[number] - 0.5 for cell in cells for i in range(cell[number])]
    found = mean_interval([float(each) for each in right])
    return f"{common.with_interval(percent, found.value, found.ci_low, found.ci_high)}, n {len(right):,}"


def main() -> None:
    """Runs the cells that are missing, then draws all there are."""
    options = parser().parse_args()
    wanted = (
        [] if options.draw else [(name, seed) for seed in options.seed or SEEDS for name in options.names or SETTINGS]
    )
    for name, seed in wanted:
        path = place(options.backbone, options.facts, name, seed)
        if not path.exists():
            cell = run(options.backbone, options.facts, name, seed)
            common.write_json(path, cell)
            print(
                path.name,
                {key: cell[key] for key in ("curve", "taught", "not_held", "unseen")},
                flush=True,
            )
    cells = [common.read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    if cells:
        atomic_write_text(RESULTS / "table.md", "# Settings for a real backbone\n\n" + table(cells))


if __name__ == "__main__":
    common.start(main)
