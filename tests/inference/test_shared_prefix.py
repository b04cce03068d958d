"""What all prompts begin with is read once, and everything comes out as if it were read with each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.tuner import taught
from memlayers.backbones import load_backbone
from memlayers.data.encoding import Encoded, encode_example, encode_prompt
from memlayers.inference import generation, scoring
from memlayers.inference.capture import collect_features, prompt_states
from memlayers.inference.generation import generate_answers
from memlayers.inference.scoring import answer_logits, answered
from memlayers.inference.shared_prefix import LEAST, shared_prefix
from memlayers.tuner import memory_handle, without_memory

Build = Callable[..., PreTrainedModel]
QUESTIONS = ["What is the code of Bob?", "Is it?", "What of Ada, and where is the sea?", "Name the code of Bob."]


@pytest.fixture(scope="module")
def model(chat_backbone: Path) -> Any:
    """It knows "Bob"."""
    backbone, _ = load_backbone(chat_backbone, "float32")
    return taught(backbone)


@pytest.fixture(scope="module")
def tokenizer(chat_backbone: Path, model: Any) -> Any:
    _, tokenizer = load_backbone(chat_backbone, "float32")
    index: Any = memory_handle(model).index
    form = tuple(tokenizer(" Bob", add_special_tokens=False)["input_ids"])
    index.fill({form: form}, 30)
    head = "{{ '<|im_start|>system\nThe river runs to the sea.<|im_end|>\n' }}"
    tokenizer.chat_template = head + tokenizer.chat_template
    return tokenizer


@pytest.fixture
def unshared(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has nothing shared from here on."""

    def stop() -> None:
        for module in (scoring, generation, "memlayers.inference.capture"):
            name = module if isinstance(module, str) else module.__name__
            monkeypatch.setattr(f"{name}.shared_prefix", lambda *_: None)

    return stop


def _examples(tokenizer: Any) -> list[Encoded]:
    return [encode_example(tokenizer, question, answer) for question, answer in zip(QUESTIONS, "abcd", strict=True)]


def test_prompts_share_their_templates_head(model: Any, tokenizer: Any) -> None:
    prompts = [encode_prompt(tokenizer, question) for question in QUESTIONS]
    prefix = shared_prefix(model, prompts)
    assert prefix is not None and len(prefix.ids) >= LEAST
    assert all(prefix.begins(prompt) for prompt in prompts) and not prefix.begins(prefix.ids)
    assert shared_prefix(model, prompts[:1]) is None and shared_prefix(model, []) is None
    assert shared_prefix(model, [prompt[len(prefix.ids) :] for prompt in prompts]) is None


def test_generation_says_the_same(model: Any, tokenizer: Any, unshared: Callable[[], None]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "batch_size": 3}
    shared = generate_answers(model, tokenizer, QUESTIONS, **options)
    with without_memory(model):
        bare = generate_answers(model, tokenizer, QUESTIONS, **options)
    unshared()
    for found, expected in zip(shared, generate_answers(model, tokenizer, QUESTIONS, **options), strict=True):
        assert (found.text, found.opened) == (expected.text, expected.opened)
        assert found.confidence == pytest.approx(expected.confidence, rel=1e-3)
    with without_memory(model):
        assert [each.text for each in bare] == [
            each.text for each in generate_answers(model, tokenizer, QUESTIONS, **options)
        ]
    assert [each.opened for each in shared] == [True, False, False, True]


def test_answers_are_scored_the_same_and_give_the_same_gradient(
    model: Any, tokenizer: Any, unshared: Callable[[], None]
) -> None:
    examples = _examples(tokenizer)

    def scored(prefix: Any) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        out = answer_logits(model, tokenizer, examples, prefix)
        torch.nn.functional.cross_entropy(out.logits, out.labels).backward()
        dense: Tensor = memory_handle(model).pool.weight.grad.to_dense()  # type: ignore[union-attr]
        return out.logits, dense

    prefix = shared_prefix(model, [example.input_ids for example in examples])
    for found, expected in zip(scored(prefix), scored(None), strict=True):
        assert expected.any()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    right = answered(model, tokenizer, examples)
    unshared()
    assert torch.equal(right, answered(model, tokenizer, examples))


def test_features_are_those_of_the_tokens_that_are_not_shared(
    model: Any, tokenizer: Any, unshared: Callable[[], None]
) -> None:
    memory, sequences = memory_handle(model), [example.input_ids for example in _examples(tokenizer)]
    states = prompt_states(memory, sequences)
    some, every = collect_features(memory, sequences, keep=1), collect_features(memory, sequences)
    unshared()
    for found, expected in zip(states, prompt_states(memory, sequences), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    whole = collect_features(memory, sequences)
    skipped = every[0].skipped
    assert skipped >= LEAST and whole[0].skipped == 0
    position = torch.cat([torch.arange(len(sequences[i])) for i in torch.unique_consecutive(whole[0].sequence)])
    for few, all_of_them, expected in zip(some, every, whole, strict=True):
        torch.testing.assert_close(all_of_them.inputs, expected.inputs[position >= skipped], rtol=1e-3, atol=1e-5)
        assert few.moments is not None and all_of_them.moments is not None
        rows = all_of_them.inputs.double()
        torch.testing.assert_close(few.moments[0], rows.mean(0))
        torch.testing.assert_close(few.moments[1], rows.T @ rows / len(rows))
        assert few.output_rms == all_of_them.output_rms
    assert [len(each.inputs) for each in some] == [len(every[0].inputs), 0, 0]


def test_nothing_is_shared_that_a_memory_reads_or_a_cache_drops(tiny_backbone: Build) -> None:
    prompts = [[3, 4, 5, 6, 61, 62, 7, 8, 9, last, last] for last in (10, 11)]
    model = taught(tiny_backbone())
    assert shared_prefix(model, prompts) is None  # a mention within it
    with without_memory(model):
        assert shared_prefix(model, prompts) is not None
    assert shared_prefix(tiny_backbone("mistral", sliding_window=4), prompts) is None
