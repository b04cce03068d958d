"""Sentences that state a fact, and those that seem to."""

from __future__ import annotations

import pytest

from memlayers.sources.statements import Context, statements

ABOUT = "Brindle & Oake"
NAMES = ("Harriet Oake", "Paris", "Brindle & Oake", "The Bull Hotel", "Ann Lee", "Aerolamp 100", "Ludlow", "Lee")
CONTEXT = Context(ABOUT, organised=True, certain=True, is_name=lambda phrase: phrase in NAMES)


def _said(sentence: str, context: Context = CONTEXT) -> list[tuple[str, str, str]]:
    return [(each.subject, each.relation, each.value) for each in statements(sentence, context)]


@pytest.mark.parametrize(
    ("sentence", "stated"),
    [
        ("Harriet Oake is the chief executive of Brindle & Oake.",
         [(ABOUT, "chief executive", "Harriet Oake")]),
        ("Paris is the capital of France and its largest city.", [("France", "capital", "Paris")]),
        ("Paris is the largest city in France.", [("France", "largest city", "Paris")]),
        ("Paris is the capital of the Republic of France.", [("Republic of France", "capital", "Paris")]),
        ("Ann Lee was the founder of Brindle & Oake.", [(ABOUT, "founder", "Ann Lee")]),
        ("The capital of France is Paris, a city on the Seine.", [("France", "capital", "Paris")]),
        ("Brindle & Oake's chief executive is Harriet Oake.", [(ABOUT, "chief executive", "Harriet Oake")]),
        ("Brindle & Oake was founded in 1987 by Marta Brindle and Tomas Oake in Ludlow.",
         [(ABOUT, "founded", "1987"), (ABOUT, "founder", "Marta Brindle and Tomas Oake"),
          (ABOUT, "place of foundation", "Ludlow")]),
        ("Ann Lee was born on 3 May 1950 in Oslo, Norway.",
         [("Ann Lee", "date of birth", "3 May 1950"), ("Ann Lee", "place of birth", "Oslo, Norway")]),
        ("Ann Lee (born May 3, 1950) is a painter.", [("Ann Lee", "date of birth", "May 3, 1950")]),
        ("The Bull Hotel is located in Corve Street.", [("Bull Hotel", "location", "Corve Street")]),
        ("Brindle & Oake is based in Ludlow.", [(ABOUT, "headquarters", "Ludlow")]),
        ("Aerolamp 100 costs 49 pounds.", [("Aerolamp 100", "price", "49 pounds")]),
        ("The fire warden is Neil Abara.", [(ABOUT, "fire warden", "Neil Abara")]),
        ("The fire wardens are Neil Abara and Ann Lee.", [(ABOUT, "fire wardens", "Neil Abara and Ann Lee")]),
        ("The deadline for expense claims is 30 June.", [(ABOUT, "deadline for expense claims", "30 June")]),
        ("The assembly point is the car park behind the Bull Hotel.",
         [(ABOUT, "assembly point", "the car park behind the Bull Hotel")]),
        ("The head office is at 14 Corve Street.", [(ABOUT, "location of the head office", "14 Corve Street")]),
        ("Core hours are 10:00 to 15:00.", [(ABOUT, "core hours", "10:00 to 15:00")]),
        ("The dress code is casual.", [(ABOUT, "dress code", "casual")]),
        ("The office is open from 08:30 to 17:00 on weekdays.",
         [(ABOUT, "opening hours of the office", "08:30 to 17:00 on weekdays")]),
        ("The canteen closes at 14:00.", [(ABOUT, "closing time of the canteen", "14:00")]),
        ("The help desk can be reached on extension 4417.", [(ABOUT, "extension of the help desk", "4417")]),
        ("The help desk can be reached at help@oake.example.",
         [(ABOUT, "e-mail address of the help desk", "help@oake.example")]),
        ("Lost badges cost 15 pounds.", [(ABOUT, "cost of lost badges", "15 pounds")]),
        ("Meals are refunded up to 32 pounds a day.", [(ABOUT, "refund limit for meals", "32 pounds a day")]),
        ("Every employee has 27 days of paid leave.", [(ABOUT, "paid leave of every employee", "27 days")]),
        ("Train tickets are booked through Corvus Travel.",
         [(ABOUT, "booking agent for train tickets", "Corvus Travel")]),
        ("Sick leave must be reported to Dana Whitlock before 9:00.",
         [(ABOUT, "contact for sick leave", "Dana Whitlock")]),
        ("Laptops are replaced every four years.",
         [(ABOUT, "replacement interval of laptops", "every four years")]),
        ("The company makes barometers.", [(ABOUT, "products", "barometers")]),
        ("We employ 140 people.", [(ABOUT, "number of employees", "140")]),
        ("Our newsletter is called The Aneroid.", [(ABOUT, "name of the newsletter", "The Aneroid")]),
        ("First aid boxes hang beside each kitchen.",
         [(ABOUT, "location of first aid boxes", "beside each kitchen")]),
    ],
)  # fmt: skip
def test_a_sentence_that_states_a_fact(sentence: str, stated: list[tuple[str, str, str]]):
    assert _said(sentence) == stated
    assert all(value in sentence for _, _, value in stated)


@pytest.mark.parametrize(
    "sentence",
    [
        "Harriet Oake is not the chief executive of Brindle & Oake.",
        "Harriet Oake might be the chief executive of Brindle & Oake.",
        "Is Harriet Oake the chief executive of Brindle & Oake?",
        "Harriet Oake was the chief executive of Brindle & Oake.",  # then
        "Harriet Oake is a director of Brindle & Oake.",  # one of several
        "It is the capital of France.",
        "Paris is the capital of France under-21 football.",
        "Paris is the capital of France and Italy.",
        "The problem of France is Paris.",
        "The capital of France is known for its bread.",
        "The chief executive is the person who signs.",
        "The coach is French.",
        "The former director is Ann Lee.",
        "The next director is Ann Lee.",
        "The price is right.",
        "The office is open.",
        "Meals cost money.",
        "Staff may work from home on two days a week.",
        "Five days may be carried over to March.",
        "The company makes sure that nobody waits.",
        "The company is based on trust.",
        "Brindle & Oake was founded on hope.",
        "Lee was born in Oslo or in Bergen.",
        "If it rains, the assembly point is the Bull Hotel.",
        "The assembly point is, as ever, where you stand.",
        "The director said that the office is in Ludlow.",
    ],
)
def test_a_sentence_that_does_not(sentence: str):
    assert _said(sentence) == []


def test_the_is_of_the_document_only_where_that_is_certain():
    for context in (CONTEXT._replace(certain=False), CONTEXT._replace(about="")):
        assert _said("The fire warden is Neil Abara.", context) == []
    assert _said("The company makes barometers.", CONTEXT._replace(organised=False)) == []


def test_a_last_name_is_the_whole_name_where_a_document_is_about_a_person():
    ann = Context("Ann Lee", organised=False, certain=True, is_name=lambda phrase: phrase in NAMES)
    assert _said("Lee was born in Oslo.", ann) == [("Ann Lee", "place of birth", "Oslo")]
