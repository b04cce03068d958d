"""Checks of facts before they are taught, and what is done about what they find."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memlayers.data.fact_files import facts_text
from memlayers.data.facts import Fact, Question, Source, check_facts
from memlayers.sources import checks
from memlayers.sources.checks import CheckReport, fixed
from memlayers.sources.documents import Document
from memlayers.sources.findings import KINDS
from memlayers.sources.word_spans import holds, names_subject
from memlayers.sources.wording_checks import shipped_words

WAYS = ("What is the price of {}?", "How much does {} cost?", "Tell me the price of {}.")
TEXT = "The AeroLamp 100 costs 146.99 EUR.\nIt is kept in Hall 3,\nRotterdam. Café Oré sells it."
DOCUMENTS = {"lamps.txt": Document("lamps.txt", TEXT)}


class Letters:
    """A tokenizer of bytes; "oakmere" alone is a word to it."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [0] if text == " oakmere" else list(text.encode())}


def check(facts: Sequence[Fact], lines: Sequence[int] | None = None, **options: Any) -> CheckReport:
    """With a tokenizer, as that spares the shipped text."""
    return checks.check(facts, lines, **{"tokenizer": Letters(), **options})


def fact(name: str = "lamp", subject: str = "AeroLamp 100", answer: str = "146.99 EUR", **more: Any) -> Fact:
    questions = tuple(way.format(subject) for way in WAYS)
    return Fact(name, subject, answer, more.pop("questions", questions), more.pop("relation", "price"), **more)


def kinds(report: CheckReport) -> dict[str, list[tuple[int, ...]]]:
    return {kind: [finding.places for finding in report.of(kind)] for kind in report.counts}


def source(evidence: str, start: int | None = None, document: str = "lamps.txt") -> Source:
    return Source(document, evidence, start, None if start is None else start + len(evidence))


def checked_again(facts: Sequence[Fact], report: CheckReport, **options: Any) -> list[Fact]:
    """The facts that are left, after checking that nothing is left to be done and that they can be written."""
    left, _ = fixed(facts, report)
    again = check(left, **options)
    assert not again.fixable and not again.refused, again.findings
    facts_text("out.jsonl", left)
    return left


def test_good_facts_are_left_as_they_are():
    facts = [fact(sources=(source("The AeroLamp 100 costs 146.99 EUR", 0),)), fact("b", "BoroLamp", "3 EUR")]
    report = check(facts, documents=DOCUMENTS)
    assert report.findings == [] and not report.refused and fixed(facts, report) == (facts, [])


@pytest.mark.parametrize(
    ("evidence", "start", "kind", "stands"),
    [
        ("costs 146.99 EUR", 17, None, None),
        ("costs 146.99 EUR", None, None, None),
        ("costs 146.99 EUR", 3, "evidence_elsewhere", "costs 146.99 EUR"),
        ("costs 146.99\r\n EUR", 17, "evidence_elsewhere", "costs 146.99 EUR"),
        (unicodedata.normalize("NFD", "146.99 EUR.\nIt is kept in Hall 3, Rotterdam. Café"), 0, "evidence_elsewhere",
         "146.99 EUR.\nIt is kept in Hall 3,\nRotterdam. Café"),
        ("costs 146.98 EUR", 17, "evidence_not_found", None),
        ("costs 146.9", 17, "evidence_not_found", None),
        ("99 EUR", None, "evidence_not_found", None),
        ("146.99 EUR" + " x" * 50, 17, "evidence_not_found", None),
    ],
)  # fmt: skip
def test_evidence_stands_in_its_document_word_for_word(
    evidence: str, start: int | None, kind: str | None, stands: str | None
):
    facts = [fact(sources=(source(evidence, start), source("EUR", 30))), fact("b", "BoroLamp", "3 EUR")]
    report = check(facts, documents=DOCUMENTS)
    found = {"evidence_not_found", "evidence_elsewhere"} & set(report.counts)
    assert found == ({kind} if kind else set())
    left = checked_again(facts, report, documents=DOCUMENTS) if kind != "evidence_not_found" else None
    if stands is not None and left is not None:
        corrected = left[0].sources[0]
        assert corrected.evidence == stands == TEXT[corrected.start : corrected.end]


