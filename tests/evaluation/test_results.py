from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from memlayers.evaluation.results import HIGHER_IS_BETTER, Results, Row, read_results, write_results
from memlayers.evaluation.statistics import Estimate
from memlayers.inference.record import CurvePoint
from memlayers.utils.errors import InputError, WorkError


@pytest.fixture
def results() -> Results:
    return Results(
        environment={"device": "cpu", "commit": None},
        config={"recipe": "addressed", "seed": 137},
        rows=[
            Row("recall", "taught", 0.996, 500, 0.986, 0.999),
            Row("perplexity", "memory", 8.337, 41222),
            Row("peak_memory_bytes", "all", 1_213_000_000, 1),
        ],
        curve=[CurvePoint(2, 0.5, 8.31, 0.99), CurvePoint(4.5, 0.9)],
        examples=[{"question": "Où?", "answer": "Țolici"}],
    )


def test_round_trip(tmp_path: Path, results: Results):
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results


def test_the_file_has_the_documented_form(tmp_path: Path, results: Results):
    write_results(tmp_path / "results.json", results)
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(data) == ["schema", "environment", "config", "rows", "curve", "examples"]
    assert data["schema"] == "memlayers.results/1"
    assert data["rows"][0] == {
        "metric": "recall",
        "split": "taught",
        "value": 0.996,
        "n": 500,
        "ci_low": 0.986,
        "ci_high": 0.999,
        "higher_is_better": True,
    }
    assert data["rows"][1]["ci_low"] is None and data["rows"][1]["higher_is_better"] is False
    assert data["curve"][1] == {
        "exposures": 4.5, "recall": 0.9, "perplexity": None, "known_facts": None, "loss": None,
    }  # fmt: skip


def test_empty_sections_round_trip(tmp_path: Path):
    write_results(tmp_path / "r.json", Results({}, {}))
    assert read_results(tmp_path / "r.json") == Results({}, {})


def test_the_issues_metrics_have_a_direction():
    higher = {name for name, better in HIGHER_IS_BETTER.items() if better}
    assert {"recall", "known_facts", "identical_logits", "qa_exact_match"} <= higher
    lower = {"perplexity", "exposures_per_fact", "teach_seconds", "peak_memory_bytes"}
    assert lower <= set(HIGHER_IS_BETTER) - higher
    with pytest.raises(InputError, match="unknown metric 'recal'; known metrics: recall"):
        Row("recal", "taught", 1.0, 1)


def test_row_from_estimate_and_find(results: Results):
    row = Row.from_estimate("recall", "taught", Estimate(0.5, 0.4, 0.6, 10))
    assert row == Row("recall", "taught", 0.5, 10, 0.4, 0.6)
    assert results.find("perplexity", "memory") is results.rows[1]
    assert results.find("perplexity", "backbone") is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["value", "interval", "curve", "config"])
def test_what_is_not_finite_is_never_written(tmp_path: Path, results: Results, bad: float, place: str):
    if place == "value":
        results.rows.append(Row("perplexity", "backbone", bad, 1))
    elif place == "interval":
        results.rows.append(Row("recall", "backbone", 0.5, 1, bad, 1.0))
    elif place == "curve":
        results.curve.append(CurvePoint(8, bad))
    else:
        results.config["nested"] = {"lr": [bad]}
    with pytest.raises(WorkError):
        write_results(tmp_path / "results.json", results)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_json_is_the_works_failure(tmp_path: Path):
    with pytest.raises(WorkError, match="not JSON"):
        write_results(tmp_path / "r.json", Results({}, {"path": tmp_path}))


def _without(key: str) -> Any:
    return lambda data: data["rows"][0].pop(key)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda data: data.update(schema="memlayers.results/2"), "not a results file"),
        (lambda data: data.pop("rows"), "'rows' is not a list"),
        (lambda data: data.update(config=[]), "'config' is not an object"),
        (lambda data: data.update(examples=[1]), "an example is not an object"),
        (lambda data: data["rows"].insert(0, 3), "row 1: not an object"),
        (_without("value"), "row 1: 'value' is missing"),
        (_without("higher_is_better"), "row 1: 'higher_is_better' is missing"),
        (lambda data: data["rows"][1].update(value="8"), "row 2: '8' is not a finite number"),
        (lambda data: data["rows"][1].update(value=math.nan), "row 2: nan is not a finite number"),
        (lambda data: data["rows"][1].update(n=1.5), "row 2: n must be a whole number"),
        (lambda data: data["rows"][1].update(split=None), "row 2: metric and split must be strings"),
        (lambda data: data["rows"][1].update(higher_is_better=True), "row 2: higher_is_better is wrong"),
        (lambda data: data["rows"][1].update(metric="speed"), "row 2: unknown metric 'speed'"),
        (lambda data: data["curve"][0].pop("recall"), "curve point 1: 'recall' is missing"),
    ],
)
def test_a_spoilt_file_is_bad_input(tmp_path: Path, results: Results, spoil: Any, complaint: str):
    path = tmp_path / "results.json"
    write_results(path, results)
    data = json.loads(path.read_text(encoding="utf-8"))
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"schema": ', b"\xff\xfe\x00", b"[]", b"[" * 100_000, None])
def test_what_is_no_results_file_is_bad_input(tmp_path: Path, content: bytes | None):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_results(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_directory_is_bad_input(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read_results(tmp_path)


def test_a_file_from_before_the_loss_was_kept_is_read(tmp_path: Path, results: Results):
    path = tmp_path / "results.json"
    write_results(path, results)
    data = json.loads(path.read_text(encoding="utf-8"))
    for point in data["curve"]:
        del point["loss"]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert read_results(path).curve == results.curve
