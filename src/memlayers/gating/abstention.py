"""The confidence from which an answer is worth giving: settled after teaching, for the memory and for the backbone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from memlayers.config.sections import AbstentionConfig
from memlayers.data.answers import exact_match
from memlayers.data.encoding import encode_example
from memlayers.data.facts import Fact, Question
from memlayers.inference.confidence import (
    calibrated_confidence,
    confidence_exceeded_by,
    count_wrong_answers,
    prior_entry,
)
from memlayers.inference.generation import generate_answers
from memlayers.inference.scoring import answer_confidences
from memlayers.tuner.handle import MemoryHandle, without_memory
from memlayers.utils.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def settling_questions(facts: Sequence[Fact], config: AbstentionConfig, seed: int) -> list[Question]:
    """What `held_confidences` is asked: a question about each of at most `config.questions` stored facts."""
    rng = random.Random(f"{seed}:settle")
    some = rng.sample(list(facts), min(len(facts), config.questions))
    return [Question(rng.choice(fact.questions), fact.answers) for fact in some]


def guessing_questions(facts: Sequence[Fact], config: AbstentionConfig, seed: int) -> list[list[Question]]:
    """What `settle_thresholds` puts to the bare backbone: questions per fact, at most `config.guesses` in all."""
    rng = random.Random(f"{seed}:guess")
    chosen = rng.sample(list(facts), min(len(facts), config.guesses))
    each, over = divmod(config.guesses, max(1, len(chosen)))
    return [
        [Question(q, fact.answers) for q in rng.sample(fact.questions, min(each + (i < over), len(fact.questions)))]
        for i, fact in enumerate(chosen)
    ]


def held_confidences(
    memory: MemoryHandle,
    tokenizer: PreTrainedTokenizerBase,
    stored: Sequence[Question],
    *,
    progress: Any = None,
    ranks: Ranks = ALONE,
) -> list[float]:
    """How confident the memory is of the stored answers that it gives, by one forward pass each.

    Args:
        memory: the memory, taught.
        tokenizer: the backbone's.
        stored: questions about taught facts.
        progress: called with the number of questions done after each batch.
        ranks: the processes that share the work.
    """
    examples = [encode_example(tokenizer, each.question, each.answers[0]) for each in stored]
    found = answer_confidences(memory.model, tokenizer, examples, progress=progress, ranks=ranks)
    return [confidence for right, confidence in found if right]


def settle_thresholds(
    memory: MemoryHandle,
    tokenizer: PreTrainedTokenizerBase,
    sure: Sequence[float],
    guessing: Sequence[Sequence[Question]],
    negatives: Sequence[Question] = (),
    config: AbstentionConfig | None = None,
    *,
    progress: Any = None,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Settles, after teaching, how confident an answer must be to be worth giving (`Memory.ask`).

    The memory's: all but `config.unsure` of the stored facts' answers reach `config.margin` times as much; it can be
    low, since the gate keeps nearly all else out. Negatives that come through it raise the threshold above their
    answers, as far as all but `config.raised` of the stored facts' reach it. The backbone's: all but `config.mistaken`
    of the wrong answers that it gives of its own to questions about these facts stay below it; it was not taught them,
    so they are questions as of entities that nobody taught. An answer is believed the less, the more often it was such
    a wrong answer (inference/confidence.py). Neither is below `config.least`.

    Args:
        memory: the memory, taught; it knows its subjects.
        tokenizer: the backbone's.
        sure: how confident the memory is of stored answers that it gives, best in wordings that teaching did not show.
        guessing: per fact, questions about it for the bare backbone (`guessing_questions`).
        negatives: questions about what was never taught, for both.
        config: the shares and the margin.
        progress: called with the number of questions done after each batch, with the memory and without.
        ranks: the processes that share the work.

    Returns:
        The memory's threshold and the backbone's, which are also stored with the index, as are the wrong guesses.
    """
    config = config or AbstentionConfig()
    to_backbone = [*guessing, *([each] for each in negatives)]
    held = torch.tensor(list(sure) or [0.0])
    put_to_memory = [each.question for each in negatives]
    shared: dict[str, Any] = {"progress": progress, "ranks": ranks}
    recalled = generate_answers(memory.model, tokenizer, put_to_memory, **shared) if negatives else []
    with without_memory(memory.model):
        put = [each.question for fact in to_backbone for each in fact]
        guessed = iter(generate_answers(memory.model, tokenizer, put, **shared))
    others = torch.tensor([answer.confidence if answer.opened else 0.0 for answer in recalled])
    answered = [[(next(guessed), each.answers) for each in fact] for fact in to_backbone]
    wrong = [[given for given, answers in fact if not exact_match(given.text, answers)] for fact in answered]
    guesses = count_wrong_answers([given.text for given in fact] for fact in wrong)
    # Each is believed as far as other facts' guesses allow: a new question's own is not among them either.
    believed = [
        calibrated_confidence(given.least, int(guesses[prior_entry(given.text)]) - 1)
        for fact in wrong
        for given in fact
    ]
    index = memory.index
    assert index is not None
    least = (held.quantile(config.unsure) / config.margin).clamp_min(config.least)
    most = held.quantile(config.raised).clamp_min(config.least)
    through = others[(others >= least) & (others < most)]
    index.thresholds[0] = torch.nextafter(through.max(), most) if len(through) else least
    index.thresholds[1] = max(config.least, confidence_exceeded_by(config.mistaken, believed))
    index.guesses.copy_(guesses)
    of_memory, of_backbone = index.thresholds.tolist()
    return of_memory, of_backbone
