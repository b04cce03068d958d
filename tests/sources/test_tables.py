"""Tables of every kind as facts."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from memlayers.data.facts import Fact
from memlayers.sources import tables
from memlayers.sources.claims import Claim
from memlayers.sources.table_rows import Rows, cell_text, shown
from memlayers.sources.tables import EMPTY, NO_SUBJECT, NO_TEXT, from_table, open_table
from memlayers.sources.wordings import DIFFERENT_VALUES, Wordings, worded
from memlayers.utils.errors import InputError, WorkError

ROWS = [("AeroLamp 100", "007", "2024-01-05"), ("BrixDrill 107", "1,234.50", "2024-02-29")]


def _csv(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def _answers(path: Path | str, **options: Any) -> list[tuple[str, str, int | None]]:
    found = from_table(path, subject="name", **options)
    return [(fact.subject, fact.answer, fact.sources[0].row) for fact in found.facts]


def test_csv_cells_are_text_as_written(tmp_path: Path):
    path = _csv(
        tmp_path / "p.csv",
        '\ufeff\r\nname, part no ,note\r\n  Ann ,007 ,"two\r\nlines, ""quoted"""\r\nBob,"1,234.50",x\r\n\r\n',
    )
    ann, bob = [("Ann", "007", 3), ("Ann", 'two\r\nlines, "quoted"', 3)], [("Bob", "1,234.50", 5), ("Bob", "x", 5)]
    assert _answers(path) == ann + bob
    found = from_table(path, subject="name", columns=["part no"])
    assert [fact.id for fact in found.facts] == ["ann.part-number", "bob.part-number"]
    assert found.facts[0].sources[0].place == f"{path}, row 3, column part no"
    assert [each.evidence for each in found.passages] == ["007", "1,234.50"] and not found.left_out


@pytest.mark.parametrize(("name", "mark"), [("t.tsv", "\t"), ("t.tab", "\t"), ("t.csv", ";"), ("t.csv", "\t")])
def test_other_separators(name: str, mark: str, tmp_path: Path):
    path = _csv(tmp_path / name, "".join(mark.join(row) + "\n" for row in [("name", "code", "made"), *ROWS]))
    assert _answers(path) == [(row[0], cell, i) for i, row in enumerate(ROWS, start=2) for cell in row[1:]]


def test_json_and_jsonl_keep_numbers_as_written(tmp_path: Path):
    rows = '{"name": "A", "price": 146.50, "big": 12345678901234567890, "on": true}\n'
    rows += '{"name": "B", "size": "L", "price": null}'
    (tmp_path / "t.jsonl").write_text(rows)
    (tmp_path / "t.json").write_text("[" + rows.replace("\n", ",\n") + "]")
    expected = [("A", "146.50", 1), ("A", "12345678901234567890", 1), ("A", "true", 1), ("B", "L", 2)]
    assert _answers(tmp_path / "t.jsonl") == _answers(tmp_path / "t.json") == expected
    (tmp_path / "nested.jsonl").write_text('{"name": "A", "tags": ["x"], "price": 1}\n')
    found = from_table(tmp_path / "nested.jsonl", subject="name")
    assert [each.why for each in found.left_out] == [NO_TEXT] and len(found.facts) == 1


