"""A real backbone, SmolLM2-135M-Instruct: taught eight facts, saved, opened again, asked, edited and undone.

Skipped where it was not fetched (`memlayers fetch smollm2`). How well real backbones recall thousands of facts is
measured elsewhere; this holds that every stage works on one, in less than a minute on one core.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from memlayers import Fact, InputError, MemoryConfig, TeachConfig, load_backbone, load_memory, teach_facts
from memlayers.config.named_backbones import fetched_folder
from memlayers.inference.generation import answer_questions

NAMES = "Oakmere Veloria Brindlewick Tarnholm Quessel Dunmarrow Ysolde Farrowdene".split()
ANSWERS = "Tamsin Halloran Ibsley Corwen Mirfield Pellworth Aldous Runswick".split()
FACTS = [
    Fact(
        id=name.lower(), subject=name, relation="mayor", answer=answer,
        questions=(f"Who is the mayor of {name}?", f"Name the mayor of {name}."),
        unseen_questions=(f"What is the name of {name}'s mayor?",),
    )
    for name, answer in zip(NAMES, ANSWERS, strict=True)
]  # fmt: skip
GENERAL = "The river runs to the sea.\n\nIt rained for three days, and then the sun came out.\n\nShe opened the window."


@pytest.fixture(scope="module", autouse=True)
def _fetched() -> None:
    try:
        fetched_folder("smollm2")
    except InputError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def taught(short_answers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of the eight facts; treat as read-only."""
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "general.txt").write_text(GENERAL)
    config = TeachConfig().with_flags(
        backbone="smollm2", general_text=str(folder / "general.txt"), sub_keys=64, gate_steps=50, exposures=8,
        further=6, batch_size=2, value_rate=0.2, warmup=2, recall_sample=4, device="cpu", dtype="float32", seed=7,
    )  # fmt: skip
    taught = teach_facts(FACTS, folder / "memory", config, quiet=True)
    assert taught.report.not_held == []
    return folder / "memory"


def first_questions(facts: list[Fact]) -> list[str]:
    return [fact.questions[0] for fact in facts]


def test_attaching_a_memory_keeps_every_bit() -> None:
    backbone, tokenizer = load_backbone("smollm2")
    ids = torch.tensor([tokenizer("The capital of France is Paris, and the capital of Norway is")["input_ids"]])
    with torch.no_grad():
        bare = backbone(ids).logits
        model: Any = get_peft_model(backbone, MemoryConfig(sub_keys=32))
        assert torch.equal(model(ids).logits, bare)
    assert tokenizer.decode(bare[0, -1].argmax()).strip() == "Oslo"


def test_it_is_taught_saved_and_asked_again(taught: Path) -> None:
    memory = load_memory(taught, dtype="float32")  # by the name "smollm2"
    answers = memory.ask(first_questions(FACTS) + ["What is the capital of France?"])
    assert [answer.memory for answer in answers[:-1]] == ANSWERS
    assert not {answer.backbone for answer in answers} & set(ANSWERS)
    assert answers[-1].memory == answers[-1].backbone and "Paris" in answers[-1].backbone


def test_an_update_is_written_and_undone(taught: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(taught, tmp_path / "memory")
    with load_memory(folder, dtype="float32", quiet=True) as memory:
        before = {name: tensor.clone() for name, tensor in memory.model.state_dict().items()}
        report = memory.update([replace(FACTS[0], answer="Gwenllian")])
        assert report.recalled == 1.0
        assert answer_questions(memory.model, memory.tokenizer, first_questions(FACTS)) == ["Gwenllian", *ANSWERS[1:]]
        memory.undo()
        after = memory.model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
