"""Free greedy generation: what a model answers to a question (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memlayers.backbones import context_length, takes_logits_to_keep
from memlayers.config.sections import FURTHER_SCOPE
from memlayers.data.conversations import Asked
from memlayers.data.encoding import (
    answer_length,
    collate_prompts,
    encode_prompt,
    end_token_id,
    ends_at_newline,
    pad_token_id,
)
from memlayers.inference.shared_prefix import SharedPrefix, shared_prefix
from memlayers.tuner.current import Recorder, holding
from memlayers.tuner.handle import active_memories
from memlayers.utils.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memlayers.data.facts import Fact

MAX_NEW_TOKENS = 32
"""The most tokens of an answer, where no stored one is longer."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer.

    Attributes:
        text: without special tokens and outer space.
        confidence: the probability that the model gave to this answer and its end (the end token or, where one ends
            it, the newline), 0 to 1.
        opened: whether a memory was read when the answer began: its gate was open for the prompt's last token.
        least: the probability of its least likely token, 0 to 1. A sentence may be put in many ways, so that the
            probability of its whole says little; what it tells is as sure as the least sure of its words.
        tokens: its token ids, with the one that ends it; only where `generate_answers` was asked for them.
        open: of each of `tokens` whether a memory was read as it was chosen.
    """

    text: str
    confidence: float
    opened: bool
    least: float
    tokens: tuple[int, ...] = field(default=(), compare=False)
    open: tuple[bool, ...] = field(default=(), compare=False)


@torch.inference_mode()
def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Asked],
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 128,
    prefix: SharedPrefix | None = None,
    progress: Any = None,
    tokens: bool = False,
    ranks: Ranks = ALONE,
) -> list[Generated]:
    """Answers each question by greedy generation through the chat template, up to its end token.

    Questions of like length are answered together; the batch a question falls into does not change its answer beyond
    the backbone's own rounding. An answer ends where the backbone's context does, and where there is no chat template
    at its first newline: what a base model writes on the next line is another question.

    Args:
        model: a causal LM, with or without a memory.
        tokenizer: its tokenizer.
        questions: any number, also none; each a text, or the messages of a conversation.
        max_new_tokens: longest answer, in tokens; None for `answer_limit`.
        batch_size: questions per batch.
        prefix: what all prompts begin with, if the model has read it already.
        progress: called with the number of questions of each batch, as it begins.
        tokens: also say which tokens each answer has, and for which of them a memory was read.
        ranks: the processes that the batches are dealt to; all get all answers.

    Returns:
        The answers, in the order of the questions.

    Raises:
        InputError: a question fills the backbone's context.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList

    context = context_length(model)
    limit = answer_limit(model) if max_new_tokens is None else max_new_tokens
    prompts = [encode_prompt(tokenizer, question, max_length=context) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    pad, end = pad_token_id(tokenizer), end_token_id(tokenizer)
    device = next(model.parameters()).device
    ends = AnswerEnds(tokenizer, end)
    answers: dict[int, Generated] = {}
    was_training = model.training
    if was_training:
        model.eval()
    try:
        if prefix is None or not all(prefix.begins(prompt) for prompt in prompts):
            prefix = shared_prefix(model, prompts)
        skipped = len(prefix.ids) if prefix is not None else 0
        for number, start in enumerate(range(0, len(order), batch_size)):
            chosen = order[start : start + batch_size]
            if progress is not None:
                progress(len(chosen))
            if not ranks.has(number):
                continue
            batch = collate_prompts([prompts[i][skipped:] for i in chosen], pad)
            batch = {name: value.to(device) for name, value in batch.items()}
            if prefix is not None:  # in front of the padding
                head = torch.tensor([prefix.ids], device=device).expand(len(chosen), -1)
                batch["input_ids"] = torch.cat([head, batch["input_ids"]], 1)
                batch["attention_mask"] = prefix.mask(batch["attention_mask"])
            longest = batch["input_ids"].shape[1]
            if device.type == "cpu" and takes_logits_to_keep(model):
                # Of a number, which is what generate passes, the last position is a slice: the product with the head
                # is then done sequence by sequence, in bfloat16 with a copy of the head for each.
                batch["logits_to_keep"] = torch.tensor([-1])
            recorder = _Recorder(len(chosen))
            with holding(recorder=recorder):
                generated = model.generate(
                    **batch, past_key_values=None if prefix is None else prefix.cache(len(chosen)),
                    logits_processor=LogitsProcessorList([recorder]),
                    stopping_criteria=StoppingCriteriaList([ends]), do_sample=False, num_beams=1,
                    max_new_tokens=min(limit, context - longest), eos_token_id=end, pad_token_id=pad,
                    temperature=None, top_p=None, top_k=None, repetition_penalty=None,
                )  # fmt: skip
            for place, (i, row) in enumerate(zip(chosen, generated[:, longest:].tolist(), strict=True)):
                answer = row[: ends.length(row)]  # with what ends it
                text = ends.cut(str(tokenizer.decode(answer, skip_special_tokens=True)))
                whole, least = recorder.confidence(place, len(answer))
                found = (tuple(answer), tuple(recorder.open(place)[: len(answer)])) if tokens else ((), ())
                answers[i] = Generated(text.strip(), whole, recorder.opened[place], least, *found)
    finally:
        if was_training:
            model.train()
    return ranks.gather_dealt(answers)


def answer_limit(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, facts: Sequence[Fact] = ()) -> int:
    """The most tokens that an answer may take: as many as the longest stored one, and at least `MAX_NEW_TOKENS`.

    The same with a memory and in `without_memory`.

    Args:
        model: a backbone, or a PEFT model with memories; one without an index of subjects does not tell.
        tokenizer: the backbone's, where there are facts.
        facts: whose answers must have room, too.
    """
    limits = [MAX_NEW_TOKENS]
    for memory in active_memories(model):
        if memory.index is not None:
            limits.append(int(memory.index.reach) - FURTHER_SCOPE)
    if tokenizer is not None:
        limits += [answer_length(tokenizer, fact.answer) for fact in facts]
    return max(limits)


def answer_questions(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], **options: Any
) -> list[str]:
    """The answers' texts alone; see `generate_answers`."""
    return [generated.text for generated in generate_answers(model, tokenizer, questions, **options)]


