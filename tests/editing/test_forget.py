"""Forgetting facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.editing import FACTS, answers_of, right_answers
from memlayers.editing.memory import Memory
from memlayers.inference.folder import UNDO_FOLDER
from memlayers.inference.generation import generate_answers
from memlayers.utils.errors import InputError


def test_a_forgotten_fact_is_gone_and_its_gate_is_closed(opened: Memory):
    report = opened.forget(ids=["bob"])
    asked = [*FACTS[1].questions, *FACTS[1].unseen_questions]
    given = generate_answers(opened.model, opened.tokenizer, asked)
    assert not any(answer.opened for answer in given)
    for kind, n in (("taught", 2), ("unseen", 1)):
        stand = report.evidence[kind]
        assert stand["after"] == stand["backbone"]
        assert (stand["before"]["n"], stand["after"]["given"], stand["always_on"]["given"]) == (n, 0.0, 0.0)
    assert report.evidence["taught"]["before"]["given"] == 1.0
    rest = [*FACTS[:1], *FACTS[2:]]
    assert list(opened.facts) == rest
    assert answers_of(opened, rest) == right_answers(rest)


def test_one_fact_of_a_subject_is_forgotten_and_the_other_stays(opened: Memory):
    report = opened.forget(facts=[FACTS[0]])
    assert report.evidence["taught"]["before"]["given"] == 1.0
    assert report.evidence["taught"]["after"]["given"] == 0.0
    given = generate_answers(opened.model, opened.tokenizer, FACTS[0].questions)
    assert all(answer.opened and answer.text != "red" for answer in given)
    assert answers_of(opened, [FACTS[6]]) == ["lime", "lime"]
    assert opened.forget(subject="Ada").ids == ("ada-2",)
    assert not any(a.opened for a in generate_answers(opened.model, opened.tokenizer, FACTS[0].questions))


def test_forgetting_for_good_leaves_no_undo_data(opened: Memory, folder: Path):
    opened.update([replace(FACTS[1], answer="green")])
    opened.forget(ids=["bob"], purge=True)
    assert not (folder / UNDO_FOLDER).exists()
    for path in folder.rglob("*"):
        assert not path.is_file() or b"Name Bob" not in path.read_bytes()
    with pytest.raises(InputError, match="its undo data is gone"):
        opened.undo()
