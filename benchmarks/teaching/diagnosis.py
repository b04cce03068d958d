"""Which teaching fails while its loss falls, and what it leaves: the v0.2 reference recipe on the pocket backbone.

Teaches 100 of the demo's facts, without a gate, in the ways of `RUNS`, and diagnoses each memory (`memlayers
diagnose`). One diagnosis a run in ``benchmarks/results/diagnosis``, with its picture; what is there is not run again.
Then the tables of ``docs/diagnosis.md`` are filled from the files, between their markers.

Example: ``python -m benchmarks.teaching.diagnosis`` (about 15 minutes on one core)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import common
from memlayers import Memory, TeachConfig
from memlayers.backbones import POCKET
from memlayers.data.general_text import read_general_text
from memlayers.evaluation.diagnose import probe_memory
from memlayers.evaluation.probes import Diagnosis, format_probe, read_diagnosis, write_diagnosis
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

RESULTS = common.RESULTS / "diagnosis"
PAGE = common.ROOT / "docs" / "diagnosis.md"
SEED, FACTS, TEXT_TOKENS = common.SEED, 100, 4096
DENSE: dict[str, Any] = {"recipe": "dense", "batch_size": 8, "exposures": 20}
PACKED: dict[str, Any] = {"pack": 256, "batch_size": 1}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "addressed-answer": ("addressed, answer only, one sequence a fact", {"exposures": 8}),
    "dense-full-packed": ("dense, full sequence, packed", {**DENSE, **PACKED, "loss": "full"}),
    "dense-answer": ("dense, answer only, one sequence a fact", {**DENSE, "exposures": 60}),
    "dense-full": ("dense, full sequence, one sequence a fact", {**DENSE, "loss": "full"}),
    "dense-answer-packed": ("dense, answer only, packed", {**DENSE, **PACKED}),
    "addressed-full-packed": ("addressed, full sequence, packed", {**PACKED, "exposures": 8, "loss": "full"}),
}
ORDER = (
    "dense-full-packed", "dense-full", "dense-answer-packed", "dense-answer", "addressed-full-packed",
    "addressed-answer",
)  # fmt: skip


def run(name: str) -> None:
    """Teaches in one way and diagnoses what came of it."""
    facts = common.demo_facts(FACTS)
    config = TeachConfig().with_flags(gate=False, recall_sample=25, seed=SEED, **RUNS[name][1])
    teacher = common.teach(facts, config)
    memory = Memory(teacher.model.eval(), teacher.tokenizer)
    general = read_general_text(POCKET / "heldout.txt").encode(memory.tokenizer, 256)
    kept: list[list[int]] = []
    while sum(map(len, kept)) < TEXT_TOKENS:
        kept.append(general[len(kept)])
    probes, histograms = probe_memory(memory, facts, general=kept, seed=SEED, quiet=True)
    settings = {"run": name, "facts": FACTS, "steps": teacher.report.steps, "seconds": teacher.report.seconds}
    found = Diagnosis(environment("cpu"), {**settings, **config.flags()}, probes, histograms, teacher.report.curve)
    write_diagnosis(RESULTS / name, found)


def value(found: Diagnosis, name: str, split: str, interval: bool = False) -> str:
    """A probe as a cell."""
    probe = found.find(name, split)
    if probe is None:
        return ""
    shown = partial(format_probe, name)
    return common.with_interval(shown, probe.value, probe.ci_low, probe.ci_high) if interval else shown(probe.value)


def teaching_table(runs: dict[str, Diagnosis]) -> str:
    """Does the loss fall, and are the facts recalled?"""
    rows = []
    for name, found in runs.items():
        losses = [point.loss for point in found.curve if point.loss is not None]
        rows.append(
            [
                RUNS[name][0], f"{found.curve[-1].exposures:g}", f"{found.config['steps']:,}",
                f"{losses[0]:.2f} to {losses[-1]:.2f}", value(found, "recall", "memory", True),
                value(found, "recall", "memory, phrasings never taught", True),
                value(found, "first_token_rank", "memory"),
                f"{value(found, 'answer_nll', 'backbone')} to {value(found, 'answer_nll', 'memory')}",
            ]
        )  # fmt: skip
    head = ["teaching", "exposures", "steps", "loss, first to last epoch", "recall, taught", "never taught phrasings",
            "rank of the answer's first token", "NLL of the answer: backbone, memory"]  # fmt: skip
    return common.markdown_table(head, rows)


def where_table(runs: dict[str, Diagnosis]) -> str:
    """Where do the facts live?"""
    conditions = ("backbone", "memory", "pool zeroed", "projections alone")
    rows = []
    for name, found in runs.items():
        cells = [(value(found, "recall", each, True), value(found, "answer_nll", each)) for each in conditions]
        rows.append([RUNS[name][0], *("; ".join(cell) if cell[0] else "-" for cell in cells)])
    return common.markdown_table(["recall; NLL of the answer", *conditions], rows)


def pool_table(runs: dict[str, Diagnosis]) -> str:
    """Did the pool move, and is the memory heard?"""
    rows = []
    for name, found in runs.items():
        layers = layers_of(found)
        ratios = ", ".join(value(found, "output_ratio", layer) for layer in layers)
        general = ", ".join(value(found, "output_ratio", f"{layer}, general text, no gate") for layer in layers)
        in_use = ", ".join(value(found, "slots_in_use", layer) for layer in layers)
        row_norms = [value(found, "row_norm", split) for split in ("at the start", "of the change")]
        rows.append([RUNS[name][0], value(found, "moved_rows", "pool"), *row_norms, ratios, general, in_use])
    head = ["memory", "slots moved", "row norm at the start", "of the change", "output over MLP's, per layer",
            "on general text", "slots in use, per layer"]  # fmt: skip
    return common.markdown_table(head, rows)


def cosine_table(runs: dict[str, Diagnosis]) -> str:
    """Do two entities look alike to the memory?"""
    rows = []
    for name in ("dense-answer", "addressed-answer"):
        if name not in runs:
            continue
        found = runs[name]
        for layer in layers_of(found):
            at = f"{layer}, entity"
            kinds = [f"{what}, {how}" for what in ("input", "query") for how in ("raw", "centred")]
            cells = [value(found, "cosine", f"{at}, {kind}") for kind in kinds]
            alike = [value(found, "jaccard", split) for split in (at, f"{at}, same entity in two phrasings")]
            rows.append([f"{name.split('-')[0]}, {layer}", *cells, value(found, "distinct_slots", at), *alike])
    head = ["memory, layer", "input, raw", "input, centred", "query, raw", "query, centred", "distinct slots",
            "Jaccard, two entities", "one entity, two phrasings"]  # fmt: skip
    return common.markdown_table(head, rows)


def layers_of(found: Diagnosis) -> list[str]:
    """The memory layers, as the splits name them."""
    return [probe.split for probe in found.probes if probe.name == "output_ratio" and "," not in probe.split]


TABLES: dict[str, Callable[[dict[str, Diagnosis]], str]] = {
    "teaching": teaching_table,
    "cosine": cosine_table,
    "where": where_table,
    "pool": pool_table,
}


def filled(page: str) -> str:
    """The page with its tables made anew from the files there are."""
    places = {name: RESULTS / name / "diagnosis.json" for name in ORDER}
    found = {name: read_diagnosis(place) for name, place in places.items() if place.exists()}
    for name, table in TABLES.items():
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        after = rest.partition(f"<!-- end of {name} -->")[2]
        page = f"{before}<!-- {name} -->\n{table(found)}\n<!-- end of {name} -->{after}"
    return page


def main() -> None:
    """Runs what is missing, then fills the page."""
    parser = common.drawing_parser(__doc__)
    common.some_of(parser, RUNS, "run")
    given = parser.parse_args()
    for name in given.names or (() if given.draw else RUNS):
        if given.names or not (RESULTS / name / "diagnosis.json").exists():
            run(name)
            print(f"{name}: done", flush=True)
    for place in sorted(RESULTS.glob("*/diagnosis.json")):
        write_diagnosis(place.parent, read_diagnosis(place))  # table and picture anew
    atomic_write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    common.start(main)
