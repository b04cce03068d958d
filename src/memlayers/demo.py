"""The main job, end to end: teach the pocket backbone, or another, 500 real facts, score it, draw the report."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from memlayers.backbones import POCKET
from memlayers.config.teach import TeachConfig
from memlayers.data.answers import exact_match
from memlayers.data.fact_files import public_questions, read_facts, read_questions
from memlayers.data.facts import Fact, Question
from memlayers.editing.memory import Memory, load_memory
from memlayers.evaluation.evaluate import cost_rows, score_model
from memlayers.evaluation.known import questions_known
from memlayers.evaluation.report import write_report
from memlayers.evaluation.results import Results, Row, write_results
from memlayers.evaluation.text_scores import perplexity_on
from memlayers.inference.generation import answer_questions
from memlayers.teaching.folders import check_work_folder, work_folder
from memlayers.teaching.teach import teach_facts
from memlayers.teaching.teacher import Watch
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError
from memlayers.utils.files import atomic_directory, check_output_directory

# What the demo measures on: enough for tight intervals, little enough for two cores. `memlayers eval` takes everything.
KNOWN_QUESTIONS, TEXT_TOKENS = 1000, 16_384
WATCHED_QUESTIONS = 100  # of the known ones, after each pass, for the curve
LARGER = 4  # another backbone than the pocket is larger, and is asked and read one in so many of all that


def run_demo(
    out: str | Path, config: TeachConfig, *, facts: int | None = None, resume: bool = False, quiet: bool = False
) -> Results:
    """Teaches, scores and draws; leaves OUT/memory, OUT/results.json, OUT/report.md and its pictures.

    The memory is taught in ``OUT.teaching`` beside `out`, which a killed demo leaves behind, to be resumed.

    Args:
        out: a new folder; it appears in one piece at the end.
        config: how to teach, and which backbone.
        facts: teach only so many of the 500.
        resume: continue an interrupted demo of the same configuration and facts.
        quiet: no progress bars.

    Raises:
        InputError: a folder in the way, nothing to resume, or a demo of other settings to resume.
        WorkError: the work failed; then nothing is left, unless it was resumed.
    """
    check_output_directory(out)
    check_work_folder(out, resume=resume)
    taught = read_facts(POCKET / "demo.jsonl")
    if facts is not None:
        taught = random.Random(config.seed).sample(taught, min(facts, len(taught)))
    work = work_folder(out)
    try:
        memory = _taught_memory(taught, work / "memory", config, quiet=quiet)
        rows, examples = score_demo(
            memory.model, memory.tokenizer, taught, config.seed, pocket=_is_pocket(config), quiet=quiet
        )
        rows += cost_rows(memory.report, len(taught), str(memory.model.device))
        results = Results(
            environment=environment(str(memory.model.device)),
            config={"facts": len(taught), **config.flags()},
            rows=rows,
            curve=memory.report.curve,
            examples=examples,
        )
        with atomic_directory(out) as folder:
            shutil.copytree(work / "memory", folder / "memory")
            write_results(folder / "results.json", results)
            write_report(folder / "results.json", folder)
    except Exception:  # not KeyboardInterrupt
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    return results


def _taught_memory(facts: list[Fact], folder: Path, config: TeachConfig, *, quiet: bool) -> Memory:
    """The memory that an earlier call taught; or it is taught now, from the earlier call's checkpoint if there is one.

    Raises:
        InputError: an earlier call's has other settings.
    """
    if not folder.is_dir():
        # On a larger backbone this would take longer than the teaching: there, before and after have to do.
        watched = watch(_candidates(config.seed), _text()) if _is_pocket(config) else None
        return teach_facts(facts, folder, config, resume=work_folder(folder).is_dir(), watch=watched, quiet=quiet)
    memory = load_memory(folder, device=config.machine.device, dtype=config.machine.dtype)
    found = memory.teaching
    if found is None or (found.config, found.facts) != (config, len(facts)):
        raise InputError(
            f"{folder.parent}: left by a demo with other settings; resume with the same ones, or delete the folder"
        )
    return memory


def score_demo(
    model: Any, tokenizer: Any, taught: list[Fact], seed: int, *, pocket: bool = True, quiet: bool = False
) -> tuple[list[Row], list[dict[str, Any]]]:
    """The demo's rows and examples of a memory that was taught these of its facts.

    Args:
        model: a PEFT model with the memory.
        tokenizer: the backbone's.
        taught: the facts; all are asked.
        seed: of the choices.
        pocket: whether the backbone is the pocket's, which knows the known facts. Another one is asked and read only
            one in a few of the other questions and tokens, and its known facts are those that it answers itself.
        quiet: no progress bars.
    """
    one_in = 1 if pocket else LARGER
    known = _candidates(seed)[::one_in]
    if not pocket:
        known = questions_known(model, tokenizer, known, quiet=quiet)
    return score_model(
        model, tokenizer,
        facts=taught, known=known, untaught=read_questions(POCKET / "untaught.jsonl")[::one_in],
        text=_text(), phrasings=2, max_text_tokens=TEXT_TOKENS // one_in, seed=seed, quiet=quiet,
    )  # fmt: skip


def _is_pocket(config: TeachConfig) -> bool:
    return config.backbone == "pocket"


def _candidates(seed: int) -> list[Question]:
    return random.Random(seed).sample(public_questions(), KNOWN_QUESTIONS)


def _text() -> str:
    return (POCKET / "heldout.txt").read_text(encoding="utf-8")


def watch(known: list[Question], text: str) -> Watch:
    """Measures, after each pass, perplexity on `text` and the share of some known facts answered."""
    some = random.Random(0).sample(known, min(WATCHED_QUESTIONS, len(known)))

    def measure(model: Any, tokenizer: Any) -> tuple[float, float]:
        answers = answer_questions(model, tokenizer, [question.question for question in some])
        kept = sum(exact_match(a, q.answers) for a, q in zip(answers, some, strict=True)) / len(some)
        return perplexity_on(model, tokenizer, text, max_tokens=TEXT_TOKENS), kept

    return measure