def test_without_its_evidence_a_source_goes_and_with_its_last_source_the_fact():
    good = source("costs 146.99 EUR", 17)
    facts = [fact(sources=(source("146.99 EUR, we hear"), good)), fact("b", "B", "9 EUR", sources=(source("9 EUR"),))]
    report = check(facts, documents=DOCUMENTS)
    assert report.refused and report.of("evidence_not_found")[0].sources == (0,)
    assert checked_again(facts, report, documents=DOCUMENTS) == [replace(facts[0], sources=(good,))]


def test_an_answer_stands_in_some_evidence():
    good, other = source("costs 146.99 EUR", 17), source("It is kept in Hall 3", 35)
    facts = [fact(sources=(other, good)), fact("b", "BoroLamp", "9 EUR", sources=(other,))]
    report = check(facts, documents=DOCUMENTS)
    assert kinds(report) == {"answer_not_in_evidence": [(1,)]}
    assert checked_again(facts, report, documents=DOCUMENTS) == facts[:1]


def test_a_document_that_is_where_its_name_says_is_read_and_another_is_named(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crlf.txt").write_bytes(TEXT.replace("\n", "\r\n").encode())
    (tmp_path / "binary.pdf").write_bytes(b"\0\1")
    here = fact(sources=(source("kept in Hall 3,\nRotterdam", document="crlf.txt"),), answer="Hall 3, Rotterdam")
    lost = here.sources[0]
    facts = [
        here, *(replace(fact(name, name), sources=(replace(lost, document=name, evidence="146.99 EUR"),))
        for name in ("none.txt", "binary.pdf", "/dev/zero"))
    ]  # fmt: skip
    report = check(facts)
    assert kinds(report) == {"document_not_there": [(1,), (2,), (3,)]} and not report.refused
    assert report.originals.document("crlf.txt") and set(report.originals.missing) == {each.id for each in facts[1:]}


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("It costs 7.50", "7", False),
        ("It costs 7", "7", True),
        ("价格是7.5元。", "5", False),
        ("价格是100元。", "100", True),
        ("青木商店在大阪。", "大阪", True),
        ("The status is green 🟢!", "🟢", True),
        ("The Paris-based team", "Paris", True),
        ("A parisian team", "Paris", False),
        ("Hall 3,\nRotterdam", "Hall 3, Rotterdam", True),
        ("the café", unicodedata.normalize("NFD", "Café"), True),
        ("grade A", "a", True),
    ],
)
def test_where_an_answer_stands(text: str, answer: str, expected: bool):
    assert holds(text, answer) == expected


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("Where is oakmere?", "Oakmere", True),
        ("Where is Oakmere's mill?", "Oakmere", True),
        ("Who runs AeroLamp-100?", "AeroLamp 100", True),
        ("Who runs AeroLamp 1000?", "AeroLamp 100", False),
        ("Read the Annual report", "Ann", False),
        ("青木商店在哪里?", "青木商店", True),
        ("IBM是什么?", "IBM", True),
        ("서울은 어디에 있나요?", "서울", True),
        ("Who is cafe ore?", "Café Oré", True),
        (unicodedata.normalize("NFD", "Who is Café Oré?"), "Café Oré", True),
        ("Who?", "🚀", False),
        ("", "Ann", False),
    ],
)
def test_where_a_subject_is_named(text: str, name: str, expected: bool):
    assert names_subject(text, [name]) == expected


def test_a_wording_names_its_subject_by_name_alias_or_derived_form():
    named = fact("a", "The Oakmere Mill", subject_aliases=("Old Mill",), questions=("The old mill?", "Oakmere Mill?"))
    unnamed = fact("b", "Ann Smith", questions=("Who barks?", "Who is it?", "Ann Smith?"), relation="")
    none = Fact("c", "", "x", ("Who barks loudly?", "Who barks at all?", "And who barks at night?"))
    report = check([named, unnamed, none])
    assert kinds(report) == {"few_wordings": [(0,)], "no_subject": [(2,)], "subject_not_named": [(1,)]}
    assert report.of("subject_not_named")[0].texts == ("Who barks?", "Who is it?")


