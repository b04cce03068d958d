"""Running the cells: each is taught, scored, and written as one results file; a killed run continues where it was.

Light until a cell has to be run, so that the page of a finished grid is redrawn at once.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayers.config.teach import TeachConfig
from memlayers.data.entity_questions import read_entity_questions
from memlayers.data.fact_files import public_questions, read_facts, read_questions
from memlayers.data.facts import Fact, Question
from memlayers.evaluation.results import Results, write_results
from memlayers.sweep.grid import Cell, Grid, cell_path, read_cells
from memlayers.sweep.page import write_page
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError
from memlayers.utils.files import check_output_directory, read_text

if TYPE_CHECKING:
    from memlayers.inference.generation import Generated

POCKET = Path(__file__).parent.parent / "pocket"
HELD_OUT = 500  # entities never taught, per cell
CURVE_CHARACTERS = 16_000  # of the in-domain text, whose perplexity is measured after each pass
MADE_BY_THE_GRID = ("recipe", "gate", "seed")  # of TeachConfig


@dataclass(frozen=True, slots=True)
class Materials:
    """What cells are made of.

    Attributes:
        facts: to be taught; a cell takes some, by its seed.
        untaught: questions about entities that are never taught; None takes them from the facts that a cell leaves.
        known: questions that the backbone answers.
        qa: further questions, by name.
        texts: general texts by name; the unnamed one is in-domain.
    """

    facts: Sequence[Fact]
    untaught: Sequence[Question] | None
    known: Sequence[Question]
    qa: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def most_facts(self) -> int:
        """The largest size of a cell."""
        return len(self.facts) - (HELD_OUT if self.untaught is None else 0)

    def split(self, cell: Cell) -> tuple[list[Fact], list[Question]]:
        """What a cell teaches, and questions of the same relations about entities that it does not.

        For one seed a larger cell's facts hold a smaller one's, and the entities never taught are the same.
        """
        rng = random.Random(f"{cell.seed}:facts")
        facts = rng.sample(self.facts, len(self.facts))
        if self.untaught is not None:
            return facts[: cell.facts], list(self.untaught)
        held_out = [
            Question(rng.choice((*fact.questions, *fact.unseen_questions)), fact.answers) for fact in facts[-HELD_OUT:]
        ]
        return facts[: cell.facts], held_out


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is asked and read, so that a cell is not scored for longer than it was taught.

    Attributes:
        questions: of each kind: taught facts asked, known facts, of each QA file.
        phrasings: taught phrasings per fact asked.
        max_text_tokens: of each text.
    """

    questions: int = 1000
    phrasings: int = 2
    max_text_tokens: int = 32_768


def read_materials(
    facts_dir: Path | None, known: Path | None, qa: Mapping[str, Path], texts: Mapping[str, Path]
) -> Materials:
    """Reads everything that cells are made of.

    Args:
        facts_dir: the folder of EntityQuestions; None for the demo's 500 facts.
        known: what the backbone knows; None for the pocket's.
        qa: files of questions by name.
        texts: plain text files by name; held-out articles of the pocket's are always read, unnamed.

    Raises:
        InputError: a file is missing or malformed.
    """
    demo, own = read_facts(POCKET / "demo.jsonl"), read_facts(POCKET / "known.jsonl")
    if facts_dir is None:
        facts, untaught = demo, read_questions(POCKET / "untaught.jsonl")
    else:  # the demo's, on which the recipe was tuned, are left out
        named = {fact.subject for fact in (*demo, *own)}
        facts, untaught = read_entity_questions(facts_dir, without=named), None
    if known is None:  # as the demo asks them: one phrasing each
        asked = public_questions()
    else:
        asked = read_questions(known)
    return Materials(
        facts, untaught, asked,
        {name: read_questions(path) for name, path in qa.items()},
        {"": read_text(POCKET / "heldout.txt"), **{name: read_text(path) for name, path in texts.items()}},
    )  # fmt: skip


