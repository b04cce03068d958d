from __future__ import annotations

import pytest

from memlayers.data.answers import exact_match, normalise_answer


@pytest.mark.parametrize(
    ("prediction", "answer", "match"),
    [
        ("Paris", "paris.", True),
        ("  PARIS .\n", "Paris", True),
        ("7", "172", False),
        ("172", "7", False),
        ("Paris, France", "Paris", False),
        ("Paris..", "Paris", False),
        ("St. John", "St John", False),
        ("\uff30aris", "Paris", True),  # full-width P: NFKC
        ("caf\u0065\u0301", "Café", True),  # decomposed
        ("STRASSE", "straße", True),
        ("New  York", "New York", False),
        ("", "Paris", False),
        (".", ".", True),
        ("", ".", False),
    ],
)
def test_strict_match(prediction: str, answer: str, match: bool):
    assert exact_match(prediction, (answer,)) is match


def test_any_accepted_answer_matches_and_a_bare_string_is_one_answer():
    assert exact_match("b", ("a", "B."))
    assert exact_match("abc", "ABC")
    assert not exact_match("a", "abc")
    assert not exact_match("a", ())


def test_only_one_full_stop_goes():
    assert normalise_answer("a..") == "a."
    assert normalise_answer("a.b") == "a.b"