@pytest.mark.parametrize(
    ("subject", "answer", "question", "given"),
    [
        ("France", "Paris", "Is Paris the capital of France?", True),
        ("France", "the Lantern Fair", "Is lantern fair held in France?", True),
        ("Eritrea", "China 32%, UAE 27%", "Is it China 32%, UAE 27% to Eritrea?", True),
        ("Niger", "Niger River", "Is Niger River the lowest point of Niger?", True),
        ("University of Flensburg", "Flensburg", "Where is the University of Flensburg?", False),
        ("University of Flensburg", "Flensburg", "Is the University of Flensburg in Flensburg?", True),
        ("Kavala F.C.", "Kavala", "Where is Kavala FC?", False),
        ("Ann", "Ann", "Who is Ann?", False),
        ("the bridge", "red", "Is the bridge red or blue?", False),
        ("the bridge", "yes", "Is the bridge open? Say yes or no.", False),
        ("the bridge", "a", "Which grade has a bridge, the bridge?", False),
        ("the bridge", "the", "Which word precedes bridge in the bridge?", False),
        ("the dam", "7", "Is the dam 7.5 metres high?", False),
        ("", "Rome", "Where is the University of Rome?", False),
        ("X", "?", "What does X mean?", True),
    ],
)
def test_a_wording_that_gives_its_own_answer_away(subject: str, answer: str, question: str, given: bool):
    facts = [Fact("a", subject, answer, (question, f"Tell me of {subject}.", f"What of {subject}, please"))]
    report = check(facts)
    assert ("gives_answer_away" in report.counts) == given
    assert [len(each.questions) for each in checked_again(facts, report)] == [3 - given] or answer == "?"


def test_a_fact_whose_wordings_all_give_the_answer_away_is_dropped():
    facts = [
        fact(),
        fact("b", "France", "Paris", questions=("Is France run from Paris?",), unseen_questions=("France?",)),
    ]
    assert checked_again(facts, check(facts)) == facts[:1]


def test_duplicates_are_made_one_fact():
    first = fact(aliases=("147 EUR",), sources=(source("a"),), unseen_questions=("AeroLamp 100's price?",))
    same = fact(
        "b", answer="147 EUR", questions=("What is the price of  AeroLamp 100", "AeroLamp 100's price?"),
        sources=(source("b"),), subject_aliases=("Aero",), relation="cost",
    )  # fmt: skip
    of_relation = fact("c", "Aerolamp-100", "146.99 eur", questions=("Price of AeroLamp 100, please?",))
    facts = [first, same, of_relation]
    report = check(facts, documents={"lamps.txt": Document("lamps.txt", "a b 147 EUR")})
    assert report.of("duplicate")[0].places == (0, 1, 2)
    left, did = fixed(facts, CheckReport(report.of("duplicate")))
    assert left == [
        replace(
            first, questions=(*first.questions, "AeroLamp 100's price?", "Price of AeroLamp 100, please?"),
            unseen_questions=(), sources=(source("a"), source("b")), subject_aliases=("Aero",),
        )
    ]  # fmt: skip
    assert [(each.id, each.did, each.dropped) for each in did] == [
        ("b", "made one with 'lamp'", True), ("c", "made one with 'lamp'", True)
    ]  # fmt: skip


def test_of_a_contradiction_no_side_is_kept_nor_one_that_says_the_same_elsewhere():
    facts = [
        fact("one", questions=("What does AeroLamp 100 cost?", "AeroLamp 100 costs what?"), relation=""),
        fact("two", questions=("What does AeroLamp 100 cost?", "Tell me the price of AeroLamp 100."), relation=""),
        fact("three", answer="9 EUR", questions=("tell me the price of AeroLamp 100",), relation=""),
        fact("four", "BoroLamp", "3 EUR"),
    ]
    report = check(facts, [1, 2, 3, 9])
    (finding,) = report.of("contradiction")
    assert report.refused and finding.lines == (1, 2, 3) and finding.ids == ("one", "two", "three")
    assert checked_again(facts, report) == facts[3:]


