"""One exam for all methods: the same facts, wordings, other questions and text, scored by the same code."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from memlayers.data.answers import contains_answer, exact_match
from memlayers.data.facts import Fact, Question
from memlayers.evaluation.evaluate import recall_rows, unchanged_row
from memlayers.evaluation.results import Row
from memlayers.evaluation.statistics import mean_interval
from memlayers.evaluation.text_scores import perplexity_estimate
from memlayers.inference.generation import answer_limit
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from memlayers.comparison.method import Method

TIMED = 9  # questions, one by one; the first is not counted
BATCH = 32  # questions answered together
RECALL = MappingProxyType({"recall": exact_match, "recall_containment": contains_answer})


@dataclass(frozen=True, slots=True)
class Exam:
    """What every method is taught and asked.

    Attributes:
        facts: to be taken in.
        taught: per fact some of its taught wordings.
        untaught: neighbours: questions like the facts', about what is never taught.
        known: questions that the backbone may answer.
        text: general text.
        text_tokens: so much of it is read.
        changed: facts with another answer each, to update one by one.
        seed: of the intervals.
    """

    facts: Sequence[Fact]
    taught: Sequence[Sequence[str]]
    untaught: Sequence[Question]
    known: Sequence[Question]
    text: str
    text_tokens: int
    changed: Sequence[Fact]
    seed: int


def make_exam(
    facts: Sequence[Fact], untaught: Sequence[Question], known: Sequence[Question], text: str, *,
    phrasings: int, text_tokens: int, updates: int, seed: int,
) -> Exam:  # fmt: skip
    """Draws the wordings that are asked, and the facts that are changed.

    Args:
        facts: to be taken in.
        untaught: as in `Exam`.
        known: as in `Exam`.
        text: as in `Exam`.
        phrasings: taught wordings asked per fact.
        text_tokens: as in `Exam`.
        updates: how many facts are changed; each gets the answer of another fact, of its own relation if possible.
        seed: of the choices.
    """
    rng = random.Random(f"{seed}:exam")
    taught = [rng.sample(fact.questions, min(phrasings, len(fact.questions))) for fact in facts]
    changed: list[Fact] = []
    for fact in rng.sample(list(facts), len(facts)):
        others = [each for each in facts if not exact_match(each.answer, fact.answers)]
        others = [each for each in others if each.relation == fact.relation] or others
        if others and len(changed) < updates:
            changed.append(replace(fact, answer=rng.choice(others).answer, aliases=()))
    return Exam(facts, taught, untaught, known, text, text_tokens, changed, seed)


def teach_and_score(
    method: Method, exam: Exam, bare: Mapping[str, str], *, quiet: bool = False
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Teaches a method and scores it.

    Args:
        method: not taught yet.
        exam: what it is taught and asked.
        bare: the bare backbone's answers, by question, to compare with; empty for the backbone itself.
        quiet: no progress bars.

    Returns:
        The rows; and every question asked before the updates: {"set", "question", "answer", "right"}, where "right"
        is by containment, and of neighbours always false.

    Raises:
        InputError: the facts do not suit the method.
        WorkError: its work failed.
    """
    began = time.perf_counter(), time.process_time()
    method.teach(exam.facts)
    method.limit = answer_limit(method.model, method.tokenizer, exam.facts)
    costs = [time.perf_counter() - began[0], time.process_time() - began[1], float(method.tokens)]
    rows = [
        Row(metric, "all", value, len(exam.facts))
        for metric, value in zip(("teach_seconds", "teach_cpu_seconds", "teach_tokens"), costs, strict=True)
    ]
    asked = _Asked(method, quiet)
    unseen = [fact for fact in exam.facts if fact.unseen_questions]
    for split, facts, wordings in (
        ("taught", exam.facts, exam.taught),
        ("unseen_phrasing", unseen, [fact.unseen_questions for fact in unseen]),
    ):
        if facts:
            answers = asked(
                split, [Question(q, f.answers) for f, each in zip(facts, wordings, strict=True) for q in each]
            )
            rows += recall_rows(split, facts, wordings, answers, exam.seed, RECALL)
    rows += _neighbour_rows(exam, asked, bare)
    rows.append(
        Row.from_estimate(
            "perplexity",
            "text",
            perplexity_estimate(method.model, method.tokenizer, exam.text, max_tokens=exam.text_tokens),
        )  # fmt: skip
    )
    rows += [
        Row("first_token_seconds", "all", _first_token_seconds(method, exam), TIMED - 1),
        Row("inference_bytes", "all", float(method.inference_bytes()), 1),
        Row("bytes_per_fact", "all", method.stored_bytes() / len(exam.facts), len(exam.facts)),
    ]
    said = list(asked.said)
    return rows + _update_rows(method, exam, quiet), said


