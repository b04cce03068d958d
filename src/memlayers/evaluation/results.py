"""results.json: the typed figures of an evaluation, and where and how they were made. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from memlayers.inference.record import CurvePoint
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import StrPath, atomic_write_text, sections_text

if TYPE_CHECKING:
    from memlayers.evaluation.statistics import Estimate

SCHEMA = "memlayers.results/1"

HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {
        "recall": True,
        "recall_containment": True,
        "recall_token_f1": True,
        "recall_generated": True,
        "teacher_forced_recall": True,
        "known_facts": True,
        "known_facts_containment": True,
        "known_facts_token_f1": True,
        "known_lost": False,
        "qa_exact_match": True,
        "qa_containment": True,
        "qa_token_f1": True,
        "perplexity": False,
        "perplexity_change": False,
        "bits_per_byte": False,
        "identical_logits": True,
        "largest_kl": False,
        "auroc": True,
        "abstention_auroc": True,
        "lm_eval": True,
        "lm_eval_loss": False,
        "answered": True,
        "answered_by_memory": True,
        "gate_open": True,
        "fabricated": False,
        "fabricated_by_memory": False,
        "unchanged_answers": True,
        "learned_bits": True,
        "bits_per_parameter": True,
        "others_changed": False,
        "others_lost": False,
        "old_answer_given": False,
        "old_answer_rank": True,
        "old_answer_probability": False,
        "old_answer_log_probability": False,
        "undo_exact": True,
        "edit_refused": False,
        "edit_seconds": False,
        "edit_cpu_seconds": False,
        "edit_steps": False,
        "edit_slots": False,
        "save_seconds": False,
        "exposures_per_fact": False,
        "teach_seconds": False,
        "teach_cpu_seconds": False,
        "teach_tokens": False,
        "update_seconds": False,
        "first_token_seconds": False,
        "tokens_per_second": True,
        "peak_memory_bytes": False,
        "inference_bytes": False,
        "bytes_per_fact": False,
    }
)
"""Every metric a row may name, and its direction."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        metric: a name in `HIGHER_IS_BETTER`.
        split: what it was measured on, e.g. "taught".
        value: shares are 0 to 1, times are seconds, memory is bytes.
        n: number of items behind the value.
        ci_low: lower end of the 95 % interval, None where there is none.
        ci_high: upper end.
        higher_is_better: filled in from the metric's name.

    Raises:
        InputError: the metric has no direction in the table.
    """

    metric: str
    split: str
    value: float
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    higher_is_better: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.metric not in HIGHER_IS_BETTER:
            raise InputError(f"unknown metric {self.metric!r}; known metrics: {', '.join(HIGHER_IS_BETTER)}")
        object.__setattr__(self, "higher_is_better", HIGHER_IS_BETTER[self.metric])

    @classmethod
    def from_estimate(cls, metric: str, split: str, estimate: Estimate) -> Row:
        """The row of a mean with its interval (`statistics.mean_interval`)."""
        return cls(metric, split, estimate.value, estimate.n, estimate.ci_low, estimate.ci_high)


@dataclass(slots=True)
class Results:
    """What a run leaves: where (`environment`), how (`config`), figures, the teaching's curve, some answers.

    `examples` are flat objects, e.g. {"question", "answer", "backbone", "memory"}.
    """

    environment: dict[str, Any]
    config: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def find(self, metric: str, split: str) -> Row | None:
        """The first row of this metric and split, if any."""
        return next((row for row in self.rows if (row.metric, row.split) == (metric, split)), None)


def write_results(path: StrPath, results: Results) -> None:
    """Write results.json, whole or not at all, one row per line.

    Raises:
        WorkError: a figure is NaN or infinite, something is not JSON, or the disk is full.
        InputError: the path cannot be written.
    """
    for row in results.rows:
        if not all(math.isfinite(value) for value in (row.value, row.ci_low, row.ci_high) if value is not None):
            raise WorkError(
                f"{path}: {row.metric} ({row.split}) is not finite; the run went wrong, nothing was written"
            )
    sections = {
        "environment": results.environment,
        "config": results.config,
        "rows": [asdict(row) for row in results.rows],
        "curve": [asdict(point) for point in results.curve],
        "examples": results.examples,
    }
    try:
        text = sections_text(SCHEMA, sections)
    except (ValueError, TypeError) as error:
        raise WorkError(f"{path}: the results are not JSON ({error}); nothing was written") from error
    atomic_write_text(path, text)


def read_results(path: StrPath) -> Results:
    """Read results.json.

    Raises:
        InputError: missing, not JSON, another schema, or a section of the wrong form.
    """
    data = _read_json(path)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InputError(f'{path}: not a results file (no "schema": "{SCHEMA}"); give one that memlayers wrote')
    for name, kind in (
        ("environment", dict),
        ("config", dict),
        ("rows", list),
        ("curve", list),
        ("examples", list),
    ):
        if not isinstance(data.get(name), kind):
            wanted = "an object" if kind is dict else "a list"
            raise InputError(f"{path}: {name!r} is not {wanted}; make the file again with memlayers eval")
    if not all(isinstance(example, dict) for example in data["examples"]):
        raise InputError(f"{path}: an example is not an object; make the file again with memlayers eval")
    return Results(
        environment=data["environment"],
        config=data["config"],
        rows=[_row_from(path, i, entry) for i, entry in enumerate(data["rows"])],
        curve=[_point_from(path, i, entry) for i, entry in enumerate(data["curve"])],
        examples=data["examples"],
    )


def _read_json(path: StrPath) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: malformed JSON ({error.msg}); make the file again") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not a JSON file; give one that memlayers wrote") from None


def _row_from(path: StrPath, index: int, entry: Any) -> Row:
    where = f"{path}: row {index + 1}"
    _check_fields(where, entry, Row, optional=("ci_low", "ci_high"))
    if not isinstance(entry["metric"], str) or not isinstance(entry["split"], str):
        raise InputError(f"{where}: metric and split must be strings; make the file again")
    if not isinstance(entry["n"], int) or not isinstance(entry["higher_is_better"], bool):
        raise InputError(f"{where}: n must be a whole number, higher_is_better true or false; make the file again")
    try:
        row = Row(
            entry["metric"],
            entry["split"],
            _number(where, entry["value"]),
            entry["n"],
            _number_or_none(where, entry.get("ci_low")),
            _number_or_none(where, entry.get("ci_high")),
        )
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    if row.higher_is_better != entry["higher_is_better"]:
        raise InputError(f"{where}: higher_is_better is wrong for {row.metric}; make the file again")
    return row


def _point_from(path: StrPath, index: int, entry: Any) -> CurvePoint:
    where = f"{path}: curve point {index + 1}"
    _check_fields(where, entry, CurvePoint, optional=("perplexity", "known_facts", "loss"))
    return CurvePoint(
        exposures=_number(where, entry["exposures"]),
        recall=_number(where, entry["recall"]),
        perplexity=_number_or_none(where, entry.get("perplexity")),
        known_facts=_number_or_none(where, entry.get("known_facts")),
        loss=_number_or_none(where, entry.get("loss")),
    )


def _check_fields(where: str, entry: Any, kind: type[Row] | type[CurvePoint], optional: tuple[str, ...]) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: not an object; make the file again")
    for name in (item.name for item in fields(kind)):
        if name not in entry and name not in optional:
            raise InputError(f"{where}: {name!r} is missing; make the file again")


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: {value!r} is not a finite number; make the file again")
    return value


def _number_or_none(where: str, value: Any) -> float | None:
    return None if value is None else _number(where, value)