def test_parquet(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow.json import read_json  # making a table of Python's lists would import pandas, for seconds
    from pyarrow.parquet import write_table

    lines = (
        b'{"name": "A", "price": 146.99, "all": 12.0, "day": "2024-01-05", "at": "2024-01-05 10:30:00", "tags": [1]}\n'
        b'{"name": "B", "at": "2024-01-05 00:00:00", "tags": []}\n'
    )
    table = read_json(io.BytesIO(lines))
    for name, kind in (("price", pa.float32()), ("day", pa.date32()), ("at", pa.timestamp("ns"))):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    table = table.set_column(0, "name", table["name"].dictionary_encode())
    write_table(table, tmp_path / "t.parquet")
    answers = [answer for _, answer, _ in _answers(tmp_path / "t.parquet")]
    assert answers == ["146.99", "12", "2024-01-05", "2024-01-05 10:30:00", "2024-01-05"]
    assert [row for _, _, row in _answers(tmp_path / "t.parquet")] == [1] * 4 + [2]


def test_a_workbook(tmp_path: Path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Prices"
    book.active.append([])
    book.active.append([None, "name", "price", "day", "ok", "text", "bad"])
    book.active.append([None, "A", 12.0, datetime.date(2024, 1, 5), True, "007", "#REF!"])
    book.active.append([None, " B ", 0.1, None, None, "#N/A", None])
    book.active["G3"].data_type = "e"
    book.create_sheet("Other").append(["name", "colour"])
    book["Other"].append(["C", "red"])
    book.save(tmp_path / "t.xlsx")
    answers = [("A", "12", 3), ("A", "2024-01-05", 3), ("A", "true", 3), ("A", "007", 3), ("B", "0.1", 4)]
    assert _answers(tmp_path / "t.xlsx") == answers
    assert _answers(tmp_path / "t.xlsx", sheet="Other") == [("C", "red", 2)]
    found = from_table(tmp_path / "t.xlsx", subject="name")
    assert found.facts[0].sources[0].document == f"{tmp_path / 't.xlsx'}, sheet Prices"
    assert [each.why for each in found.left_out].count(NO_TEXT) == 1  # the error; #N/A is an empty cell
    with pytest.raises(
        InputError, match="no sheet 'prices' \\(did you mean 'Prices'\\?\\); there are 'Prices', 'Other'"
    ):
        open_table(tmp_path / "t.xlsx", subject="name", sheet="prices")


def test_a_database(tmp_path: Path):
    pytest.importorskip("sqlalchemy")
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE prices (name TEXT, price REAL, day DATE, code TEXT)")
        base.execute("INSERT INTO prices VALUES ('A', 12.0, '2024-01-05', '007'), ('B', 0.5, NULL, x'00')")
    expected = [("A", "12", 1), ("A", "2024-01-05", 1), ("A", "007", 1), ("B", "0.5", 2)]
    assert _answers(path) == _answers(f"sqlite:///{path}") == expected
    assert _answers(path, table="prices") == expected
    assert _answers(path, query="SELECT name, code FROM prices WHERE name LIKE 'A%'") == [("A", "007", 1)]
    for query in ("DELETE FROM prices", "DROP TABLE prices"):
        with pytest.raises(InputError, match="readonly"):
            open_table(path, subject="name", query=query)
    with sqlite3.connect(path) as base:
        base.execute('CREATE TABLE "odd \'name" (name TEXT, colour TEXT)')
        base.execute("INSERT INTO \"odd 'name\" VALUES ('C', 'red')")
    assert _answers(path, table="odd 'name") == [("C", "red", 1)]
    with pytest.raises(InputError, match="2 tables; name one: odd 'name, prices"):
        open_table(path, subject="name")
    with pytest.raises(InputError, match="no table 'price' \\(did you mean 'prices'\\?\\)"):
        open_table(path, subject="name", table="price")


def test_rows_of_one_subject(tmp_path: Path):
    path = _csv(
        tmp_path / "t.csv",
        "name,price,colour\nA,1,red\nB,2,blue\na,1,green\n,9,white\nC,3,\nB,2,Blue\nb,,n/a\nD,4,-\n",
    )
    found = from_table(path, subject="name")
    told = {fact.id: (fact.answer, [each.row for each in fact.sources]) for fact in found.facts}
    assert told == {"a.price": ("1", [2, 4]), "c.price": ("3", [6]), "b.price": ("2", [3, 7]),
                    "b.colour": ("blue", [3, 7]), "d.price": ("4", [9])}  # fmt: skip
    left = [(each.why, each.source.row, each.source.column) for each in found.left_out]
    assert sorted(left) == [
        (DIFFERENT_VALUES, 2, "colour"), (DIFFERENT_VALUES, 4, "colour"), (EMPTY, 6, "colour"), (EMPTY, 8, "colour"),
        (EMPTY, 8, "price"), (EMPTY, 9, "colour"), (NO_SUBJECT, 5, "name"),
    ]  # fmt: skip
    assert [each.evidence for each in found.facts[2].sources] == ["2", "2"]
    assert [(each.row, each.column) for each in found.passages][:3] == [(2, "price"), (2, "colour"), (3, "price")]


def test_row_by_row_is_as_all_claims_at_once(tmp_path: Path):
    lines = [f"S{i % 40},{i % 7},{i % 40},{'yes' if i % 3 else 'no'},x{i % 40}" for i in range(100)]
    path = _csv(tmp_path / "t.csv", "\n".join(["name,cost,price,discontinued,Tel.", *lines]))
    table = open_table(path, subject="name")
    told = list(table.facts())
    whole = worded([each for each in table.claims() if isinstance(each, Claim)])
    facts = [each for each in told if isinstance(each, Fact)]
    assert sorted(facts, key=lambda fact: fact.id) == sorted(whole.facts, key=lambda fact: fact.id)
    assert len({fact.id for fact in facts}) == len(facts) > 80
    left = [each for each in told if not isinstance(each, Fact)]
    assert {(each.source, each.why) for each in left} == {(each.source, each.why) for each in whole.left_out}


def test_units_tell_columns_apart(tmp_path: Path):
    path = _csv(tmp_path / "t.csv", "name,Price (EUR),Price (USD),Weight (kg)\nA,1,2,3\n")
    facts = from_table(path, subject="name").facts
    assert [(fact.relation, fact.aliases) for fact in facts] == [
        ("price in EUR", ("1 EUR",)), ("price in USD", ("2 USD",)), ("weight", ("3 kg",)),
    ]  # fmt: skip


def test_a_users_wordings_are_used(tmp_path: Path):
    (tmp_path / "w.yaml").write_text("relations: {price: {questions: ['Was kostet {subject}?']}}\n")
    path = _csv(tmp_path / "t.csv", "name,price\nA,1\n")
    (fact,) = from_table(path, subject="name", wordings=Wordings.load(tmp_path / "w.yaml")).facts
    assert fact.questions == ("Was kostet A?",)


@pytest.mark.parametrize("second", [["A", "C"], ["A", "B", "C"], ["A"]])
def test_a_table_that_changes_while_it_is_read(second: list[str]):
    readings = iter([["A", "B"], second])
    rows = Rows("t", ("name", "price"), lambda: enumerate(([subject, "1"] for subject in next(readings)), start=2))
    with pytest.raises(WorkError, match="changed while it was read"):
        list(tables.Table(rows, "name", {"price": "price"}).facts())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (" x ", "x"), (True, "true"), (3, "3"), (12.0, "12"), (0.1, "0.1"), (1e-7, "0.0000001"),
        (1e20, "100000000000000000000"), (float("nan"), ""), (datetime.time(9, 30), "09:30:00"),
        (datetime.timedelta(hours=2), "2:00:00"), (decimal.Decimal("1.50"), "1.50"), (b"x", None), ([], None),
        ("N/A", ""), ("NA", "NA"), ("none", "none"),
    ],
)  # fmt: skip
def test_the_text_of_a_value(value: Any, text: str | None):
    assert cell_text(value) == text


def test_an_address_is_shown_without_its_password():
    assert shown("postgresql://ann:s@cr:et@db/shop?password=x") == "postgresql://ann:***@db/shop"
    assert shown("sqlite:///x.db") == "sqlite:///x.db"


def test_waiting_rows_are_let_go(tmp_path: Path):
    shelf = tables._Shelf(tables.array("q", [5, 7, 5, -3, 5]))
    passed = [shelf.passed(each, i, [str(i)]) for i, each in enumerate([5, 7, 5, -3, 5])]
    assert passed == [[], [(1, ["1"])], [], [(3, ["3"])], [(0, ["0"]), (2, ["2"]), (4, ["4"])]]
    assert shelf._rows.execute("SELECT count(*) FROM rows").fetchone() == (0,)
    assert json.dumps(passed[0]) == "[]"


def test_the_python_that_the_page_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", page[page.index("## Tables") :], re.DOTALL)
    assert block
    exec(block[1], {})
    assert (tmp_path / "products.csv").is_file()
