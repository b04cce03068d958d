from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memlayers.data.fact_files import facts_text, write_facts
from memlayers.data.facts import Fact
from memlayers.editing.fact_book import FactBook
from memlayers.editing.journal import Change, Record, reversed_changes, write_journal
from memlayers.utils.errors import InputError

FACTS = [
    Fact(id=name.lower(), subject=name, answer=f"a{i}", questions=(f"What is {name}?",), relation="kind")
    for i, name in enumerate(["Ada", "Bob", "Cid"])
]
FACTS[2] = replace(FACTS[2], subject_aliases=("Sid",))
NEW = Fact("dot", "Dot", "a3", ("What is Dot?",))


@pytest.fixture
def book(tmp_path: Path) -> FactBook:
    """Of a folder with three facts and no edits."""
    (tmp_path / "adapter_config.json").write_text("{}")
    write_facts(tmp_path / "facts.jsonl", FACTS), write_journal(tmp_path, [])
    return FactBook(tmp_path)


def test_a_plan_says_what_changes_and_changes_nothing(book: FactBook):
    assert book.plan_add([NEW]) == [Change(3, None, NEW)]
    green = replace(FACTS[1], answer="green")
    assert book.plan_update([green]) == [Change(1, FACTS[1], green)]
    assert book.plan_update([Fact("?", "Bob", "green", ("Bob?",), "kind")])[0].after == replace(
        green, questions=(*FACTS[1].questions, "Bob?")
    )
    assert book.plan_forget(ids=["ada"], subject="Cid") == [Change(2, FACTS[2], None), Change(0, FACTS[0], None)]
    assert book.facts == FACTS


def test_a_plan_of_aliases_changes_all_facts_about_the_subject(book: FactBook):
    more = replace(NEW, subject="Cid")
    book.apply(book.plan_add([more]))
    both = [replace(FACTS[2], subject_aliases=("Sid", "El")), replace(more, subject_aliases=("El",))]
    changes = book.plan_add_aliases("Cid", ["El"])
    assert changes == [Change(2, FACTS[2], both[0]), Change(3, more, both[1])]
    book.apply(changes)
    assert book.plan_remove_aliases("Cid", ["SID"]) == [Change(2, both[0], replace(both[0], subject_aliases=("El",)))]
    assert [change.place for change in book.plan_remove_aliases("Cid", ["el"])] == [2, 3]
    (change,) = book.plan_update([replace(more, answer="z", subject_aliases=("EL", "Sid"))])
    assert change.after == replace(both[1], answer="z", subject_aliases=("El", "Sid"))


