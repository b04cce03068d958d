from __future__ import annotations

import pytest

from memlayers.sources.quoting import find_quoted

TEXT = "The *head office* is at 14 Corve\nStreet — the “Bull” side. It cost 4417 pounds. Ann’s desk: no. 4."


@pytest.mark.parametrize(
    ("quoted", "found"),
    [
        ("14 Corve Street", "14 Corve\nStreet"),
        ("The head office is at 14", "The *head office* is at 14"),
        ('the "Bull" side.', "the “Bull” side."),
        ("Street - the", "Street — the"),
        ("Ann's desk", "Ann’s desk"),
        ("4417 pounds.", "4417 pounds."),
        ("It cost 4417 pounds. ", "It cost 4417 pounds."),
        ("It cost 4417.", "It cost 4417"),
        ("4", "4"),
    ],
)
def test_what_differs_in_spacing_and_marks_alone_is_found(quoted: str, found: str):
    span = find_quoted(TEXT, quoted)
    assert span is not None and TEXT[slice(*span)] == found


def test_words_are_whole():
    assert find_quoted(TEXT, "4") == (len(TEXT) - 2, len(TEXT) - 1)
    assert find_quoted(TEXT, "41") is None
    assert find_quoted(TEXT, "ffice") is None


@pytest.mark.parametrize("quoted", ["", "  ", ".", "“”", "14 Corve Road", "the head office", "14  Street"])
def test_anything_else_is_not(quoted: str):
    assert find_quoted(TEXT, quoted) is None


def test_case_counts_unless_told():
    assert find_quoted(TEXT, "BULL") is None
    assert find_quoted(TEXT, "BULL", any_case=True) is not None


def test_only_the_span_that_is_given_is_looked_through():
    assert find_quoted(TEXT, "pounds", 0, 20) is None
    assert find_quoted("abc", "ab", 0, 2) == (0, 2)
