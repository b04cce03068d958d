"""A table learned by one command: recall in wordings never taught, of invented products.

The table is made by seed: a product a row, with price, manager, warehouse, weight and release date, which no backbone
can know. ``memlayers learn`` is called on it with its defaults; its certificate's summary is kept, one JSON a cell
(backbone, rows, seed) in ``benchmarks/results/sources/learned_table``. What is there is not run again; an interrupted
teaching (``runs/learned_table``) goes on. 200 rows take about half an hour on pocket.

Example: ``python -m benchmarks.sources.learned_table --backbone pocket --rows 200 --seed 1``
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from benchmarks import common
from memlayers.certificate.learn import CERTIFICATE_FILE, learn
from memlayers.config.teach import TeachConfig
from memlayers.sources.reading import ReadOptions
from memlayers.teaching.checkpoint import Checkpoint
from memlayers.teaching.folders import work_folder
from memlayers.utils.files import atomic_write_text

RESULTS: Final = common.RESULTS / "sources" / "learned_table"
WORK: Final = common.WORK / "learned_table"
_SYLLABLES: Final = (
    "ba ke lo mi ru ta ve zo dri fel gan hol jun kor lim mor nex por qua rin sel tor umb vex wil yor zan".split()
)
_FIRST: Final = "Amara Joao Petra Lena Omar Ines Tobias Mina Viktor Noor Elsa Ravi Greta Hugo Sana Milo".split()
_LAST: Final = (
    "Singh Pires Olsen Marsh Haile Brandt Okoro Lindqvist Moreau Novak Tanaka Duarte Weiss Koch Abara Oake".split()
)
_CITIES: Final = "Rotterdam Leeds Lyon Gdansk Porto Turin Malmo Ghent Brno Cork Bremen Bilbao Tampere Graz".split()
_MONTHS: Final = (
    "January February March April May June July August September October November December".split()
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    arguments = common.drawing_parser(__doc__)
    add = arguments.add_argument
    add("--backbone", default="pocket", help="pocket, smollm2, ... [pocket]")
    add("--rows", type=int, default=200, help="of the table [200]")
    add("--seed", type=int, default=common.SEED, help="of the table and of teaching [137]")
    return arguments


def table(rows: int, seed: int) -> str:
    """The table as CSV."""
    rng = random.Random(seed)
    names: set[str] = set()
    while len(names) < rows:
        word = "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 3))))
        names.add(f"{word.title()} {rng.randrange(100, 999)}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["product", "price", "manager", "warehouse", "weight", "release_date"])
    for name in sorted(names):
        writer.writerow([
            name,
            f"{rng.randrange(500, 99999) / 100:.2f} EUR",
            f"{rng.choice(_FIRST)} {rng.choice(_LAST)}",
            f"Hall {rng.randrange(1, 30)}, {rng.choice(_CITIES)}",
            f"{rng.randrange(10, 9999) / 10:.1f} kg",
            f"{rng.randrange(1, 29)} {rng.choice(_MONTHS)} {rng.randrange(1995, 2026)}",
        ])  # fmt: skip
    return text.getvalue()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Learns one table."""
    folder = WORK / f"{options.backbone}-{options.rows}-{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    place, out = folder / "products.csv", folder / "memory"
    atomic_write_text(place, table(options.rows, options.seed))
    config = TeachConfig().with_flags(backbone=options.backbone, seed=options.seed)
    before, began = spent_before(work_folder(out)), time.process_time()
    memory, made = learn(
        [place], out, config, options=ReadOptions(subject="product"), resume=work_folder(out).is_dir()
    )  # fmt: skip
    spent = before + time.process_time() - began
    settings = {"backbone": options.backbone, "rows": options.rows, "seed": options.seed, "facts": len(made.facts)}
    return found(out, {**settings, "cpu_seconds": spent, "exposures": memory.report.exposures})


def spent_before(work: Path) -> float:
    """The CPU seconds of what a checkpoint says was done before an interruption; 0.0 where there is none."""
    saved = Checkpoint(work, {}).found()
    stages = common.read_json(saved[-1] / "state.json")["report"]["stages"] if saved else {}
    return float(sum(stage["cpu_seconds"] for stage in stages.values()))


def found(memory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the certificate in a memory's folder says: its summary, and how often each wording is answered."""
    said = json.loads((memory / CERTIFICATE_FILE).read_text(encoding="utf-8"))
    wordings: dict[str, list[bool]] = defaultdict(list)
    for fact in said["facts"]:
        for asked in fact["asked"]:
            wordings[asked["question"].replace(fact["subject"], "X")].append(asked["right"])
    return {
        **settings,
        "environment": said["environment"],
        "summary": said["summary"],
        "wordings": {wording: [sum(right), len(right)] for wording, right in wordings.items()},
    }


def draw() -> None:
    """The table of all cells that are there."""
    cells = sorted(
        (common.read_json(path) for path in RESULTS.glob("*.json")),
        key=lambda cell: (cell["backbone"], cell["rows"], cell["seed"]),
    )
    rows = []
    for cell in cells:
        shown = [cell["backbone"], cell["rows"], cell["facts"], cell["seed"]]
        for metric in ("recall", "recall_containment", "backbone_containment"):
            of = cell["summary"][metric]
            shown.append(common.with_interval(lambda share: f"{100 * share:.1f} %", of["value"], of["low"], of["high"]))
        rows.append([*shown, f"{cell['cpu_seconds'] / cell['facts']:.2f}"])
    head = ["backbone", "rows", "facts", "seed", "exact, never taught", "containment, never taught",
            "bare backbone, containment", "CPU seconds a fact"]  # fmt: skip
    atomic_write_text(RESULTS / "table.md", common.markdown_table(head, rows) + "\n")


def main() -> None:
    """Runs a cell, or draws the table."""
    options = parser().parse_args()
    if not options.draw:
        place = RESULTS / f"{options.backbone}-{options.rows}-{options.seed}.json"
        if not place.is_file():
            RESULTS.mkdir(parents=True, exist_ok=True)
            common.write_json(place, run(options))
    draw()


if __name__ == "__main__":
    common.start(main)
