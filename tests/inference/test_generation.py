from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from memlayers.backbones import load_backbone
from memlayers.data.encoding import answer_length, encode_prompt, end_token_id
from memlayers.data.facts import Fact
from memlayers.inference.generation import MAX_NEW_TOKENS, answer_limit, answer_questions, generate_answers
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers, set_gate_enabled
from memlayers.tuner.handle import without_memory
from memlayers.utils.errors import InputError

QUESTIONS = [f"What is the {'very ' * (i % 4)}code of {name}?" for i, name in enumerate("Ada Bob Cid Dot Eve".split())]


@pytest.fixture(scope="module")
def backbone(chat_backbone: Path) -> tuple[Any, Any]:
    return load_backbone(chat_backbone, "float32")


@pytest.fixture
def memory(chat_backbone: Path) -> tuple[Any, Any]:
    """A memory that is read for every token and says something."""
    model, tokenizer = load_backbone(chat_backbone, "float32")
    model = get_peft_model(model, MemoryConfig(sub_keys=8, heads=2, top_k=3))
    memory_handle(model, "default").pool.initialise("normal", 0)
    return model.eval(), tokenizer


def _by_hand(model: Any, tokenizer: Any, question: str, tokens: int) -> str:
    """Greedy decoding without padding, cache or generate()."""
    ids = encode_prompt(tokenizer, question)
    start, end = len(ids), end_token_id(tokenizer)
    for _ in range(tokens):
        with torch.no_grad():
            following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if following == end:
            break
        ids.append(following)
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_neither_batch_nor_order_changes_an_answer(memory: tuple[Any, Any], batch_size: int) -> None:
    model, tokenizer = memory
    expected = {question: _by_hand(model, tokenizer, question, 12) for question in QUESTIONS}
    assert len(set(expected.values())) > 1
    asked = random.Random(batch_size).sample(QUESTIONS * 2, 2 * len(QUESTIONS))
    progress: list[int] = []
    answers = answer_questions(
        model, tokenizer, asked, max_new_tokens=12, batch_size=batch_size, progress=progress.append
    )
    assert answers == [expected[question] for question in asked]
    assert sum(progress) == len(asked) and max(progress) == min(batch_size, len(asked))


