"""Free greedy generation: what a model answers to a question (design/evaluation.md, 1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from memlayers.backbones import context_length
from memlayers.encoding import collate_prompts, encode_prompt, end_token_id, pad_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NEW_TOKENS = 32


@torch.inference_mode()
def answer_questions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 128,
    progress: Any = None,
) -> list[str]:
    """Answers each question by greedy generation through the chat template, up to its end token.

    Questions of like length are answered together; the batch a question falls into does not change its answer beyond
    the backbone's own rounding. An answer ends where the backbone's context does.

    Args:
        model: a causal LM, with or without a memory.
        tokenizer: its tokenizer.
        questions: any number, also none.
        max_new_tokens: longest answer, in tokens.
        batch_size: questions per batch.
        progress: called with the number of questions answered after each batch.

    Returns:
        The answers, in the order of the questions, without special tokens and outer space.

    Raises:
        InputError: a question fills the backbone's context.
    """
    context = context_length(model)
    prompts = [encode_prompt(tokenizer, question, max_length=context) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    pad, end = pad_token_id(tokenizer), end_token_id(tokenizer)
    device = next(model.parameters()).device
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {k: v.to(device) for k, v in collate_prompts([prompts[i] for i in chosen], pad).items()}
            longest = batch["input_ids"].shape[1]
            generated = model.generate(
                **batch, do_sample=False, num_beams=1, max_new_tokens=min(max_new_tokens, context - longest),
                eos_token_id=end, pad_token_id=pad, temperature=None, top_p=None, top_k=None, repetition_penalty=None,
            )  # fmt: skip
            for i, row in zip(chosen, generated[:, longest:].tolist(), strict=True):
                answer = row[: row.index(end)] if end in row else row
                answers[i] = str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
            if progress is not None:
                progress(len(chosen))
    finally:
        model.train(was_training)
    return answers


def without_memory(model: Any) -> AbstractContextManager[Any]:
    """A context in which `model` is its bare backbone; the model itself where it has no adapter."""
    disable = getattr(model, "disable_adapter", None)
    return disable() if disable is not None else nullcontext()
