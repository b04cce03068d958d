"""The scripts of benchmarks/ and scripts/ are code too: each is imported, runs nothing then, and shows its help."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.scripts import load_script
from memlayers.evaluation.results import Results, Row

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = sorted(path for path in (ROOT / "benchmarks").rglob("*.py") if path.name != "__init__.py")
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in BENCHMARKS]
RUN = [name for name, path in zip(NAMES, BENCHMARKS, strict=True) if "__main__" in path.read_text(encoding="utf-8")]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))  # as `python -m benchmarks...` has it


def _help_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", [module.__name__, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", RUN)
def test_a_benchmark_shows_its_help_and_how_it_is_run(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = _help_of(importlib.import_module(name), monkeypatch, capsys)
    assert f"python -m {name}" in shown


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_imported_and_shows_its_help(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"python scripts/{path.name}" in _help_of(load_script(path.stem), monkeypatch, capsys)


def test_the_benchmarks_page_has_a_line_for_each() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|", page, re.MULTILINE)
    assert sorted(named) == sorted(name.removeprefix("benchmarks.") for name in RUN)


def test_benchmarks_reach_into_no_private_names() -> None:
    for path in BENCHMARKS:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"from memlayers[\w.]* import[^\n]*\b_\w", text), path.name
        found = re.findall(r"(?<!self)(?<!super\(\))\.(_[a-z]\w*|memlayers_\w+)", text)
        assert set(found) <= {"_asdict", "_exit"}, f"{path.name}: {found}"


def test_wrong_input_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    common = importlib.import_module("benchmarks.common")
    capacity = importlib.import_module("benchmarks.teaching.capacity")
    monkeypatch.setattr(common, "ENTITY_QUESTIONS", ROOT / "nowhere")
    monkeypatch.setattr(sys, "argv", ["capacity", "--source", "real", "--sub-keys", "7", "--facts", "11"])
    with pytest.raises(SystemExit) as stopped:
        common.start(capacity.main)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "nowhere" in told and told.count("\n") == 1


def test_the_table_of_real_backbones_is_drawn_over_seeds() -> None:
    real = importlib.import_module("benchmarks.teaching.real_backbones")

    def cell(seed: int, recall: float, **told: object) -> Results:
        row = Row("recall", "unseen_phrasing", recall, 60, recall - 0.01, recall + 0.01)
        figures = {"relations": {"accepted_others": 0.25}, "cpu_seconds": 600.0, "cpu_over_steps": 2.0, **told}
        config = {"backbone": "smollm2", "facts": 300, "label": "", "seed": seed, **figures}
        return Results({}, config, [row])

    lines = real.table([cell(7, 0.9), cell(23, 0.96), cell(7, 0.5, label="slow", relations=None)]).splitlines()
    rows = {line.split(" | ")[0].strip("| "): [part.strip(" |") for part in line.split(" | ")[1:]] for line in lines}
    assert rows["recall, never taught"] == ["93.0 % (89.0 % to 97.0 %), n 60", "50.0 % (49.0 % to 51.0 %), n 60"]
    assert rows["seeds"] == ["7, 23", "7"] and rows["CPU minutes of teaching"] == ["10.0", "10.0"]
    assert rows["questions for another relation accepted"] == ["25.0 %", ""]


def test_asked_gives_each_subject_a_code_name_and_draws_a_table_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = importlib.import_module("benchmarks.asking.asked")
    common = importlib.import_module("benchmarks.common")

    def cell(backbone: str, seed: int, recall: float) -> Results:
        rows = [Row("recall", "upper", recall, 10, recall, recall), Row("answered_by_memory", "upper", 1.0, 10)]
        return Results({}, {"backbone": backbone, "facts": 20, "seed": seed}, rows)

    page = asked.tables([cell("smollm2", 7, 0.5), cell("pocket", 7, 0.2), cell("pocket", 23, 0.4)])
    assert page.index("pocket, 20 facts, seeds 7, 23:") < page.index("smollm2, 20 facts, seed 7:")
    assert "| upper | 30.0 % [20.0 % to 40.0 %] |" in page and "| upper | 50.0 % [50.0 % to 50.0 %] |" in page
    names = [f"{first} {second}" for first in asked.FIRST for second in asked.SECOND]
    assert len(set(names)) == len(names) >= len(common.demo_facts())
