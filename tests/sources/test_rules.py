"""Facts of whole documents: whom they are about, keys and values, tables, definitions; what is left out, and why."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayers.sources.documents import Document, read_document
from memlayers.sources.lines import unwrapped
from memlayers.sources.rules import NO_RULE, NO_SUBJECT, claims_in, from_documents
from memlayers.sources.structures import key_fault, keyed, noun, value_fault

HANDBOOK = Path(__file__).parents[2] / "recipes" / "examples" / "handbook.md"
COUNTRY = """# Ruritania

## Geography

### Location

Central Europe, between Saxony and Bohemia

### Area

- total: 2,381,740 sq km
- land: 2,381,700 sq km

### Land use

- agricultural land: 17.4%
  - arable land: 3.2%

### Area - comparative

slightly larger than Texas

## Government

### Capital

- name: Strelsau
- time difference: UTC+1

### Executive branch

- chief of state: King Rudolf V

### Exchange rates

- Currency: crowns per US dollar -
- Exchange rates 2024: 11.02

### Airports

12 (2024)

### Literacy

- total population: 98%

### Fax

NA
"""


def _claims(text: str, subject: str = "", most_words: int = 60) -> list[tuple[str, str, str]]:
    claims, _ = claims_in(Document("a.md", text), subject, most_words)
    return [(each.subject, each.relation, each.value) for each in claims]


def _why(text: str, subject: str = "") -> list[str]:
    return [each.why for each in claims_in(Document("a.md", text), subject)[1].left_out]


def test_the_handbook_that_ships():
    if not HANDBOOK.is_file():
        pytest.skip("no recipes/ in this checkout")
    found = from_documents([HANDBOOK])
    facts = {(fact.subject, fact.relation): fact.answer for fact in found.facts}
    about = "Tarnholt Boatyard"
    assert facts[about, "founder"] == "Ivo Tarnholt and Greta Lindqvist"
    assert facts[about, "fire warden"] == "Bertil Oyelaran"
    assert facts[about, "phone number"] == "01632 960 145"
    assert facts[about, "paid leave of every employee"] == "29 days"
    assert facts["Gannet 16", "hull material"] == "oak"
    assert len(facts) == len(found.facts) == 47
    assert {each.source.evidence for each in found.left_out} == {
        "Everybody who works here gets this handbook on their first day.",
        "It is short, so please read all of it.",
        "We like wooden boats, strong tea and plain words.",
        "Nobody has to answer the phone after work.",
        "Company vehicles are booked through the notice board; whoever comes first gets them.",
        "Boats for schools may be cheaper; ask.",
    }
    text = read_document(HANDBOOK).text
    for fact in found.facts:
        assert len(fact.questions) >= 10 and len(fact.unseen_questions) >= 3
        for source in fact.sources:
            assert text[source.start : source.end] == source.evidence and fact.answer in source.evidence
    (designer,) = (fact for fact in found.facts if fact.id == "kittiwake-12.designer")
    assert [source.evidence for source in designer.sources] == [
        "Greta Lindqvist", "The Kittiwake 12 was designed by Greta Lindqvist.",
    ]  # fmt: skip


def test_an_article_of_fields():
    assert _claims(COUNTRY) == [
        ("Ruritania", "location", "Central Europe, between Saxony and Bohemia"),
        ("Ruritania", "total area", "2,381,740 sq km"),
        ("Ruritania", "area (land)", "2,381,700 sq km"),
        ("Ruritania", "land use (agricultural land)", "17.4%"),
        ("Ruritania", "land use (agricultural land, arable land)", "3.2%"),
        ("Ruritania", "area (comparative)", "slightly larger than Texas"),
        ("Ruritania", "capital", "Strelsau"),
        ("Ruritania", "capital (time difference)", "UTC+1"),
        ("Ruritania", "chief of state (executive branch)", "King Rudolf V"),
        ("Ruritania", "exchange rates in 2024 (crowns per US dollar)", "11.02"),
        ("Ruritania", "number of airports", "12 (2024)"),
        ("Ruritania", "literacy (total population)", "98%"),
    ]
    assert _why(COUNTRY) == ["says what the lines after it are", "no value"]


@pytest.mark.parametrize(
    ("title", "subject"),
    [
        ("Tarn & Oake Ltd. Staff Handbook", "Tarn & Oake Ltd."),
        ("Staff handbook of the Tarn Museum", "Tarn Museum"),
        ("About Ferrow", "Ferrow"),
        ("Geography of Jamaica", "Jamaica"),
        ("Aerolamp 100 - Data sheet", "Aerolamp 100"),
        ("How to sail", ""),
        ("Contributing", ""),
        ("Working from home", ""),
        ("History of Ferrow", ""),
    ],
)
def test_whom_a_title_names(title: str, subject: str):
    found = _claims(f"# {title}\n\nPrice: 4 pounds\n")
    assert found == ([(subject, "price", "4 pounds")] if subject else [])


def test_a_title_that_is_an_ordinary_word_names_nobody_but_the_subject_can_be_given():
    text = "# Boats\n\nWe build boats.\n\nPrice: 4 pounds\n"
    assert _why(text) == [NO_RULE, NO_SUBJECT]
    assert _claims(text, "Tarn") == [("Tarn", "price", "4 pounds")]


def test_records_under_headings_and_in_groups_of_lines():
    text = "# Catalogue\n\n## Aerolamp\n\n- Price: 4\n- Weight: 1 kg\n\n## Hydrolamp\n\n- Price: 5\n- Weight: 2 kg\n"
    assert {subject for subject, _, _ in _claims(text)} == {"Aerolamp", "Hydrolamp"}
    lines = "Name: Aerolamp\nPrice: 4 pounds\n\nName: Hydrolamp\nPrice: 5 pounds\n"
    assert _claims(lines) == [("Aerolamp", "price", "4 pounds"), ("Hydrolamp", "price", "5 pounds")]


def test_tables():
    text = (
        "# Tarn Boatyard\n\n| Boat | Length | `code` | |\n|---|---|---|---|\n| Gannet 16 | 4.9 m | x | y |\n"
        "| the one that sank, sadly, in 1987. It was old | 3 m | x | y |\n\n"
        "| | |\n|---|---|\n| Phone | 4417 |\n\n| Role | Who |\n|---|---|\n| Fire warden | Ann Lee |\n\n"
        "| metric | value |\n|---|---|\n| recall | 98 % |\n"
    )
    assert _claims(text) == [
        ("Gannet 16", "length", "4.9 m"),
        ("Tarn Boatyard", "phone", "4417"),
        ("Tarn Boatyard", "fire warden", "Ann Lee"),
    ]


def test_definitions():
    text = "# Tarn Boatyard\n\nPhone\n: 4417\n\nBulkhead\n: a wall across the inside of a boat\n"
    assert _claims(text) == [
        ("Tarn Boatyard", "phone", "4417"), ("Bulkhead", "meaning", "a wall across the inside of a boat"),
    ]  # fmt: skip


def test_another_name_before_it_makes_the_sentence_uncertain():
    text = "# Tarn Handbook\n\n{}The chief executive is Ann Lee.\n\nWe trade with Corvus Travel.\n"
    assert len(_claims(text.format(""))) == 1
    assert _claims(text.format("Corvus Travel is our agent. ")) == []


def test_different_values_are_reported_and_not_guessed(tmp_path: Path):
    for name, warden in (("a.md", "Ann Lee"), ("b.md", "Bo Berg"), ("c.md", "Ann Lee")):
        text = f"# Tarn Handbook\n\nThe fire warden is {warden}. The nurse is Cy Dee.\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = from_documents([tmp_path / name for name in ("a.md", "b.md", "c.md")])
    (nurse,) = found.facts
    assert (nurse.relation, len(nurse.sources)) == ("nurse", 3)
    assert Counter(each.why for each in found.left_out) == {"different values for one subject": 3}


def test_long_answers_are_left_out():
    text = "# Tarn Boatyard\n\n- Motto: one two three four\n"
    assert _claims(text, most_words=4) and not _claims(text, most_words=3)


def test_the_python_that_the_page_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", page[page.index("## Documents") :], re.DOTALL)
    assert block
    exec(block[1], {"Path": Path})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("key: value", ("key", "value")),
        ("**Fire warden:** Ann", ("Fire warden", "Ann")),
        ("**Fire warden**: Ann", ("Fire warden", "Ann")),
        ("**Fire warden** - Ann", ("Fire warden", "Ann")),
        ("Fax: +44 1: 2", ("Fax", "+44 1: 2")),
        ("at 10:30 we go", None),
        ("https://a.example", None),
        ("Fire warden - Ann", None),
    ],
)
def test_keyed(text: str, parts: tuple[str, str] | None):
    assert keyed(text) == parts


@pytest.mark.parametrize("key", ["Note", "See also", "--flag", "f(x)=2", "1890s", "July 1856 to June 1857", "He wrote"])
def test_keys_that_are_no_relation(key: str):
    assert key_fault(key)


@pytest.mark.parametrize(
    "value",
    ["", "n/a", "TBD", "see France", "it depends", "the following:", "One. Two.", "a@b.example" + "https://b.example",
     '"a quotation of very many words that goes on and on"'],
)  # fmt: skip
def test_values_that_are_no_answer(value: str):
    assert value_fault(value)


@pytest.mark.parametrize(
    ("key", "said"),
    [("Fire Warden", "fire warden"), ("The price", "price"), ("GDP per capita", "GDP per capita"),
     ("Atlantic Ocean drainage", "Atlantic Ocean drainage"), ("Exports 2023", "exports in 2023"),
     ("Debt - external 2022", "debt (external) in 2022"), ("National anthem(s)", "national anthem")],
)  # fmt: skip
def test_nouns(key: str, said: str):
    assert noun(key) == said


@given(st.lists(st.sampled_from("# |Price|: |4 pounds|.|\n|\n\n|- |**|`|The |fire warden| is |Ann Lee|Tarn|, |(|x|---|\\".split("|") + ["|", "|---|---|\n"]), max_size=25).map("".join))  # fmt: skip  # noqa: E501
def test_evidence_stands_in_any_text_and_every_passage_is_accounted_for(text: str):
    document = Document("a.md", unwrapped(text, plain=False))
    claims, rest = claims_in(document, "Tarn")
    for claim in claims:
        source = claim.source
        assert document.text[source.start : source.end] == source.evidence and claim.value in source.evidence
    said = {claim.source for claim in claims} | {each.source for each in rest.left_out}
    assert said == set(rest.passages)
