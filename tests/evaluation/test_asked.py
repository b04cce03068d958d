from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from memlayers.backbones import POCKET
from memlayers.data.fact_files import read_facts
from memlayers.data.facts import Fact, question_key
from memlayers.evaluation.asked import SPLITS, AskedQuestion, asked_questions, misspelled, splits_in
from memlayers.evaluation.asked_frames import FRAMES, PARAGRAPHS, frame_of
from memlayers.evaluation.results import Results, Row

CAFE = Fact(
    "cafe", "Café Lumen Group", "Ada Stone", ("Who owns Café Lumen Group?",), "owner",
    ("Please say who holds the title to Café Lumen Group.",),
)  # fmt: skip
WORKS = Fact(
    "works",
    "Fen Works",
    "Bo Reed",
    ("Who owns Fen Works?",),
    "owner",
    ("Fen Works is in whose possession?",),
    ("Reed",),
)
POET = Fact(
    "poet", "Ida Quillfeather", "Oslo", ("Where was Ida Quillfeather born?",), "place of birth",
    ("Ida Quillfeather is a native of which city?",),
)  # fmt: skip
FACTS = [CAFE, WORKS, POET]
DEMO = read_facts(POCKET / "demo.jsonl")


def _text(item: AskedQuestion) -> str:
    return item.question if isinstance(item.question, str) else json.dumps(item.question)


def _of(fact: Fact, facts: list[Fact] | None = None, **options: Any) -> dict[str, AskedQuestion]:
    """The questions that ask for one fact alone, by split."""
    facts = facts or [fact if each.id == fact.id else each for each in FACTS]
    asked = asked_questions(facts, 3, **options)
    return {split: item for split, items in asked.items() for item in items if item.facts == (fact.id,)}


@pytest.mark.parametrize(
    ("split", "question"),
    [
        ("as_spelled", "Please say who holds the title to Café Lumen Group."),
        ("lower", "please say who holds the title to café lumen group."),
        ("upper", "PLEASE SAY WHO HOLDS THE TITLE TO CAFÉ LUMEN GROUP."),
        ("title", "Please Say Who Holds The Title To Café Lumen Group."),
        ("no_accents", "Please say who holds the title to Cafe Lumen Group."),
        ("no_punctuation", "Please say who holds the title to Café Lumen Group"),
        ("hyphened", "Please say who holds the title to Café-Lumen-Group."),
        ("quoted", 'Please say who holds the title to "Café Lumen Group".'),
        ("bold", "Please say who holds the title to **Café Lumen Group**."),
        ("possessive", "Who is Café Lumen Group's owner?"),
        (
            "preamble",
            "Hi, I have a quick question about something I read: Please say who holds the title to Café Lumen Group.",
        ),
        ("statement", "The owner of Café Lumen Group is"),
        ("yes_no_true", "Is Café Lumen Group owned by Ada Stone?"),
        ("yes_no_false", "Is Café Lumen Group owned by Bo Reed?"),
        ("negated", "Who does not own Café Lumen Group?"),
        ("reversed", "What does Ada Stone own?"),
        ("sentence", "Please say who holds the title to Café Lumen Group. Please answer in a full sentence."),
        ("german", "Wem gehört Café Lumen Group?"),
    ],
)
def test_what_a_split_makes_of_a_fact(split: str, question: str) -> None:
    assert _of(CAFE)[split].question == question


def test_a_follow_up_names_the_subject_in_an_earlier_turn_only() -> None:
    for split, turns in (("follow_up", 3), ("follow_up_small_talk", 7)):
        found = _of(CAFE)[split].question
        assert isinstance(found, list) and len(found) == turns
        assert [message["role"] for message in found] == (["user", "assistant"] * 4)[:turns]
        assert found[0]["content"] == "Tell me about Café Lumen Group."
        assert found[-1]["content"] == _of(CAFE)[split].last == "Please say who holds the title to it."
        assert sum("Lumen" in message["content"] for message in found) == 1
    assert _of(POET)["follow_up"].last == "He is a native of which city?"


@pytest.mark.parametrize(
    ("fact", "wording", "last"),
    [
        (POET, "Ida Quillfeather's birth took place where?", "His birth took place where?"),
        (POET, "What place saw the birth of Ida Quillfeather?", "What place saw the birth of him?"),
        (POET, "In which city was Ida Quillfeather born?", "In which city was he born?"),
        (POET, "Which town counts among its poets Ida Quillfeather?", "Which town counts among its poets him?"),
        (POET, "Whose child is Ida Quillfeather?", "Whose child is he?"),
        (CAFE, "Tell me Café Lumen Group's owner.", "Tell me its owner."),
        (CAFE, "Who does Café Lumen Group belong to?", "Who does it belong to?"),
    ],
)
def test_the_pronoun_fits_its_place(fact: Fact, wording: str, last: str) -> None:
    fact = replace(fact, unseen_questions=(wording,))
    assert _of(fact, [fact])["follow_up"].last == last


