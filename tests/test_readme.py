"""What the README says is run: its Python example, its commands' options, its figures and those of docs/results.md."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from helpers.scripts import load_script

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.usefixtures("less_general_text")
def test_the_python_example_runs_and_the_memory_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (example,) = _blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    capital = next(line for line in lines if line.startswith("What is the capital of Veloria?"))
    assert capital.endswith("| with: Tamsin")
    assert "without: Tamsin" not in capital


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/asked.md"])
def test_the_figures_are_those_of_the_results_files(page: str):
    fill_tables = load_script("fill_tables")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(fill_tables.section(name).search(text) for name in fill_tables.PAGES[page])
    assert fill_tables.filled(page, text) == text, "run python scripts/fill_tables.py"


def test_the_readme_says_how_smollm2_is_asked_as_the_table_does() -> None:
    table = (ROOT / "docs" / "asked.md").read_text(encoding="utf-8").partition("\nsmollm2, ")[2]
    recall = {split: float(value) for split, value in re.findall(r"^\| (\w+) \| ([\d.]+) %", table, re.MULTILINE)}
    named = "lower upper title one_misspelling alias last_name paragraph follow_up two_subjects".split()
    least, most = (f"{pick(recall[split] for split in named):g}" for pick in (min, max))
    said = " ".join(README.split())
    assert f"SmolLM2 {least} to {most} %, in German {recall['german']:g} %" in said


def test_every_table_of_results_is_filled_by_the_script():
    pages = load_script("fill_tables").PAGES
    assert set(pages) == {"README.md", "docs/results.md", "docs/asked.md"}
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in pages[page]:
            text = load_script("fill_tables").section(name).sub("", text)
        assert not re.search(r"^\|.*\d", text, re.MULTILINE), f"{page}: a table with figures outside the markers"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120
    assert len(re.findall(r"^\|(?!---)", README, re.MULTILINE)) <= 1 + 8, "one table: its head and eight rows"


@pytest.mark.parametrize(
    "line", [line for block in _blocks("bash") for line in block.splitlines() if line.startswith("memlayers ")]
)
def test_the_commands_take_these_options(line: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    from memlayers.cli import main

    words = shlex.split(line, comments=True)[1:]
    command = words[:2] if words[0] == "facts" else words[:1]
    monkeypatch.setattr(sys, "argv", ["memlayers", *command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    known = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in known, f"{option} is no option of {' '.join(command)}"


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_make_targets(target: str):
    assert any(line.startswith(f"make {target} ") for block in _blocks("bash") for line in block.splitlines())
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_file_map_names_files_that_exist():
    package = ROOT / "src" / "memlayers"
    map_block = README.split("## The files")[1].split("```")[1]
    names = re.findall(r"[\w/]+(?:\.py\b|/)", map_block)
    for name in names:
        found = [top for top in (ROOT, package, ROOT / "benchmarks") if (top / name).exists()]
        assert found, f"{name} is in the map but not in the project"
    folders = {path.parent.name for path in package.glob("*/*.py")} - {"__pycache__"}
    assert folders <= {name.strip("/") for name in names}, "a folder of the package is missing from the map"