def test_names_that_two_stored_subjects_share_already_do_not_stop_other_edits(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (
        write_facts(tmp_path / "facts.jsonl", [*FACTS[1:], replace(FACTS[0], subject_aliases=("SID",))]),
        write_journal(tmp_path, []),
    )
    book = FactBook(tmp_path)
    assert len(book.plan_add([NEW])) == len(book.plan_update([replace(FACTS[2], answer="new")])) == 1
    with pytest.raises(InputError, match="would be a name of"):
        book.plan_add([replace(NEW, subject_aliases=("bob",))])


def test_what_was_changed_is_known_and_known_no_more_when_it_is_taken_back(book: FactBook):
    again = replace(NEW, id="e")
    changes = book.plan_add([NEW])
    book.apply(changes)
    assert book.facts == [*FACTS, NEW]
    with pytest.raises(InputError, match="fact 'e' asks 'What is Dot.', which fact 'dot' asks already"):
        book.plan_add([again])
    book.apply(reversed_changes(changes))
    assert book.facts == FACTS and book.plan_add([again]) == [Change(3, None, again)]


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        (
            lambda book: book.plan_add([NEW, replace(NEW, id="e")]),
            "fact 'e' asks 'What is Dot.', which fact 'dot' asks",
        ),
        (
            lambda book: book.plan_add([replace(NEW, unseen_questions=("what is ADA",), answer="a0")]),
            "fact 'dot' asks 'what is ADA', which fact 'ada' asks already, with the same answer",
        ),
        (
            lambda book: book.plan_update([replace(FACTS[0], answer="a1", questions=FACTS[1].questions)]),
            "fact 'ada' asks 'What is Bob.', which fact 'bob' asks already",
        ),
        (lambda book: book.plan_forget(ids=["cidd"]), r"id 'cidd' \(any more\); did you mean 'cid'\? `memlayers list`"),
        (lambda book: book.plan_forget(subject="bob"), "about 'bob'; did you mean 'Bob'. `memlayers list` shows"),
        (lambda book: book.plan_forget(subject="Zuzanna"), "about 'Zuzanna'; `memlayers list` shows"),
        (lambda book: book.plan_undo(), "no edit to take back"),
        (lambda book: book.plan_add_aliases("bob", ["Robert"]), "about 'bob'; did you mean 'Bob'. `memlayers list`"),
        (lambda book: book.plan_add_aliases("", ["Robert"]), "no stored fact is about ''; `memlayers list` shows"),
        (lambda book: book.plan_add_aliases("Bob", []), "nothing to add: give at least one alias"),
        (lambda book: book.plan_add_aliases("Bob", "Robert"), "aliases is a text: give a list of texts"),
        (lambda book: book.plan_add_aliases("Bob", ["BÖB"]), "'BÖB' is the subject's own name"),
        (lambda book: book.plan_add_aliases("Bob", [" "]), "' ' holds no letter and no digit"),
        (
            lambda book: book.plan_add_aliases("Bob", ["w " * 100]),
            "has 100 words and 200 characters; give a name of at",
        ),
        (lambda book: book.plan_add_aliases("Bob", ["ada"]), "'ada' would be a name of 'Ada' and of 'Bob': take it"),
        (lambda book: book.plan_add_aliases("Bob", ["SID"]), "'SID' would be a name of 'Bob' and of 'Cid'"),
        (lambda book: book.plan_add_aliases("Cid", ["sid!"]), "'sid!' is an alias of 'Cid' already; leave it out"),
        (lambda book: book.plan_add_aliases("Bob", ["Rob", "ROB"]), "'ROB' is an alias of 'Bob' already"),
        (lambda book: book.plan_remove_aliases("Cid", ["El Sid"]), "'El Sid' is no alias of 'Cid'; did you mean 'Sid'"),
        (lambda book: book.plan_remove_aliases("Cdi", ["Sid"]), "about 'Cdi'; did you mean 'Cid'"),
        (lambda book: book.plan_remove_aliases("Cid", []), "nothing to remove: give at least one alias"),
        (lambda book: book.plan_add([replace(NEW, subject="sid")]), "'Sid' would be a name of 'Cid' and of 'sid'"),
        (lambda book: book.plan_add([replace(NEW, subject_aliases=("Bob",))]), "'Bob' would be a name of 'Bob' and of"),
        (
            lambda book: book.plan_update([replace(FACTS[0], subject_aliases=("SID",))]),
            "'SID' would be a name of 'Ada' and of 'Cid'",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(book: FactBook, plan: Callable[[FactBook], Any], line: str):
    with pytest.raises(InputError, match=line) as told:
        plan(book)
    assert "\n" not in str(told.value)


def test_questions_that_two_stored_facts_share_already_do_not_stop_an_update_of_both(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    twin = replace(FACTS[0], id="twin")
    write_facts(tmp_path / "facts.jsonl", [FACTS[0], twin]), write_journal(tmp_path, [])
    book = FactBook(tmp_path)
    assert len(book.plan_update([replace(fact, aliases=("A0",)) for fact in (FACTS[0], twin)])) == 2
    with pytest.raises(InputError, match="fact 'ada' answers .*, fact 'twin' with 'a0'"):
        book.plan_update([replace(FACTS[0], answer="other")])


def test_damaged_undo_data_is_one_line(book: FactBook):
    record = Record(1, "add", "2026-01-01T00:00:00+00:00", ("ada",), 7)
    write_facts(book.folder / "facts.jsonl", FACTS), write_journal(book.folder, [record])
    (book.folder / "undo").mkdir()
    (book.folder / record.undo_file).write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"00000001.safetensors: damaged \(.*\); edit 1 cannot be taken back") as told:
        FactBook(book.folder).plan_undo()
    assert "\n" not in str(told.value)


def test_the_file_of_the_facts_is_what_it_would_be_written_anew(book: FactBook):
    path = book.folder / "facts.jsonl"
    for facts in (FACTS, [*FACTS, NEW], [replace(FACTS[0], answer="new"), *FACTS[2:]], [], FACTS):
        assert book.facts_text(facts) == facts_text(path, facts)
    for wrong in ([*FACTS, FACTS[0]], [*FACTS, replace(NEW, answer="")]):
        with pytest.raises(InputError):
            book.facts_text(wrong)
