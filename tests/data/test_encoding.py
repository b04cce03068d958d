from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from memlayers.data.encoding import (
    IGNORED_LABEL,
    Encoded,
    batches_by_length,
    collate,
    collate_prompts,
    encode_example,
    encode_prompt,
    end_token_id,
    pack,
    pad_token_id,
    padded_batches,
    plain_text_ids,
)
from memlayers.utils.errors import InputError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION, ANSWER = "What is the capital of Peru?", "Lima"


def _tiny(chat_template: str | None, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges worth the name: every text is tokenised, and reads back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the capital of Peru is Lima", "assistant", "user"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = chat_template
    return fast


@pytest.fixture(scope="module")
def chatml() -> PreTrainedTokenizerFast:
    return _tiny(CHATML, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    return _tiny(None, eos_token="<|endoftext|>")


def _from_data(name: str) -> PreTrainedTokenizerBase:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not here (the data folder beside the repository)")
    return AutoTokenizer.from_pretrained(DATA / name)


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerBase:
    return _from_data("qwen2.5-tokenizer")


@pytest.fixture(scope="module")
def tinystories() -> PreTrainedTokenizerBase:
    return _from_data("tinystories-656k")


def _answer_ids(example: Encoded) -> list[int]:
    return [label for label in example.labels if label != IGNORED_LABEL]


def test_prompt_is_the_chat_template(chatml: PreTrainedTokenizerFast):
    ids = encode_prompt(chatml, QUESTION)
    assert type(ids) is list
    assert all(type(token) is int for token in ids)
    assert chatml.decode(ids) == f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


def test_the_trap_of_transformers_5_is_still_there(chatml: PreTrainedTokenizerFast):
    # Why encode_prompt passes return_dict=False; where this fails the argument may go.
    returned = chatml.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    assert isinstance(returned, BatchEncoding)
    assert returned["input_ids"] == encode_prompt(chatml, QUESTION)


def test_example_is_prompt_answer_end_with_loss_on_answer_and_end(chatml: PreTrainedTokenizerFast):
    example = encode_example(chatml, QUESTION, ANSWER)
    prompt = encode_prompt(chatml, QUESTION)
    end = chatml.convert_tokens_to_ids("<|im_end|>")
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[: len(prompt)] == [IGNORED_LABEL] * len(prompt)
    assert example.labels[len(prompt) :] == example.input_ids[len(prompt) :]
    assert example.input_ids[-1] == end
    assert chatml.decode(_answer_ids(example)[:-1]) == ANSWER


def test_full_loss_counts_every_token(chatml: PreTrainedTokenizerFast):
    example = encode_example(chatml, QUESTION, ANSWER, loss="full")
    assert example.labels == example.input_ids == encode_example(chatml, QUESTION, ANSWER).input_ids


def test_without_a_template_the_form_is_plain(plain: PreTrainedTokenizerFast):
    example = encode_example(plain, QUESTION, ANSWER)
    assert plain.decode(encode_prompt(plain, QUESTION)) == f"Question: {QUESTION}\nAnswer:"
    assert plain.decode(example.input_ids) == f"Question: {QUESTION}\nAnswer: {ANSWER}<|endoftext|>"
    assert plain.decode(_answer_ids(example)) == f" {ANSWER}<|endoftext|>"


def test_a_conversation_is_rendered_turn_by_turn(chatml, plain) -> None:
    talk = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": QUESTION}]  # fmt: skip
    text = chatml.decode(encode_prompt(chatml, talk))
    assert text.index("Hello.") < text.index("Hi.") < text.index(QUESTION)
    assert text.endswith("<|im_start|>assistant\n")
    assert encode_prompt(chatml, talk[2:]) == encode_prompt(chatml, QUESTION)
    assert plain.decode(encode_prompt(plain, talk)) == f"Question: Hello.\nAnswer: Hi.\nQuestion: {QUESTION}\nAnswer:"


@settings(max_examples=60, deadline=None)
@given(question=st.text(min_size=1, max_size=40), answer=st.text(min_size=1, max_size=40))
def test_labels_always_decode_to_the_answer(question: str, answer: str):
    for template in (CHATML, None):
        tokenizer = _SHARED[template]
        try:
            example = encode_example(tokenizer, question, answer)
        except InputError:
            assert not answer.strip() or (template is None and "\n" in answer)
            continue
        *answer_ids, end = _answer_ids(example)
        assert end == end_token_id(tokenizer)
        assert tokenizer.decode(answer_ids).strip() == answer.strip()


_SHARED = {template: _tiny(template, eos_token="<|endoftext|>") for template in (CHATML, None)}


def test_end_token_comes_from_the_template_before_eos(chatml: PreTrainedTokenizerFast):
    assert end_token_id(chatml) == chatml.convert_tokens_to_ids("<|im_end|>") != chatml.eos_token_id


def test_end_token_is_eos_where_the_template_writes_none():
    bare = _tiny("{% for m in messages %}{{ m.content }}\n{% endfor %}", eos_token="<|endoftext|>")
    assert end_token_id(bare) == bare.eos_token_id


def test_no_end_token_at_all_is_an_input_error():
    with pytest.raises(InputError, match="has no end token"):
        end_token_id(_tiny(None))


def test_pad_token_falls_back_to_the_end_token(chatml: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast):
    assert pad_token_id(chatml) == chatml.pad_token_id
    assert plain.pad_token_id is None
    assert pad_token_id(plain) == plain.eos_token_id


def test_a_thinking_template_is_asked_for_the_direct_answer():
    thinking = _tiny(
        CHATML.replace("assistant\n{% endif", "assistant\n{% if not enable_thinking %}<none>{% endif %}{% endif"),
        eos_token="<|endoftext|>",
    )
    assert thinking.decode(encode_prompt(thinking, QUESTION)).endswith("<|im_start|>assistant\n<none>")


def test_a_question_longer_than_the_context_is_an_input_error(chatml: PreTrainedTokenizerFast):
    needed = len(encode_example(chatml, QUESTION, ANSWER).input_ids)
    assert encode_example(chatml, QUESTION, ANSWER, max_length=needed)
    with pytest.raises(InputError, match=rf"needs {needed} tokens .* holds {needed - 1}: shorten it") as caught:
        encode_example(chatml, QUESTION, ANSWER, max_length=needed - 1)
    assert "\n" not in str(caught.value)
    prompt = len(encode_prompt(chatml, QUESTION))
    assert encode_prompt(chatml, QUESTION, max_length=prompt + 1)
    with pytest.raises(InputError, match="shorten it") as caught:
        encode_prompt(chatml, "why\n" * 500, max_length=100)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("answer", ["", "  ", "\n"])
def test_an_empty_answer_is_an_input_error(chatml: PreTrainedTokenizerFast, answer: str):
    with pytest.raises(InputError, match="answer is empty"):
        encode_example(chatml, QUESTION, answer)


def test_an_answer_the_tokenizer_cannot_write_is_an_input_error():
    lossy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"Lima": 0, "?": 1, "</s>": 2}, unk_token="?")),
        eos_token="</s>",
    )
    with pytest.raises(InputError, match="'Ayacucho' cannot be taught: the tokenizer reads it back as '\\?'"):
        encode_example(lossy, QUESTION, "Ayacucho")