def test_an_answer_ends_at_the_end_token(backbone: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = backbone
    end = end_token_id(tokenizer)
    said = tokenizer("7f", add_special_tokens=False)["input_ids"]
    script = [*said, end, *said]
    prompt = len(encode_prompt(tokenizer, QUESTIONS[0]))
    forward = type(model).forward
    lengths: list[int] = []

    def scripted(self: Any, *arguments: Any, **keywords: Any) -> Any:
        output = forward(self, *arguments, **keywords)
        lengths.append(prompt + len(lengths))
        output.logits[:, -1] = torch.nn.functional.one_hot(
            torch.tensor(script[len(lengths) - 1]), output.logits.shape[-1]
        ).to(output.logits)
        return output

    monkeypatch.setattr(type(model), "forward", scripted)
    assert answer_questions(model, tokenizer, QUESTIONS[:1], max_new_tokens=30) == ["7f"]
    assert len(lengths) == len(said) + 1


class _Scripted:
    """A forward that says a given token next in each row, whatever the model has to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Any, scripts: list[list[int]]) -> None:
        self.steps, forward = 0, type(model).forward

        def scripted(module: Any, *arguments: Any, **keywords: Any) -> Any:
            output = forward(module, *arguments, **keywords)
            if len(output.logits) == len(scripts):  # and not what all prompts begin with
                said = torch.tensor([script[self.steps] for script in scripts])
                output.logits[:, -1] = 5.0 * torch.nn.functional.one_hot(said, output.logits.shape[-1])
                self.steps += 1
            return output

        monkeypatch.setattr(type(model), "forward", scripted)


def test_without_a_chat_template_an_answer_ends_at_its_first_newline(
    backbone: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = backbone[0], copy.deepcopy(backbone[1])
    tokenizer.chat_template = None
    ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("7f", "\n", " river", " sea")}
    newline, end = ids["\n"], end_token_id(tokenizer)
    assert len(newline) == 1
    scripts = [
        [*ids["7f"], *newline, *ids[" sea"]],  # goes on in a next line
        [*ids[" river"], *ids[" sea"], end],  # ends itself
        [*newline, *ids[" sea"]],  # says nothing in its line
        [*ids[" sea"] * 4],  # does not end
    ]
    longest = max(map(len, scripts))
    scripts = [[*script, *ids[" sea"] * longest] for script in scripts]
    said = _Scripted(monkeypatch, model, scripts)
    given = generate_answers(model, tokenizer, ["Who?"] * 4, max_new_tokens=longest)
    assert [each.text for each in given[:3]] == ["7f", "river sea", ""]
    assert given[3].text.startswith("sea sea") and said.steps == longest
    each = math.exp(5) / (math.exp(5) + len(model.get_input_embeddings().weight) - 1)  # of a token; the end is one, too
    tokens = [len(ids["7f"]) + 1, len(ids[" river"]) + len(ids[" sea"]) + 1, 1, longest]
    assert [answer.confidence for answer in given] == pytest.approx([each**n for n in tokens], rel=1e-4)
    said.steps, scripts[3] = 0, [end] * longest
    given = generate_answers(model, tokenizer, ["Who?"] * 4, max_new_tokens=30)  # stops where the last row ends
    assert said.steps == max(script.index(newline[0] if i in (0, 2) else end) + 1 for i, script in enumerate(scripts))
    said.steps, tokenizer.chat_template = 0, "{{ messages[0].content }}"
    text = generate_answers(model, tokenizer, ["Who?"] * 4, max_new_tokens=len(ids["7f"]) + 2)[0].text
    assert text == tokenizer.decode(scripts[0][: len(ids["7f"]) + 2]).strip() and "\n" in text


def test_no_questions_no_answers(backbone: tuple[Any, Any]) -> None:
    assert answer_questions(*backbone, []) == []


def test_the_mode_is_restored_whatever_happens(memory: tuple[Any, Any]) -> None:
    model, tokenizer = memory
    for training in (True, False):
        model.train(training)
        answer_questions(model, tokenizer, QUESTIONS[:1], max_new_tokens=2)
        assert model.training is training
        assert all(layer.training is training for layer in memory_layers(model))
    model.train()

    def fail(_: int) -> None:
        assert not model.training
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_questions(model, tokenizer, QUESTIONS[:1], max_new_tokens=2, progress=fail)
    assert model.training


def test_without_memory_is_the_bare_backbone(memory: tuple[Any, Any], backbone: tuple[Any, Any]) -> None:
    model, tokenizer = memory
    bare, taught = (answer_questions(m, tokenizer, QUESTIONS, max_new_tokens=8) for m in (backbone[0], model))
    ids = torch.tensor([encode_prompt(tokenizer, QUESTIONS[0])])
    with without_memory(model), torch.no_grad():
        assert answer_questions(model, tokenizer, QUESTIONS, max_new_tokens=8) == bare
        assert torch.equal(model(ids).logits, backbone[0](ids).logits)
    assert answer_questions(model, tokenizer, QUESTIONS, max_new_tokens=8) == taught != bare
    with without_memory(backbone[0]):  # a model without any memory is its own backbone
        assert answer_questions(backbone[0], tokenizer, QUESTIONS, max_new_tokens=8) == bare


def test_a_question_that_fills_the_context_is_refused(memory: tuple[Any, Any]) -> None:
    model, tokenizer = memory
    with pytest.raises(InputError, match="'why why.*the context holds 192"):
        answer_questions(model, tokenizer, ["why " * 200])


def test_an_answer_ends_with_the_context(backbone: tuple[Any, Any]) -> None:
    # GPT-2 has no embedding for a position past its context, so generating on would fail.
    tokenizer = backbone[1]
    room = 3
    context = len(encode_prompt(tokenizer, QUESTIONS[0])) + room
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=context, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=2
    )
    model = GPT2LMHeadModel(config).eval()
    model.lm_head.weight.data[2] = 0  # with the end token out of the way
    answer = answer_questions(model, tokenizer, QUESTIONS[:1], max_new_tokens=30)[0]
    assert answer == _by_hand(model, tokenizer, QUESTIONS[0], room)


def test_confidence_is_the_probability_of_the_answer_and_its_end(chat_backbone: Path) -> None:
    model, tokenizer = load_backbone(chat_backbone, "float32")
    questions = ["Who?", "What is the code of the river?", "The sea"]
    given = generate_answers(model, tokenizer, questions, max_new_tokens=6, batch_size=2)
    assert [each.text for each in given] == answer_questions(model, tokenizer, questions, max_new_tokens=6)
    for question, each in zip(questions, given, strict=True):
        ids, chance, least = encode_prompt(tokenizer, question), 1.0, 1.0
        for _ in range(6):
            with torch.no_grad():
                best = model(torch.tensor([ids])).logits[0, -1].softmax(-1).max(-1)
            chance, least = chance * float(best.values), min(least, float(best.values))
            ids.append(int(best.indices))
            if ids[-1] == end_token_id(tokenizer):
                break
        assert each.confidence == pytest.approx(chance, rel=1e-3)
        assert each.least == pytest.approx(least, rel=1e-3)
        assert not each.opened  # there is no memory


def test_the_limit_of_an_answer_follows_the_stored_ones(chat_backbone: Path) -> None:
    """The scope ends at least 32 tokens behind the longest answer, so that it tells how long that is."""
    model, tokenizer = load_backbone(chat_backbone, "float32")
    assert answer_limit(model) == MAX_NEW_TOKENS == len(tokenizer(_only(model, tokenizer))["input_ids"])
    model = get_peft_model(model, MemoryConfig(sub_keys=8, top_k=3, subjects=True)).eval()
    index: Any = memory_layers(model)[0].memlayers_subjects["default"]
    index.fill({(7, 8): (7, 8)}, 80)
    assert answer_limit(model) == 48 == len(tokenizer(_only(model, tokenizer))["input_ids"])
    with without_memory(model):
        assert answer_limit(model) == 48
    long = Fact("1", "Ada", "river " * 60, ("Who is Ada?",))
    assert answer_limit(model, tokenizer, [long]) == answer_length(tokenizer, long.answer) > 60


def _only(model: Any, tokenizer: Any) -> str:
    """An answer that nothing but the limit ends."""
    endless = LogitsForced(int(tokenizer("river")["input_ids"][0]))
    handle = model.get_output_embeddings().register_forward_hook(endless)
    try:
        return answer_questions(model, tokenizer, ["What is it?"])[0]
    finally:
        handle.remove()


class LogitsForced:
    """Has a model write one token for ever."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(output, -100.0)
        forced[..., self.token] = 0.0
        return forced


def test_opened_says_whose_prompt_the_memory_was_read_for(chat_backbone: Path) -> None:
    model, tokenizer = load_backbone(chat_backbone, "float32")
    model = get_peft_model(model, MemoryConfig(sub_keys=8, top_k=3, subjects=True)).eval()
    index: Any = memory_layers(model)[0].memlayers_subjects["default"]
    river = tuple(tokenizer(" river")["input_ids"])
    index.fill({river: river}, 40)
    questions = ["What is the river?", "What is the sea?", "Runs to the river and the sea?"]
    assert [each.opened for each in generate_answers(model, tokenizer, questions)] == [True, False, True]
    with without_memory(model):
        assert not any(each.opened for each in generate_answers(model, tokenizer, questions))
    set_gate_enabled(model, False)
    assert all(each.opened for each in generate_answers(model, tokenizer, questions))
