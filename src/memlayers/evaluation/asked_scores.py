"""Puts facts to a memory as people ask, split by split: what it recalls, from where, and what it makes up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

from memlayers.backbones import context_length
from memlayers.data.conversations import Asked, messages_of
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory
from memlayers.evaluation.asked import SPLITS, AskedQuestion, asked_questions
from memlayers.evaluation.results import Results, Row
from memlayers.evaluation.statistics import mean_interval
from memlayers.inference.answering import Answer
from memlayers.inference.generation import answer_questions
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError
from memlayers.utils.progress import progress_bar

EXAMPLES: Final = 3
"""Answers kept of each split, of taught facts and of never-taught entities each."""


def evaluate_asked(
    memory: Memory,
    facts: Sequence[Fact],
    untaught: Sequence[Fact] = (),
    *,
    seed: int = 137,
    limit: int | None = None,
    quiet: bool = False,
) -> Results:
    """Asks for facts in the splits of docs/asked.md, in wordings that were never taught.

    Args:
        memory: from `load_memory`, `teach_facts` or `regate_memory`.
        facts: what it was taught.
        untaught: facts of the same kind about entities that it was never taught: what it makes up.
        seed: of the questions and of the bootstrap.
        limit: at most so many questions of each split, of `facts` and of `untaught` each; None asks all.
        quiet: no progress bars.

    Returns:
        Rows named after the splits, and some answers of each. A question that does not fit the backbone's context is
        not asked; n says how many were.

    Raises:
        InputError: no facts, or none that can be asked in a wording that was not taught.
    """
    taught_asked, never_asked = asked_questions(facts, seed), asked_questions(untaught, seed, taught=facts)
    if not taught_asked:
        raise InputError("nothing to ask: give facts with unseen questions, or with subject and relation")
    rows: list[Row] = []
    examples: list[dict[str, Any]] = []
    for split in SPLITS:
        asked = _Asked(memory, f"Asked: {split}", taught_asked.get(split, ()), limit, quiet)
        if asked.items:
            rows += _taught_rows(memory, split, asked, seed, quiet)
            examples += asked.examples(seed, taught=True)
        never = _Asked(memory, f"Never taught: {split}", never_asked.get(split, ()), limit, quiet)
        if never.items:
            rows += _untaught_rows(split, never, seed)
            examples += never.examples(seed, taught=False)
    settings = {"memory": str(memory.folder), "asked": True, "questions": limit, "seed": seed}
    return Results(environment(str(memory.model.device)), settings, rows, [], examples)


class _Asked:
    """Some questions of a split, and what was answered to them.

    Attributes:
        items: those that were asked.
        answers: one each.
        right: whether what is said with the memory is right.
    """

    def __init__(
        self, memory: Memory, label: str, items: Sequence[AskedQuestion], limit: int | None, quiet: bool
    ) -> None:
        self.items = list(islice((item for item in items if _fits(memory, item.question)), limit))
        questions: list[Any] = [item.question for item in self.items]
        self.answers: list[Answer] = []
        if questions:
            with progress_bar(label, 2 * len(questions), quiet=quiet) as advance:
                self.answers = memory.ask(questions, progress=advance)
        self.right = [item.right(answer.memory) for item, answer in zip(self.items, self.answers, strict=True)]

    def examples(self, seed: int, *, taught: bool) -> list[dict[str, Any]]:
        """Some of them, for the report."""
        shown = [
            {
                "split": item.split,
                "taught": taught,
                "question": _as_text(item.question),
                "answer": "; ".join(answers[0] for answers in item.answers),
                "backbone": answer.backbone,
                "memory": answer.memory,
                "source": answer.source,
                "right": right,
            }
            for item, answer, right in zip(self.items, self.answers, self.right, strict=True)
        ]
        return random.Random(seed).sample(shown, min(EXAMPLES, len(shown)))


def _taught_rows(memory: Memory, split: str, asked: _Asked, seed: int, quiet: bool) -> list[Row]:
    """What is recalled, by the answers and by the model alone, and how much of it is answered from the memory."""
    shares = {"recall": asked.right}
    texts = [item for item in asked.items if isinstance(item.question, str)]
    if texts:
        with progress_bar(f"Model alone: {split}", len(texts), quiet=quiet) as advance:
            said = answer_questions(memory.model, memory.tokenizer, [item.last for item in texts], progress=advance)
        shares["recall_generated"] = [item.right(text) for item, text in zip(texts, said, strict=True)]
    shares["answered_by_memory"] = [answer.source == "memory" for answer in asked.answers]
    return _rows(shares, split, seed)


def _untaught_rows(split: str, asked: _Asked, seed: int) -> list[Row]:
    """What is made up: an answer under abstention, and a wrong one."""
    wrong = [
        answer.source != "unknown" and not item.right(answer.text)
        for item, answer in zip(asked.items, asked.answers, strict=True)
    ]
    by_memory = [made_up and a.source == "memory" for made_up, a in zip(wrong, asked.answers, strict=True)]
    return _rows({"fabricated": wrong, "fabricated_by_memory": by_memory}, split, seed)


def _rows(shares: dict[str, list[bool]], split: str, seed: int) -> list[Row]:
    return [Row.from_estimate(metric, split, mean_interval(each, seed)) for metric, each in shares.items()]


def _fits(memory: Memory, question: Asked) -> bool:
    """Whether a question leaves room for an answer in the backbone's context."""
    try:
        encode_prompt(memory.tokenizer, question, max_length=context_length(memory.model))
    except InputError:
        return False
    return True


def _as_text(question: Asked) -> str:
    """A question as one text, the messages of a conversation after each other."""
    if isinstance(question, str):
        return question
    return " / ".join(f"{message['role']}: {message['content']}" for message in messages_of(question))
