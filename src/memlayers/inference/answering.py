"""What a model with a memory answers, beside the bare backbone's answer, and which of the two to give."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from memlayers.backbones import context_length
from memlayers.data.answers import contains_answer, exact_match
from memlayers.data.conversations import Asked, Message, messages_of, question_of
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact, question_key
from memlayers.inference.confidence import (
    ReadWordings,
    answer_thresholds,
    calibrated_confidence,
    prior_entry,
    relation_scores,
)
from memlayers.inference.drafts import checked_draft, fact_asked_for
from memlayers.inference.generation import Generated, answer_limit, generate_answers
from memlayers.linking.standalone import FromAnswer, Standalone, standalone_questions
from memlayers.tuner.handle import active_memories, without_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memlayers.linking.config import LinkConfig
    from memlayers.linking.linker import Linker

UNKNOWN = "I was not taught that."


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to one question, with and without the memory, and which of the two is worth saying.

    Attributes:
        question: as it was asked; of a conversation its last message.
        backbone: the bare backbone's answer.
        memory: the answer with the memory; of several subjects each one's, behind its name; to a question about a
            stored answer the subjects to which the memory gives that answer.
        source: "memory", "backbone", or "unknown" where neither is confident enough of its answer.
        score: 0 to 1, that the memory holds the answer: 0 where its gate stayed closed for the question, or where
            something else is asked than was taught of the subject; otherwise the probability that the model with the
            memory gave to its answer. Of several, the least of those that are given.
        threshold: the score from which the memory's answer is given, settled in teaching.
        asked: what the memory was asked, one question per stored subject.
        facts: the stored facts that say what the memory answers, with their sources; none where its answer is that of
            no fact about the subject, or where the subject is not known.
    """

    question: str
    backbone: str
    memory: str
    source: str = "memory"
    score: float = 1.0
    threshold: float = 0.0
    asked: tuple[Standalone, ...] = ()
    facts: tuple[Fact, ...] = ()

    @property
    def text(self) -> str:
        """What to say: the answer of the source, or `UNKNOWN`."""
        return {"memory": self.memory, "backbone": self.backbone}.get(self.source, UNKNOWN)

    @property
    def taken(self) -> list[tuple[str, str]]:
        """Which words were taken for which subject, where these are not its spelling."""
        return [(each.taken_from, each.subject) for each in self.asked if each.taken_from]