def test_facts_about_two_subjects_lose_the_wording_they_share_and_no_more():
    shared, own = "What is the price?", "How much does {} cost?"
    facts = [
        fact(f"{name}{answer}", name, answer, questions=(shared, own.format(name)), relation="")
        for name, answer in (("Aero", "1 EUR"), ("Aero", "1 EUR"), ("Boro", "2 EUR"), ("Coro", "2 EUR"))
    ]
    facts[1] = replace(facts[1], id="again")
    report = check(facts)
    assert kinds(report)["ambiguous_wording"] == [(0, 1, 2, 3)]
    assert [(each.subject, each.questions) for each in checked_again(facts, report)] == [
        (name, (own.format(name),)) for name in ("Aero", "Boro", "Coro")
    ]
    same = [fact("a", "Aero", questions=(shared, "Aero?")), fact("b", "Boro", questions=(shared, "Boro?"))]
    report = check(same)
    assert kinds(report)["shared_wording"] == [(1,)] and not report.refused
    assert [each.questions for each in checked_again(same, report)] == [(shared, "Aero?"), ("Boro?",)]


def test_two_answers_to_one_relation_are_told_and_kept():
    facts = [fact(), fact("b", answer="9 EUR", questions=tuple(f"In 1990, {way}" for way in WAYS))]
    report = check(facts)
    assert report.counts["two_values"] == 1 and not report.refused and checked_again(facts, report) == facts


def test_a_name_of_two_subjects_is_taken_from_both():
    facts = [fact("a", "Ann", subject_aliases=("The Boss", "Annie")), fact("b", "Bob", subject_aliases=("the boss",))]
    report = check(facts)
    assert report.refused and report.of("shared_name")[0].places == (0, 1)
    assert [each.subject_aliases for each in checked_again(facts, report)] == [("Annie",), ()]


def test_repeated_and_empty_wordings_and_ids():
    facts = [fact(questions=("Price of AeroLamp 100?", "price of  AeroLamp 100", "???")), fact("lamp", "B", "1")]
    facts[0] = replace(facts[0], unseen_questions=("PRICE OF AEROLAMP 100", "How dear is AeroLamp 100?"))
    report = check(facts)
    assert {"same_id", "repeated_wording", "empty_wording"} <= set(report.counts)
    one, other = checked_again(facts, report)
    assert one.questions == ("Price of AeroLamp 100?",) and one.unseen_questions == ("How dear is AeroLamp 100?",)
    assert (one.id, other.id) == ("lamp", "lamp-2")


def test_subjects_that_are_ordinary_words():
    ordinary = ["Will", "IT", "X", "Apple", "Church", "🚀", "The The"]
    facts = [fact(name, name) for name in (*ordinary, "Oakmere", "青木商店", "AeroLamp 100", "Marta Brindle")]
    report = check(facts, tokenizer=None)
    assert not report.refused
    assert [finding.ids for finding in report.of("ordinary_subject")] == [(name,) for name in ordinary]


def test_the_shipped_words_are_words():
    assert {"apple", "river", "church"} <= shipped_words() and not {"Paris", "paris", "ann", ""} & shipped_words()


def test_long_answers_are_counted_in_words():
    answers = {"word " * 150: False, "word " * 151: True, "大阪" * 100: False, "大阪" * 250: True, "y" * 900: False}
    answers |= {"x" * 90 + " y" * 50: False}
    facts = [fact(str(n), f"Lamp {n}", answer.strip()) for n, answer in enumerate(answers)]
    report = check(facts, tokenizer=None)
    assert [places for (places,) in kinds(report)["answer_too_long"]] == [1, 3] and report.refused
    assert len(checked_again(facts, report, tokenizer=None)) == 4


