"""Questions and answers as token ids: the tokenizer's own chat template in, ids and labels out.

One sequence per fact: prompt ids, answer ids, end token; the loss is on the answer and the end token only.
The labels are built here rather than taken from the template, because most templates (Qwen2.5's among them)
carry no generation marks and return an assistant mask of zeros.
"""

from __future__ import annotations

import itertools
import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch

from memlayers.data.conversations import Asked, question_of
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Loss: TypeAlias = Literal["answer", "full"]

IGNORED_LABEL = -100
"""The label torch.nn.functional.cross_entropy skips."""

_SPEAKERS: Final = {"system": "", "user": "Question: ", "assistant": "Answer: "}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training sequence.

    Attributes:
        input_ids: token ids, without padding.
        labels: as long as `input_ids`; the token's own id where it counts in the loss (the model shifts them
            by one), -100 elsewhere.
    """

    input_ids: list[int]
    labels: list[int]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, asked: Asked, *, max_length: int | None = None) -> list[int]:
    r"""Encodes a question, or a conversation, so that the model's next token starts the answer.

    A tokenizer with a chat template renders a single user message, or the conversation, and its generation prompt,
    with the template's own default system message, if it has one. Templates with a thinking mode (Qwen3) are asked
    for the direct answer. Without a chat template the text is ``Question: {question}\nAnswer:``, in a conversation
    after the questions and answers before it.

    Args:
        tokenizer: the backbone's tokenizer.
        asked: the question, as a user would type it, or the messages of a conversation.
        max_length: the context of the backbone in tokens; None does not check.

    Returns:
        The prompt's token ids.

    Raises:
        InputError: the prompt leaves no room for an answer within `max_length`.
    """
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else [dict(each) for each in asked]
    if tokenizer.chat_template is None:
        lines = [f"{_SPEAKERS[each['role']]}{each['content']}" for each in messages]
        ids = plain_text_ids(tokenizer, "\n".join([*lines, "Answer:"]))
    else:
        # return_dict=False: transformers 5 returns a BatchEncoding otherwise, whose length is its number of
        # keys. enable_thinking is read by templates that think before they answer and ignored by all others.
        rendered: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, enable_thinking=False
        )
        ids = [int(token) for token in rendered]
    _check_length(question_of(asked), needed=len(ids) + 1, max_length=max_length)
    return ids


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    answer: str,
    loss: Loss = "answer",
    max_length: int | None = None,
) -> Encoded:
    """Encodes a question and its answer as one training sequence: prompt ids, answer ids, end token.

    The answer is tokenised apart from the prompt (with a leading space where there is no chat template), so
    that the prompt is the same ids in teaching and in free generation.

    Args:
        tokenizer: the backbone's tokenizer.
        question: one phrasing of the fact.
        answer: what the model shall answer.
        loss: "answer" counts the answer and the end token; "full" every token (docs/diagnosis.md compares both).
        max_length: the context of the backbone in tokens; None does not check.

    Returns:
        Input ids and labels of equal length.

    Raises:
        InputError: the sequence is longer than `max_length`, the answer is empty, the tokenizer cannot write it,
            or it has several lines where an answer ends at its first newline.
    """
    prompt_ids = encode_prompt(tokenizer, question)
    answer_ids = _answer_ids(tokenizer, answer)
    end = end_token_id(tokenizer)
    _check_reads_back(tokenizer, answer, answer_ids, end)
    if ends_at_newline(tokenizer) and "\n" in answer:
        raise InputError(
            f"answer {answer!r} cannot be taught: this backbone has no chat template, so an answer ends at its first "
            "newline; write it in one line"
        )
    input_ids = [*prompt_ids, *answer_ids, end]
    _check_length(question, needed=len(input_ids), max_length=max_length)
    if loss == "full":
        return Encoded(input_ids, labels=list(input_ids))
    return Encoded(input_ids, labels=[IGNORED_LABEL] * len(prompt_ids) + [*answer_ids, end])


def answer_length(tokenizer: PreTrainedTokenizerBase, answer: str) -> int:
    """How many tokens an answer takes, with the one that ends it."""
    return len(_answer_ids(tokenizer, answer)) + 1


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id of the token that ends an answer, at which free generation stops.

    It is the first special token that the chat template writes after an assistant message (``<|im_end|>`` in
    ChatML), and the tokenizer's end-of-sequence token where the template writes none or there is no template.

    Raises:
        InputError: neither exists.
    """
    end = _end_of_turn_id(tokenizer) if tokenizer.chat_template is not None else None
    if end is None:
        end = tokenizer.eos_token_id
    if end is None:
        raise InputError("the tokenizer has no end token: give it one (tokenizer.eos_token = ...)")
    return int(end)