def test_an_answer_that_holds_the_end_token_is_an_input_error(chatml: PreTrainedTokenizerFast):
    with pytest.raises(InputError, match="cannot be taught"):
        encode_example(chatml, QUESTION, "Lima<|im_end|>Cusco")


def test_plain_text_has_a_start_but_no_end():
    tokenizer = _tiny(None, eos_token="<|im_end|>", bos_token="<|im_start|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>")}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=list(ids.items())
    )
    assert tokenizer("Lima")["input_ids"][-1] == ids["<|im_end|>"]
    assert tokenizer.decode(plain_text_ids(tokenizer, "Lima")) == "<|im_start|>Lima"
    assert plain_text_ids(tokenizer, "") == [ids["<|im_start|>"]]


def test_collate_pads_on_the_right():
    batch = collate([Encoded([5, 6, 7], [-100, 6, 7]), Encoded([8], [8])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_collate_prompts_pads_on_the_left():
    batch = collate_prompts([[5, 6, 7], [8]], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_pack_is_greedy_keeps_the_order_and_the_examples():
    examples = [Encoded([i] * n, [i] * n) for i, n in enumerate((3, 2, 4, 1, 5), start=1)]
    packs = pack(examples, length=5)
    assert [p.input_ids for p in packs] == [[1, 1, 1, 2, 2], [3, 3, 3, 3, 4], [5, 5, 5, 5, 5]]
    assert all(p.labels == p.input_ids for p in packs)
    assert examples[0] == Encoded([1, 1, 1], [1, 1, 1])
    assert pack([], length=5) == []


def test_pack_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="6 tokens does not fit a pack of 5"):
        pack([Encoded([1] * 6, [1] * 6)], length=5)


def test_real_qwen_tokenizer(qwen: PreTrainedTokenizerBase):
    example = encode_example(qwen, QUESTION, ANSWER)
    # Its template adds a default system message when the conversation has none: what its users' chats begin
    # with.
    assert qwen.decode(example.input_ids) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>"
    )
    assert qwen.decode(_answer_ids(example)) == f"{ANSWER}<|im_end|>"
    assert end_token_id(qwen) == qwen.convert_tokens_to_ids("<|im_end|>")
    assert pad_token_id(qwen) == qwen.convert_tokens_to_ids("<|endoftext|>")


@pytest.mark.parametrize(
    "answer", ["Zoe\u0308 Saldan\u0303a", "São Tomé", "東京", "0x1F4A9", " 12,5 % ", "naïve\nline"]
)
def test_real_qwen_tokenizer_writes_every_answer(qwen: PreTrainedTokenizerBase, answer: str):
    ids = _answer_ids(encode_example(qwen, QUESTION, answer))
    assert ids[-1] == end_token_id(qwen)
    assert len(ids) > 1


def test_real_tokenizer_without_template(tinystories: PreTrainedTokenizerBase):
    example = encode_example(tinystories, "Who is he?", "Tom")
    assert example.input_ids[0] == tinystories.bos_token_id
    assert tinystories.bos_token_id not in example.input_ids[1:]
    assert example.input_ids[-1] == tinystories.eos_token_id == end_token_id(tinystories)
    text = tinystories.decode(example.input_ids, skip_special_tokens=True)
    assert text == "Question: Who is he?\nAnswer: Tom"
    assert tinystories.decode(_answer_ids(example)[:-1]) == "Tom"


@given(lengths=st.lists(st.integers(1, 30), max_size=40), budget=st.integers(1, 100))
def test_batches_cover_every_position_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = batches_by_length(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


def test_batches_are_of_like_length_and_as_large_as_may_be() -> None:
    assert batches_by_length([5, 1, 5, 1, 9], 10) == [[1, 3], [0, 2], [4]]
    assert batches_by_length([], 10) == []


def test_padded_batches_hold_every_sequence_and_say_what_is_real() -> None:
    sequences = [[5, 6, 7], [8], [9, 10], [11, 12]]
    seen = {}
    for chosen, ids, real in padded_batches(sequences, 4):
        assert ids.shape == real.shape and (ids[~real] == 0).all()
        seen |= {i: row[mask].tolist() for i, row, mask in zip(chosen, ids, real, strict=True)}
    assert [seen[i] for i in range(4)] == sequences


def test_an_answer_of_several_lines_needs_a_chat_template(
    chatml: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast
):
    encode_example(chatml, QUESTION, "Lima\nand its port")
    with pytest.raises(InputError, match="ends at its first newline; write it in one line"):
        encode_example(plain, QUESTION, "Lima\nand its port")