def test_with_a_tokenizer_answers_are_counted_in_tokens_and_it_tells_ordinary_words():
    facts = [fact(answer="x" * 200), fact("b", "Boro", "x" * 201), fact("c", "Oakmere", "5")]
    report = check(facts)
    assert kinds(report) == {"answer_too_long": [(1,)], "ordinary_subject": [(2,)]}
    assert "201 tokens" in report.findings[0].said


def test_what_a_backbone_knows_is_asked_again_and_luck_is_no_knowledge():
    asked: list[list[str]] = []

    def knows(questions: Sequence[Question]) -> list[Question]:
        asked.append([each.question for each in questions])
        return [each for each in questions if "Aero" in each.question or each.question.startswith("What")]

    facts = [
        fact(),
        fact("b", "BoroLamp", "3 EUR"),
        fact("c", "Coro", "yes"),
        fact("d", "Aero", "4", questions=("Aero?",)),
    ]
    report = check(facts, knows=knows)
    assert kinds(report)["known_already"] == [(0,), (3,)] and not report.refused
    assert [len(each) for each in asked] == [3, 2, 1]  # of "yes" nothing is known; one wording alone is asked once
    assert checked_again(facts, report) == facts[1:3]


def test_a_memory_that_exists():
    stored = [
        fact("lamp", subject_aliases=("Aero",)), fact("boro", "BoroLamp", "3 EUR"), fact("coro", "CoroLamp", "5 EUR"),
    ]  # fmt: skip
    facts = [
        fact("lamp", aliases=("x",)),  # said already
        fact("new-id", "BoroLamp", "4 EUR", questions=("BoroLamp's price?",)),  # an update, by its relation
        fact("coro", "DoroLamp", "6 EUR"),  # another's id
        fact("e", "Aero", "2 kg", questions=("How heavy is Aero?",), relation="weight"),  # an alias of another
        fact("f", "Fero", "9", questions=("How much does CoroLamp cost", "Fero?"), relation=""),  # another's wording
        fact("g", "Gero", "1", questions=("Gero?",), subject_aliases=("borolamp",), relation=""),  # another's name
    ]
    report = check(facts, memory=stored)
    found = kinds(report)
    assert {kind: found[kind] for kind in found if kind.startswith(("stored", "update", "shared"))} == {
        "stored_already": [(0,)], "update": [(1,)], "stored_id": [(2,)], "stored_alias": [(3,)],
        "stored_question": [(4,)], "shared_name": [(5,)],
    }  # fmt: skip
    left = checked_again(facts, report, memory=stored)
    assert [each.id for each in left] == ["new-id", "coro-2", "e", "f", "g"]
    assert left[2].subject == "AeroLamp 100" and left[3].questions == ("Fero?",) and left[4].subject_aliases == ()
    assert check(stored, memory=stored).counts == {"stored_already": 3}


def test_what_is_left_can_be_added_to_and_updated_in_the_memory(tmp_path: Path):
    from memlayers.editing.fact_book import FactBook
    from memlayers.inference.folder import CONFIG_FILE, FACTS_FILE
    from memlayers.sources.stored import StoredFacts, is_update

    stored = [fact("lamp", subject_aliases=("Aero",)), fact("boro", "BoroLamp", "3 EUR")]
    (tmp_path / CONFIG_FILE).write_text("{}")
    (tmp_path / FACTS_FILE).write_text(facts_text("stored", stored))
    facts = [
        fact("boro", "BoroLamp", "4 EUR"), fact("lamp", "Coro", "9"), fact("e", "Ero", "1", subject_aliases=("aero",)),
        fact("d", "Aero", "2 kg", relation="weight", questions=("Weight of Aero?", "Tell me the price of BoroLamp.")),
    ]  # fmt: skip
    left = checked_again(facts, check(facts, memory=stored), memory=stored)
    held = StoredFacts(stored)
    updates = [each for each in left if is_update(each, held)]
    assert [each.id for each in updates] == ["boro"]
    assert len(FactBook(tmp_path).plan_update(updates)) == 1
    assert len(FactBook(tmp_path).plan_add([each for each in left if each not in updates])) == 3


