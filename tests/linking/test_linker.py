"""Stored subjects are found in any spelling, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from memlayers.data.facts import Fact
from memlayers.linking.config import LinkConfig
from memlayers.linking.derived_forms import is_person
from memlayers.linking.linker import Mention, NameLinker, spelling_of, unlinked_forms

ORDINARY = {"will", "rough", "wolf", "great", "church"}


def fact(subject: str, *questions: str, relation: str = "", aliases: tuple[str, ...] = ()) -> Fact:
    return Fact(f"{subject}{questions}", subject, "an answer", questions, relation, subject_aliases=aliases)


FACTS = [
    fact("Kylotonn", "Who founded Kylotonn?", "Name the founder of Kylotonn."),
    fact("Igor Kvetnoy", "Where was Igor Kvetnoy born?"),
    fact("John A. Pearson", "Where did John A. Pearson die?"),
    fact("The Great Wolf", "Who wrote The Great Wolf?"),
    fact("Mercury (planet)", "What is the size of Mercury (planet)?"),
    fact("Mercury (god)", "Who is the father of Mercury (god)?"),
    fact("International Business Machines", "Who leads International Business Machines?", aliases=("Big Blue",)),
    fact("Acme Widgets, Inc.", "Who leads Acme Widgets, Inc.?"),
    fact("CaldKettle 114", "What is the price of CaldKettle 114?"),
    fact("Charles III of Navarre", "Who is the child of Charles III of Navarre?"),
    fact("Chemikal Underground", "Who founded Chemikal Underground?"),
    fact("Age of Empires II: The Forgotten", "What is the genre of Age of Empires II: The Forgotten?"),
    fact("Don't Forget the Bacon!", "Who wrote Don't Forget the Bacon!?"),
    fact("Will", "When does Will come?"),
    fact("Ann Smith", "Where was Ann Smith born?"),
    fact("Bo Smith", "Where was Bo Smith born?"),
]
LINKER = NameLinker(FACTS, ordinary=ORDINARY.__contains__)


def found(text: str, linker: NameLinker = LINKER) -> list[tuple[str, tuple[str, ...], str]]:
    return [(text[mention.start : mention.end], mention.subjects, mention.how) for mention in linker.mentions(text)]


@pytest.mark.parametrize(
    ("text", "spelled", "subject", "how"),
    [
        ("Who founded Kylotonn?", "Kylotonn", "Kylotonn", "name"),
        ("who founded kylotonn", "kylotonn", "Kylotonn", "name"),
        ("WHO FOUNDED KYLOTONN?", "KYLOTONN", "Kylotonn", "name"),
        ("Who Founded Kylotonn Then?", "Kylotonn", "Kylotonn", "name"),
        ("Who was kylotonn's founder?", "kylotonn", "Kylotonn", "name"),
        ("Who founded **Kýlotonn**?", "Kýlotonn", "Kylotonn", "name"),
        ("Where was igor-kvetnoy born?", "igor-kvetnoy", "Igor Kvetnoy", "name"),
        ("Where did john a pearson die?", "john a pearson", "John A. Pearson", "name"),
        ("Who wrote don't forget the bacon?", "don't forget the bacon", "Don't Forget the Bacon!", "name"),
        ("Who leads big blue?", "big blue", "International Business Machines", "name"),
        ("Size of Mercury (planet)?", "Mercury (planet)", "Mercury (planet)", "name"),
        ("Genre of age of empires ii: the forgotten?", "age of empires ii: the forgotten",
         "Age of Empires II: The Forgotten", "name"),
        ("Where was Kvetnoy born?", "Kvetnoy", "Igor Kvetnoy", "derived"),
        ("where was kvetnoy born?", "kvetnoy", "Igor Kvetnoy", "derived"),
        ("Who wrote Great Wolf?", "Great Wolf", "The Great Wolf", "derived"),
        ("Who leads IBM?", "IBM", "International Business Machines", "derived"),
        ("Who leads Acme Widgets?", "Acme Widgets", "Acme Widgets, Inc.", "derived"),
        ("Who founded Kylotnon?", "Kylotnon", "Kylotonn", "misspelt"),
        ("Who founded Kylottonn?", "Kylottonn", "Kylotonn", "misspelt"),
        ("Who founded Chemical Undergrund?", "Chemical Undergrund", "Chemikal Underground", "misspelt"),
        ("Where was Igor Kvetony born?", "Igor Kvetony", "Igor Kvetnoy", "misspelt"),
    ],
)  # fmt: skip
def test_a_subject_is_found(text: str, spelled: str, subject: str, how: str) -> None:
    assert found(text) == [(spelled, (subject,), how)]


@pytest.mark.parametrize(
    "text",
    [
        "Who founded Kylotonn Games?",  # a longer name
        "Where was Oleg Kvetnoy born?",  # another's
        "Where was von Kvetnoy born?",
        "Where is Kvetnoy & Sons?",
        "Where was Smith born?",  # two have it
        "Will you come?",  # a sentence may begin so: the index opens there, too, but the next is no wording of it
        "I will not.",
        "WHERE IS THE CHURCH THAT WILL OPEN?",
        "What is the price of CaldKettle 115?",  # digits are never misspelt
        "Who is the child of Charles II of Navarre?",  # nor numerals
        "Who founded Bylotonn?",  # nor first letters
        "Who founded Kyltnon?",  # two edits in eight letters
        "who leads ibm",  # an acronym is in capitals
        "What is the capital of France?",
        "",
        "?!",
    ],
)
def test_nothing_else_is_taken_for_one(text: str) -> None:
    assert [each for each in found(text) if each[0] != "Will"] == []


def test_a_word_that_begins_the_wordings_of_several_begins_no_longer_name() -> None:
    several = [fact(name, f"Name {name}'s capital.", f"Which capital has {name}?") for name in ("Veloria", "Oakmere")]
    linker = NameLinker(several)
    assert [mention.subjects for mention in linker.mentions("Name Veloria's mayor.")] == [("Veloria",)]
    assert not linker.mentions("Mount Veloria is high.")
    assert not NameLinker(several[:1]).mentions("Name Veloria's mayor.")  # which one alone does not show


def test_of_two_names_that_differ_in_a_qualifier_both_are_offered() -> None:
    assert found("How large is Mercury?") == [("Mercury", ("Mercury (planet)", "Mercury (god)"), "derived")]


def test_a_longer_name_is_found_misspelt_though_a_part_of_it_is_stored() -> None:
    linker = NameLinker([*FACTS, fact("Chemikal", "Who founded Chemikal?")])
    assert found("Who founded Chemikal Undergroind?", linker) == [
        ("Chemikal Undergroind", ("Chemikal Underground",), "misspelt")
    ]


@pytest.mark.parametrize(
    ("text", "subjects"),
    [
        ("Could you tell me who founded Kylotonn?", ["Kylotonn"]),
        ("could you tell me who founded kylotonn?", ["Kylotonn"]),
        ("Who owns Tell Me?", ["Tell Me"]),
        ("Name the record label of Kylotonn.", ["Kylotonn"]),
        ("Who founded The Who?", ["The Who"]),
        ("It rained, and Kylotonn was founded.", ["Kylotonn"]),
        ("Who wrote It?", ["It"]),
        ("What is the capital of Paris?", []),  # a word that the backbone knows is no misspelling
        ("What is the capital of Parsia?", ["Parisia"]),
    ],
)
def test_names_of_common_words_are_told_by_their_capitals(text: str, subjects: list[str]) -> None:
    names = ("Kylotonn", "Tell Me", "The Record", "The Who", "It", "Parisia")
    linker = NameLinker(
        [fact(name, f"Who owns {name}?", f"The record label of {name}?") for name in names],
        ordinary={"Paris"}.__contains__,
    )
    assert [subject for _, found_subjects, _ in found(text, linker) for subject in found_subjects] == subjects


def test_of_names_with_the_same_letters_the_one_that_is_written_is_meant() -> None:
    linker = NameLinker([fact(name, f"Who made {name}?") for name in ("Love", "L.O.V.E.", "Énd", "End", "End!")])
    assert found("Who made Love?", linker) == [("Love", ("Love",), "name")]
    assert found("Who made L.O.V.E.?", linker) == [("L.O.V.E.", ("L.O.V.E.",), "name")]
    assert found("Who made love?", linker) == [("love", ("Love", "L.O.V.E."), "name")]
    assert found("Who made End!?", linker) == [("End!", ("End!",), "name")]
    assert found("Who made End?", linker) == [("End", ("End",), "name")]


def test_a_name_may_go_across_what_ends_a_sentence() -> None:
    linker = NameLinker(
        [fact(name, f"Who owns {name}?") for name in ("Yahoo! Briefcase", "Bros. Bagels", "The Briefcase")]
    )
    assert found("Who owns Yahoo! Briefcase?", linker) == [("Yahoo! Briefcase", ("Yahoo! Briefcase",), "name")]
    assert found("who owns bros. bagels?", linker) == [("bros. bagels", ("Bros. Bagels",), "name")]
    assert found("Who owns Yahoo? Briefcase?", linker) == [("Briefcase", ("The Briefcase",), "derived")]


def test_what_is_not_meant_hides_no_name() -> None:
    linker = NameLinker([fact("Old Fair Artists", "Who owns Old Fair Artists?"), fact("A Song", "Who sang A Song?")])
    assert found("Who is the singer of a Song?", linker) == [("a Song", ("A Song",), "name")]


def test_of_what_is_part_of_a_longer_name_no_part_is_meant() -> None:
    linker = NameLinker([fact(name, f"Who made {name}?") for name in ("Tumble in the Rough", "Rough")])
    assert found("Von wem stammt die Aufnahme Tumble in the Rough?", linker) == []


def test_what_is_near_to_two_names_is_neither() -> None:
    linker = NameLinker([fact("Marlona", "Who owns Marlona?"), fact("Marlone", "Who owns Marlone?")])
    assert found("Who owns Marlon?", linker) == []


def test_several_names_in_their_order() -> None:
    assert [each[0] for each in found("Did Igor Kvetnoy lead Big Blue, or kylotonn?")] == [
        "Igor Kvetnoy", "Big Blue", "kylotonn",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("switch", "text"),
    [
        ("last_name", "Where was Kvetnoy born?"),
        ("article", "Who wrote Great Wolf?"),
        ("brackets", "How large is Mercury?"),
        ("company", "Who leads Acme Widgets?"),
        ("acronym", "Who leads IBM?"),
        ("misspellings", "Who founded Kylotnon?"),
    ],
)
def test_each_form_has_a_switch(switch: str, text: str) -> None:
    assert found(text)
    assert not found(text, NameLinker(FACTS, LinkConfig(**{switch: False})))


def test_a_form_that_two_subjects_share_is_told() -> None:
    assert unlinked_forms(FACTS) == {"Smith": ("Ann Smith", "Bo Smith")}
    assert unlinked_forms(FACTS, LinkConfig(last_name=False)) == {}


def test_a_name_is_a_persons_where_people_are_asked_about() -> None:
    assert is_person([fact("Ann Smith", "Where was Ann Smith born?")])
    assert is_person([fact("Ann Smith", "Tell it.", relation="place of death")])
    assert not is_person([fact("Ann Smith", "Who founded Ann Smith?")])


def test_the_spelling_is_that_of_the_wordings() -> None:
    assert spelling_of("Kylotonn", FACTS[:1]) == "Kylotonn"
    assert spelling_of("Kylotonn (studio)", [fact("Kylotonn (studio)", "Who founded Kylotonn?")]) == "Kylotonn"
    assert spelling_of("Kylotonn", [fact("Kylotonn", "Who founded it?")]) == "Kylotonn"


def test_without_facts_nothing_is_found() -> None:
    assert NameLinker([]).mentions("Who founded Kylotonn?") == []
    assert NameLinker([Fact("q", "", "an answer", ("Who founded Kylotonn?",))]).mentions("Kylotonn") == []


def test_places_are_those_of_the_composed_text() -> None:
    assert LINKER.mentions("Café: who founded Kylotonn?") == [Mention(18, 26, ("Kylotonn",), "name")]
