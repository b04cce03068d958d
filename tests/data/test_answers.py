from __future__ import annotations

import pytest

from memlayers.data.answers import contains_answer, exact_match, normalise_answer, token_f1


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


@pytest.mark.parametrize(
    ("prediction", "answer", "contained"),
    [
        ("The capital of France is Paris.", "paris", True),
        ("**Paris**, of course", "Paris", True),
        ("Comparison", "Paris", False),
        ("172", "7", False),
        ("It is 7.", "7", True),
        ("It is 7.5", "7", False),
        ("It is 1,676.50 EUR", "676.50 EUR", False),
        ("It is 676.50 EUR.", "676.50 EUR", True),
        ("It is -7", "7", False),
        ("It is -7", "-7", True),
        ("version 2.14.3", "2.14", False),
        ("born 2024-05-01", "05", False),
        ("Lantern Fair is held", "the Lantern Fair", True),
        ("Vitamin C", "Vitamin A", False),
        ("Jean Paul Sartre", "Jean-Paul Sartre", True),
        ("New York", "York New", False),
        ("France's Paris", "France", True),
        ("the", "the", True),
        ("+", "+", True),
        ("Paris", "+", False),
        ("", "Paris", False),
        ("caf\u0065\u0301 au lait", "Café", True),
    ],
)
def test_containment(prediction: str, answer: str, contained: bool):
    assert contains_answer(prediction, (answer,)) is contained


def test_containment_in_any_accepted_answer_and_a_bare_string_is_one_answer():
    assert contains_answer("It is b.", ("a", "B"))
    assert contains_answer("It is abc", "abc")
    assert not contains_answer("It is a", "abc")
    assert not contains_answer("a", ())


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("Paris", "paris.", 1.0),
        ("The Paris", "Paris", 1.0),
        ("France is Paris", "Paris", 0.5),  # precision 1/3, recall 1
        ("Paris Paris", "Paris", 2 / 3),  # a word counts as often as it is in both
        ("York New", "New York", 1.0),
        ("London", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("the", "a", 0.0),
        ("7", "172", 0.0),
    ],
)
def test_token_f1(prediction: str, answer: str, score: float):
    assert token_f1(prediction, (answer,)) == pytest.approx(score)


def test_token_f1_is_that_of_the_best_answer():
    assert token_f1("Paris, France", ("London", "Paris", "Paris France")) == 1.0
    assert token_f1("Paris", "Paris") == 1.0
    assert token_f1("Paris", ()) == 0.0
