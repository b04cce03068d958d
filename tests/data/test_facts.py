from __future__ import annotations

from typing import Any

import pytest

from memlayers.data.facts import Fact, SharedName, aliases_by_subject, check_facts, shared_names, split_facts
from memlayers.utils.errors import InputError


def test_duplicates_and_contradictions():
    facts = [
        Fact("a", "", "Paris", ("Capital of France?", "x?")),
        Fact("b", "", "paris.", ("capital  of FRANCE",)),
        Fact("c", "", "Lyon", ("Capital of France ?",)),
        Fact("d", "", "USA", ("Where?", "Really where?"), aliases=("America",)),
        Fact("e", "", "America", ("where?", "really where?")),
        Fact("f", "", "1", ("n?",)),
        Fact("g", "", "2", ("m?",), unseen_questions=("N?",)),
        Fact("h", "", "3", ("alone?", "Alone?")),
    ]
    report = check_facts(facts, lines=range(1, 9))
    assert [(clash.ids, clash.lines) for clash in report.duplicates] == [
        (("a", "b"), (1, 2)),
        (("d", "e"), (4, 5)),
    ]
    assert [(clash.ids, clash.lines) for clash in report.contradictions] == [
        (("a", "b", "c"), (1, 2, 3)),
        (("f", "g"), (6, 7)),
    ]
    assert report.contradictions[0].question == "Capital of France?"
    assert report.contradictions[0].answers == ("Paris", "paris.", "Lyon")
    assert check_facts(facts).duplicates[0].lines == ()
    assert check_facts(facts[-1:]) == check_facts([])


def test_split():
    facts = [Fact(str(i), "", "a", (f"q{i}?",)) for i in range(100)]
    first, second = split_facts(facts, 0.3, seed=1)
    assert len(first) == 30
    assert sorted(first + second, key=facts.index) == facts
    assert first == sorted(first, key=facts.index) and second == sorted(second, key=facts.index)
    assert split_facts(facts, 0.3, seed=1) == (first, second)
    assert split_facts(facts, 0.3, seed=2) != (first, second)
    assert first != facts[:30]
    assert split_facts(facts, 0.0) == ([], facts) and split_facts(facts, 1.0) == (facts, [])
    with pytest.raises(InputError, match="fraction is 30"):
        split_facts(facts, 30)


@pytest.mark.parametrize("name", ["questions", "unseen_questions", "aliases", "subject_aliases"])
def test_a_text_in_place_of_several_is_one_line(name: str) -> None:
    values: dict[str, Any] = {"questions": ("What is S?",), name: "What is S?"}
    with pytest.raises(InputError, match=f"fact 's': {name} is a text: give a tuple of texts"):
        Fact("s", "S", "a", **values)


def _about(number: int, subject: str, *aliases: str) -> Fact:
    return Fact(str(number), subject, "x", (f"q{number}?",), subject_aliases=aliases)


def test_the_aliases_of_a_subject_are_those_of_all_its_facts() -> None:
    facts = [_about(1, "IBM", "Big Blue"), _about(2, "Acme"), _about(3, "IBM", "BIG-BLUE", "I B Machines")]
    assert aliases_by_subject(facts) == {"IBM": ("Big Blue", "I B Machines")}
    assert aliases_by_subject([]) == {}


def test_a_name_of_two_subjects_is_found_whatever_its_case_and_accents() -> None:
    facts = [
        _about(1, "Élan", "The Swift"), _about(2, "Acme", "elan", "Bolts"), _about(3, "Quux", "the-swift"),
        _about(4, "Élan", "the swift"), _about(5, "BOLTS"),
    ]  # fmt: skip
    expected = [
        SharedName("elan", ("Élan", "Acme"), ("1", "2"), (10, 20)),
        SharedName("The Swift", ("Élan", "Quux"), ("1", "3"), (10, 30)),
        SharedName("Bolts", ("Acme", "BOLTS"), ("2", "5"), (20, 50)),
    ]
    lines = [10, 20, 30, 40, 50]
    assert sorted(shared_names(facts, lines), key=lambda each: each.lines) == sorted(expected, key=lambda e: e.lines)
    assert check_facts(facts, lines).shared_names == shared_names(facts, lines)
    assert shared_names(facts[:1] + facts[3:4]) == []  # one subject
    assert shared_names(facts[:2])[0].lines == ()


@pytest.mark.parametrize(
    ("subject", "alias", "said"),
    [
        ("", "Big Blue", "an alias of no subject"),
        ("IBM", " ?", "holds no letter and no digit"),
        ("IBM", "i.b.m.", "the subject's own name"),
        ("IBM", "word " * 100, "has 100 words and 500 characters; give a name of at most 20 words"),
        ("IBM", "x" * 201, "has 1 words and 201 characters"),
    ],
)
def test_an_alias_that_is_no_name_is_one_line(subject: str, alias: str, said: str) -> None:
    with pytest.raises(InputError, match=f"fact '1': subject_aliases: .*{said}") as told:
        _about(1, subject, alias)
    assert "\n" not in str(told.value)