class _Asked:
    """A method's answers, and a record of them."""

    def __init__(self, method: Method, quiet: bool) -> None:
        self.method, self.quiet = method, quiet
        self.said: list[dict[str, Any]] = []

    def __call__(self, name: str, questions: Sequence[Question]) -> list[str]:
        """The answers to a set of questions."""
        with progress_bar(f"Asking: {name}", len(questions), quiet=self.quiet) as advance:
            answers = self.method.ask([each.question for each in questions], batch_size=BATCH, progress=advance)
        self.said += [
            {"set": name, "question": q.question, "answer": a, "right": contains_answer(a, q.answers)}
            for q, a in zip(questions, answers, strict=True)
        ]
        return answers


def _neighbour_rows(exam: Exam, asked: _Asked, bare: Mapping[str, str]) -> list[Row]:
    """Neighbours whose answer is the backbone's, word for word; what the backbone knows, and what of it is lost."""
    rows = []
    if exam.untaught:
        answers = asked("untaught", exam.untaught)
        if bare:
            before = [bare[each.question] for each in exam.untaught]
            rows.append(unchanged_row("untaught_entities", before, answers, exam.seed))
    if exam.known:
        answers = asked("known", exam.known)
        right = [contains_answer(a, q.answers) for q, a in zip(exam.known, answers, strict=True)]
        rows.append(Row.from_estimate("known_facts_containment", "memory", mean_interval(right, exam.seed)))
        held = [i for i, q in enumerate(exam.known) if bare and contains_answer(bare[q.question], q.answers)]
        if held:
            lost = mean_interval([not right[i] for i in held], exam.seed)
            rows.append(Row.from_estimate("known_lost", "known", lost))
    return rows


def _first_token_seconds(method: Method, exam: Exam) -> float:
    """Median seconds from a question, asked alone, to the first token of its answer."""
    seconds = []
    for fact in (list(exam.facts) * TIMED)[:TIMED]:
        began = time.perf_counter()
        method.ask([fact.questions[-1]], max_new_tokens=1)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def _update_rows(method: Method, exam: Exam, quiet: bool) -> list[Row]:
    """What it takes to change facts one by one, whether the new answers are given, and the other facts afterwards."""
    if not exam.changed:
        return []
    seconds, given = [], []
    with progress_bar("Changing facts", len(exam.changed), quiet=quiet) as advance:
        for fact in exam.changed:
            began = time.perf_counter()
            try:
                method.update(fact)
            except InputError as error:  # there is no way to
                method.note = "; ".join(filter(None, (method.note, f"no updates: {error}")))
                return []
            except WorkError as error:  # it was tried
                method.note = "; ".join(filter(None, (method.note, f"an update failed: {error}")))
            seconds.append(time.perf_counter() - began)
            answers = method.ask([*fact.questions[:2], *fact.unseen_questions])
            given.append(float(np.mean([contains_answer(answer, fact.answers) for answer in answers])))
            advance(1)
    changed = {fact.id for fact in exam.changed}
    others = [fact for fact in exam.facts if fact.id not in changed]
    rows = [
        Row.from_estimate("update_seconds", "all", mean_interval(seconds, exam.seed)),
        Row.from_estimate("recall_containment", "updated", mean_interval(given, exam.seed)),
    ]
    if others:
        answers = method.ask([fact.questions[0] for fact in others], batch_size=BATCH)
        kept = [contains_answer(a, fact.answers) for a, fact in zip(answers, others, strict=True)]
        rows.append(Row.from_estimate("recall_containment", "others_after_updates", mean_interval(kept, exam.seed)))
    return rows
