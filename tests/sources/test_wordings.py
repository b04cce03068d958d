"""The library of wordings, and claims worded as facts."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from memlayers.data.facts import Source, check_facts, folded, question_key
from memlayers.sources.claims import Claim
from memlayers.sources.wordings import DIFFERENT_VALUES, NAMELESS, Wordings, worded
from memlayers.utils.errors import InputError


def _claim(subject: str, relation: str, value: str, row: int = 2, column: str = "") -> Claim:
    return Claim(subject, relation, value, Source("t.csv", value, row=row, column=column))


def test_every_relation_has_enough_wordings_and_no_two_the_same():
    library = Wordings.load()
    entries = {entry.name: entry for entry in library.entries.values()}
    assert len(entries) >= 60
    asked: dict[str, str] = {}
    for name, entry in entries.items():
        assert len(entry.questions) >= 10 and len(entry.unseen) >= 3, name
        for text in (*entry.questions, *entry.unseen):
            assert text.count("{subject}") == 1 and text[-1] in "?." and "{relation}" not in text, text
            assert asked.setdefault(folded(text), name + text) == name + text, f"{name}: {text}"


def test_unseen_wordings_ask_in_the_words_of_the_taught_ones():
    """What is only asked puts the relation's words into a new sentence; its own words are polite ones alone."""
    library = Wordings.load()
    frames = [text for taught, unseen in library.generic.values() for text in (*taught, *unseen)]
    polite = set(re.findall(r"[a-z]+", " ".join(frames).lower())) | set("asking know let need".split())
    for entry in library.entries.values():
        taught = {word for text in entry.questions for word in re.findall(r"[a-z]+", text.lower())}
        taught |= set(re.findall(r"[a-z]+", entry.name.lower()))
        taught |= {form for word in taught for form in (f"{word}s", f"{word}d", word.removesuffix("s"))}
        for text in entry.unseen:
            words = set(re.findall(r"[a-z]+", text.lower()))
            assert words - taught - polite == set(), f"{entry.name}: {text}"


def test_generic_wordings_are_enough_beside_the_whole_library():
    # Every synonym of every relation as a relation of its own, all in one table.
    library = Wordings.load()
    kinds = {}
    for key, entry in library.entries.items():
        kinds[entry.name] = entry.kind or "text"
        if key != folded(entry.name):
            kinds[key] = "text"
    kinds |= {"lumen": "number", "first flight": "date", "sales manager": "text", "opening hours in May": "text"}
    kinds |= {"discontinued": "yes_no", "WiFi": "yes_no", "supports Bluetooth": "yes_no", "pets allowed": "yes_no"}
    phrasings = library.phrasings(kinds)
    every = [text for each in phrasings.values() for text in (*each.questions, *each.unseen)]
    assert len({question_key(text) for text in every}) == len(every)
    for name, each in phrasings.items():
        assert len(each.questions) >= 10 and len(each.unseen) >= 3, (name, len(each.questions), len(each.unseen))


@pytest.mark.parametrize("kind", ["text", "number", "date", "person", "place", "is", "has", "does", "done"])
def test_each_kind_has_generic_wordings(kind: str):
    taught, unseen = Wordings.load().generic[kind]
    assert len(taught) >= 10 and len(unseen) >= 3
    for text in (*taught, *unseen):
        assert text.count("{subject}") == text.count("{relation}") == 1
        assert not re.search(r"\b(yes|no|true|false)\b", text, re.IGNORECASE)


def test_what_is_only_asked_begins_like_no_request():
    library = Wordings.load()
    shared = library.entries["price"].questions[-5:]
    begins = {text.partition("{")[0].replace("price of ", "") for text in shared}
    assert len(begins) == 5
    for entry in library.entries.values():
        assert not [text for text in entry.unseen if text.startswith(tuple(begins))], entry.name