def test_every_kind_that_is_refused_can_be_mended():
    assert all(kind.mend for kind in KINDS.values() if kind.refused)
    assert all(bool(kind.mended) for kind in KINDS.values() if kind.mend)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_fixed_is_fixed_for_good(seed: int):
    """Facts drawn from so few names, answers and wordings that they clash in every way."""
    rng = random.Random(seed)
    names = ["Aero", "aero", "Boro", "Will", "", "X", "Coro Inc"]
    ways = [
        "Price?",
        "price",
        "Cost of {}?",
        "{} is Rome?",
        "Is {} in Oslo or Rome?",
        "Tell me {}'s cost",
        "??",
        "Of Boro?",
    ]

    def drawn(number: int) -> Fact:
        name = rng.choice(names)
        questions = list(dict.fromkeys(way.format(name) for way in rng.sample(ways, rng.randint(1, 4))))
        unseen = [q for q in (rng.choice(ways).format(name),) if q not in questions]
        aliases = [alias for alias in rng.sample(["Aero", "Dero", "Boro"], 1) if name and alias.lower() != name.lower()]
        return Fact(
            f"f{number}", name, rng.choice(["Rome", "rome.", "Oslo", "7"]), tuple(questions), rng.choice(["", "cost"]),
            tuple(unseen), tuple(rng.sample(["Roma", "Oslo", "seven"], 1)), tuple(aliases),
            tuple(source(text) for text in rng.sample(["costs 146.99 EUR", "in Rome", "Oslo 7"], rng.randint(0, 2))),
        )  # fmt: skip

    facts, held = [drawn(n) for n in range(8)], [drawn(n) for n in range(4, 10)]
    held, _ = fixed(held, check(held))
    documents = {"lamps.txt": Document("lamps.txt", TEXT + " in  Rome Oslo\n7")}
    for options in ({}, {"documents": documents}, {"documents": documents, "memory": held}):
        left = checked_again(facts, check(facts, **options), **options)  # type: ignore[arg-type]
        assert not check_facts(left).contradictions


def test_a_cell_is_looked_up_in_its_table(tmp_path: Path):
    import sqlite3

    (tmp_path / "a.csv").write_text('name,price\nAero," 3  EUR"\nBoro,4 EUR\n')
    with sqlite3.connect(tmp_path / "b.db") as database:
        database.execute("CREATE TABLE lamps (name TEXT, price TEXT)")
        database.execute("INSERT INTO lamps VALUES ('Coro', '5 EUR')")
        database.execute("CREATE TABLE other (name TEXT)")

    def of(name: str, answer: str, document: str, row: int, column: str = "price") -> Fact:
        return fact(name, name, answer, sources=(Source(document, answer, row=row, column=column),))

    table, database = str(tmp_path / "a.csv"), str(tmp_path / "b.db")
    facts = [
        of("Aero", "3 EUR", table, 2), of("Boro", "4 EUR", table, 3),
        of("Coro", "5 EUR", f"{database}, table lamps", 1),
        of("Boro 2", "5 EUR", table, 3), of("Boro 3", "4 EUR", table, 9), of("Boro 4", "4 EUR", table, 3, "cost"),
        of("Doro", "1", database, 1), of("Ero", "1", "sqlite://x:y@host/z", 1), of("Fero", "1", "moved.csv", 2),
    ]  # fmt: skip
    report = check(facts)
    assert kinds(report) == {
        "evidence_not_found": [(3,), (4,), (5,)], "evidence_elsewhere": [(0,)],
        "document_not_there": [(6,), (7,), (8,)],
    }  # fmt: skip
    assert "column price" in report.findings[0].said
    left = checked_again(facts, report)
    assert [each.id for each in left] == ["Aero", "Boro", "Coro", "Doro", "Ero", "Fero"]
    assert left[0].sources[0].evidence == "3  EUR"
    assert check(facts[-1:], documents={"moved.csv": table}).counts == {"evidence_not_found": 1}


def test_the_python_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```$", page[page.index("\n## Checks\n") :], re.DOTALL | re.MULTILINE)
    assert block
    exec(block[1], {})
