"""What a model with a memory answers, beside the bare backbone's answer, and which of the two to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memlayers.inference.confidence import answer_thresholds, calibrated_confidence, prior_entry, relation_scores
from memlayers.inference.generation import Generated, generate_answers
from memlayers.tuner.handle import active_memories, without_memory
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "I was not taught that."


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to one question, with and without the memory, and which of the two is worth saying.

    Attributes:
        question: as it was asked.
        backbone: the bare backbone's answer.
        memory: the answer with the memory.
        source: "memory", "backbone", or "unknown" where neither is confident enough of its answer.
        score: 0 to 1, that the memory holds the answer: 0 where its gate stayed closed for the question, or where
            something else is asked than was taught of the subject; otherwise the probability that the model with the
            memory gave to its answer.
        threshold: the score from which the memory's answer is given, settled in teaching.
    """

    question: str
    backbone: str
    memory: str
    source: str = "memory"
    score: float = 1.0
    threshold: float = 0.0

    @property
    def text(self) -> str:
        """What to say: the answer of the source, or `UNKNOWN`."""
        return {"memory": self.memory, "backbone": self.backbone}.get(self.source, UNKNOWN)


def ask_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    *,
    batch_size: int = 128,
    progress: Any = None,
) -> list[Answer]:
    """Answers each question by greedy generation, with the memory and by the bare backbone.

    Args:
        model: a PEFT model with a memory.
        tokenizer: the backbone's.
        questions: any number.
        batch_size: questions per batch.
        progress: called with the number of questions answered after each batch, with the memory and without.

    Raises:
        InputError: a question is empty, or fills the backbone's context.
    """
    if not all(question.strip() for question in questions):
        raise InputError("a question is empty: ask something")
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    memory = generate_answers(model, tokenizer, questions, **options)
    with without_memory(model):
        backbone = generate_answers(model, tokenizer, questions, **options)
    return judge_answers(model, tokenizer, questions, memory, backbone)


def judge_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    memory: Sequence[Generated],
    backbone: Sequence[Generated],
) -> list[Answer]:
    """Says which of two answers that were generated already is to be given, per question.

    Args:
        model: a PEFT model with a memory.
        tokenizer: the backbone's.
        questions: any number.
        memory: the answer to each with the memory.
        backbone: the bare backbone's answer to each.

    Raises:
        ValueError: not as many answers as questions.
    """
    held, confidence = _held(model, tokenizer, questions, memory), _calibrated(model, backbone)
    thresholds = answer_thresholds(model)
    return [_answer(*each, *thresholds) for each in zip(questions, backbone, confidence, memory, held, strict=True)]


def _held(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], memory: Sequence[Generated]
) -> list[bool]:
    """Whether the memory may hold an answer: it was read, and asked for what was taught of the subject."""
    opened = [i for i, answer in enumerate(memory) if answer.opened]
    scores, threshold = relation_scores(model, tokenizer, [questions[i] for i in opened])
    held = [False] * len(questions)
    for i, score in zip(opened, scores, strict=True):
        held[i] = score >= threshold
    return held


def _calibrated(model: Any, backbone: Sequence[Generated]) -> list[float]:
    """The calibrated confidence of each of the bare backbone's answers, 0 to 1 (inference/confidence.py)."""
    index = next((memory.index for memory in active_memories(model) if memory.index is not None), None)
    if index is None:
        return [answer.least for answer in backbone]
    guesses = index.guesses.tolist()
    return [calibrated_confidence(answer.least, guesses[prior_entry(answer.text)]) for answer in backbone]


def _answer(
    question: str,
    backbone: Generated,
    backbone_confidence: float,
    memory: Generated,
    held: bool,
    memory_threshold: float,
    backbone_threshold: float,
) -> Answer:
    score = memory.confidence if held else 0.0
    if held and score >= memory_threshold:
        source = "memory"
    else:
        source = "backbone" if backbone_confidence >= backbone_threshold else "unknown"
    return Answer(question, backbone.text, memory.text, source, score, memory_threshold)
