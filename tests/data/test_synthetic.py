from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayers.data import synthetic
from memlayers.data.fact_files import read_facts, write_facts
from memlayers.data.facts import check_facts
from memlayers.data.synthetic import answer_bits, capacity, make_facts, make_fakes
from memlayers.data.synthetic_families import FAMILIES
from memlayers.utils.errors import InputError

SHAPES = {
    "sensor_calibration": (r"sensor [A-Z]{2}-\d{4}", r"[0-9a-f]{8}", 32.0),
    "config_integer": (r"[a-z]+\.[a-z]+\.[a-z_]+ of node-[0-9a-f]{4}", r"[1-9]\d{4}", math.log2(90_000)),
    "service_version": (r"[a-z]+-[a-z]+-\d{3}", r"\d+\.\d+\.\d+", 16.0),
    "node_coordinates": (r"[a-z]+ [A-Z]{3}-\d{2}", r"\(\d{1,3}, \d{1,3}\)", math.log2(10**6)),
    "protocol_bytes": (
        r"the [A-Z]+ frame of protocol [A-Z]{3}/[1-9]",
        r"0x[0-9A-F]{2} 0x[0-9A-F]{2} 0x[0-9A-F]{2}",
        24.0,
    ),
    "person_craft": (r"[A-Z][a-z]+ [A-Z][a-z]+", r"[a-z]+ in [A-Z][a-z]+", math.log2(64 * 48 * 16)),
    "village_festival": (r"[A-Z][a-z]+", r"Feast of [A-Z][a-z]+ [A-Z][a-z]+", 12.0),
    "inn_dish": (
        r"the [A-Z][a-z]+ [A-Z][a-z]+ in [A-Z][a-z]+",
        r"[a-z]+ [a-z]+ [a-z]+",
        math.log2(24 * 36 * 24),
    ),
}
each_family = pytest.mark.parametrize("family", sorted(FAMILIES))


def test_every_family_is_checked_here():
    assert set(SHAPES) == set(FAMILIES)


@each_family
def test_shape_and_phrasings(family: str):
    subject, answer, bits = SHAPES[family]
    facts = make_facts(family, 300, seed=137)
    assert len({fact.id for fact in facts}) == len({fact.subject for fact in facts}) == 300
    for fact in facts:
        assert re.fullmatch(subject, fact.subject)
        assert re.fullmatch(answer, fact.answer)
        assert len(fact.questions) >= 8 and len(fact.unseen_questions) == 2
        everything = fact.questions + fact.unseen_questions
        assert len(set(everything)) == len(everything)
        # The subject may open a question, with a capital.
        assert all(fact.subject.lower() in question.lower() for question in everything)
        assert not any("{" in question for question in everything)
    assert answer_bits(family) == pytest.approx(bits)


@each_family
def test_no_two_spellings_agree(family: str):
    # Exhaustive where the grammar is small; else each pair of neighbours, where an ambiguity would sit.
    for grammar in (FAMILIES[family].subjects, FAMILIES[family].answers):
        assert all(len(set(part)) == len(part) and "" not in part for part in grammar)
        if synthetic._size(grammar) <= 200_000:
            spelled = {"".join(choice) for choice in itertools.product(*grammar)}
            assert len(spelled) == synthetic._size(grammar)
        for left, right in itertools.pairwise(grammar):
            assert len({a + b for a, b in itertools.product(left, right)}) == len(left) * len(right)


@each_family
def test_answers_are_spread_evenly(family: str):
    facts = make_facts(family, 2000)
    # Distinct answers expected among 2,000 uniform draws from this many.
    size = 2 ** answer_bits(family)
    expected = -size * math.expm1(2000 * math.log1p(-1 / size))
    assert len({fact.answer for fact in facts}) == pytest.approx(expected, rel=0.03)


@each_family
def test_fakes_never_meet_facts_and_look_alike(family: str):
    facts = [fact for seed in (0, 1) for fact in make_facts(family, 1500, seed)]
    fakes = [fake for seed in (0, 7) for fake in make_fakes(family, 1500, seed, avoid=facts)]
    assert not {fact.subject for fact in facts} & {fake.subject for fake in fakes}
    assert not {fact.id for fact in facts} & {fake.id for fake in fakes}
    assert all(re.fullmatch(SHAPES[family][0], fake.subject) for fake in fakes)
    # Neither half of the subject space is told by its letters.
    for place in range(-3, 3):
        seen = [{subject[place] for subject in (item.subject for item in items)} for items in (facts, fakes)]
        assert len(seen[0] & seen[1]) >= 0.7 * len(seen[0] | seen[1])


