"""Running a comparison: each method is taught, scored, and written as one results file; then the page is drawn.

Light until a method has to be run, so that the page of a finished comparison is redrawn at once.
"""

from __future__ import annotations

import gc
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayers.comparison.names import BARE
from memlayers.comparison.page import result_path, write_page
from memlayers.config.teach import TeachConfig
from memlayers.data.facts import Fact, Question
from memlayers.evaluation.results import Results, read_results, write_results
from memlayers.sweep.run import check_continued, check_settings, digest
from memlayers.utils.environment import environment
from memlayers.utils.errors import WorkError, reason_of

if TYPE_CHECKING:
    from memlayers.comparison.method import Method
    from memlayers.comparison.scoring import Exam


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is asked and read.

    Attributes:
        facts: taught, at most.
        questions: neighbours, and known questions, at most so many of each.
        phrasings: taught wordings asked per fact.
        text_tokens: of the text.
        updates: facts that are changed.
    """

    facts: int = 100
    questions: int = 100
    phrasings: int = 2
    text_tokens: int = 4096
    updates: int = 3


@dataclass(frozen=True, slots=True)
class Materials:
    """What a comparison is made of: facts to teach, neighbours never taught, questions the backbone may know, text."""

    facts: Sequence[Fact]
    untaught: Sequence[Question]
    known: Sequence[Question]
    text: str

    def drawn(self, bounds: Bounds, seed: int) -> Materials:
        """A sample within bounds; facts stay in their order."""
        rng = random.Random(f"{seed}:comparison")

        def some(items: Sequence[Any], most: int) -> list[Any]:
            return [items[i] for i in sorted(rng.sample(range(len(items)), min(most, len(items))))]

        facts = some(self.facts, bounds.facts)
        return Materials(facts, some(self.untaught, bounds.questions), some(self.known, bounds.questions), self.text)


def run_comparison(
    out: str | Path,
    methods: Sequence[str],
    materials: Materials,
    config: TeachConfig,
    bounds: Bounds | None = None,
    *,
    note: Callable[[str], None] = lambda text: None,
    quiet: bool = False,
) -> Path:
    """Runs the methods that are not there yet with this seed, and draws the page after each.

    A method that failed leaves its reason in its file, the others go on, and the next call tries it again.

    Args:
        out: a folder, new or of an earlier call: OUT/methods/NAME-SEED.json, OUT/compare.md and its plot.
        methods: from `methods_named`: the backbone comes first.
        materials: what they are taught and asked.
        config: how memories are taught; the backbone, device and seed of all.
        bounds: of what is taught and asked; None for the default.
        note: called with a line about each method that is run.
        quiet: no progress bars.

    Returns:
        The page.

    Raises:
        InputError: a damaged file, one made with other settings, or a folder in the way.
        WorkError: the backbone itself cannot be scored.
    """
    out, bounds = Path(out), bounds or Bounds()
    check_continued(out, "methods", "comparison")
    drawn = materials.drawn(bounds, config.seed)
    paths = {name: result_path(out, name, config.seed) for name in methods}
    settings = {name: _settings(name, drawn, config, bounds) for name in methods}
    done = {name: read_results(path) for name, path in paths.items() if path.is_file()}
    for name, results in done.items():
        check_settings(paths[name], results.config, settings[name])
    missing = [name for name in methods if name not in done or "fault" in done[name].environment]
    if len(missing) < len(methods):
        note(f"{len(methods) - len(missing)} of {len(methods)} methods are there already")
    (out / "methods").mkdir(parents=True, exist_ok=True)  # by which an interrupted call's folder is known
    for number, name in enumerate(missing, start=1):
        note(f"{number} of {len(missing)}: {name}")
        began = time.perf_counter()
        bare = {} if name == BARE else {each["question"]: each["answer"] for each in done[BARE].examples}
        done[name] = _run_method(name, out / "work", drawn, config, bounds, bare, quiet)
        if name == BARE and "fault" in done[name].environment:
            raise WorkError(f"the bare backbone cannot be scored: {done[name].environment['fault']}")
        done[name].config = settings[name]
        write_results(paths[name], done[name])
        write_page(out)
        fault = done[name].environment.get("fault")
        note(f"{name}: {fault or 'done'}, {time.perf_counter() - began:.0f} s in all")
    return write_page(out)


def _run_method(
    name: str, work: Path, drawn: Materials, config: TeachConfig, bounds: Bounds, bare: dict[str, str], quiet: bool
) -> Results:
    """A method's results; of one that failed the reason alone."""
    from memlayers.comparison.scoring import make_exam, teach_and_score

    exam: Exam = make_exam(
        drawn.facts, drawn.untaught, drawn.known, drawn.text,
        phrasings=bounds.phrasings, text_tokens=bounds.text_tokens, updates=bounds.updates, seed=config.seed,
    )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)  # of an interrupted call
    method = _method(name)(config, work / name, quiet=quiet)
    told: dict[str, Any] = {}
    try:
        rows, said = teach_and_score(method, exam, bare, quiet=quiet)
        told = {"note": method.note} if method.note else {}
    except Exception as error:  # memory that does not suffice among them: the other methods go on
        rows, said, told = [], [], {"fault": reason_of(error)}
    device = str(method.model.device) if hasattr(method, "model") else "cpu"
    del method
    gc.collect()  # before the next backbone is loaded
    shutil.rmtree(work, ignore_errors=True)
    return Results({**environment(device), **told}, {}, rows, examples=said)


def _method(name: str) -> Callable[..., Method]:
    from memlayers.comparison.memit import Memit
    from memlayers.comparison.memory import DenseMemory, TaughtMemory
    from memlayers.comparison.method import Method
    from memlayers.comparison.retrieval import InContext, Retrieval
    from memlayers.comparison.tuning import FineTuning

    kind, _, number = name.partition("-")
    kinds: dict[str, Callable[[], Callable[..., Method]]] = {
        BARE: lambda: Method,
        "memory": lambda: TaughtMemory,
        "dense": lambda: DenseMemory,
        "full": lambda: partial(FineTuning, rank=None),
        "lora": lambda: partial(FineTuning, rank=int(number)),
        "rag": lambda: partial(Retrieval, top=int(number)),
        "context": lambda: InContext,
        "memit": lambda: Memit,
    }
    return kinds[kind]()


def _settings(name: str, drawn: Materials, config: TeachConfig, bounds: Bounds) -> dict[str, Any]:
    """All that a method's figures depend on, but for the code and the machine."""
    flags = config.flags()
    del flags["device"]
    digests = {"taught": drawn.facts, "untaught": drawn.untaught, "known": drawn.known, "text": [drawn.text]}
    return {
        "method": name, **flags, **asdict(bounds), "facts": len(drawn.facts),
        **{key: digest(items) for key, items in digests.items()},
    }  # fmt: skip
