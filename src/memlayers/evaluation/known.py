"""Known facts of a backbone: the questions that it answers by itself (docs/evaluation.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memlayers.backbones import backbone_fingerprint
from memlayers.data.answers import contains_answer, exact_match
from memlayers.data.facts import Question
from memlayers.inference.generation import MAX_NEW_TOKENS, generate_answers
from memlayers.tuner.handle import without_memory
from memlayers.utils.environment import environment
from memlayers.utils.errors import WorkError
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA = "memlayers.known/1"


def questions_known(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    strict: bool = False,
    batch_size: int = 128,
    quiet: bool = False,
) -> list[Question]:
    """Those questions that a backbone answers rightly by itself.

    Args:
        model: a backbone, or a PEFT model with a memory, which is then not read.
        tokenizer: the backbone's.
        questions: any number; the same one is asked once.
        strict: by strict match rather than containment.
        batch_size: questions per batch.
        quiet: no progress bar.

    Raises:
        InputError: a question fills the backbone's context.
    """
    matches = exact_match if strict else contains_answer
    accepted: dict[str, tuple[str, ...]] = {}
    for each in questions:
        accepted[each.question] = tuple(dict.fromkeys((*accepted.get(each.question, ()), *each.answers)))
    asked = [Question(question, answers) for question, answers in accepted.items()]
    with progress_bar("What the backbone knows", len(asked), quiet=quiet) as advance, without_memory(model):
        said = generate_answers(
            model, tokenizer, [each.question for each in asked], batch_size=batch_size, progress=advance
        )
    return [each for each, answer in zip(asked, said, strict=True) if matches(answer.text, each.answers)]


def known_text(questions: Sequence[Question]) -> str:
    """The text of a JSONL file of questions with their accepted answers, which `read_questions` reads.

    Raises:
        WorkError: there are none.
    """
    if not questions:
        raise WorkError("the backbone answered none of the questions rightly, so nothing was written; ask it others")
    rows = [{"question": each.question, "answers": list(each.answers)} for each in questions]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def known_record(model: Any, backbone: str, *, asked: int, known: int, strict: bool) -> dict[str, Any]:
    """What is kept beside such a file: of which backbone, how it was asked, where."""
    return {
        "schema": SCHEMA,
        "backbone": backbone,
        "fingerprint": backbone_fingerprint(model),
        "match": "strict" if strict else "containment",
        "decoding": {"method": "greedy", "max_new_tokens": MAX_NEW_TOKENS},
        "asked": asked,
        "known": known,
        "environment": environment(str(model.device)),
    }