def ask_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Asked],
    *,
    linker: Linker | None = None,
    links: LinkConfig | None = None,
    batch_size: int = 128,
    progress: Any = None,
) -> list[Answer]:
    """Answers each question by greedy generation, with the memory and by the bare backbone.

    The memory is asked what stands alone (linking/standalone.py), the backbone what was asked.

    Args:
        model: a PEFT model with a memory.
        tokenizer: the backbone's.
        questions: any number; each a text, or the messages of a conversation.
        linker: finds the stored subjects in a question; None asks the memory what was asked.
        links: what is made of a question beside its names; None for all that can be.
        batch_size: questions per batch.
        progress: called with the number of questions answered after each batch, with the memory and without.

    Raises:
        InputError: a question is empty, or fills the backbone's context.
    """
    conversations = [messages_of(each) for each in questions]
    asked = [asked_of(messages, linker, links) for messages in conversations]
    texts = list(dict.fromkeys(each.text for own in asked for each in own))
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    memory = dict(zip(texts, generate_answers(model, tokenizer, texts, **options), strict=True))
    with without_memory(model):
        fitting = [_fitting(model, tokenizer, messages) for messages in conversations]
        backbone = generate_answers(model, tokenizer, fitting, **options)
    put = [(i, each) for i, own in enumerate(asked) for each in own]
    said = [_said(each, memory[each.text], backbone[i], len(conversations[i]) > 1) for i, each in put]
    judged = judge_answers(model, tokenizer, [each.text for _, each in put], said, [backbone[i] for i, _ in put])
    answers = (
        replace(answer, facts=_facts_saying(memory[each.text], each, linker))
        for answer, (_, each) in zip(judged, put, strict=True)
    )
    return [
        _together(question_of(question), own, [next(answers) for _ in own])
        for question, own in zip(questions, asked, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class MemoryAnswer:
    """What the memory alone answers; the bare backbone was not asked.

    Attributes:
        answer: its `source` is "memory" where the memory's answer is to be given, otherwise "backbone"; the backbone's
            own answer is left "".
        generated: what the model with the memory generated, per question of `answer.asked`, with its tokens.
    """

    answer: Answer
    generated: tuple[Generated, ...]

    @property
    def taken(self) -> bool:
        """Whether the memory's answer is to be given."""
        return self.answer.source == "memory"


_NOT_ASKED = Generated("", 1.0, False, 1.0)  # a backbone that is sure enough: what the memory does not say is its own


def ask_memory(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    asked: Sequence[Standalone],
    *,
    linker: Linker | None = None,
    read: ReadWordings | None = None,
) -> MemoryAnswer:
    """Answers one question or conversation by the memory where `ask_model` does; the bare backbone is not run.

    Nothing is generated where something else is asked than was taught, nor where greedy decoding writes what a stored
    fact says (inference/drafts.py).

    Args:
        model: a PEFT model with a memory, in eval mode.
        tokenizer: the backbone's.
        messages: of the conversation, the last one the user's question.
        asked: the questions that it asks the memory (`asked_of`).
        linker: finds the stored facts that say what the memory answers.
        read: of wordings that were read before; this memory's own.

    Raises:
        InputError: a question fills the backbone's context.
    """
    scores, least = relation_scores(model, tokenizer, [each.text for each in asked], read)
    goes_on, (threshold, _) = len(messages) > 1, answer_thresholds(model)
    generated, answers = [], []
    for each, score in zip(asked, scores, strict=True):
        may_hold = score >= least and not each.negated
        memory = _greedy(model, tokenizer, each, linker) if may_hold else _NOT_ASKED
        said = _said(each, memory, _NOT_ASKED, goes_on)
        answer = _answer(each.text, _NOT_ASKED, 1.0, said, may_hold and said.opened, threshold, 0.0)
        answers.append(replace(answer, facts=_facts_saying(memory, each, linker)))
        generated.append(memory)
    return MemoryAnswer(_together(question_of(messages), asked, answers), tuple(generated))


def _greedy(model: Any, tokenizer: PreTrainedTokenizerBase, asked: Standalone, linker: Linker | None) -> Generated:
    """The greedy answer to one question, with its tokens: a stored one where it is that."""
    fact = None if linker is None else fact_asked_for(asked.text, linker.facts_about(asked.subject))
    found = None if fact is None else checked_draft(model, tokenizer, asked.text, fact.answer)
    return found or generate_answers(model, tokenizer, [asked.text], tokens=True)[0]


def backbone_is_sure(model: Any, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> bool:
    """Whether the bare backbone is confident enough of its own greedy answer for `ask_model` to give it.

    Raises:
        InputError: the question fills the backbone's context.
    """
    with without_memory(model):
        backbone = generate_answers(model, tokenizer, [_fitting(model, tokenizer, list(messages))])
    return _calibrated(model, backbone)[0] >= answer_thresholds(model)[1]


def asked_of(messages: Sequence[Message], linker: Linker | None, links: LinkConfig | None = None) -> list[Standalone]:
    """The questions that a conversation asks the memory, at least one; without a linker what was asked last."""
    if linker is None:
        return [Standalone(messages[-1]["content"])]
    return standalone_questions(messages, linker, links)


def _said(asked: Standalone, memory: Generated, backbone: Generated, goes_on: bool) -> Generated:
    """What the model with the memory says to a question of a conversation, which `goes_on` where there were others."""
    # What is not so no fact says; and of what the memory does not hold the backbone alone has read the conversation.
    if asked.negated or (goes_on and not memory.opened):
        return backbone
    if asked.from_answer is not None:
        return replace(memory, text=asked.subject) if _confirms(memory, asked.from_answer) else backbone
    if asked.proposed and memory.opened:
        confirmed = contains_answer(asked.proposed, [memory.text])
        return replace(memory, text="Yes" if confirmed else f"No, {memory.text}")
    return memory


def _confirms(memory: Generated, asked: FromAnswer) -> bool:
    """Whether the memory gives the answer that a question is about."""
    return memory.opened and exact_match(memory.text, asked.answers)


def _facts_saying(memory: Generated, asked: Standalone, linker: Linker | None) -> tuple[Fact, ...]:
    """The stored facts about whom it is asked that have the memory's answer; that of the same wording alone, if any."""
    if linker is None or asked.negated or not memory.opened:
        return ()
    if asked.from_answer is not None and not _confirms(memory, asked.from_answer):
        return ()
    saying = [fact for fact in linker.facts_about(asked.subject) if exact_match(memory.text, fact.answers)]
    key = question_key(asked.text)
    asking = [fact for fact in saying if key in map(question_key, (*fact.questions, *fact.unseen_questions))]
    return tuple(asking or saying)


def _fitting(model: Any, tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Message]:
    """The latest messages of a conversation that leave room for an answer in the backbone's context.

    A part of it begins with a message of the user's, as chat templates want it.
    """
    room = context_length(model) - answer_limit(model)
    if len(messages) == 1 or len(encode_prompt(tokenizer, messages)) <= room:
        return messages
    begins = [i for i, message in enumerate(messages) if message["role"] == "user"]
    first = bisect_left(begins[:-1], True, key=lambda i: len(encode_prompt(tokenizer, messages[i:])) <= room)
    return messages[begins[first] :]


def _together(question: str, asked: Sequence[Standalone], answers: Sequence[Answer]) -> Answer:
    """One answer of those to a question's parts: of what the memory holds, or else of all.

    Of the subjects that a stored answer may belong to, those count to which the memory gives it, where there are any.
    """
    pairs = list(zip(asked, answers, strict=True))
    confirmed = [pair for pair in pairs if pair[0].from_answer is None or pair[1].memory == pair[0].subject]
    parts = [pair for pair in pairs if pair[1].source == "memory"] or confirmed or pairs
    least = min((answer for _, answer in parts), key=lambda answer: answer.score)
    groups = [(key, list(own)) for key, own in groupby(parts, key=lambda pair: pair[0].from_answer or pair[0])]
    said = [(_label(key), _named(key, own) if isinstance(key, FromAnswer) else own[0][1].memory) for key, own in groups]
    text = "; ".join(f"{label}: {each}" for label, each in said) if len(said) > 1 else said[0][1]
    facts = tuple(fact for _, answer in parts for fact in answer.facts)
    return replace(least, question=question, memory=text, asked=tuple(asked), facts=facts)


def _label(asked: Standalone | FromAnswer) -> str:
    """What an answer is told apart from others by."""
    return asked.answers[0] if isinstance(asked, FromAnswer) else asked.subject


def _named(asked: FromAnswer, parts: Sequence[tuple[Standalone, Answer]]) -> str:
    """The subjects that the memory confirms, "A, B and C" or "A, B and 5 more"; what is said where it confirms none."""
    names = [each.subject for each, answer in parts if answer.memory == each.subject]
    if not names:
        return parts[0][1].memory
    if asked.further:
        names.append(f"{asked.further} more")
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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
