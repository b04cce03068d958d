"""What the benchmark scripts share: places, arguments, facts, teaching, results files and tables."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from memlayers.backbones import POCKET
from memlayers.config.teach import TeachConfig
from memlayers.data.answers import exact_match
from memlayers.data.entity_questions import read_entity_questions
from memlayers.data.fact_files import read_facts
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory, load_memory
from memlayers.evaluation.formatting import format_value
from memlayers.evaluation.results import Row
from memlayers.teaching.folders import work_folder
from memlayers.teaching.teach import teach_facts
from memlayers.teaching.teacher import Teacher, Watch
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import atomic_write_text, read_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "runs"
"""Where memories are kept that a later call uses again; not part of the repository."""
DATA = Path(os.environ.get("MEMLAYERS_DATA", ROOT.parent / "shared" / "data"))
"""Public data that is not shipped: the folders ``entityquestions`` and ``counterfact`` (benchmarks/README.md)."""
ENTITY_QUESTIONS = DATA / "entityquestions"
SEED = 137


# -- arguments --------------------------------------------------------------------------------------------------------


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a script's own docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def drawing_parser(doc: str | None) -> argparse.ArgumentParser:
    """The same with ``--draw``: run nothing, make tables and pictures from the results files that are there."""
    parser = argument_parser(doc)
    parser.add_argument("--draw", action="store_true", help="run nothing; tables and pictures from what is there")
    return parser


def some_of(parser: argparse.ArgumentParser, known: Iterable[str], kind: str) -> None:
    """Adds any number of names as positional arguments, each one of `known`."""
    names = list(known)

    def checked(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"no such {kind}: {text}; there are {', '.join(names)}")
        return text

    parser.add_argument("names", nargs="*", type=checked, metavar=kind.upper(), help=", ".join(names))


def start(main: Callable[[], None]) -> None:
    """Runs a script; wrong input ends it in one line and exit code 2, work that failed in code 1."""
    warnings.simplefilter("ignore")  # of the libraries beneath, as the command line has it
    try:
        main()
    except (InputError, WorkError) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


# -- facts ------------------------------------------------------------------------------------------------------------


def demo_facts(number: int | None = None, seed: int = SEED) -> list[Fact]:
    """The demo's facts; `number` of them at random, or all in their order."""
    facts: list[Fact] = read_facts(POCKET / "demo.jsonl")
    return facts if number is None else random.Random(seed).sample(facts, number)


def pocket_subjects() -> set[str]:
    """The subjects of the demo's facts and of those that the pocket backbone knows."""
    return {fact.subject for name in ("demo", "known") for fact in read_facts(POCKET / f"{name}.jsonl")}


def new_facts(number: int, seed: int = SEED) -> list[Fact]:
    """Real facts about entities that neither the pocket backbone nor the demo knows, of the demo's relations."""
    return drawn(read_entity_questions(ENTITY_QUESTIONS, without=pocket_subjects()), number, seed)


def drawn(facts: Sequence[Fact], number: int, seed: int = SEED) -> list[Fact]:
    """So many of the facts, at random.

    Raises:
        InputError: there are fewer.
    """
    if number > len(facts):
        raise InputError(f"{number} facts asked for, {len(facts)} there: take fewer")
    return random.Random(seed).sample(facts, number)


def phrasings() -> dict[str, Any]:
    """Each relation's label and wordings, as they ship with the pocket backbone."""
    found: dict[str, Any] = json.loads((POCKET / "phrasings.json").read_text(encoding="utf-8"))
    return found


def held_out_text() -> str:
    """Articles that the pocket backbone was never trained on."""
    return (POCKET / "heldout.txt").read_text(encoding="utf-8")


# -- teaching and asking ----------------------------------------------------------------------------------------------

_Teacher = TypeVar("_Teacher", bound=Teacher)


def prepared(teacher: _Teacher) -> _Teacher:
    """Has a teacher go through the stages before teaching."""
    teacher.setup()
    teacher.calibrate()
    teacher.build_gate()
    return teacher


def taught(teacher: _Teacher) -> _Teacher:
    """Has a teacher go through its stages; its model is the memory then, kept nowhere else."""
    prepared(teacher)
    teacher.teach()
    teacher.hold()
    teacher.settle()
    return teacher


def teach(facts: Sequence[Fact], config: TeachConfig, watch: Watch | None = None, *, quiet: bool = True) -> Teacher:
    """Teaches facts to a memory that is kept nowhere but in the teacher's model."""
    return taught(Teacher(facts, config, watch=watch, quiet=quiet))


def taught_memory(facts: Sequence[Fact], folder: Path, config: TeachConfig) -> Memory:
    """The memory that an earlier call taught, or one that is taught now, from a checkpoint where there is one.

    Raises:
        InputError: it was taught with other settings.
    """
    if not folder.is_dir():
        return teach_facts(facts, folder, config, resume=work_folder(folder).is_dir())
    memory = load_memory(folder, dtype=config.machine.dtype)
    if memory.teaching is None or (memory.teaching.config, memory.teaching.facts) != (config, len(facts)):
        raise InputError(f"{folder}: taught with other settings; delete the folder, or name the run otherwise")
    return memory


def right(answers: Sequence[str], accepted: Iterable[Sequence[str]]) -> list[bool]:
    """Whether each answer is, in full, one of those accepted for it."""
    return [exact_match(answer, each) for answer, each in zip(answers, accepted, strict=True)]


# -- results files ----------------------------------------------------------------------------------------------------


def write_json(path: Path, found: Any) -> None:
    """Writes a results file, whole or not at all."""
    atomic_write_text(path, json.dumps(found, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Reads one."""
    return json.loads(read_text(path))


# -- tables and pictures ----------------------------------------------------------------------------------------------


def with_interval(shown: Callable[[float], str], value: float, low: float | None, high: float | None) -> str:
    """A figure and its 95 % interval, "99.6 % (98.9 % to 99.9 %)"; the figure alone where it has none."""
    return shown(value) if low is None or high is None else f"{shown(value)} ({shown(low)} to {shown(high)})"


def row_with_interval(row: Row | None) -> str:
    """A results row as a cell of a table; empty where there is none."""
    if row is None:
        return ""
    return with_interval(partial(format_value, row.metric), row.value, row.ci_low, row.ci_high)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table without its last line break."""
    lines = [head, *rows]
    shown = [f"| {' | '.join(map(str, line))} |" for line in lines]
    return "\n".join([shown[0], "|---" * len(head) + "|", *shown[1:]])


def pyplot() -> Any:
    """matplotlib.pyplot, drawing into files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
