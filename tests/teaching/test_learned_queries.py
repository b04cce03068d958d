"""Queries learned where subjects have several facts: wordings of one fact ask alike, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.teaching import Configure
from memlayers.config.sections import QueryConfig
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.inference.capture import collect_features
from memlayers.teaching.calibrate import calibrate
from memlayers.teaching.learned_queries import learn_queries, share_subjects, wordings_to_learn_from
from memlayers.teaching.teacher import Teacher
from memlayers.tuner import MemoryConfig, memory_handle
from memlayers.tuner.addressing import unit_halves
from memlayers.tuner.handle import MemoryHandle
from memlayers.tuner.subject_index import subject_code

RELATIONS = {
    "code": ("What is the code of {}?", "Name {}'s code.", "Which code does {} have?", "Say the code for {}."),
    "food": ("What does {} eat?", "Name {}'s food.", "Which food does {} like?", "Say what {} eats."),
    "town": ("Where does {} live?", "Name {}'s town.", "Which town is {} in?", "Say where {} lives."),
}
NAMES = "Ada Bob Cid Dot".split()
FACTS = [
    Fact(f"{name}-{relation}", name, f"{name[0]}{relation[0]}", tuple(each.format(name) for each in wordings), relation)
    for name in NAMES
    for relation, wordings in RELATIONS.items()
]


def _calibrated(folder: Path) -> tuple[MemoryHandle, object]:
    backbone, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = MemoryConfig(sub_keys=24, heads=2, top_k=4, key_dim=8, subjects=True, gate=True, subject_weight=2.0)
    memory = memory_handle(get_peft_model(backbone, config).eval(), "default")
    prompts = [encode_prompt(tokenizer, question) for fact in FACTS for question in fact.questions]
    calibrate(memory, [collect_features(memory, prompts)])
    return memory, tokenizer


def _learn(memory: MemoryHandle, tokenizer: Any, facts: list[Fact], config: QueryConfig, seed: int = 0) -> None:
    learn_queries(memory, tokenizer, wordings_to_learn_from(facts, config, seed), config, seed=seed)


def _found(memory: MemoryHandle, tokenizer: object) -> float:
    """How often the query of a fact's last wording is nearest to that of the fact's own first one, over all layers."""
    code = subject_code(torch.tensor([1 + NAMES.index(fact.subject) for fact in FACTS]), 16)
    found: list[Tensor] = []
    for place in (0, -1):
        prompts = [encode_prompt(tokenizer, fact.questions[place]) for fact in FACTS]  # type: ignore[arg-type]
        seen = collect_features(memory, prompts)
        ends = [torch.stack([each.inputs[each.sequence == i][-1] for i in range(len(FACTS))]) for each in seen]
        halves = [
            unit_halves(query(x).view(len(x), 2, 2, -1), code, 2.0)
            for query, x in zip(memory.queries, ends, strict=True)
        ]
        found.append(torch.cat([each.flatten(1) for each in halves], 1))
    nearest = (found[1] @ found[0].T).argmax(1)
    return float((nearest == torch.arange(len(FACTS))).float().mean())


def test_wordings_of_one_fact_ask_alike(chat_backbone: Path) -> None:
    memory, tokenizer = _calibrated(chat_backbone)
    before = _found(memory, tokenizer)
    values = memory.pool.weight.detach().clone()
    means, scales = [query.mean.clone() for query in memory.queries], [query.scale.clone() for query in memory.queries]
    _learn(memory, tokenizer, FACTS, QueryConfig(steps=200), seed=1)
    after = _found(memory, tokenizer)
    assert after > before and after > 0.8
    assert torch.equal(memory.pool.weight, values)
    assert all(map(torch.equal, means, [query.mean for query in memory.queries]))
    assert all(map(torch.equal, scales, [query.scale for query in memory.queries]))


def test_the_same_seed_gives_the_same_bits(chat_backbone: Path) -> None:
    few = QueryConfig(steps=5, wordings=2, batch_size=4)
    found: list[list[Tensor]] = []
    for seed in (1, 1, 2):
        memory, tokenizer = _calibrated(chat_backbone)
        _learn(memory, tokenizer, FACTS, few, seed=seed)
        found.append([query.projection.detach() for query in memory.queries])
    assert all(map(torch.equal, found[0], found[1]))
    assert not any(map(torch.equal, found[0], found[2]))


@pytest.mark.parametrize("facts", [[], FACTS[:1], [Fact(f.id, f.subject, f.answer, f.questions[:1]) for f in FACTS]])
def test_nothing_is_learned_of_single_facts_and_wordings(chat_backbone: Path, facts: list[Fact]) -> None:
    memory, tokenizer = _calibrated(chat_backbone)
    before = [query.projection.detach().clone() for query in memory.queries]
    _learn(memory, tokenizer, facts, QueryConfig())
    assert all(map(torch.equal, before, [query.projection for query in memory.queries]))


def test_they_are_learned_where_subjects_have_several_facts(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("memlayers.teaching.teacher.learn_queries", lambda *args, **_: asked.append(len(args[2])))
    config = configure(gate=True)
    single = FACTS[:: len(RELATIONS)]
    assert share_subjects(FACTS) and not share_subjects(single)
    off, bare = replace(config, queries=QueryConfig(learned=False)), config.with_flags(subject_weight=0.0)
    for settings, facts in ((config, single), (off, FACTS), (bare, FACTS), (config, FACTS)):
        teacher = Teacher(facts, settings, quiet=True)
        teacher.setup()
        teacher.calibrate()
    assert asked == [len(FACTS)]