def ends_at_newline(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an answer ends at its first newline, too: a base model without a chat template goes on to a question."""
    return tokenizer.chat_template is None


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id to pad with: the tokenizer's own, or the end token where it has none (it is masked)."""
    pad = tokenizer.pad_token_id
    return end_token_id(tokenizer) if pad is None else int(pad)


def plain_text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encodes running text, with the start token that the tokenizer puts before a text, and no end token."""
    ids: list[int] = list(tokenizer(text)["input_ids"])
    # Some tokenizers close every text with their end-of-sequence token: then nothing would be left to
    # continue.
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return ids


def collate(examples: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Pads training sequences on the right to one batch.

    Args:
        examples: at least one sequence.
        pad_id: the id to pad `input_ids` with (see `pad_token_id`).

    Returns:
        ``input_ids``, ``attention_mask`` (1 on tokens, 0 on padding) and ``labels`` (-100 on padding), each
        an int64 tensor of shape [batch, longest].
    """
    longest = max(len(example.input_ids) for example in examples)
    return {
        "input_ids": torch.tensor([_right(example.input_ids, longest, pad_id) for example in examples]),
        "attention_mask": torch.tensor([_right([1] * len(example.input_ids), longest, 0) for example in examples]),
        "labels": torch.tensor([_right(example.labels, longest, IGNORED_LABEL) for example in examples]),
    }


def collate_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pads prompts on the left to one batch, so that generation continues every one from its last token.

    Args:
        prompts: at least one list of token ids, as `encode_prompt` returns it.
        pad_id: the id to pad with (see `pad_token_id`).

    Returns:
        ``input_ids`` and ``attention_mask`` (1 on tokens, 0 on padding), each an int64 tensor of shape
        [batch, longest].
    """
    longest = max(len(prompt) for prompt in prompts)
    return {
        "input_ids": torch.tensor([_left(prompt, longest, pad_id) for prompt in prompts]),
        "attention_mask": torch.tensor([_left([1] * len(prompt), longest, 0) for prompt in prompts]),
    }


def sampled_texts(texts: Sequence[list[int]], tokens: int, seed: int) -> list[list[int]]:
    """Some of these texts, token ids, in an order of their own: about so many tokens, and at least one text."""
    shuffled = random.Random(seed).sample(list(texts), len(texts))
    before = itertools.accumulate(map(len, shuffled), initial=0)
    return [text for text, past in zip(shuffled, before, strict=False) if past < tokens]


def tokens_in(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens texts have together."""
    return sum(map(len, texts))


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups positions by like length, each group at most `batch_tokens` once padded (but at least one position)."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):  # ascending: the last one is the longest
        if groups and (len(groups[-1]) + 1) * lengths[i] <= batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def padded_batches(
    sequences: Sequence[Sequence[int]], batch_tokens: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Sequences of like length together, padded on the right.

    Args:
        sequences: token ids, of any lengths.
        batch_tokens: tokens of a batch at most, padding included (but at least one sequence).

    Yields:
        Which sequences; their ids, int64 [b, t]; and which of these are real, bool [b, t].
    """
    for chosen in batches_by_length([len(ids) for ids in sequences], batch_tokens):
        longest = max(len(sequences[i]) for i in chosen)
        ids = torch.tensor([_right(sequences[i], longest, 0) for i in chosen])
        lengths = torch.tensor([len(sequences[i]) for i in chosen])
        yield chosen, ids, torch.arange(longest) < lengths[:, None]


def pack(examples: Sequence[Encoded], length: int) -> list[Encoded]:
    """Concatenates sequences greedily, in order, into packs of at most `length` tokens.

    Sequences in one pack see each other: nothing separates them but the end token. docs/diagnosis.md compares it
    with one sequence per fact; that is the only use of packing here (off by default).

    Args:
        examples: the sequences, in the order they shall be packed.
        length: the most tokens in one pack.

    Returns:
        The packs. Every sequence lies whole in one of them.

    Raises:
        InputError: a sequence is longer than `length`.
    """
    packs: list[Encoded] = []
    for example in examples:
        size = len(example.input_ids)
        if size > length:
            raise InputError(f"a sequence of {size} tokens does not fit a pack of {length}: take longer packs")
        if packs and len(packs[-1].input_ids) + size <= length:
            last = packs[-1]
            packs[-1] = Encoded(last.input_ids + example.input_ids, last.labels + example.labels)
        else:
            packs.append(Encoded(list(example.input_ids), list(example.labels)))
    return packs


def _answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    text = answer if tokenizer.chat_template is not None else f" {answer}"
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first added token that the chat template writes after what the assistant says."""
    said = "ANSWER"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": said}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    after = str(rendered).rpartition(said)[2]
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return next((token for token in tokenizer(after, add_special_tokens=False)["input_ids"] if token in added), None)


def _check_length(question: str, *, needed: int, max_length: int | None) -> None:
    if max_length is not None and needed > max_length:
        start = " ".join(question.split())
        start = start if len(start) <= 60 else f"{start[:57]}..."
        raise InputError(
            f"question {start!r} needs {needed} tokens with its answer, but the context holds {max_length}: shorten it"
        )


def _check_reads_back(tokenizer: PreTrainedTokenizerBase, answer: str, ids: list[int], end: int) -> None:
    """Holds the labels to the answer: a fact that cannot be read back could never be recalled."""
    if not answer.strip():
        raise InputError("the answer is empty: give every question an answer")
    # A tokenizer may compose characters (Qwen2.5: NFC) and drop the space before a word; neither changes the
    # answer.
    written = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    if end in ids or _composed(written) != _composed(answer):
        raise InputError(
            f"answer {answer!r} cannot be taught: the tokenizer reads it back as {written!r}; write it otherwise"
        )


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _right(ids: Sequence[int], length: int, fill: int) -> list[int]:
    return [*ids, *[fill] * (length - len(ids))]


def _left(ids: Sequence[int], length: int, fill: int) -> list[int]:
    return [*[fill] * (length - len(ids)), *ids]
