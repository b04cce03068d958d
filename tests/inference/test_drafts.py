from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.editing import FACTS
from memlayers.data.conversations import Message
from memlayers.data.facts import Fact
from memlayers.editing.memory import load_memory
from memlayers.inference.answering import ask_memory, ask_model, asked_of
from memlayers.inference.confidence import ReadWordings
from memlayers.inference.drafts import checked_draft, fact_asked_for
from memlayers.inference.generation import generate_answers
from memlayers.linking.linker import NameLinker
from memlayers.tuner.handle import memory_handle


def test_a_draft_that_greedy_decoding_writes_is_its_answer(taught_folder: Path, short_answers: None) -> None:
    memory = load_memory(taught_folder, device="cpu", dtype="float32")
    for fact in FACTS[:3]:
        question = fact.questions[1]
        (expected,) = generate_answers(memory.model, memory.tokenizer, [question], tokens=True)
        found = checked_draft(memory.model, memory.tokenizer, question, fact.answer)
        assert found is not None and expected.text == fact.answer
        assert (found.text, found.tokens, found.open) == (expected.text, expected.tokens, expected.open)
        assert found.opened and found.open[0]
        assert (found.confidence, found.least) == pytest.approx((expected.confidence, expected.least), rel=1e-4)
        for wrong in ("gr", f"{fact.answer}s", "", "a\ud7ff" * 200):
            assert checked_draft(memory.model, memory.tokenizer, question, wrong) is None
    closed = "What runs to the sea?"
    (said,) = generate_answers(memory.model, memory.tokenizer, [closed], tokens=True)
    if (found := checked_draft(memory.model, memory.tokenizer, closed, said.text)) is not None:
        assert not found.opened and not any(found.open) and found.tokens == said.tokens


def test_a_wrong_draft_changes_no_answer(
    taught_folder: Path, short_answers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = load_memory(taught_folder, device="cpu", dtype="float32")
    linker, model, tokenizer = memory.name_linker(), memory.model, memory.tokenizer
    stale = {fact.subject: (replace(fact, answer="never taught"),) for fact in FACTS}
    for question in ("What is the code of Bob?", "What is not the code of Bob?", "What is the code of Bob and Dot?"):
        messages = [{"role": "user", "content": question}]
        asked = asked_of(messages, linker)  # type: ignore[arg-type]
        (expected,) = ask_model(model, tokenizer, [question], linker=linker)
        drafted = ask_memory(model, tokenizer, messages, asked, linker=linker)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(type(linker), "facts_about", lambda _, subject: stale.get(subject, ()))
            plain = ask_memory(model, tokenizer, messages, asked, linker=linker)  # type: ignore[arg-type]
        assert drafted.answer.memory == plain.answer.memory and drafted.taken == plain.taken
        assert [each.tokens for each in drafted.generated] == [each.tokens for each in plain.generated]
        assert drafted.taken == (expected.source == "memory")
        if drafted.taken:
            assert drafted.answer.text == expected.text
        assert drafted.answer.score == pytest.approx(expected.score, rel=1e-4)


def test_a_fact_is_answered_from_its_other_end(taught_folder: Path, short_answers: None) -> None:
    memory = load_memory(taught_folder, device="cpu", dtype="float32")
    model, tokenizer, red, bob = memory.model, memory.tokenizer, FACTS[0], replace(FACTS[1], answer="red")
    for question, linker, said in (
        ("Whose code is Oslo?", memory.name_linker(), (FACTS[3],)),
        ("Whose code is red?", NameLinker([red, bob]), (red,)),  # the memory holds another code of Bob
        ("Whose code is red?", NameLinker([bob]), ()),
    ):
        messages: list[Message] = [{"role": "user", "content": question}]
        asked = asked_of(messages, linker)
        assert all(each.from_answer for each in asked)
        (answer,) = ask_model(model, tokenizer, [question], linker=linker)
        assert answer.facts == said and (answer.memory in ("Ada", "Dot")) == bool(said)
        for fact in said:
            (straight,) = ask_model(model, tokenizer, [fact.questions[0]], linker=linker)
            assert (answer.memory, answer.source) == (fact.subject, straight.source)
            assert answer.score == pytest.approx(straight.score, rel=1e-4)
        drafted = ask_memory(model, tokenizer, messages, asked, linker=linker)
        assert drafted.taken == (answer.source == "memory") and drafted.answer.facts in (said, ())
        if drafted.taken:
            assert drafted.answer.text == answer.text


def test_the_fact_that_a_question_most_likely_asks_for() -> None:
    price = Fact("1", "Lamp", "10 EUR", ("What does the Lamp cost?", "Name the price of the Lamp."))
    colour = Fact("2", "Lamp", "red", ("Which colour has the Lamp?",))
    assert fact_asked_for("Anything?", []) is None and fact_asked_for("Anything?", [colour]) is colour
    for question, fact in (("the PRICE of the lamp", price), ("Lamp: which colour?", colour)):
        assert fact_asked_for(question, [price, colour]) is fact


def test_each_wording_is_read_once(taught_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memlayers.inference import confidence

    memory = memory_handle(load_memory(taught_folder, device="cpu", dtype="float32").model)
    known, asked, read = ReadWordings(most=3), [], confidence.prompt_states

    def counting(handle, wordings, **options):
        asked.extend(wordings)
        return read(handle, wordings, **options)

    monkeypatch.setattr(confidence, "prompt_states", counting)
    for deep in (True, False):
        known = ReadWordings(most=3)
        asked.clear()
        first = known.states(memory, [[5, 6], [7, 8, 9], [5, 6]], deep=deep)
        assert asked == [(5, 6), (7, 8, 9)] and torch.equal(first[0], first[2])
        again = known.states(memory, [[7, 8, 9], [5, 6]], deep=deep)
        assert len(asked) == 2 and torch.equal(again, first[[1, 0]])
        known.states(memory, [[5], [6]], deep=deep)  # [7, 8, 9] was not asked for longest
        known.states(memory, [[5, 6]], deep=deep)
        assert len(asked) == 4
        assert torch.allclose(known.states(memory, [[7, 8, 9]], deep=deep), first[1:2], atol=1e-5) and len(asked) == 5