def test_claims_become_facts():
    found = worded(
        [
            _claim("AeroLamp 100", "price", "146.99", column="Price (EUR)"),
            _claim("AeroLamp 100", "discontinued", "True"),
            _claim("AEROLAMP-100", "price", "146.99", row=9, column="Price (EUR)"),
        ]
    )
    price, discontinued = found.facts
    assert (price.id, price.relation, price.answer) == ("aerolamp-100.price", "price", "146.99")
    assert price.aliases == ("146.99 EUR",) and [each.row for each in price.sources] == [2, 9]
    assert "How much does AeroLamp 100 cost?" in price.questions
    assert discontinued.aliases == ("yes",) and "Is AeroLamp 100 discontinued?" in discontinued.questions
    assert not found.left_out and not check_facts(found.facts).duplicates
    for fact in found.facts:
        assert all(fact.subject in text for text in (*fact.questions, *fact.unseen_questions))


def test_different_values_are_left_out_on_every_side():
    found = worded([_claim("A", "price", "1", 2), _claim("a", "cost", "2", 3), _claim("B", "price", "1", 4)])
    assert [fact.id for fact in found.facts] == ["b.price"]
    assert [(each.source.row, each.why) for each in found.left_out] == [(2, DIFFERENT_VALUES), (3, DIFFERENT_VALUES)]


def test_two_columns_that_the_library_has_one_entry_for_are_two_relations():
    found = worded([_claim("A", "cost", "1", column="cost"), _claim("A", "price", "2", column="price")])
    assert [(fact.id, fact.answer) for fact in found.facts] == [("a.cost", "1"), ("a.price", "2")]
    report = check_facts(found.facts)
    assert not report.contradictions and not report.duplicates
    assert all(len(fact.questions) >= 10 and len(fact.unseen_questions) >= 3 for fact in found.facts)


def test_ids_do_not_depend_on_the_value_and_are_never_shared():
    subjects = ("Köln", "青木商店", "a.b", "a b c", "ab-d", "🚀 x")
    claims = [_claim(*pair, "1") for pair in itertools.product(subjects, ("price", "%", "$"))]
    ids = [fact.id for fact in worded(claims).facts]
    assert len(set(ids)) == len(ids) == 18
    assert ids == [fact.id for fact in worded([_claim(c.subject, c.relation, "2") for c in claims]).facts]
    assert worded([_claim("🚀", "price", "1")]).left_out[0].why == NAMELESS


def test_wordings_that_hold_the_answer_are_left_out():
    (fact,) = worded([_claim("Zed", "website", "web")]).facts
    assert fact.questions and not any(re.search(r"\bweb\b", text) for text in fact.questions)


def test_values_of_another_kind_are_asked_for_in_another_way():
    claims = [_claim(f"S{i}", "capital", f"{i}00 EUR") for i in range(4)]
    assert not any("city" in text for fact in worded(claims).facts for text in fact.questions)
    (fact,) = worded([_claim("S", "phone", "yes")]).facts
    assert "Does S have a phone number?" in fact.questions


def test_a_users_file_adds_and_replaces(tmp_path: Path):
    path = tmp_path / "w.yaml"
    path.write_text(
        "relations:\n"
        "  price: {also: [Preis], questions: ['Was kostet {subject}?']}\n"
        "  lumen: {questions: ['How bright is {subject}?'], unseen: ['{subject} has how much {relation}?']}\n"
        "  boss of all: {kind: person}\n"
    )
    wordings = Wordings.load(path)
    price, lumen, boss = worded(
        [_claim("A", "Preis", "1"), _claim("A", "lumen", "2"), _claim("A", "boss of all", "Ann")], wordings
    ).facts
    assert (price.relation, price.questions) == ("price", ("Was kostet A?",)) and len(price.unseen_questions) >= 3
    assert (lumen.questions, lumen.unseen_questions) == (("How bright is A?",), ("A has how much lumen?",))
    assert "Who is the boss of all of A?" in boss.questions
    assert "How much is A?" in worded([_claim("A", "cost", "1")]).facts[0].questions  # the shipped one is as it was


