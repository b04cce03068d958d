from __future__ import annotations

from dataclasses import replace

from memlayers.certificate.difference import difference
from memlayers.data.facts import Fact, Source


def _fact(name: str, answer: str, *documents: str, start: int = 0) -> Fact:
    sources = tuple(Source(document, answer, start=start, end=start + len(answer)) for document in documents)
    return Fact(name, name.title(), answer, (f"What is {name}?",), sources=sources)


def test_only_what_has_changed_is_told():
    stored = [
        _fact("same", "1", "a"), _fact("other", "2", "a"), _fact("gone", "3", "a"), _fact("shifted", "4", "a"),
        _fact("elsewhere", "5", "b"), _fact("by hand", "6"), _fact("both", "7", "a", "b"), _fact("respelt", "8", "a"),
    ]  # fmt: skip
    found = [
        _fact("same", "1", "a"), _fact("other", "two", "a"), _fact("new", "9", "a"),
        _fact("shifted", "4", "a", start=7), replace(_fact("respelt", "8", "a"), subject="RESPELT"),
    ]  # fmt: skip
    told = difference(stored, found, {"a"})
    assert [fact.id for fact in told.added] == ["new", "respelt"]
    assert [fact.answer for fact in told.updated] == ["two"]
    assert [fact.id for fact in told.forgotten] == ["respelt", "gone"]
    assert [(fact.id, [source.document for source in fact.sources]) for fact in told.moved] == [
        ("shifted", ["a"]),
        ("both", ["b"]),
    ]
    assert [fact.id for fact in told.unchanged] == ["same"] and not told.empty


def test_what_was_told_once_is_no_difference():
    facts = [_fact("one", "1", "a"), _fact("two", "2", "a", "b")]
    assert difference(facts, facts, {"a", "b"}).empty
    other = _fact("one", "1", "c")  # another document says the same of one of them
    (moved,) = difference(facts, [other], {"c"}).moved
    assert moved.sources == (*facts[0].sources, *other.sources)
    assert difference([], facts, {"a"}).added == tuple(facts)


def test_aliases_of_an_answer_are_part_of_it():
    fact = _fact("one", "1", "a")
    assert difference([fact], [replace(fact, aliases=("1 EUR",))], {"a"}).updated
