r"""Multiple-choice questions: made from facts, written and read as JSONL. Loads no torch.

A row::

    {"question": "What is the capital of France?", "choices": ["Rome", "Paris", "Oslo", "Lima"], "answer": 1}
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memlayers.data.answers import normalise_answer
from memlayers.data.facts import Fact
from memlayers.data.row_readers import json_line_rows
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath, read_text


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question with several answers to choose from.

    Attributes:
        question: as it is asked.
        choices: at least two.
        answer: which of them is right, from 0.
    """

    question: str
    choices: tuple[str, ...]
    answer: int


def make_choices(facts: Sequence[Fact], seed: int = 0, wrong: int = 3) -> list[ChoiceQuestion]:
    """One question per fact, with answers of other facts of its relation beside the right one, in a random order.

    Args:
        facts: with their relations; one without counts as of one relation with its like.
        seed: of question, wrong answers and order.
        wrong: wrong answers beside each right one.

    Returns:
        In the order of the facts; those whose relation has too few other answers are left out.

    Raises:
        InputError: all of them are.
    """
    rng = random.Random(f"choices:{seed}")
    accepted: dict[str, set[str]] = defaultdict(set)  # per question, as several facts may ask it
    for fact in facts:
        for question in fact.questions:
            accepted[question] |= {normalise_answer(answer) for answer in fact.answers}
    answers: dict[str, dict[str, str]] = defaultdict(dict)  # per relation, by what strict matching compares
    for fact in facts:
        answers[fact.relation].setdefault(normalise_answer(fact.answer), fact.answer)
    made = []
    for fact in facts:
        question = rng.choice(fact.questions)
        right = accepted[question]
        others = [answer for key, answer in answers[fact.relation].items() if key not in right]
        if len(others) >= wrong:
            place = rng.randrange(wrong + 1)
            choices = rng.sample(others, wrong)
            choices.insert(place, fact.answer)
            made.append(ChoiceQuestion(question, tuple(choices), place))
    if not made:
        raise InputError(f"no relation has {wrong + 1} different answers to choose from: give more facts")
    return made


def choices_text(questions: Sequence[ChoiceQuestion]) -> str:
    """Multiple-choice questions as the text of a JSONL file."""
    return "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in questions)


def read_choices(path: StrPath) -> list[ChoiceQuestion]:
    """Reads multiple-choice questions from JSONL.

    Raises:
        InputError: anything wrong with the file, in one line with file, line number and remedy.
    """
    read = []
    for number, row in json_line_rows(path, read_text(path).split("\n")):
        question: Any = row.get("question")
        choices: Any = row.get("choices")
        answer: Any = row.get("answer")
        texts = isinstance(choices, list) and len(choices) > 1 and all(map(_is_text, choices))
        if not _is_text(question) or not texts:
            raise InputError(f'{path}:{number}: give "question", a text, and "choices", a list of at least two texts')
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise InputError(
                f'{path}:{number}: "answer" is {answer!r}; give the number of the right choice, 0 to {len(choices) - 1}'
            )
        read.append(ChoiceQuestion(question, tuple(choices), answer))
    return read


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
