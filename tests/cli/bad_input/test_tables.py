"""Bad input: tables, databases and wordings for `facts from-table`."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest

from helpers.bad_input import Refused


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", b"title,price\nA,1\n", "no column 'name'; there are 'title', 'price'"),
        ("t.csv", b"Name,price\nA,1\n", "no column 'name' (did you mean 'Name'?)"),
        ("t.csv", b"name,price\n", "an empty table"),
        ("t.csv", b"\n\n", "an empty table"),
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b"name\nA\n", "no column besides the subject's"),
        ("t.csv", b"name,price\n\nA,1,2\n", ":3: 3 cells where the header has 2"),
        ("t.csv", b"name,price,price\nA,1,2\n", ":1: column 'price' appears twice"),
        ("t.csv", b"name,price,\nA,1,2\n", ":2: '2' stands in a column without a name"),
        ("t.csv", b"name,Price,price \nA,1,2\n", "columns 'Price' and 'price' have one name"),
        ("t.csv", b'name,price\nA,"1\n', ":2: malformed"),
        ("t.csv", b"name,price\nA,1\ncaf\xe9,2\n", ":3: not UTF-8 (byte 0xe9); give the encoding"),
        ("t.csv", "name,price\nA,1\n".encode("utf-16"), "UTF-16; give encoding utf-16"),
        ("t.csv", b"PK\x03\x04\x00\x00\x00", "a binary file, whatever its name says"),
        ("t.csv", b"name,price\nA,\n,3\n", "no facts (1 empty cell, 1 row without a subject)"),
        ("t.json", b'{"name": "A", "price": 1}\n[1]\n', ":2: the row is a list, not an object"),
        ("t.json", b'[{"name": "A"}, [3]]', ":1: the row is a list"),
        ("t.jsonl", b'{"name": "A", "price": }\n', ":1: malformed JSON"),
        ("t.jsonl", b"\n", "an empty table"),
        ("t.parquet", b"name,price\nA,1\n", "not a Parquet file"),
        ("t.xlsx", b"name,price\nA,1\n", "not a workbook"),
        ("t.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1", "encrypted, or of the old format"),
        ("t.xls", b"\xd0\xcf\x11\xe0", "save it as .xlsx"),
        ("t.db", b"name,price\nA,1\n" * 100, "file is not a database"),
        ("t.txt", b"name,price\nA,1\n", "unknown kind of table '.txt'"),
    ],
)
def test_a_bad_table(name: str, data: bytes, said: str, refused: Refused, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(data)
    line = refused("facts", "from-table", path, "--subject", "name", "--out", tmp_path / "out" / "f.jsonl", "--quiet")
    assert line.startswith(str(path)) and said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.csv"], "no such file"),
        ([""], "unknown kind of table ''"),
        (["t.csv", "--columns", "price,color"], "no column 'color' (did you mean 'colour'?)"),
        (["t.csv", "--columns", "name,price"], "column 'name' names the subject"),
        (["t.csv", "--sheet", "x"], "sheet says nothing about this kind of table"),
        (["t.csv", "--table", "x"], "table says nothing about"),
        (["t.csv", "--encoding", "klingon"], "unknown encoding 'klingon'"),
        (["t.csv", "--encoding", "utf-16"], "not utf-16"),
        (["t.csv", "--wordings", "w.yaml"], "w.yaml: relations.price: unknown key 'question'"),
        (["t.csv", "--wordings", "none.yaml"], "none.yaml: no such file"),
        (["t.csv", "--out", "f.csv"], "end it in .jsonl"),
        (["shop.db", "--table", "price"], "no table 'price' (did you mean 'prices'?); there are 'prices', 'stock'"),
        (["shop.db"], "2 tables; name one: prices, stock"),
        (["shop.db", "--query", "SELECT"], "the database says"),
        (["shop.db", "--query", "SELECT 1", "--table", "x"], "both a table and a query"),
        (["shop.db", "--query", "SELECT name, name FROM prices"], "column 'name' appears twice"),
        (["shop.db", "--encoding", "utf-8"], "encoding says nothing"),
        (["sqlite:///none.db"], "no such file 'none.db'"),
        (["sqlite://"], "no such file"),
        (["klingon://x/y"], "no such kind of database"),
        (["://"], "not an address"),
    ],
)
def test_bad_arguments(
    arguments: list[str], said: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if arguments[0].startswith(("shop", "sqlite", "klingon", ":")):
        pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("name,price,colour\nA,1,red\n")
    Path("w.yaml").write_text("relations: {price: {question: []}}\n")
    with sqlite3.connect("shop.db") as base:
        base.execute("CREATE TABLE prices (name TEXT, price TEXT)")
        base.execute("CREATE TABLE stock (name TEXT, stock TEXT)")
    out = [] if "--out" in arguments else ["--out", "facts.jsonl"]
    assert said in refused("facts", "from-table", *arguments, "--subject", "name", *out, "--quiet")


def test_an_unreachable_database_keeps_its_password(refused: Refused, tmp_path: Path):
    pytest.importorskip("sqlalchemy")
    for address in ("postgresql://ann:s3cret@127.0.0.1:1/shop", "mysql+pymysql://ann:s3cret@127.0.0.1:1/shop?x=s3cret"):
        line = refused("facts", "from-table", address, "--subject", "name", "--out", tmp_path / "f.jsonl")
        assert "ann:***@127.0.0.1" in line and "s3cret" not in line


def test_merged_cells_are_named(refused: Refused, tmp_path: Path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["name", "price"], ["A", 1], ["B", None]):
        book.active.append(row)
    book.active.merge_cells("B2:B3")
    book.save(tmp_path / "t.xlsx")
    arguments = ["facts", "from-table", tmp_path / "t.xlsx", "--subject", "name", "--out", tmp_path / "f.jsonl"]
    assert "the cells B2:B3 are merged" in refused(*arguments)


@pytest.mark.parametrize(
    ("name", "package"), [("t.xlsx", "openpyxl"), ("t.parquet", "pyarrow"), ("t.db", "sqlalchemy")]
)
def test_a_missing_package(name: str, package: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for each in [*sys.modules]:
        if each.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"PK\x03\x04 some bytes")
    line = refused("facts", "from-table", tmp_path / name, "--subject", "name", "--out", tmp_path / "f.jsonl")
    assert f"the package {package} is not installed" in line and "memlayers[tables]" in line
