"""Bad input: places to write, results and reports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from helpers.bad_input import SMALL, Refused
from memlayers import TeachConfig


def test_an_out_that_exists(refused: Refused, teaching: list[object], tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    line = refused(*teaching, "--out", tmp_path / "full")
    assert line.startswith(f"{tmp_path / 'full'}: exists and is not empty")
    assert refused("demo", "--out", tmp_path / "full").startswith(f"{tmp_path / 'full'}: exists and is not empty")


def test_replace_takes_a_memory_and_nothing_else(refused: Refused, teaching: list[object], tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "not a memory" in refused(*teaching, "--out", tmp_path / "full", "--replace")


@pytest.mark.parametrize("place", ["file", "file/below/it", "/proc/x", "/dev/null", "/dev/null/x", "/proc/1/x/y"])
def test_an_out_that_cannot_be_written(
    place: str, refused: Refused, teaching: list[object], memory: Path, facts: Path, tmp_path: Path
):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / place
    assert refused(*teaching, "--out", out).startswith(f"{out}: ")
    assert refused("demo", "--out", out).startswith(f"{out}: ")
    if place == "file":  # which may be replaced by another file
        return
    assert refused("facts", "make", "sensor_calibration", "--n", 3, "--out", out).startswith(f"{out}")
    assert refused("facts", "convert", facts, out).startswith(f"{out}")
    assert refused("eval", memory, "--facts", facts, "--out", out).startswith(f"{out}: ")


def test_eval_out_that_is_a_directory(refused: Refused, memory: Path, facts: Path, tmp_path: Path):
    line = refused("eval", memory, "--facts", facts, "--out", tmp_path)
    assert line == f"{tmp_path}: not a regular file; give the path of a file to write"


def test_eval_report_that_cannot_be_written(refused: Refused, memory: Path, facts: Path, tmp_path: Path):
    out = tmp_path / "scores.json"
    assert refused("eval", memory, "--facts", facts, "--out", out, "--report", facts).startswith(f"{facts}: ")
    assert refused("eval", memory, "--facts", facts, "--out", out, "--report", "/dev/null/x").startswith(
        "/dev/null/x: "
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "memlayers.results/1"}'])
def test_a_report_of_no_results(text: str, refused: Refused, tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text(text)
    assert refused("report", path, "--out", tmp_path / "report").startswith(f"{path}:")
    assert "no such file" in refused("report", tmp_path / "none.json", "--out", tmp_path / "report")


@pytest.mark.parametrize("fails_in", ["teach_facts", "score_model", "write_report"])
def test_a_demo_that_fails_leaves_nothing(
    fails_in: str, refused: Refused, chat_backbone: Path, general: Path, tmp_path: Path, monkeypatch
):
    from memlayers import demo
    from memlayers.utils.errors import WorkError

    def fail(*_: object, **__: object) -> None:
        raise WorkError("the work failed; try again")

    settings = tmp_path / "settings.yaml"
    config = TeachConfig().with_flags(**SMALL, backbone=str(chat_backbone), general_text=str(general))
    settings.write_text(json.dumps(dataclasses.asdict(config)))
    monkeypatch.setattr(demo, fails_in, fail)
    monkeypatch.setattr(demo, "score_model", fail if fails_in == "score_model" else lambda *_, **__: ([], []))
    monkeypatch.setattr(demo, "watch", lambda *_: None)
    line = refused("demo", "--config", settings, "--facts", 4, "--out", tmp_path / "demo", "--quiet", code=1)
    assert line == "the work failed; try again"