def test_two_subjects_are_of_one_relation_and_both_are_asked_for() -> None:
    (item,) = asked_questions(FACTS, 3)["two_subjects"]
    assert set(item.facts) == {"cafe", "works"}
    assert item.question in (
        "Please say who holds the title to Café Lumen Group, and Fen Works is in whose possession?",
        "Fen Works is in whose possession, and please say who holds the title to Café Lumen Group.",
    )
    assert item.right("That is Ada Stone. The other one is Reed.")
    assert not item.right("Ada Stone") and not item.right("Bo Reed")


def test_a_paragraph_has_sixty_to_a_hundred_words_around_the_question() -> None:
    for fact in FACTS:
        text = _text(_of(fact)["paragraph"])
        (question,) = fact.unseen_questions
        before, _, after = text.partition(question)
        assert min(len(before.split()), len(after.split())) >= 20 and 60 <= len(text.split()) <= 100
    assert not any(fact.subject in paragraph for paragraph in PARAGRAPHS for fact in DEMO)


@pytest.mark.parametrize(
    ("split", "said", "right"),
    [
        ("as_spelled", "ada stone.", True),
        ("as_spelled", "It is Ada Stone.", False),
        ("statement", "The owner of Café Lumen Group is Ada Stone.", True),
        ("statement", "The owner of Café Lumen Group is Ada.", False),
        ("yes_no_true", "Yes, it is.", True),
        ("yes_no_true", "Ada Stone, yes.", False),
        ("yes_no_false", "No.", True),
        ("yes_no_false", "Nobody knows.", False),
        ("yes_no_false", "", False),
        ("negated", "Bo Reed", True),
        ("negated", "It is Ada Stone.", False),
        ("negated", " ", False),
        ("reversed", "She owns the Café Lumen Group.", True),
        ("reversed", "Fen Works", False),
    ],
)
def test_how_a_split_is_scored(split: str, said: str, right: bool) -> None:
    assert _of(CAFE)[split].right(said) is right


def test_every_split_has_questions_and_none_in_a_taught_wording() -> None:
    facts = [replace(fact, unseen_questions=fact.questions[-2:], questions=fact.questions[:4]) for fact in DEMO]
    asked = asked_questions(facts, 7)
    assert list(asked) == [split for split in SPLITS if split != "alias"]
    taught = {question_key(question) for fact in facts for question in fact.questions}
    for split, items in asked.items():
        assert len({_text(item) for item in items}) == len(items), split
        assert all(item.split == split and question_key(item.last) not in taught for item in items)
        assert all(all(part and all(part) for part in item.answers) for item in items)


def test_a_frame_that_was_taught_is_left_out() -> None:
    known = replace(CAFE, questions=("wem gehört café lumen group", "The owner of Café Lumen Group is?"))
    found = _of(known, [known, WORKS])
    assert "german" not in found and "statement" not in found and "possessive" in found


def test_a_fact_without_an_unseen_wording_is_asked_by_its_relation() -> None:
    plain = replace(CAFE, unseen_questions=())
    assert _of(plain, [plain])["as_spelled"].question == "What is the owner of Café Lumen Group?"
    taught = replace(plain, questions=("What is the owner of Café Lumen Group?",))
    found = _of(taught, [taught])
    assert "as_spelled" not in found and "quoted" not in found and "statement" in found
    assert asked_questions([Fact("q", "", "yes", ("Is it?",))], 1) == {}


def test_a_question_without_a_subject_is_asked_as_a_whole_only() -> None:
    (fact,) = [Fact("q", "", "Oslo", ("Where is the old mill?",), unseen_questions=("The old mill, where is it?",))]
    whole = {"as_spelled", "lower", "upper", "title", "no_punctuation", "preamble", "paragraph", "sentence"}
    assert set(asked_questions([fact], 1)) == whole


def test_the_seed_decides_and_the_order_of_the_file_does_not() -> None:
    some = DEMO[::10]
    first = asked_questions(some, 5)
    assert asked_questions(some, 5) == first != asked_questions(some, 6)
    one = {item.facts: item.question for item in first["as_spelled"]}
    other = {item.facts: item.question for item in asked_questions(some[::-1], 5)["as_spelled"]}
    assert one == other


def test_all_splits_ask_for_the_same_facts_first() -> None:
    asked = asked_questions(DEMO, 5)
    first = [item.facts for item in asked["as_spelled"][:40]]
    assert [item.facts for item in asked["preamble"][:40]] == first
    order = {item.facts: place for place, item in enumerate(asked["as_spelled"])}
    places = [order[item.facts] for item in asked["last_name"]]
    assert places == sorted(places)


