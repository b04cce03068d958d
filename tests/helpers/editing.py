"""What the tests of editing share: seven facts, and what a memory answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from memlayers.data.facts import Fact
from memlayers.editing.config import EditConfig
from memlayers.editing.memory import Memory
from memlayers.inference.generation import generate_answers

NAMES, ANSWERS = "Ada Bob Cid Dot Eve Fay".split(), "red blue 12 Oslo kite 7f".split()
FACTS = [
    Fact(
        id=name.lower(), subject=name, relation="code", answer=answer, unseen_questions=(f"{name} has which code?",),
        questions=(f"What is the code of {name}?", f"Name {name}'s code."),
    )
    for name, answer in zip(NAMES, ANSWERS, strict=True)
]  # fmt: skip
FACTS.append(Fact("ada-2", "Ada", "lime", ("What does Ada eat?", "Name Ada's food."), "food"))
NEW = Fact("gus", "Gus Orr", "amber", ("What is the code of Gus Orr?", "Name Gus Orr's code."), "code")
# A random backbone's loss ends at 0.6 nats: by the default no edit would be done before its last step.
CONFIG = EditConfig(rate=1.0, steps=60, slot_count=None, enough=1.0)
# For tests that look at what is stored, not at what is answered: no edit is refused, and none takes long.
QUICK = replace(CONFIG, steps=2, refuse=False, repairs=0, least_recall=0.0)


def answers_of(memory: Any, facts: list[Fact] | tuple[Fact, ...]) -> list[str]:
    questions = [question for fact in facts for question in fact.questions]
    return [given.text for given in generate_answers(memory.model, memory.tokenizer, questions)]


def right_answers(facts: list[Fact]) -> list[str]:
    return [fact.answer for fact in facts for _ in fact.questions]


def model_state(memory: Memory) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in memory.model.state_dict().values()]


def same_state(before: list[torch.Tensor], memory: Memory) -> bool:
    after = list(memory.model.state_dict().values())
    return len(before) == len(after) and all(map(torch.equal, before, after))
