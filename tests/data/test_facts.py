from __future__ import annotations

from typing import Any

import pytest

from memlayers.data.facts import Fact, check_facts, split_facts
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


@pytest.mark.parametrize("name", ["questions", "unseen_questions", "aliases"])
def test_a_text_in_place_of_several_is_one_line(name: str) -> None:
    values: dict[str, Any] = {"questions": ("What is S?",), name: "What is S?"}
    with pytest.raises(InputError, match=f"fact 's': {name} is a text: give a tuple of texts"):
        Fact("s", "S", "a", **values)
