from __future__ import annotations

import json
from pathlib import Path

import pytest

from memlayers.data.answers import normalise_answer
from memlayers.data.choices import ChoiceQuestion, choices_text, make_choices, read_choices
from memlayers.data.facts import Fact
from memlayers.utils.errors import InputError

CITIES = ["Rome", "Oslo", "Lima", "Paris", "rome."]
FACTS = [Fact(f"c{i}", f"S{i}", city, (f"Where is S{i}?", f"S{i} is where?"), "city") for i, city in enumerate(CITIES)]
FACTS.append(Fact("d", "D", "red", ("Which colour has D?",), "colour"))
FACTS.append(Fact("e", "E", "Bern", ("Where is E?",), "city", aliases=("Oslo",)))


def test_wrong_answers_are_others_of_the_same_relation():
    made = make_choices(FACTS, seed=3)
    assert len(made) == 6  # one colour alone leaves nothing to choose from
    for fact, each in zip([fact for fact in FACTS if fact.relation == "city"], made, strict=True):
        assert each.question in fact.questions and each.choices[each.answer] == fact.answer
        wrong = [choice for i, choice in enumerate(each.choices) if i != each.answer]
        assert len(set(wrong)) == 3 and set(wrong) <= {"Rome", "Oslo", "Lima", "Paris", "Bern"}
        assert not {normalise_answer(choice) for choice in wrong} & {normalise_answer(a) for a in fact.answers}


def test_another_right_answer_of_the_question_is_no_wrong_choice():
    facts = [Fact(f"n{i}", "Norway", city, ("Name a city of Norway.",), "city") for i, city in enumerate(CITIES[:2])]
    made = make_choices([*facts, *FACTS], seed=1, wrong=2)
    assert {"Rome", "Oslo"}.isdisjoint(set(made[0].choices) - {made[0].choices[made[0].answer]})


def test_the_seed_decides():
    assert make_choices(FACTS, 1) == make_choices(FACTS, 1) != make_choices(FACTS, 2)
    assert len({each.answer for seed in range(9) for each in make_choices(FACTS, seed)}) == 4


def test_too_few_answers_are_refused():
    with pytest.raises(InputError, match="no relation has 4 different answers"):
        make_choices(FACTS[:3])


def test_what_is_written_is_read(tmp_path: Path):
    made = make_choices(FACTS)
    (tmp_path / "choices.jsonl").write_text(choices_text(made), encoding="utf-8")
    assert read_choices(tmp_path / "choices.jsonl") == made
    assert all(isinstance(each, ChoiceQuestion) for each in made)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Q?", "choices": ["a", "b"], "answer": 2}, "0 to 1"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": True}, "0 to 1"),
        ({"question": "Q?", "choices": ["a"], "answer": 0}, "at least two texts"),
        ({"question": "Q?", "choices": "ab", "answer": 0}, "at least two texts"),
        ({"question": " ", "choices": ["a", "b"], "answer": 0}, '"question", a text'),
        ({"choices": ["a", "b"], "answer": 0}, '"question", a text'),
    ],
)
def test_a_bad_row_is_one_line_with_its_number(row: dict[str, object], said: str, tmp_path: Path):
    path = tmp_path / "choices.jsonl"
    path.write_text('{"question": "Q?", "choices": ["a", "b"], "answer": 0}\n' + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=said) as error:
        read_choices(path)
    assert str(error.value).startswith(f"{path}:2: ") and "\n" not in str(error.value)