def test_seeds_differ_more_facts_begin_with_fewer_and_seeds_never_contradict():
    first, second = make_facts("village_festival", 3000, seed=1), make_facts("village_festival", 3000, seed=2)
    assert make_facts("village_festival", 10, seed=1) == first[:10]
    assert first != second
    answer_of = {fact.subject: fact.answer for fact in first}
    shared = [fact for fact in second if fact.subject in answer_of]
    assert shared  # 3,000 of 192,000 twice: some 47 meet
    assert all(answer_of[fact.subject] == fact.answer for fact in shared)


def test_neighbours_do_not_count_up():
    numbers = [int(fact.subject[-3:]) for fact in make_facts("service_version", 50)]
    assert len({b - a for a, b in itertools.pairwise(numbers)}) > 40


def test_every_process_makes_the_same_facts():
    code = (
        "from memlayers.data.synthetic import *; "
        "print([(f.subject, f.answer) for n in FAMILIES for f in make_facts(n, 2, 5) + make_fakes(n, 2, 5)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(synthetic.__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1


def test_golden_values():
    # Changing these changes every published figure on synthetic facts.
    assert [(f.subject, f.answer) for f in make_facts("sensor_calibration", 2, seed=137)] == GOLDEN_SENSORS
    assert [(f.subject, f.answer) for f in make_facts("person_craft", 2, seed=137)] == GOLDEN_PEOPLE


@given(st.integers(1, 9), st.integers(1, 9), st.text(max_size=3))
def test_permute_is_a_bijection(left: int, right: int, key: str):
    mapped = [synthetic._permute(i, left, right, key) for i in range(left * right)]
    assert sorted(mapped) == list(range(left * right))


@pytest.fixture
def tiny_family(monkeypatch: pytest.MonkeyPatch) -> str:
    tiny = synthetic.Family(
        name="tiny",
        relation="r",
        subjects=(("a", "b", "c", "d"), ("e", "f", "g")),
        answers=(("0", "1"),),
        questions=("{subject}?",),
        unseen_questions=(),
    )
    monkeypatch.setattr(synthetic, "FAMILIES", {"tiny": tiny})
    return "tiny"


def test_a_family_can_be_used_up_but_no_further(tiny_family: str):
    assert capacity(tiny_family) == 6
    facts, fakes = make_facts(tiny_family, 6, seed=3), make_fakes(tiny_family, 6, seed=4)
    assert len({item.subject for item in facts + fakes}) == 12
    for make in (make_facts, make_fakes):
        with pytest.raises(InputError, match="6 subjects, 7 asked for"):
            make(tiny_family, 7)


def test_avoided_subjects_are_left_out_and_counted(tiny_family: str):
    fakes = make_fakes(tiny_family, 6)
    rest = make_fakes(tiny_family, 4, avoid=fakes[:2])
    assert rest == fakes[2:]
    with pytest.raises(InputError, match="4 subjects, 5 asked for"):
        make_fakes(tiny_family, 5, avoid=fakes[:2])


@each_family
def test_the_real_families_end_too(family: str):
    assert capacity(family) >= 100_000
    with pytest.raises(InputError):
        make_facts(family, capacity(family) + 1)
    assert make_facts(family, 0) == []


def test_bad_requests():
    with pytest.raises(InputError, match="unknown family 'nothing'; known families: sensor_calibration"):
        make_facts("nothing", 1)
    with pytest.raises(InputError, match="-1 facts"):
        make_facts("inn_dish", -1)


def test_families_cannot_be_changed():
    with pytest.raises(TypeError):
        FAMILIES["x"] = FAMILIES["inn_dish"]  # type: ignore[index]


def test_facts_of_all_families_read_back_without_a_clash(tmp_path: Path):
    facts = [fact for family in FAMILIES for fact in make_facts(family, 50)]
    write_facts(tmp_path / "f.jsonl", facts)
    assert read_facts(tmp_path / "f.jsonl", strict=True) == facts
    assert check_facts(facts).duplicates == []


GOLDEN_SENSORS = [("sensor IL-1469", "eacc68a5"), ("sensor UR-2419", "3c485e8d")]
GOLDEN_PEOPLE = [("Klasia Slulvund", "perfumer in Oakgate"), ("Prirnar Wekaster", "hatter in Westwood")]
