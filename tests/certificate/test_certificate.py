from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from memlayers.certificate.certificate import Asked, Certificate, Certified
from memlayers.certificate.learn import checked
from memlayers.certificate.page import certificate_page
from memlayers.data.facts import Fact, Source
from memlayers.sources.claims import Extraction, LeftOut
from memlayers.sources.reading import ReadOptions, named, read_sources
from memlayers.utils.errors import InputError

CELL = Source("a.csv", "10 EUR", row=2, column="price")
EMPTY = Source("a.csv", "Lamp", row=2, column="colour")
SENTENCE = Source("b.txt", "The <head> is Ada. She is old.", start=0, end=30)
OTHER = Source("b.txt", "Nothing here.", start=31, end=44)
PRICE = Fact("lamp.price", "Lamp", "10 EUR", ("Price of Lamp?",), "price", ("Lamp costs?",), sources=(CELL,))
HEAD = Fact("b.head", "B", "Ada", ("Head of B?",), "head", sources=(Source("b.txt", "is Ada", start=11, end=17),))


def _certificate() -> Certificate:
    right = Asked("Lamp costs?", "10 EUR", True, True, 1.0)
    wrong = Asked("Who heads B?", "<Bob>", False, False, 0.0)
    facts = [Certified(PRICE, "added", (right,), False), Certified(HEAD, "updated", (right, wrong), True)]
    left = [LeftOut(OTHER, "no rule matched"), LeftOut(EMPTY, "empty cell")]
    summary = {"recall": {"value": 0.75, "n": 2, "low": 0.5, "high": 1.0}}
    return Certificate(facts, [CELL, SENTENCE, OTHER], left, ("gone",), summary, {"seed": 1}, {"date": "today"})


def test_each_passage_has_its_facts_and_what_was_left_out():
    made = _certificate()
    assert [(source, [each.fact.id for each in facts], why) for source, facts, why in made.of_passages()] == [
        (CELL, ["lamp.price"], []),
        (SENTENCE, ["b.head"], []),
        (OTHER, [], ["no rule matched"]),
        (EMPTY, [], ["empty cell"]),  # no passage: nothing was to be read there
    ]
    assert made.changes == {"added": 1, "updated": 1, "moved": 0, "unchanged": 0, "forgotten": 1}
    assert [each.answered for each in made.facts] == [True, False]
    assert not Certified(PRICE, "added", (), False).answered


def test_a_source_belongs_to_the_passage_that_holds_most_of_it():
    passages = [Source("b.txt", "x" * 10, start, start + 10) for start in (40, 0, 10, 20)]
    for start, end, place in ((12, 15, 2), (8, 19, 2), (0, 10, 1), (35, 45, 0), (5, 15, 1), (31, 39, None)):
        fact = Fact("1", "B", "x", ("q?",), sources=(Source("b.txt", "x", start, end),))
        found = Certificate([Certified(fact, "added", (), False)], passages).of_passages()
        holding = [i for i, (_, facts, _) in enumerate(found) if facts]
        assert holding == [4 if place is None else place]


def test_the_json_says_all_of_it():
    said = json.loads(_certificate().text())
    assert [(fact["id"], fact["answered"], fact["change"]) for fact in said["facts"]] == [
        ("lamp.price", True, "added"),
        ("b.head", False, "updated"),
    ]
    assert said["facts"][0]["sources"] == [{"document": "a.csv", "evidence": "10 EUR", "row": 2, "column": "price"}]
    assert [passage["facts"] for passage in said["passages"]] == [["lamp.price"], ["b.head"], [], []]
    assert said["passages"][2]["left_out"] == ["no rule matched"] and said["forgotten"] == ["gone"]


def test_the_page_marks_answers_and_escapes_everything():
    page = certificate_page(_certificate(), "mem<ory>")
    assert '<b class="look">1 of 2 facts</b>' in page and "75.0%" in page and "50.0% to 100.0%" in page
    assert "<mark><b>10 EUR</b></mark>" in page and "The &lt;head&gt; is <mark><b>Ada</b></mark>" in page
    assert "&lt;Bob&gt;" in page and "mem&lt;ory&gt;" in page
    assert not re.search(r"<(?:head> is|Bob|script|img|link)", page) and "http" not in page.replace("http-equiv", "")
    assert "left out: empty cell" in page and "1 added, 1 updated, 1 forgotten" in page and "today" in page


def test_what_the_checks_drop_is_left_out_with_its_reason():
    other = Fact("lamp.2", "Lamp", "12 EUR", ("Price of Lamp?",), "price", sources=(CELL,))
    found = checked(Extraction([PRICE, other, HEAD], [CELL, SENTENCE]))
    assert [fact.id for fact in found.facts] == ["b.head"] and found.passages == [CELL, SENTENCE]
    assert [left.why for left in found.left_out] == ["contradiction", "answer not in the evidence"]
    by_hand = Fact("mine", "Lamp", "11 EUR", ("Price of Lamp?",), "price")
    found = checked(Extraction([PRICE, HEAD], [CELL, SENTENCE]), others=[by_hand])
    assert [fact.id for fact in found.facts] == ["b.head"]
    assert [left.why for left in found.left_out] == ["stored with another answer"]
    assert [fact.id for fact in checked(Extraction([PRICE]), others=[HEAD]).facts] == ["lamp.price"]


def test_files_are_read_by_their_kind(tmp_path: Path):
    (tmp_path / "prices.csv").write_text("product,price\nLamp,10 EUR\nDesk,\n")
    (tmp_path / "notes.md").write_text("# Brindle Works\n\nThe chief executive of Brindle Works is Ada Oake.\n")
    (tmp_path / "facts.jsonl").write_text('{"subject": "Ann", "questions": ["Who is Ann?"], "answer": "a smith"}\n')
    places = [tmp_path / name for name in ("notes.md", "prices.csv", "facts.jsonl")]
    found = read_sources(places, ReadOptions(subject="product"))
    assert [fact.answer for fact in found.facts] == ["10 EUR", "a smith", "Ada Oake"]
    assert all(len(fact.questions) >= 10 and len(fact.unseen_questions) >= 3 for fact in found.facts[::2])
    assert [left.why for left in found.left_out] == ["empty cell"]
    assert named(places, found.passages) == set(map(str, places))
    with pytest.raises(InputError, match=r"prices\.csv: a table; name the column .* with --subject"):
        read_sources(places, ReadOptions())
