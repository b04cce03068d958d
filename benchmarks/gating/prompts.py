"""What the gate is asked: stored entities, others that it must not open for, and the memories for it to guard."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import SEED
from memlayers import Fact, Memory, TeachConfig, load_memory, teach_facts
from memlayers.backbones import POCKET
from memlayers.data.entity_questions import read_entity_questions
from memlayers.data.fact_files import read_facts

RESULTS = common.RESULTS / "gate"
TAUGHT = 300
STORED = ("stored_taught", "stored_unseen")


def split_demo() -> tuple[list[Fact], list[Fact]]:
    """The demo's facts: those that are taught, and those whose entities are never taught."""
    facts = common.demo_facts()
    taught = common.demo_facts(TAUGHT)
    ids = {fact.id for fact in taught}
    return taught, [fact for fact in facts if fact.id not in ids]


def prompt_sets(taught: Sequence[Fact], untaught: Sequence[Fact], seed: int = SEED) -> dict[str, list[str]]:
    """The questions of each set; those about stored entities are `STORED`."""
    rng = random.Random(seed)
    known = read_facts(POCKET / "known.jsonl")
    rng.shuffle(known)
    taken = {fact.subject for fact in [*taught, *untaught, *known]}
    entities = read_entity_questions(common.ENTITY_QUESTIONS, without=taken)
    taken |= {fact.subject for fact in entities}
    others = common.drawn(entities, 1000)
    sets = {
        "stored_taught": [q for fact in taught for q in rng.sample(fact.questions, 2)],
        "stored_unseen": [q for fact in taught for q in fact.unseen_questions],
        "untaught_demo": [q for f in untaught for q in (rng.choice(f.questions), *f.unseen_questions)],
        "untaught_eq": [rng.choice((*fact.questions, *fact.unseen_questions)) for fact in others],
        "known": [rng.choice((*fact.questions, *fact.unseen_questions)) for fact in known[:1000]],
        "known_calibration": [rng.choice(fact.questions) for fact in known[1000:]],
    }
    sets["recombined"] = _recombined(taught, taken, rng)
    sets["extended"] = [_renamed(f, f.subject, f"{f.subject} {rng.choice(taught).subject.split()[-1]}") for f in taught]
    sets["other_relation"] = _other_relation(taught, rng)
    return sets


def _renamed(fact: Fact, old: str, new: str) -> str:
    question = fact.unseen_questions[0]
    return question.replace(old, new)


def _recombined(taught: Sequence[Fact], taken: set[str], rng: random.Random) -> list[str]:
    """Fakes made of stored names: the first words of one subject and the last word of another."""
    questions = []
    for fact in taught:
        words = fact.subject.split()
        other = rng.choice([f for f in taught if f.relation == fact.relation and f is not fact]).subject.split()
        name = " ".join([*words[:-1], other[-1]]) if len(words) > 1 else f"{words[0]} {other[-1]}"
        if name not in taken and not any(f.subject in name for f in taught):
            questions.append(_renamed(fact, fact.subject, name))
    return questions


def _other_relation(taught: Sequence[Fact], rng: random.Random) -> list[str]:
    """Stored entities, asked for something that was not taught of them."""
    questions = []
    for fact in taught:
        other = rng.choice([f for f in taught if f.relation != fact.relation])
        questions.append(rng.choice(other.questions).replace(other.subject, fact.subject))
    return questions


def opened_memory(folder: Path, facts: Sequence[Fact], **settings: Any) -> Memory:
    """The memory of a folder, taught first if it is not there."""
    if not (folder / "adapter_config.json").is_file():
        teach_facts(facts, folder, TeachConfig().with_flags(seed=SEED, **settings))
    return load_memory(folder)
