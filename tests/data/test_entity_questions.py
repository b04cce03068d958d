from __future__ import annotations

import json
from pathlib import Path

import pytest

from memlayers.data.entity_questions import read_entity_questions
from memlayers.utils.errors import InputError

REAL = Path(__file__).parents[3] / "shared" / "data" / "entityquestions"


def _write(folder: Path, relation: str, *rows: tuple[str, list[str]]) -> None:
    lines = (json.dumps({"question": question, "answers": answers}) + "\n" for question, answers in rows)
    (folder / f"{relation}.jsonl").write_text("".join(lines))


def test_rows_become_facts_in_every_phrasing_of_their_relation(tmp_path: Path) -> None:
    _write(
        tmp_path, "P112",
        ("Who founded Acme Works?", ["Ann Ames"]),
        ("Who founded Acme Works?", ["Bob Bell"]),  # a subject is taken once
        ("Who founded Bolt?", ["Cid", "Cid Cole"]),  # two answers
        ("Who founded the company that is taken?", ["Dan Dale"]),
        ("Who started Drum Hall?", ["Eve Earl"]),  # worded otherwise: no subject to cut out
        ("Who founded Egg?", ["E" * 31]),
        ("Who founded Far Hill?", ["Fay Ford"]),
    )  # fmt: skip
    _write(tmp_path, "P36", ("What is the capital of Far Hill?", ["Ford"]), ("What is the capital of Gull?", ["Gate"]))
    _write(tmp_path, "P106", ("What kind of work does Ann do?", ["smith"]))  # no relation of the demo's
    facts = read_entity_questions(tmp_path, without=["the company that is taken"])
    assert [(fact.subject, fact.answer) for fact in facts] == [
        ("Acme Works", "Ann Ames"), ("Far Hill", "Fay Ford"), ("Gull", "Gate")
    ]  # fmt: skip
    assert facts[0].questions[0] == "Who founded Acme Works?" and len(facts[0].questions) == 10
    assert len(facts[0].unseen_questions) == 2 and facts[0].relation == "founder"
    assert all("Acme Works" in question for question in (*facts[0].questions, *facts[0].unseen_questions))
    assert len({fact.id for fact in facts}) == 3
    every = read_entity_questions(tmp_path, without=["the company that is taken"], all_relations=True)
    assert [fact.subject for fact in every] == ["Ann", "Acme Works", "Far Hill", "Gull"]
    assert every[0].relation == "occupation" and len({fact.id for fact in every}) == 4


def test_a_folder_without_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no EntityQuestions there; give the folder that holds P112\.jsonl$"):
        read_entity_questions(tmp_path)
    (tmp_path / "P112.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"P112\.jsonl:1: "):
        read_entity_questions(tmp_path)


def test_the_real_ones_suffice_for_the_protocol() -> None:
    if not REAL.is_dir():
        pytest.skip(f"the real questions are not at {REAL}")
    facts = read_entity_questions(REAL)
    assert len(facts) > 10_000 and len({fact.subject for fact in facts}) == len(facts)
