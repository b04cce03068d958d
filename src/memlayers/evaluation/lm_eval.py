"""EleutherAI's lm-evaluation-harness on a memory: backbone and memory side by side, on the same items.

The harness sees an ordinary transformers model. It hands in token ids (with a mask where it pads on the left to
generate, padded on the right to score), which is all that a memory needs to find its subjects.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayers.data.choices import choices_text, read_choices
from memlayers.evaluation.results import Row
from memlayers.evaluation.statistics import mean_interval, paired_difference
from memlayers.tuner.handle import without_memory
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def choices_task(path: str | Path, *, chat: bool = False) -> Iterator[tuple[str, Path]]:
    """A task of the harness for a file of multiple-choice questions, scored by the choices' log-likelihoods.

    Args:
        path: a JSONL file, see `data.choices`.
        chat: for items that go through the chat template: a question is then put as facts are taught.

    Yields:
        The task's name, made from the file's, and the folder that holds it; the folder goes at the end.

    Raises:
        InputError: anything wrong with the file.
    """
    questions = read_choices(path)
    name = re.sub(r"\W+", "_", Path(path).stem)
    with tempfile.TemporaryDirectory(prefix="memlayers-") as temporary:
        folder = Path(temporary)
        (folder / "choices.jsonl").write_text(choices_text(questions), encoding="utf-8")
        metrics = [{"metric": each, "aggregation": "mean", "higher_is_better": True} for each in ("acc", "acc_norm")]
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "choices.jsonl")}, "cache_dir": str(folder)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}" if chat else "Question: {{question}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": metrics,
        }
        (folder / "choices.yaml").write_text(json.dumps(task), encoding="utf-8")  # which is YAML, too
        yield name, folder


def harness_rows(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    chat: bool = False,
    batch_size: int = 16,
    seed: int = 0,
    quiet: bool = False,
) -> list[Row]:
    """Runs tasks of the harness with the memory and without.

    Args:
        model: a PEFT model with a memory.
        tokenizer: the backbone's.
        tasks: names of tasks or groups, the harness's own or of `include_path`.
        include_path: a folder of further task files (YAML).
        limit: items of each task at most; None for all.
        fewshot: examples before each item; None leaves it to the task.
        chat: put each item through the tokenizer's chat template, as facts are taught.
        batch_size: items per forward.
        seed: of the intervals.
        quiet: no progress bars.

    Returns:
        For each task and metric of the harness the rows of backbone, memory, and change: metric "lm_eval", or
        "lm_eval_loss" where lower is better; split "TASK:METRIC:memory". Intervals are bootstrapped, the change's
        paired, where the harness's figure is a mean over items; elsewhere there is none.

    Raises:
        InputError: the harness is not installed, or a task cannot be loaded.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise InputError(
            "EleutherAI's lm-evaluation-harness is not installed; get it with pip install 'memlayers[eval]'"
        ) from None
    with _hushed(quiet):
        manager = _manager(tasks, include_path)
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        options: dict[str, Any] = {
            "tasks": list(tasks),
            "task_manager": manager,
            "limit": limit,
            "num_fewshot": fewshot,
            "apply_chat_template": chat,
            "bootstrap_iters": 0,
        }
        memory = lm_eval.simple_evaluate(wrapped, **options)
        with without_memory(model):
            backbone = lm_eval.simple_evaluate(wrapped, **options)
    return list(_rows(backbone, memory, seed))


def _manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """The harness's register of tasks, each of them loaded once to see that it can be."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"{include_path}: no such folder; give one that holds task files (YAML)")
    try:
        manager = TaskManager(include_path=include_path and str(include_path), include_defaults=False)
        if not set(tasks) <= set(manager.all_tasks):  # reading the harness's own thousands takes a while
            manager = TaskManager(include_path=include_path and str(include_path))
        unknown = [task for task in tasks if not manager.match_tasks([task])]
        if not unknown:
            manager.load(list(tasks))
    except Exception as error:  # of the harness, of YAML, of datasets and of the network: all of them the task's
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"--tasks {','.join(tasks)}: cannot be loaded ({reason}); repair the task or its data"
        ) from error
    if unknown:
        raise InputError(f"--tasks {unknown[0]}: no such task; `lm_eval ls tasks` names the harness's own")
    return manager


@contextmanager
def _hushed(quiet: bool) -> Iterator[None]:
    """Without the harness's many lines about itself; with `quiet`, without its progress bars, too."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()) if quiet else nullcontext():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _rows(backbone: Mapping[str, Any], memory: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """The harness's two answers as rows; a task's metrics are keyed "metric,filter"."""
    for task, figures in memory["results"].items():
        directions = memory["higher_is_better"].get(task, {})
        for key, value in figures.items():
            name, _, chosen = key.partition(",")
            direction = directions.get(name)
            if not isinstance(value, (int, float)) or name.endswith("_stderr") or direction is None:
                continue
            metric = "lm_eval" if direction else "lm_eval_loss"
            split = f"{task}:{name}" + (f",{chosen}" if chosen not in ("", "none") else "")
            values = [run["results"][task][key] for run in (backbone, memory)]
            items = [_items(run, task, name, chosen) for run in (backbone, memory)]
            n = int(memory.get("n-samples", {}).get(task, {}).get("effective", len(items[1])))
            paired = items[0].keys() == items[1].keys()
            means = [_is_mean(found, value) for found, value in zip(items, values, strict=True)]
            for side, found, value, is_mean in zip(("backbone", "memory"), items, values, means, strict=True):
                if is_mean:
                    yield Row.from_estimate(metric, f"{split}:{side}", mean_interval(list(found.values()), seed))
                else:
                    yield Row(metric, f"{split}:{side}", float(value), n)
            if paired and all(means):
                before, after = ([found[item] for item in items[0]] for found in items)
                yield Row.from_estimate(metric, f"{split}:change", paired_difference(before, after, seed))
            else:
                yield Row(metric, f"{split}:change", float(values[1] - values[0]), n)


def _items(run: Mapping[str, Any], task: str, metric: str, chosen: str) -> dict[int, float]:
    """Item -> its score under a metric, where it is a number."""
    found = {}
    for sample in run.get("samples", {}).get(task, ()):
        score = sample.get(metric)
        if sample.get("filter", "none") == chosen and isinstance(score, (int, float)):
            found[int(sample["doc_id"])] = float(score)
    return found


def _is_mean(items: Mapping[int, float], value: float) -> bool:
    return bool(items) and abs(sum(items.values()) / len(items) - value) <= 1e-6 * max(1.0, abs(value))
