"""`memlayers sweep`: its grid, its cells and their page. The command's bad input is at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memlayers import cli
from memlayers.config.teach import TeachConfig
from memlayers.data.facts import Fact, Question
from memlayers.evaluation.results import Results, Row, read_results, write_results
from memlayers.inference.record import CurvePoint
from memlayers.sweep import run
from memlayers.sweep.grid import Cell, Grid, cell_path, read_cells
from memlayers.sweep.page import write_page
from memlayers.sweep.run import Bounds, Materials, run_protocol
from memlayers.utils.errors import InputError

MAIN = Cell("addressed", True, 1000, 137)


def _facts(number: int) -> list[Fact]:
    return [
        Fact(f"{i}", f"Name{i}", f"town {i}", (f"Where is Name{i}?", f"Name{i}'s home?"), "", (f"Home of Name{i}?",))
        for i in range(number)
    ]


def _results(cell: Cell, **values: float) -> Results:
    """A cell's file with these rows, METRIC__SPLIT=value."""
    rows = [Row(*name.split("__"), value, cell.facts, value - 0.01, value + 0.01) for name, value in values.items()]
    config = {"facts": cell.facts, "recipe": cell.recipe, "gate": cell.gate, "seed": cell.seed}
    return Results(
        {"commit": "abc", "command": "memlayers eval"}, config, rows, [CurvePoint(1, 0.5), CurvePoint(2, 0.9)]
    )


# The grid


def test_the_cells_a_reader_waits_for_come_first() -> None:
    cells = Grid().cells()
    assert len(cells) == len(set(cells)) == len({cell.name for cell in cells}) == 48
    assert cells[0] == MAIN and cells[0].name == "addressed-gate-1000-137"
    first = [(cell.recipe, cell.gate, cell.facts) for cell in cells[::3]]
    assert first[:6] == [("addressed", gate, size) for gate in (True, False) for size in (1000, 100, 300)]
    assert [cell.facts for cell in cells].index(5000) == 36 and cells[36].gate and cells[36].recipe == "addressed"
    assert [cell.seed for cell in cells[:4]] == [137, 7, 23, 137]
    assert Grid(sizes=(50, 200)).headline == 200 and Grid(sizes=(5000, 2000)).headline == 2000


@pytest.mark.parametrize("wrong", [{"seeds": ()}, {"seeds": (1, 1)}, {"sizes": (0, 5)}])
def test_grids_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Grid(**wrong)


def test_what_a_cell_teaches_is_disjoint_from_what_it_never_does() -> None:
    materials = Materials(_facts(620), None, [])
    assert materials.most_facts == 120
    small, held_out = materials.split(Cell("addressed", True, 50, 7))
    large, same = materials.split(Cell("dense", False, 120, 7))
    assert large[:50] == small and held_out == same and len(held_out) == 500
    taught = {fact.answer for fact in large}
    assert len(taught) == 120 and not taught & {question.answers[0] for question in held_out}
    assert materials.split(Cell("addressed", True, 50, 8))[0] != small
    given = [Question("Where is none?", ("here",))]
    assert Materials(_facts(9), given, []).split(Cell("addressed", True, 9, 7))[1] == given


