"""Recall while teaching: some of the facts asked in free generation, and all of them where those are all right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memlayers.config.sections import ScheduleConfig
from memlayers.data.answers import exact_match
from memlayers.data.facts import Fact
from memlayers.inference.generation import answer_questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def measured_recall(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    settings: ScheduleConfig,
    rng: random.Random,
) -> float:
    """Share of taught wordings answered rightly, 0 to 1, in free generation.

    A sample of the facts is asked; if it is full, all of them are, each in a wording drawn anew.

    Args:
        model: the PEFT model.
        tokenizer: the backbone's.
        facts: all that are taught.
        settings: how many are asked, and what counts as full.
        rng: draws facts and wordings.
    """
    drawn = rng.sample(list(facts), len(facts))
    sample, rest = drawn[: settings.recall_sample], drawn[settings.recall_sample :]
    each = max(1, settings.recall_sample // len(drawn))  # a few facts are asked in several wordings
    right, asked = _recalled(model, tokenizer, sample, each, rng)
    if rest and right >= settings.stop_at_recall * asked:
        more, of = _recalled(model, tokenizer, rest, each, rng)
        right, asked = right + more, asked + of
    return right / asked


def _recalled(
    model: Any, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], wordings: int, rng: random.Random
) -> tuple[int, int]:
    """Questions answered rightly, and questions asked: each fact in `wordings` of its taught wordings."""
    asked = [(q, f.answers) for f in facts for q in rng.sample(f.questions, min(wordings, len(f.questions)))]
    answers = answer_questions(model, tokenizer, [question for question, _ in asked])
    right = sum(exact_match(answer, accepted) for answer, (_, accepted) in zip(answers, asked, strict=True))
    return right, len(asked)