def check_continued(out: Path, inside: str, what: str) -> None:
    """Checks that a folder is new, empty, or an earlier call's, by the folder that such a call makes in it first.

    Raises:
        InputError: it is in the way, or cannot be written.
    """
    check_output_directory(out, replace=True)
    if out.is_dir() and any(out.iterdir()) and not (out / inside).is_dir():
        raise InputError(f"{out}: exists and holds no {what}; give another folder")


def run_protocol(
    out: str | Path,
    grid: Grid,
    materials: Materials,
    config: TeachConfig,
    bounds: Bounds | None = None,
    *,
    note: Callable[[str], None] = lambda text: None,
    quiet: bool = False,
) -> Path:
    """Runs the cells that are not there yet, and draws the page after each.

    Args:
        out: a folder, new or of an earlier call: OUT/cells/NAME.json, OUT/results.md and its plots; OUT/work while a
            cell is taught, from which an interrupted one continues.
        grid: which cells.
        materials: what they are made of.
        config: how they are taught; recipe, gate and seed are the cell's.
        bounds: of what is asked; None for the default.
        note: called with a line about each cell that is run.
        quiet: no progress bars.

    Returns:
        The page.

    Raises:
        InputError: a size that the facts do not suffice for, a damaged cell, one made with other settings, or a folder
            in the way.
    """
    out, bounds = Path(out), bounds or Bounds()
    check_continued(out, "cells", "cells of this protocol")
    largest = max(grid.sizes)
    if largest > materials.most_facts:
        more = (
            "give --facts-dir (EntityQuestions), or smaller --sizes" if materials.untaught else "take smaller --sizes"
        )
        raise InputError(f"size {largest}: there are only {materials.most_facts} facts to teach; {more}")
    done = read_cells(out)
    cells = grid.cells()
    settings = {cell: _settings(cell, materials, config, bounds) for cell in cells}
    for cell in cells:
        if cell in done:
            check_settings(cell_path(out, cell), done[cell].config, settings[cell])
    missing = [cell for cell in cells if cell not in done]
    if len(missing) < len(cells):
        note(f"{len(cells) - len(missing)} of {len(cells)} cells are there already")
    (out / "cells").mkdir(parents=True, exist_ok=True)  # by which an interrupted call's folder is known
    page = write_page(out, grid, done)
    backbone_said: dict[int, dict[str, Generated]] = {}
    for number, cell in enumerate(missing, start=1):
        began = time.perf_counter()
        note(f"cell {number} of {len(missing)}: {cell.name}")
        done[cell] = _run_cell(out, cell, materials, config, bounds, settings[cell], backbone_said, quiet)
        page = write_page(out, grid, done)
        note(f"{cell.name}: {_in_short(done[cell])}, {_time(time.perf_counter() - began)} in all")
    with suppress(OSError):
        (out / "work").rmdir()
    return page


