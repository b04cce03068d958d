"""The confidence from which an answer is worth giving: settled after teaching, for the memory and for the backbone."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def settling_questions(
    facts: Sequence[Fact], config: AbstentionConfig, seed: int, shown: Sequence[Collection[int]] = ()
) -> list[Question]:
    """What `settle_thresholds` is given: a question about each of at most `config.questions` facts.

    Args:
        facts: what is stored.
        config: how many.
        seed: of the choice.
        shown: per fact the places of the phrasings that teaching showed, which come last; none where not known.
    """
    rng = random.Random(f"{seed}:settle")
    asked = []
    for i in rng.sample(range(len(facts)), min(len(facts), config.questions)):
        questions, seen = facts[i].questions, shown[i] if shown else ()
        fresh = [question for j, question in enumerate(questions) if j not in seen]
        asked.append(Question(rng.choice(fresh or questions), facts[i].answers))
    return asked


def guessing_questions(facts: Sequence[Fact], config: AbstentionConfig, seed: int) -> list[list[Question]]:
    """What `settle_thresholds` puts to the bare backbone: questions per fact, at most `config.guesses` in all."""
    rng = random.Random(f"{seed}:guess")
    chosen = rng.sample(list(facts), min(len(facts), config.guesses))
    each, over = divmod(config.guesses, max(1, len(chosen)))
    return [
        [Question(q, fact.answers) for q in rng.sample(fact.questions, min(each + (i < over), len(fact.questions)))]
        for i, fact in enumerate(chosen)
    ]


def _confidences(
    memory: MemoryHandle, tokenizer: PreTrainedTokenizerBase, stored: Sequence[Question], progress: Any
) -> list[float]:
    """How confident the memory is of the stored answers that it gives, by one forward pass each; 0 for no answers."""
    examples = [encode_example(tokenizer, each.question, each.answers[0]) for each in stored]
    found = answer_confidences(memory.model, tokenizer, examples, progress=progress)
    return [confidence for right, confidence in found if right] or [0.0]


def settle_thresholds(
    memory: MemoryHandle,
    tokenizer: PreTrainedTokenizerBase,
    stored: Sequence[Question],
    guessing: Sequence[Sequence[Question]],
    negatives: Sequence[Question] = (),
    config: AbstentionConfig | None = None,
    *,
    progress: Any = None,
) -> tuple[float, float]:
    """Settles, after teaching, how confident an answer must be to be worth giving (`Memory.ask`).

    The memory's: all but `config.unsure` of the stored facts' answers reach `config.margin` times as much; it can be
    low, since the gate keeps nearly all else out. Negatives that come through it raise the threshold above their
    answers, as far as all but `config.raised` of the stored facts' reach it. The backbone's: all but `config.mistaken`
    of the wrong answers that it gives of its own to questions about these facts stay below it; it was not taught them,
    so they are questions as of entities that nobody taught. An answer is believed the less, the more often it was such
    a wrong answer (inference/confidence.py).

    Args:
        memory: the memory, taught; it knows its subjects.
        tokenizer: the backbone's.
        stored: questions about taught facts, best in wordings that teaching did not show, for the memory.
        guessing: per fact, questions about it for the bare backbone (`guessing_questions`).
        negatives: questions about what was never taught, for both.
        config: the shares and the margin.
        progress: called with the number of questions done after each batch, with the memory and without.

    Returns:
        The memory's threshold and the backbone's, which are also stored with the index, as are the wrong guesses.
    """
    config = config or AbstentionConfig()
    to_backbone = [*guessing, *([each] for each in negatives)]
    sure = torch.tensor(_confidences(memory, tokenizer, stored, progress))
    put_to_memory = [each.question for each in negatives]
    recalled = generate_answers(memory.model, tokenizer, put_to_memory, progress=progress) if negatives else []
    with without_memory(memory.model):
        put = [each.question for fact in to_backbone for each in fact]
        guessed = iter(generate_answers(memory.model, tokenizer, put, progress=progress))
    others = torch.tensor([answer.confidence if answer.opened else 0.0 for answer in recalled])
    answered = [[(next(guessed), each.answers) for each in fact] for fact in to_backbone]
    wrong = [[given for given, answers in fact if not exact_match(given.text, answers)] for fact in answered]
    guesses = count_wrong_answers([given.text for given in fact] for fact in wrong)
    # Each is believed as far as other facts' guesses allow: a new question's own is not among them either.
    believed = [
        calibrated_confidence(given.confidence, int(guesses[prior_entry(given.text)]) - 1)
        for fact in wrong
        for given in fact
    ]
    index = memory.index
    assert index is not None
    least, most = sure.quantile(config.unsure) / config.margin, sure.quantile(config.raised)
    through = others[(others >= least) & (others < most)]
    index.thresholds[0] = torch.nextafter(through.max(), most) if len(through) else least
    index.thresholds[1] = confidence_exceeded_by(config.mistaken, believed)
    index.guesses.copy_(guesses)
    of_memory, of_backbone = index.thresholds.tolist()
    return of_memory, of_backbone
