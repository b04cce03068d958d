"""The subjects and relations that the gate knows follow the facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from helpers.editing import FACTS, NEW, answers_of
from memlayers.data.encoding import encode_prompt
from memlayers.editing.memory import Memory
from memlayers.inference.capture import prompt_states
from memlayers.inference.generation import generate_answers
from memlayers.tuner import memory_handle, memory_layers
from memlayers.tuner.letters import Letters
from memlayers.tuner.relation_check import without_mention


def _letters(memory: Memory) -> Letters:
    index = memory_handle(memory.model, "default").index
    assert index is not None
    return index.table


def test_a_phrasing_with_a_longer_name_is_entered_and_loosens_nothing(opened: Memory):
    index: Any = memory_layers(opened.model)[0].memlayers_subjects["default"]
    marks, entries = index.marks.clone(), index.entries
    odd = replace(NEW, id="hal", subject="Hal", questions=("What is the code of Hal?", "What is the Halish code?"))
    opened.add([odd])
    assert answers_of(opened, [odd]) == ["amber", "amber"]
    assert torch.equal(index.marks, marks)
    others = generate_answers(opened.model, opened.tokenizer, ["What is the Bobish code?"])
    assert not others[0].opened
    opened.forget(ids=["hal"])
    assert torch.equal(index.entries, entries)
    assert not any(a.opened for a in generate_answers(opened.model, opened.tokenizer, odd.questions))


def test_the_check_of_relations_follows_the_facts(opened: Memory):
    check: Any = memory_layers(opened.model)[0].memlayers_relations["default"]
    prints, keys = check.prints.clone(), check.keys.clone()
    opened.add([NEW])
    prompt = encode_prompt(opened.tokenizer, NEW.questions[0])
    letters = _letters(opened)
    wording = without_mention(prompt, check.prints, letters)
    (score,) = check.scores(
        [prompt],
        prompt_states(memory_handle(opened.model, "default"), [wording], deep=bool(check.deep))[-1],
        letters,
    ).tolist()
    assert len(check.prints) > len(prints) and score > 0.5  # it knows what is asked of the newcomer
    opened.update([replace(NEW, answer="green")])
    size = len(check.prints)
    opened.forget(ids=["gus"])
    assert size > len(prints) and torch.equal(check.prints, prints) and torch.equal(check.keys, keys)


def test_what_was_forgotten_of_a_subject_is_no_longer_asked_of_it(opened: Memory):
    check: Any = memory_layers(opened.model)[0].memlayers_relations["default"]
    prompts = [encode_prompt(opened.tokenizer, fact.questions[0]) for fact in (FACTS[0], FACTS[-1])]

    def scores() -> list[float]:
        wordings = [without_mention(prompt, check.prints, _letters(opened)) for prompt in prompts]
        states = prompt_states(memory_handle(opened.model, "default"), wordings, deep=bool(check.deep))[-1]
        found: list[float] = check.scores(prompts, states, _letters(opened)).tolist()
        return found

    before, size = scores(), len(check.prints)
    opened.forget(ids=["ada-2"])
    after = scores()
    assert after[0] == before[0] and after[1] < before[1] - 0.2
    assert len(check.prints) < size
    opened.undo()
    assert scores() == before