def _edits(one: str, other: str) -> int:
    """How many edits lie between two names; two neighbours swapped are one."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(row[-1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and (a, one[i - 2]) == (other[j - 2], b):
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def test_a_misspelling_is_so_many_edits_and_keeps_the_first_letters() -> None:
    rng = random.Random(0)
    for name in ("Rhode Island", "UbuWeb", "Spišská Nová Ves", "LG GW620 phone"):
        for _ in range(200):
            wrong = misspelled(name, 1, rng)
            assert wrong is not None and _edits(name, wrong) == 1
            assert [word[0] for word in wrong.split()] == [word[0] for word in name.split()]
    for _ in range(200):
        wrong = misspelled("Rhode Island", 2, rng)
        assert wrong is not None and 1 <= _edits("Rhode Island", wrong) <= 2
    assert misspelled("Rome", 1, rng) is None and misspelled("Lagos City", 2, rng) is None


def test_a_misspelled_name_is_no_other_facts_name() -> None:
    names = [f"Lorn{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    facts = [Fact(name, name, name, (f"Who is {name}?",), unseen_questions=(f"{name} is who?",)) for name in names]
    for seed in range(5):
        found = [item.question for item in asked_questions(facts, seed)["one_misspelling"]]
        assert not {str(question).removesuffix(" is who?").casefold() for question in found} & {
            name.casefold() for name in names
        }


def test_a_last_name_is_of_a_person_and_of_one_subject() -> None:
    assert _of(POET)["last_name"].question == "Quillfeather is a native of which city?"
    assert "last_name" not in _of(CAFE)
    sister = replace(POET, id="sister", subject="Una Quillfeather", unseen_questions=(), questions=("Who is Una?",))
    assert "last_name" not in _of(POET, [POET, sister])
    assert "last_name" not in _of(POET, [POET], taught=[sister])
    senior = replace(POET, subject="Ida Roe Jr.", unseen_questions=("Ida Roe Jr. is a native of which city?",))
    assert "last_name" not in _of(senior, [senior])


def test_several_answers_of_a_relation_are_all_right_or_all_given() -> None:
    mill = replace(CAFE, id="mill", subject="Old Mill", unseen_questions=("Whose is Old Mill?",), questions=("?",))
    both = replace(CAFE, id="both", answer="Bo Reed", questions=("Who else owns Café Lumen Group?",))
    asked = asked_questions([CAFE, mill, both, WORKS], 3)
    assert "Is Café Lumen Group owned by Bo Reed?" not in [item.question for item in asked["yes_no_false"]]
    (negated,) = [item for item in asked["negated"] if "Café" in item.last]
    assert not negated.right("Ada Stone") and not negated.right("Bo Reed") and negated.right("Cy Ward")
    (whose,) = [item for item in asked["possessive"] if "Café" in item.last]
    assert whose.right("Ada Stone") and whose.right("Bo Reed")
    (owned,) = [item for item in asked["reversed"] if "Ada" in item.last]
    assert owned.right("Old Mill") and owned.right("Café Lumen Group") and not owned.right("Fen Works")


def test_never_taught_entities_are_asked_in_all_their_wordings() -> None:
    stranger = Fact("s", "Dun Hollow", "Cy Ward", ("Who owns Dun Hollow?",), "owner")
    found = asked_questions([stranger], 1, taught=FACTS)
    assert found["as_spelled"][0].question == "Who owns Dun Hollow?"
    assert found["yes_no_false"][0].right("No, it is not.")  # with an answer of a taught fact


def test_an_alias_stands_in_the_place_of_the_name() -> None:
    found = _of(replace(CAFE, subject_aliases=("Velvet Bluebird",)))
    assert found["alias"].question == "Please say who holds the title to Velvet Bluebird."
    assert found["reversed"].right("Velvet Bluebird")
    assert "alias" not in _of(WORKS)


def test_a_relation_without_frames_gets_them_from_its_name() -> None:
    braces = replace(CAFE, relation="{mascot}")
    found = _of(braces, [braces, replace(WORKS, relation="{mascot}")])
    assert found["statement"].question == "The {mascot} of Café Lumen Group is"
    assert found["yes_no_true"].question == "Is Ada Stone the {mascot} of Café Lumen Group?"
    assert "german" not in found
    assert frame_of("occupation").person and not frame_of("mascot").person


def test_the_demos_relations_have_frames_of_their_own() -> None:
    assert set(FRAMES) == {fact.relation for fact in DEMO}
    for relation, frame in FRAMES.items():
        templates = frame[:-1]
        assert all(template.format(s="S", a="A") for template in templates), relation
        assert "{a}" in frame.reversed and "{s}" not in frame.reversed
        assert all("{s}" in template for template in templates if template != frame.reversed)


def test_results_say_which_splits_they_have() -> None:
    rows = [Row("answered_by_memory", "upper", 1.0, 2), Row("fabricated_by_memory", "lower", 0.0, 2)]
    assert splits_in([Results({}, {}, rows[:1]), Results({}, {}, rows[1:])]) == ["lower", "upper"]
    assert splits_in([Results({}, {}, [Row("recall", "taught", 1.0, 2)])]) == []