class AnswerEnds:
    """Tells which tokens end an answer; a stopping criterion for `generate`, which decides on each row by itself."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end: int) -> None:
        self._tokenizer, self._at_newline = tokenizer, ends_at_newline(tokenizer)
        self._ends = {end: True}  # what is known of tokens so far

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Whether each row's last token ends its answer, bool [b]."""
        return torch.tensor([self._is_end(token) for token in input_ids[:, -1].tolist()], device=input_ids.device)

    def length(self, row: list[int]) -> int:
        """How many tokens an answer has, with the one that ends it."""
        return next((place for place, token in enumerate(row, 1) if self._is_end(token)), len(row))

    def cut(self, text: str) -> str:
        """An answer's text without what follows a newline within its last token."""
        return text.partition("\n")[0] if self._at_newline else text

    def _is_end(self, token: int) -> bool:
        if token not in self._ends:
            self._ends[token] = self._at_newline and "\n" in str(self._tokenizer.decode([token]))
        return self._ends[token]


class OpenTokens(Recorder):
    """Records for which of the tokens that are generated a memory is read: as each is chosen, by the token before it.

    Args:
        rows: of the batch.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._first: nn.Module | None = None
        self._passes: list[list[tuple[torch.Tensor | None, int]]] = []  # of each forward pass what its layers decided

    def entered(self, layer: nn.Module, x: torch.Tensor) -> None:
        """Notes that a forward pass has begun, at its first memory layer."""
        if self._first is None:
            self._first = layer
        if layer is self._first:
            self._passes.append([])

    def decided(self, layer: nn.Module, adapter: str, opened: torch.Tensor | None, tokens: int) -> None:
        """Notes what the layer decided; it is looked at when it is asked for, since that waits for a GPU."""
        self._passes[-1].append((opened, tokens))

    @property
    def read_any(self) -> bool:
        """Whether a memory was read at all, for a token of a prompt or of an answer."""
        every = (opened for decided in self._passes for opened, _ in decided)
        return any(
            opened is None or bool(opened.any() if opened.dtype == torch.bool else opened.numel()) for opened in every
        )

    def open(self, row: int) -> list[bool]:
        """Whether a memory was read for each token that was generated in a row."""
        return [any(self._last(row, *each) for each in decided) for decided in self._passes]

    def open_at(self, place: int) -> bool:
        """Whether a memory was read for a token of the first forward pass; tokens are counted through its batch."""
        return bool(self._passes) and any(_reads(opened, place) for opened, _ in self._passes[0])

    def _last(self, row: int, opened: torch.Tensor | None, tokens: int) -> bool:
        """Whether the last token of a row may read."""
        return _reads(opened, (row + 1) * (tokens // self._rows) - 1)


def _reads(opened: torch.Tensor | None, place: int) -> bool:
    """Whether a token is among those that may read, as `Recorder.decided` has them."""
    if opened is None or opened.dtype == torch.bool:
        return opened is None or bool(opened[place])
    return bool((opened == place).any())


class _Recorder(OpenTokens):
    """Records the probability of each token that greedy decoding takes, and which prompts a memory was read for.

    As a logits processor it changes nothing.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.chances: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.chances.append(scores.float().log_softmax(-1).amax(-1))
        return scores

    def confidence(self, row: int, tokens: int) -> tuple[float, float]:
        """The probability of a row's first `tokens` tokens, and of the least likely of them."""
        each = torch.stack([chance[row] for chance in self.chances[:tokens]])
        return float(each.sum().exp()), float(each.min().exp())

    @property
    def opened(self) -> list[bool]:
        """The rows in which the prompt's last token may read."""
        return [bool(self._passes) and self._opened_at_first(row) for row in range(self._rows)]

    def _opened_at_first(self, row: int) -> bool:
        return any(self._last(row, *each) for each in self._passes[0])