def _run_cell(
    out: Path,
    cell: Cell,
    materials: Materials,
    config: TeachConfig,
    bounds: Bounds,
    settings: dict[str, Any],
    backbone_said: dict[int, dict[str, Generated]],
    quiet: bool,
) -> Results:
    from memlayers.demo import watch
    from memlayers.evaluation.evaluate import cost_rows, score_model
    from memlayers.teaching.teach import teach_facts

    facts, untaught = materials.split(cell)
    rng = random.Random(cell.seed)
    known, qa = _sample(rng, materials.known, bounds), {k: _sample(rng, v, bounds) for k, v in materials.qa.items()}
    folder = out / "work" / cell.name
    counted = _forget_peak_memory()
    began = time.perf_counter()
    memory = teach_facts(
        facts, folder, _config(cell, config), watch=watch(known, materials.texts[""][:CURVE_CHARACTERS]),
        resume=Path(f"{folder}.teaching").is_dir(), replace=True, quiet=quiet,
    )  # fmt: skip
    taught = time.perf_counter()
    rows, examples = score_model(
        memory.model, memory.tokenizer,
        facts=_sample(rng, facts, bounds), known=known, qa=qa, untaught=untaught, text=materials.texts,
        phrasings=bounds.phrasings, max_text_tokens=bounds.max_text_tokens, seed=cell.seed,
        backbone_said=backbone_said, quiet=quiet,
    )  # fmt: skip
    device = str(memory.model.device)
    costs = cost_rows(memory.report, len(facts), device)
    rows += [row for row in costs if counted or row.metric != "peak_memory_bytes"]
    seconds = {"teaching_and_curve": taught - began, "scoring": time.perf_counter() - taught}
    results = Results(
        environment={**environment(device), "seconds": {name: round(each, 1) for name, each in seconds.items()}},
        config=settings, rows=rows, curve=memory.report.curve, examples=examples,
    )  # fmt: skip
    write_results(cell_path(out, cell), results)
    shutil.rmtree(folder, ignore_errors=True)
    return results


def _config(cell: Cell, config: TeachConfig) -> TeachConfig:
    from memlayers.backbones import device_chosen

    # CPUs differ in what "auto" stands for on them, and cells may be shared out among machines.
    machine = config.machine
    on_cpu = machine.dtype == "auto" and device_chosen(machine.device).type == "cpu"
    # As many exposures in every cell: nothing is taught further where one recipe or gate recalls less than another.
    return config.with_flags(
        recipe=cell.recipe, gate=cell.gate, seed=cell.seed, exposures=config.exposures,
        dtype="float32" if on_cpu else machine.dtype,
    )  # fmt: skip


def _settings(cell: Cell, materials: Materials, config: TeachConfig, bounds: Bounds) -> dict[str, Any]:
    """All that the figures of a cell depend on, but for the code: how it is taught, and digests of what with.

    Not the device: cells may be shared out among machines.
    """
    facts, untaught = materials.split(cell)
    taught = _config(cell, config).flags()
    del taught["device"]
    settings = {
        "facts": cell.facts,
        **taught,
        **asdict(bounds),
        "taught": digest(facts),
        "untaught": digest(untaught),
        "known": digest(materials.known),
        "qa": {name: digest(items) for name, items in materials.qa.items()},
        "texts": {name or "held out": digest([text]) for name, text in materials.texts.items()},
    }
    return dict(json.loads(json.dumps(settings)))


def check_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses a results file that was made with other settings.

    Raises:
        InputError: names the first of them.
    """
    for name in dict.fromkeys((*wanted, *found)):
        if found.get(name) != wanted.get(name):
            was, now = (json.dumps(each.get(name)) for each in (found, wanted))
            raise InputError(
                f"{path}: made with other settings ({name} was {was}, now {now}); give another folder, or delete it"
            )


def digest(items: Iterable[Any]) -> str:
    """What tells these items from others: 16 hex digits."""
    return hashlib.sha256("\n".join(map(repr, items)).encode()).hexdigest()[:16]


def _sample(rng: random.Random, items: Sequence[Any], bounds: Bounds) -> list[Any]:
    return rng.sample(items, min(len(items), bounds.questions))


def _forget_peak_memory() -> bool:
    """Starts the count of peak memory anew, so that a cell does not inherit the last one's; False where it cannot."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the process's own high-water mark
    except OSError:
        return torch.cuda.is_available()
    return True


def _in_short(results: Results) -> str:
    parts = []
    for split, name in (("taught", "recall"), ("unseen_phrasing", "on unseen phrasings")):
        if row := results.find("recall", split):
            parts.append(f"{name} {row.value:.1%}")
    seconds = results.environment["seconds"]
    return (
        f"{', '.join(parts)}; taught in {_time(seconds['teaching_and_curve'])}, scored in {_time(seconds['scoring'])}"
    )


def _time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"
