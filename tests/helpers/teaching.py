"""What the tests of teaching share: six facts, and what a taught memory holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import collate, encode_example, pad_token_id
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory
from memlayers.teaching.teach import teach_facts
from memlayers.tuner import memory_handle

NAMES, ANSWERS = "Ada Bob Cid Dot Eve Fay".split(), "red blue 12 Oslo kite 7f".split()
FACTS = [
    Fact(id=name, subject=name, answer=answer, questions=(f"What is the code of {name}?", f"Name {name}'s code."))
    for name, answer in zip(NAMES, ANSWERS, strict=True)
]
Configure = Callable[..., TeachConfig]


def teach(out: Path, config: TeachConfig, facts: Sequence[Fact] = FACTS, **options: Any) -> Memory:
    """Teaches the six facts, or others, without a bar."""
    return teach_facts(facts, out, config, quiet=True, **options)


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def pool_values(model: Any) -> Tensor:
    return memory_handle(model, "default").pool.weight.detach().clone()


@torch.no_grad()
def answer_loss(model: Any, tokenizer: Any) -> float:
    """Mean cross-entropy of the answers, first phrasings."""
    batch = collate([encode_example(tokenizer, f.questions[0], f.answer) for f in FACTS], pad_token_id(tokenizer))
    return float(model(**batch).loss)