# Running


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that are run, in their order; running one is to write its file."""
    seen: list[Cell] = []

    def fake(out: Path, cell: Cell, materials: Any, config: Any, bounds: Any, settings: Any, *_: Any) -> Results:
        seen.append(cell)
        results = _results(cell, recall__taught=0.9)
        results.config = settings
        results.environment["seconds"] = {"teaching_and_curve": 61.0, "scoring": 2.0}
        write_results(cell_path(out, cell), results)
        return results

    monkeypatch.setattr(run, "_run_cell", fake)
    return seen


MATERIALS = Materials(_facts(20), [Question("Where is none?", ("here",))], [], {}, {"": "text"})


def test_cells_that_are_there_are_not_run_again(ran: list[Cell], tmp_path: Path) -> None:
    grid, notes = Grid(("addressed",), (True,), (5, 10), (1,)), []
    page = run_protocol(tmp_path / "out", grid, MATERIALS, TeachConfig(), note=notes.append)
    assert ran == grid.cells() and len(read_cells(tmp_path / "out")) == 2
    assert "2 of 2 runs" in page.read_text()
    assert "addressed-gate-10-1: recall 90.0%; taught in 1 min 1 s, scored in 2.0 s, " in "\n".join(notes)
    cell_path(tmp_path / "out", ran[1]).unlink()
    again = [ran[1]]
    ran.clear()
    run_protocol(tmp_path / "out", grid, MATERIALS, TeachConfig())
    assert ran == again


def test_a_run_that_was_stopped_goes_on(ran: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, fake = Grid(("addressed",), (True,), (5,), (1, 2, 3)), run._run_cell

    def stopped(*arguments: Any) -> Results:
        if len(ran) == 1:
            raise KeyboardInterrupt
        return fake(*arguments)

    monkeypatch.setattr(run, "_run_cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_protocol(tmp_path, grid, MATERIALS, TeachConfig())
    text = (tmp_path / "results.md").read_text()
    assert "1 of 3 runs" in text and "- addressed-gate-5-2\n- addressed-gate-5-3" in text
    monkeypatch.setattr(run, "_run_cell", fake)
    run_protocol(tmp_path, grid, MATERIALS, TeachConfig())
    assert ran == grid.cells()


def test_cells_of_other_settings_are_not_mixed_in(ran: list[Cell], tmp_path: Path) -> None:
    grid = Grid(("addressed",), (True,), (5,), (1,))
    run_protocol(tmp_path, grid, MATERIALS, TeachConfig())
    others: list[tuple[Any, ...]] = [
        (MATERIALS, TeachConfig().with_flags(exposures=3), None, "exposures was 5, now 3"),
        (MATERIALS, TeachConfig(), Bounds(questions=7), "questions was 1000, now 7"),
        (Materials(_facts(21), MATERIALS.untaught, [], {}, {"": "text"}), TeachConfig(), None, "taught was "),
        (
            Materials(_facts(20), MATERIALS.untaught, [], {"qa": []}, {"": "text"}),
            TeachConfig(),
            None,
            "qa was {}, now",
        ),
    ]
    for materials, config, bounds, told in others:
        with pytest.raises(InputError, match="made with other settings .*give another folder, or delete it$") as error:
            run_protocol(tmp_path, grid, materials, config, bounds)
        assert told in str(error.value)
    assert len(ran) == 1


def test_cells_may_come_from_another_device_but_not_from_another_dtype(ran: list[Cell], tmp_path: Path) -> None:
    grid = Grid(("addressed",), (True,), (5,), (1,))
    run_protocol(tmp_path, grid, MATERIALS, TeachConfig().with_flags(dtype="float32"))
    run_protocol(tmp_path, grid, MATERIALS, TeachConfig().with_flags(device="cpu"))  # where "auto" is float32
    assert len(ran) == 1
    with pytest.raises(InputError, match='dtype was "float32", now "bfloat16"'):
        run_protocol(tmp_path, grid, MATERIALS, TeachConfig().with_flags(device="cpu", dtype="bfloat16"))


def test_a_damaged_cell_is_one_line(ran: list[Cell], tmp_path: Path) -> None:
    grid = Grid(("addressed",), (True,), (5,), (1,))
    run_protocol(tmp_path, grid, MATERIALS, TeachConfig())
    path = cell_path(tmp_path, ran[0])
    whole = path.read_text()
    for damaged in (
        whole[:200],
        "",
        whole.replace('"recipe": "addressed", ', ""),
        whole.replace('"seed": 1', '"seed": 2'),
    ):
        path.write_text(damaged)
        with pytest.raises(InputError, match=f"^{path}.*(delete it|keep other files)"):
            run_protocol(tmp_path, grid, MATERIALS, TeachConfig())
    assert len(ran) == 1


def test_sizes_and_folders_are_checked_before_any_work(ran: list[Cell], tmp_path: Path) -> None:
    big = Grid(sizes=(21,))
    with pytest.raises(InputError, match="^size 21: there are only 20 facts to teach; give --facts-dir"):
        run_protocol(tmp_path / "a", big, MATERIALS, TeachConfig())
    with pytest.raises(InputError, match="only 120 facts to teach; take smaller"):
        run_protocol(tmp_path / "a", Grid(sizes=(121,)), Materials(_facts(620), None, []), TeachConfig())
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(InputError, match="holds no cells of this protocol"):
        run_protocol(tmp_path / "b", Grid(sizes=(5,)), MATERIALS, TeachConfig())
    assert not ran


def test_two_real_cells(chat_backbone: Path, general_file: Path, tmp_path: Path) -> None:
    materials = Materials(
        _facts(4), [Question(f"Where is Other{i}?", ("nowhere",)) for i in range(3)],
        [Question("Where is the river?", ("here",)), Question("And the sea?", ("there",))],
        {"trivia": [Question("Which way?", ("that",))]},
        {"": "The river runs to the sea, and the ships sail on it. " * 6, "wiki": "A ship sails. " * 20},
    )  # fmt: skip
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(general_file), layers=[1, 2], sub_keys=8, heads=2, top_k=2,
        exposures=2, batch_size=2, gate_steps=5, gate_threshold=-1e6, device="cpu",
    )  # fmt: skip
    grid = Grid(("addressed", "dense"), (True, False), (3,), (5,))
    wanted = Grid(("addressed",), (True, False), (3,), (5,))
    page = run_protocol(tmp_path, wanted, materials, config, Bounds(questions=2, max_text_tokens=128), quiet=True)
    found = read_cells(tmp_path)
    assert set(found) == set(wanted.cells()) and not (tmp_path / "work").exists()
    splits = {(row.metric, row.split) for row in found[wanted.cells()[0]].rows}
    assert {
        ("recall", "backbone"), ("recall", "taught"), ("recall", "unseen_phrasing"), ("known_facts", "change"),
        ("qa_exact_match", "trivia:change"), ("perplexity_change", "general_text"), ("perplexity", "wiki:memory"),
        ("perplexity_change", "wiki:general_text"), ("identical_logits", "wiki:general_text"),
        ("abstention_auroc", "untaught_entities"), ("unchanged_answers", "untaught_entities"),
        ("fabricated", "untaught_entities"), ("exposures_per_fact", "all"), ("teach_seconds", "all"),
    } <= splits  # fmt: skip
    cell = found[wanted.cells()[0]]
    assert [point.exposures for point in cell.curve] == [1.0, 2.0] and cell.curve[0].perplexity is not None
    assert cell.find("recall", "taught").n == 2  # type: ignore[union-attr]  # bounded
    assert cell.config["gate"] is True and found[wanted.cells()[1]].config["gate"] is False
    text = page.read_text()
    assert (
        "trivia, change" in text
        and "perplexity change, wiki" in text
        and "perplexity change, held-out articles" in text
    )
    # What was run before is on the page of a wider grid, and what is not there is missing.
    assert "- dense-gate-3-5" in write_page(tmp_path, grid, found).read_text()


# The page


def test_the_page_by_hand(tmp_path: Path) -> None:
    grid = Grid(("addressed", "dense"), (True,), (100, 1000), (137, 7))
    common = {
        "known_facts__change": -0.002,
        "perplexity_change__general_text": 0.0001,
        "qa_exact_match__triviaqa:change": 0.0,
    }
    cells = {
        MAIN: _results(MAIN, recall__taught=0.99, recall__unseen_phrasing=0.80, **common),
        Cell("addressed", True, 1000, 7): _results(
            Cell("addressed", True, 1000, 7), recall__taught=0.97, recall__unseen_phrasing=0.84, **common
        ),
    }
    lines = write_page(tmp_path, grid, cells).read_text().splitlines()
    assert "2 of 8 runs are there" in "\n".join(lines)

    def row(start: str) -> list[str]:
        return next(
            [cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {start} |")
        )

    assert row("recall, taught phrasings") == [
        "recall, taught phrasings", ">= 98.0 %", ">= 99.5 %", "98.0 % ± 1.4",
        "99.0 % [98.0 % to 100.0 %], n = 1,000", "97.0 % [96.0 % to 98.0 %], n = 1,000", "floor",
    ]  # fmt: skip
    assert row("recall, phrasings never taught")[3:] == [
        "82.0 % ± 2.8", "80.0 % [79.0 % to 81.0 %], n = 1,000", "84.0 % [83.0 % to 85.0 %], n = 1,000", "**no**"
    ]  # fmt: skip
    assert row("known facts, change")[1:4] == [">= -0.50 points", ">= -0.20 points", "-0.20 points ± 0"]
    assert row("known facts, change")[-1] == row("triviaqa, change")[-1] == "goal"
    assert row("perplexity change, held-out articles")[1:4] == ["&lt;= +0.200 %", "&lt;= +0.020 %", "+0.010 % ± 0"]
    assert row("stored against never-taught entities, AUROC")[3:] == ["missing", "not measured", "not measured", ""]
    assert "| addressed, gate | 100 | 0 of 2 | missing | missing | missing |" in lines
    assert "| dense, gate | 1,000 | 0 of 2 | missing | missing | missing |" in lines
    measured = "98.0 % ± 1.4 [96.0 % to 100.0 %], n = 1,000"
    assert any(line.startswith(f"| addressed, gate | 1,000 | 2 of 2 | {measured} |") for line in lines)
    assert [line for line in lines if line.startswith("- ")] == [
        f"- {kind}-{size}-{seed}" for kind, size in
        (("addressed-gate", 100), ("dense-gate", 1000), ("dense-gate", 100)) for seed in (137, 7)
    ]  # fmt: skip
    assert (tmp_path / "recall.png").read_bytes()[:4] == (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_grid_without_the_headline_says_so(tmp_path: Path) -> None:
    cell = Cell("dense", False, 60, 1)
    grid = Grid(("dense",), (False,), (60,), (1,))
    text = write_page(tmp_path, grid, {cell: _results(cell, recall__taught=0.5)}).read_text()
    assert "The bars are stated for 1,000 facts, which this grid does not have." in text
    assert "Nothing: every run of the grid is there." in text


# The command

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["memlayers", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out + said.err

    return call


def test_the_command_narrows_the_grid(ran: list[Cell], command: Command, tmp_path: Path) -> None:
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa" / "test.jsonl").write_text('{"question": "Who?", "answers": ["me"]}\n')
    (tmp_path / "teach.yaml").write_text("schedule:\n  exposures: 3\n")
    code, said = command(
        "sweep", "--sizes", "20", "--seeds", "2", "--recipes", "dense", "--gates", "off,on",
        "--qa", tmp_path / "qa" / "test.jsonl", "--questions", "9", "--config", tmp_path / "teach.yaml", "-q",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert (code, said) == (0, f"the results page is {tmp_path}/out/results.md\n")
    assert ran == [Cell("dense", gate, 20, 2) for gate in (False, True)]
    config = read_results(cell_path(tmp_path / "out", ran[0])).config
    assert (config["exposures"], config["questions"], list(config["qa"])) == (3, 9, ["qa"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["eval", "--protocol", "full"], "--protocol is a command of its own now: use `memlayers sweep`"),
        (["eval", "runs/memory", "--protocol", "half"], "--protocol is a command of its own now"),
        (["eval", "--protocol", "full", "--facts", "f.jsonl"], "--protocol is a command of its own now"),
        (["eval", "--text", __file__], "no memory to score: give its folder; `memlayers sweep`"),
        (["sweep", "--sizes", "ten"], "--sizes ten: give some with commas between, as 100,300"),
        (["sweep", "--gates", "maybe"], "--gates maybe: give some with commas between, as on,off"),
        (["sweep", "--recipes", "soup"], "recipe is 'soup': take one of addressed, dense"),
        (["sweep", "--seeds", "-1"], "seed is -1"),
        (["sweep", "--sizes", "1000"], "size 1000: there are only 500 facts to teach; give --facts-dir"),
        (["sweep", "--facts-dir", "/nowhere"], "/nowhere: no EntityQuestions there"),
    ],
)
def test_wrong_combinations_are_one_line(command: Command, tmp_path: Path, arguments: list[str], told: str) -> None:
    code, said = command(*arguments, "--out", tmp_path / "out")
    assert code == 2 and said.startswith(f"memlayers: {told}") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--facts", "f.jsonl"], ["--no-gate"], ["--untaught", "f.jsonl"], ["runs/memory"]])
def test_what_scores_one_memory_is_no_option_of_a_sweep(command: Command, tmp_path: Path, option: list[str]) -> None:
    assert command("sweep", *option, "--out", tmp_path / "out")[0] == 2
    assert command("eval", "runs/memory", "--sizes", "10", "--out", tmp_path / "out")[0] == 2
    assert not (tmp_path / "out").exists()


def test_the_grids_own_settings_are_refused_in_the_yaml_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "teach.yaml").write_text("seed: 5\n")
    code, said = command("sweep", "--config", tmp_path / "teach.yaml", "--out", tmp_path / "out")
    assert code == 2 and "seed is the grid's to set; take it out, and choose with --seeds" in said
