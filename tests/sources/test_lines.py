"""Lines and passages of a text: what each is, and where it stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayers.sources.lines import lines_of, unwrapped
from memlayers.sources.outline import outline, without_marks

TEXT = """---
title: no
---
# Tarn

Above
-----

A **bold** line. See [the map](map.md).

* item: one
  * part: two

1. first

Term
: what it means

| a | b |
|---|---|
| 1 | 2 \\| 3 |

    code
```
# no heading
```
<br>
"""


def test_the_kind_of_each_line():
    kinds = [(line.kind, TEXT[line.start : line.end]) for line in lines_of(TEXT) if line.kind != "blank"]
    assert kinds == [
        ("markup", "---"), ("markup", "title: no"), ("markup", "---"), ("heading", "Tarn"), ("heading", "Above"),
        ("markup", "-----"), ("text", "A **bold** line. See [the map](map.md)."), ("item", "item: one"),
        ("item", "part: two"), ("item", "first"), ("term", "Term"), ("definition", "what it means"),
        ("header", "| a | b |"), ("rule", "|---|---|"), ("row", "| 1 | 2 \\| 3 |"), ("code", "    code"),
        ("code", "```"), ("code", "# no heading"), ("code", "```"), ("markup", "<br>"),
    ]  # fmt: skip


def test_the_passages_of_a_text():
    found = [(each.kind, TEXT[each.start : each.end], each.above, each.section.heading) for each in outline(TEXT)]
    assert found[:6] == [
        ("sentence", "A **bold** line.", (), "Above"),
        ("sentence", "See [the map](map.md).", (), "Above"),
        ("item", "item: one", (), "Above"),
        ("item", "part: two", ("item: one",), "Above"),
        ("item", "first", (), "Above"),
        ("definition", "what it means", ("Term",), "Above"),
    ]
    cell = outline(TEXT)[6]
    assert (TEXT[cell.start : cell.end], cell.row, cell.column, cell.width) == ("2 \\| 3", "1", "b", 2)


def test_plain_headings():
    text = "Tarn Ltd.\n\n1. About us\nWe make boats.\n\n1.1 Boats\nTwo.\n\nHours\n\nNine to five.\n"
    headings = [(text[line.start : line.end], line.level) for line in lines_of(text) if line.kind == "heading"]
    assert headings == [("Tarn Ltd.", 1), ("1. About us", 2), ("1.1 Boats", 3), ("Hours", 2)]


def test_a_numbered_list_is_no_headings():
    text = "Steps\n\n1. Open the lid\n2. Close the lid\n"
    assert [line.kind for line in lines_of(text)] == ["heading", "blank", "item", "item", "blank"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Mr. Lee met Dr. Oake at 9 a.m. today. He left.", ["Mr. Lee met Dr. Oake at 9 a.m. today.", "He left."]),
        ("Oake Ltd. The firm is old.", ["Oake Ltd.", "The firm is old."]),
        ("It costs 3.5 pounds (approx. Four). No?", ["It costs 3.5 pounds (approx. Four).", "No?"]),
        ('He said "Go." Then he went!', ['He said "Go."', "Then he went!"]),
        ("(One. Two.) Three.", ["(One. Two.)", "Three."]),
    ],
)
def test_sentences(text: str, parts: list[str]):
    assert [text[each.start : each.end] for each in outline(text)] == parts


def test_marks_are_not_shown():
    assert without_marks("**A** _b_ `c|d` [e](f_(g)) <b>h</b> i_j_k 2*3*4 \\* > l") == "A b c|d e h i_j_k 2*3*4 * > l"


@given(st.text(alphabet="aB1 \n\t#-|:`*.>=_\\", max_size=80), st.booleans())
def test_any_text_is_read_and_nothing_is_lost(text: str, plain: bool):
    once = unwrapped(text, plain=plain)
    assert once.split() == text.split()
    for each in outline(once):
        assert 0 <= each.start <= each.end <= len(once)
