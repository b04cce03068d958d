from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import get_peft_model

from memlayers.backbones import load_backbone
from memlayers.data.conversations import Message
from memlayers.data.facts import Fact, Source
from memlayers.editing.memory import load_memory
from memlayers.inference.answering import (
    UNKNOWN,
    Answer,
    _facts_saying,
    _fitting,
    _together,
    ask_model,
    judge_answers,
)
from memlayers.inference.confidence import answer_thresholds, prior_entry
from memlayers.inference.generation import MAX_NEW_TOKENS, Generated
from memlayers.linking.linker import NameLinker
from memlayers.linking.standalone import FromAnswer, Standalone
from memlayers.tuner import MemoryConfig, memory_layers


@pytest.mark.parametrize(
    ("memory", "backbone", "source", "text"),
    [
        (Generated("m", 0.6, True, 0.6), Generated("b", 0.9, False, 0.9), "memory", "m"),
        (Generated("m", 0.4, True, 0.4), Generated("b", 0.9, False, 0.9), "backbone", "b"),
        (Generated("m", 0.4, True, 0.4), Generated("b", 0.7, False, 0.7), "unknown", UNKNOWN),
        (
            Generated("b", 0.9, False, 0.9),
            Generated("b", 0.9, False, 0.9),
            "backbone",
            "b",
        ),  # sure, but not by the memory
        (Generated("b", 0.7, False, 0.7), Generated("b", 0.7, False, 0.7), "unknown", UNKNOWN),
    ],
)
def test_the_source_is_who_is_sure_enough(
    monkeypatch: pytest.MonkeyPatch, memory: Generated, backbone: Generated, source: str, text: str
) -> None:
    answers = iter(([memory], [backbone]))
    monkeypatch.setattr("memlayers.inference.answering.generate_answers", lambda *_, **__: next(answers))
    monkeypatch.setattr("memlayers.inference.answering.answer_thresholds", lambda _: (0.5, 0.8))
    monkeypatch.setattr("memlayers.inference.answering.context_length", lambda _: 100)
    (answer,) = ask_model(torch.nn.Linear(1, 1), None, ["Who?"])  # type: ignore[arg-type]
    assert (answer.source, answer.text, answer.threshold) == (source, text, 0.5)
    assert answer.score == (memory.confidence if memory.opened else 0.0)
    assert (answer.memory, answer.backbone) == (memory.text, backbone.text)


def test_of_a_long_conversation_the_latest_turns_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def encode(_: Any, messages: list[Message]) -> list[int]:
        read.append(len(messages))
        return [0] * (10 * len(messages))

    monkeypatch.setattr("memlayers.inference.answering.encode_prompt", encode)
    monkeypatch.setattr("memlayers.inference.answering.context_length", lambda _: MAX_NEW_TOKENS + 55)
    system: Message = {"role": "system", "content": "Be brief."}
    turns: list[Message] = [{"role": role, "content": "Yes."} for _ in range(300) for role in ("user", "assistant")]
    model, tokenizer = torch.nn.Linear(1, 1), cast(Any, None)
    asked: Message = {"role": "user", "content": "Who?"}
    for messages, kept in ([system, *turns, asked], 5), ([*turns[:4], asked], 5), ([system, *turns[:4], asked], 5):
        read.clear()
        fitting = _fitting(model, tokenizer, messages)
        assert fitting == messages[-kept:] and fitting[0]["role"] == "user"
        assert len(read) < 12  # not once for each message
    assert _fitting(model, tokenizer, [system, asked]) == [system, asked]
    monkeypatch.setattr("memlayers.inference.answering.context_length", lambda _: MAX_NEW_TOKENS + 5)
    assert _fitting(model, tokenizer, [*turns, asked]) == [asked]


def test_an_answer_names_the_facts_that_say_it() -> None:
    price = Fact("1", "Lamp", "10 EUR", ("What does Lamp cost?",), "price", sources=(Source("a.csv", "10 EUR"),))
    fee = Fact("2", "Lamp", "10 EUR", ("What is the fee for Lamp?",), "fee", aliases=("ten euros",))
    colour = Fact("3", "Lamp", "red", ("Which colour has Lamp?",), "colour")
    linker = NameLinker([price, fee, colour, Fact("4", "Desk", "10 EUR", ("What does Desk cost?",), "price")])
    said = Generated("10 eur.", 1.0, True, 1.0)
    for text, answer, facts in (
        ("How much is Lamp?", said, (price, fee)),  # whichever is meant
        ("what does Lamp cost", said, (price,)),
        ("How much is Lamp?", replace(said, text="Ten euros"), (fee,)),
        ("How much is Lamp?", replace(said, text="red"), (colour,)),
        ("How much is Lamp?", replace(said, text="blue"), ()),
        ("How much is Lamp?", replace(said, opened=False), ()),
    ):
        assert _facts_saying(answer, Standalone(text, "Lamp"), linker) == facts
    assert _facts_saying(said, Standalone("How much is Lamp?", "Lamp", negated=True), linker) == ()
    assert _facts_saying(said, Standalone("What does Lamp cost?", "Lamp"), None) == ()


def test_several_subjects_with_one_answer_are_named_together() -> None:
    def together(further: int, *said: str) -> str:
        whole = FromAnswer("Whose code is red?", ("red",), further)
        asked = [Standalone(f"What is the code of {name}?", name, from_answer=whole) for name in "ABC"]
        return _together(
            "", asked, [Answer("", "?", each, "memory" if each != "?" else "backbone") for each in said]
        ).memory

    assert together(0, "A", "B", "C") == "A, B and C" and together(0, "?", "B", "?") == "B"
    assert together(5, "A", "?", "C") == "A, C and 5 more" and together(5, "?", "?", "?") == "?"


def test_thresholds_come_with_the_memory(chat_backbone: Path, tmp_path: Path) -> None:
    model, _ = load_backbone(chat_backbone, "float32")
    assert answer_thresholds(model) == (0.0, 0.0)
    model = get_peft_model(model, MemoryConfig(sub_keys=8, top_k=3, subjects=True, backbone=str(chat_backbone)))
    index: Any = memory_layers(model)[0].memlayers_subjects["default"]
    index.fill({(7, 8): (7, 8)}, 5)
    index.thresholds.copy_(torch.tensor([0.25, 0.75]))
    index.guesses[prior_entry("jazz")] = 3
    model.save_pretrained(tmp_path / "memory")
    loaded = load_memory(tmp_path / "memory")
    assert answer_thresholds(loaded.model) == (0.25, 0.75)
    closed, given = Generated("", 0.0, False, 0.0), Generated(" Jazz", 0.8, False, 0.8)
    assert (
        judge_answers(loaded.model, loaded.tokenizer, ["?"], [closed], [given])[0].source == "unknown"
    )  # 0.8 : 4 * 0.2 is no more than 0.5
    (answer,) = loaded.ask(["Who?"])  # names nobody stored: not the memory's to answer
    assert answer.score == 0.0 and answer.source != "memory" and answer.threshold == 0.25