def test_requests_are_taught_beside_a_relations_own_questions(tmp_path: Path):
    claims = [_claim("A", "price", "1"), _claim("A", "founded", "1987"), _claim("A", "founder", "B")]
    price, founded, founder = worded(claims).facts
    assert {"How much is A?", "Find the price of A for me."} <= set(price.questions)
    assert "Give me A's founding date." in founded.questions and "Give me A's founder." in founder.questions
    (odd,) = worded([_claim("A", "founded", "2 EUR")]).facts  # asked for in a generic way, by its noun too
    assert "What is the founding date of A?" in odd.questions
    path = tmp_path / "w.yaml"
    path.write_text(
        "requests: ['What {is} the {relation} of {subject}, please?']\n"
        "relations:\n"
        "  price: {questions: ['Was kostet {subject}?']}\n"
        "  lumens: {noun: brightness, questions: ['How bright is {subject}?']}\n"
        "  manager: {kind: person}\n"
    )
    claims = [_claim("A", "price", "1"), _claim("A", "lumens", "2"), _claim("A", "manager", "Ann")]
    price, lumens, manager = worded(claims, Wordings.load(path)).facts
    assert price.questions == ("Was kostet A?", "What is the price of A, please?")
    assert lumens.questions == ("How bright is A?", "What is the brightness of A, please?")
    assert "Who manages A?" in manager.questions and not any("please?" in text for text in manager.questions)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("requests: ['Say {subject}.']\n", "requests[0]: 'Say {subject}.' lacks {relation}"),
        ("requests: a\n", "requests: not a list"),
        ("relations: {price: {noun: 1}}\n", "relations.price.noun: not a text"),
        ("relations: [price]\n", "relations: not a mapping"),
        ("relation: {}\n", "unknown key 'relation'"),
        ("relations: {price: {question: [a]}}\n", "relations.price: unknown key 'question'"),
        ("relations: {price: {questions: []}}\n", "relations.price.questions: no wording"),
        ("relations: {price: {questions: ['How much?']}}\n", "questions[0]: 'How much?' lacks {subject}"),
        ("relations: {price: {questions: ['{subject} {item}?']}}\n", "unknown placeholder '{item}'"),
        ("relations: {price: {questions: ['{subject} {?']}}\n", "unknown placeholder '{?'"),
        ("relations: {price: {questions: 'x {subject}'}}\n", "relations.price.questions: not a list"),
        ("relations: {price: {questions: [{subject}]}}\n", "questions[0]: not a text; put it in quotes"),
        ("relations: {price: {kind: money}}\n", "relations.price.kind is 'money'; known kinds: person"),
        ("relations: {no: {kind: text}}\n", "the key False is not a text; put it in quotes"),
        ("relations: {price: {also: [1]}}\n", "relations.price.also[0]: not a text"),
        ("relations:\n  price: {questions: [x: y: z]}\n", ":2: not YAML"),
        ("relations: {a: {questions: ['X {subject}']}, b: {questions: ['x {subject}?']}}\n", "of relations.a too"),
        ("generic: {text: {questions: ['What of {subject}?']}}\n", "'What of {subject}?' lacks"),
        ("- a\n", "not a mapping"),
    ],
)  # fmt: skip
def test_a_bad_file_of_wordings(text: str, said: str, tmp_path: Path):
    path = tmp_path / "w.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        Wordings.load(path)
    assert str(refused.value).startswith(f"{path}") and said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_wordings_that_the_page_shows_are_read(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(requests:.*?)```", page, re.DOTALL)
    (tmp_path / "w.yaml").write_text(block)
    claims = [_claim("A", "cost", "1"), _claim("A", "tare", "2"), _claim("A", "team captain", "Ann")]
    price, tare, captain = worded(claims, Wordings.load(tmp_path / "w.yaml")).facts
    assert "What does A go for?" in price.questions and tare.relation == "tare weight"
    assert "Who is the team captain of A?" in captain.questions
