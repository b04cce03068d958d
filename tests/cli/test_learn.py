"""`memlayers learn`: what it prints, and what it refuses in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.cli import Command
from memlayers.certificate.certificate import Asked, Certificate, Certified
from memlayers.data.facts import Fact, Source
from memlayers.sources.claims import LeftOut

CELL = Source("a.csv", "10 EUR", row=2, column="price")
FACT = Fact("lamp.price", "Lamp", "10 EUR", ("Price of Lamp?",), "price", ("Lamp costs?",), sources=(CELL,))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text("product,price\nLamp,10 EUR\n")
    return path


def test_it_says_what_became_of_the_sources(
    command: Command, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = Asked("Lamp costs?", "12 EUR", False, False, 0.5)
    recall = {"value": 0.5, "n": 2, "low": 0.25, "high": 0.75}
    made = Certificate(
        [Certified(FACT, "added", (asked,), False)], [CELL], [LeftOut(CELL, "empty cell")], ("old",), {"recall": recall}
    )
    given: list[object] = []

    def learn(*arguments: object, **options: object) -> tuple[None, Certificate]:
        given.extend([*arguments, options["options"]])
        return None, made

    monkeypatch.setattr("memlayers.certificate.learn.learn", learn)
    out = tmp_path / "memory"
    code, said, _ = command(
        "learn", table, "--subject", "product", "--columns", "price, stock", "--sheet", "S", "--table", "t",
        "--about", "Us", "--encoding", "cp1252", "--wordings", "w.yaml", "--out", out, "--seed", 3,
    )  # fmt: skip
    assert code == 0
    assert said.splitlines() == [
        "1 passages read: 1 facts (1 added, 1 forgotten)",
        "1 left out: empty cell",
        "wordings never taught: 50.0% answered rightly (25.0% to 75.0%, 2 facts)",
        "  lamp.price: 'Lamp costs?' gives '12 EUR' for '10 EUR'",
        f"the memory is in {out}, its certificate in {out / 'certificate.html'} and {out / 'certificate.json'}",
    ]
    places, folder, config, options = given
    assert (places, folder, config.seed) == ([str(table)], out, 3)  # type: ignore[attr-defined]
    assert options == memlayers_options(subject="product", columns=["price", "stock"])


def memlayers_options(**given: object) -> object:
    from memlayers.sources.reading import ReadOptions

    return ReadOptions(
        sheet="S", table="t", about="Us", encoding="cp1252", wordings=Path("w.yaml"), **given,  # type: ignore[arg-type]
    )  # fmt: skip


def test_what_cannot_be_learned_is_one_line(command: Command, table: Path, tmp_path: Path):
    out = tmp_path / "memory"
    (tmp_path / "empty.md").write_text("It rained.\n")
    for arguments, said in (
        ([table], f"{table}: a table; name the column that says what each row is about with --subject"),
        ([table, "--subject", "prodcut"], "product"),
        ([tmp_path / "none.csv", "--subject", "product"], "none.csv"),
        ([tmp_path / "empty.md"], f"{tmp_path / 'empty.md'}: no facts in 1 passages (1 no rule matched)"),
        ([table, "--model", "m"], "--model is for a writer: name one with --writer, or leave it out"),
        ([table, "--resume"], f"{out}.teaching: no interrupted run there; start without --resume"),
    ):
        code, _, err = command("learn", *arguments, "--out", out)
        assert code == 2 and said in err and err.startswith("memlayers: ") and err.count("\n") == 1, err
        assert not out.exists()


def test_there_is_nothing_to_resume_where_there_is_a_memory(command: Command, table: Path, memory: Path):
    code, _, err = command("learn", table, "--subject", "product", "--out", memory, "--resume")
    assert code == 2 and err == f"memlayers: {memory}: there is a memory, so nothing to resume; leave --resume out\n"
