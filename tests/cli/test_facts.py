"""`memlayers facts`: make, convert, choices."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import memlayers
from helpers.cli import FACTS, Command, all_commands
from memlayers import read_facts
from memlayers.data.choices import read_choices


def test_facts_make_list_names_every_family(command: Command):
    from memlayers.data.synthetic import capacity
    from memlayers.data.synthetic_families import FAMILIES

    assert all_commands()["facts make"].epilog.split()[4] in FAMILIES

    code, out, err = command("facts", "make", "list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(FAMILIES)
    assert all(f"{capacity(line.split()[0]):,} facts" in line for line in lines)


def test_facts_make_is_what_the_library_makes(command: Command, tmp_path: Path):
    from memlayers.data.synthetic import make_facts

    out, fakes = tmp_path / "new" / "facts.jsonl", tmp_path / "fakes.jsonl"
    code, said, err = command(
        "facts", "make", "sensor_calibration", "--n", 20, "--seed", 5, "--out", out, "--fakes", fakes
    )
    assert (code, err) == (0, "") and said == f"20 facts in {out}, 20 fakes in {fakes}\n"
    assert read_facts(out) == make_facts("sensor_calibration", 20, 5)
    assert not {fact.subject for fact in read_facts(out)} & {fact.subject for fact in read_facts(fakes)}
    assert len(read_facts(fakes)) == 20


def test_facts_convert_there_and_back(command: Command, tmp_path: Path):
    plain = [dataclasses.replace(fact, unseen_questions=()) for fact in FACTS]
    first, table, second = tmp_path / "a.jsonl", tmp_path / "b.csv", tmp_path / "c.jsonl"
    memlayers.write_facts(first, plain)
    assert command("facts", "convert", first, table) == (0, f"2 facts in {table}\n", "")
    assert table.read_text().splitlines()[:2] == [
        "id,subject,relation,question,answer",
        "a,Ann,birth,Where was Ann born?,Rome",
    ]
    assert command("facts", "convert", table, second)[0] == 0
    assert second.read_bytes() == first.read_bytes()


def test_choices_are_made_from_facts(command: Command, tmp_path: Path):
    out = tmp_path / "choices.jsonl"
    code, said, _ = command("facts", "choices", "--out", out)
    made = read_choices(out)
    assert code == 0 and said == f"{len(made)} questions in {out}\n" and len(made) > 2000
    assert {len(each.choices) for each in made} == {4} and {each.answer for each in made} == {0, 1, 2, 3}
    few = tmp_path / "few.jsonl"
    few.write_text('{"question": "Where?", "answers": ["here"]}\n')
    code, _, err = command("facts", "choices", few, "--out", tmp_path / "none.jsonl")
    assert code == 2 and "no relation has 4 different answers" in err and not (tmp_path / "none.jsonl").exists()
