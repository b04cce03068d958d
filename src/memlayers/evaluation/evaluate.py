"""Scores a memory by the protocol of docs/evaluation.md: what it recalls, and what it leaves alone.

Every before/after is paired: the same items through the same process, once with the adapter disabled.
"""

from __future__ import annotations

import random
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch

from memlayers.data.answers import contains_answer, exact_match, token_f1
from memlayers.data.facts import Fact, Question
from memlayers.editing.memory import Memory
from memlayers.evaluation.results import Results, Row
from memlayers.evaluation.statistics import auroc_interval, mean_interval, paired_difference
from memlayers.evaluation.text_scores import score_text, split_of
from memlayers.inference.answering import Answer, judge_answers
from memlayers.inference.generation import Generated, answer_limit, generate_answers
from memlayers.inference.record import TeachReport
from memlayers.tuner.handle import without_memory
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Match = Callable[[str, Sequence[str]], float]
"""How right an answer is, 0 to 1, beside the accepted ones."""

RECALL: Final[Mapping[str, Match]] = MappingProxyType(
    {"recall": exact_match, "recall_containment": contains_answer, "recall_token_f1": token_f1}
)
KNOWN: Final[Mapping[str, Match]] = MappingProxyType(
    {"known_facts": exact_match, "known_facts_containment": contains_answer, "known_facts_token_f1": token_f1}
)
QA: Final[Mapping[str, Match]] = MappingProxyType(
    {"qa_exact_match": exact_match, "qa_containment": contains_answer, "qa_token_f1": token_f1}
)


def evaluate(
    memory: Memory,
    *,
    facts: Sequence[Fact] = (),
    known: Sequence[Question] = (),
    qa: Sequence[Question] | Mapping[str, Sequence[Question]] = (),
    untaught: Sequence[Question] = (),
    text: str | Mapping[str, str] | None = None,
    phrasings: int | None = None,
    max_text_tokens: int | None = None,
    seed: int = 137,
    quiet: bool = False,
) -> Results:
    """Scores a memory against its backbone on the same items.

    Args:
        memory: from `load_memory`, `teach_facts` or `regate_memory`.
        facts: what was taught: recall on taught and on never-taught phrasings, and the backbone's own.
        known: what the backbone knows (`evaluation.known.questions_known`): kept or not.
        qa: questions of any kind, answers with aliases: how right before and after. Several sets by name, which then
            stands before their splits.
        untaught: questions of the facts' shape about entities that were never taught: abstention, if there are facts.
        text: general text: perplexity before and after, share of tokens whose logits are bit-identical. Several by
            name, which then stands before their splits.
        phrasings: taught phrasings asked per fact, seeded choice; None asks all.
        max_text_tokens: read this much of each text; None reads all.
        seed: of the choice of phrasings and of the bootstrap.
        quiet: no progress bars.

    Returns:
        What `results.write_results` writes and the report is drawn from: rows with n and interval, the curve of the
        teaching and what it cost, where there is a record of it, and some examples.

    Raises:
        InputError: nothing to score, a question longer than the context, a text of less than two tokens.
    """
    if not (facts or known or qa or text):
        raise InputError("nothing to score: give facts, known, qa or text")
    rows, examples = score_model(
        memory.model, memory.tokenizer,
        facts=facts, known=known, qa=qa, untaught=untaught, text=text, phrasings=phrasings,
        max_text_tokens=max_text_tokens, seed=seed, quiet=quiet,
    )  # fmt: skip
    device, taught = str(memory.model.device), memory.teaching
    if taught is not None:
        rows += cost_rows(taught.report, taught.facts, device)
    settings = {"memory": str(memory.folder), "phrasings": phrasings, "seed": seed}
    return Results(environment(device), settings, rows, taught.report.curve if taught else [], examples)


def score_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    facts: Sequence[Fact] = (),
    known: Sequence[Question] = (),
    qa: Sequence[Question] | Mapping[str, Sequence[Question]] = (),
    untaught: Sequence[Question] = (),
    text: str | Mapping[str, str] | None = None,
    phrasings: int | None = None,
    max_text_tokens: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    backbone_said: dict[int, dict[str, Generated]] | None = None,
    quiet: bool = False,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Scores a memory and its backbone on the same items.

    Args:
        model: a PEFT model with a memory.
        tokenizer: the backbone's.
        facts: what was taught: recall on taught and on never-taught phrasings, and the backbone's own.
        known: what the backbone knows (`evaluation.known.questions_known`): kept or not.
        qa: questions of any kind, answers with aliases: how right before and after. Several sets by name, which then
            stands before their splits (`split_of`).
        untaught: questions of the facts' shape about entities that were never taught: abstention, if there are facts.
        text: general text: perplexity before and after, share of tokens whose logits are bit-identical. Several by
            name, which then stands before their splits.
        phrasings: taught phrasings asked per fact, seeded choice; None asks all.
        max_text_tokens: read this much of each text; None reads all.
        batch_size: questions per batch.
        seed: of the choice of phrasings and of the bootstrap.
        backbone_said: the bare backbone's answers so far, by their most tokens and by question, to be added to: give
            the same one again where several memories of one backbone are scored.
        quiet: no progress bars.

    Returns:
        The rows, and some examples for the report: question, answer, backbone, memory.
    """
    limit = answer_limit(model, tokenizer, facts)
    said = {} if backbone_said is None else backbone_said.setdefault(limit, {})
    asked = _Asked(model, tokenizer, limit, batch_size, said, quiet)

    def ask(label: str, questions: Sequence[str], memory: bool) -> list[str]:
        return [answer.text for answer in asked.answers(label, questions, memory)]

    rows: list[Row] = []
    examples: list[dict[str, Any]] = []
    if facts:
        rng = random.Random(seed)
        taught = [rng.sample(f.questions, min(phrasings or len(f.questions), len(f.questions))) for f in facts]
        first = [questions[0] for questions in taught]
        backbone = ask("Backbone's own recall", first, memory=False)
        memory = ask("Recall, taught phrasings", [q for questions in taught for q in questions], memory=True)
        rows += recall_rows("backbone", facts, [[question] for question in first], backbone, seed)
        rows += recall_rows("taught", facts, taught, memory, seed)
        unseen = [fact for fact in facts if fact.unseen_questions]
        if unseen:
            never = [list(fact.unseen_questions) for fact in unseen]
            answers = ask("Recall, phrasings never taught", [q for questions in never for q in questions], memory=True)
            rows += recall_rows("unseen_phrasing", unseen, never, answers, seed)
        position = 0
        for fact, questions, own_answer in zip(facts, taught, backbone, strict=True):
            examples.append(
                {
                    "question": questions[0],
                    "answer": fact.answer,
                    "backbone": own_answer,
                    "memory": memory[position],
                }
            )
            position += len(questions)
    sets = qa if isinstance(qa, Mapping) else {"": qa}
    paired = [(KNOWN, "", "known", known, "Known facts")]
    paired += [(QA, name, "qa", items, name or "QA file") for name, items in sets.items()]
    for matches, name, kind, items, label in paired:
        if items:
            questions = [item.question for item in items]
            before = ask(f"{label}, backbone", questions, memory=False)
            after = ask(f"{label}, memory", questions, memory=True)
            rows += _paired_rows(matches, name, items, before, after, seed)
            rows.append(unchanged_row(split_of(name, kind), before, after, seed))
    if facts and untaught:
        shown = [Question(question, fact.answers) for question, fact in zip(first, facts, strict=True)]
        rows += _abstention_rows((model, tokenizer), asked, shown, facts, untaught, known, seed)
    texts = text if isinstance(text, Mapping) else {} if text is None else {"": text}
    for name, words in texts.items():
        rows += score_text(model, tokenizer, words, max_tokens=max_text_tokens, quiet=quiet).rows(name)
    return rows, rng.sample(examples, min(12, len(examples))) if facts else []


class _Asked:
    """Answers that were given already, so that nothing is asked twice."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        limit: int,
        batch_size: int,
        backbone_said: dict[str, Generated],
        quiet: bool,
    ) -> None:
        self.model, self.tokenizer, self.quiet = model, tokenizer, quiet
        self.options: dict[str, Any] = {"max_new_tokens": limit, "batch_size": batch_size}
        self.given: dict[bool, dict[str, Generated]] = {True: {}, False: backbone_said}

    def answers(self, label: str, questions: Sequence[str], memory: bool) -> list[Generated]:
        """The answers of the model with its memory, or without; `label` is shown meanwhile."""
        given = self.given[memory]
        new = [question for question in dict.fromkeys(questions) if question not in given]
        side = nullcontext() if memory else without_memory(self.model)
        with progress_bar(label, len(new), quiet=self.quiet) as advance, side:
            found = generate_answers(self.model, self.tokenizer, new, progress=advance, **self.options)
        given.update(zip(new, found, strict=True))
        return [given[question] for question in questions]


def _abstention_rows(
    memory: tuple[Any, PreTrainedTokenizerBase],
    asked: _Asked,
    taught: Sequence[Question],
    facts: Sequence[Fact],
    untaught: Sequence[Question],
    known: Sequence[Question],
    seed: int,
) -> list[Row]:
    """Whether the memory knows what it was taught: one taught and one other phrasing per fact against `untaught`."""
    rng = random.Random(f"{seed}:abstention")
    splits = {
        "taught": list(taught),
        "unseen_phrasing": [Question(rng.choice(f.unseen_questions), f.answers) for f in facts if f.unseen_questions],
        "untaught_entities": list(untaught),
        "known": list(known),
    }
    given: dict[str, list[Answer]] = {}
    for split, items in splits.items():
        questions = [item.question for item in items]
        sides = [asked.answers(f"Abstention, {split}", questions, memory_on) for memory_on in (True, False)]
        given[split] = judge_answers(*memory, questions, *sides)
    stored = [answer.score for split in ("taught", "unseen_phrasing") for answer in given[split]]
    others = [answer.score for answer in given["untaught_entities"]]
    rows = [Row.from_estimate("abstention_auroc", "untaught_entities", auroc_interval(stored, others, seed))]
    for split in ("taught", "unseen_phrasing"):
        if given[split]:
            held = [answer.source == "memory" for answer in given[split]]
            rows.append(Row.from_estimate("answered", split, mean_interval(held, seed)))
    if known:
        spoken = [answer.source != "unknown" for answer in given["known"]]
        rows.append(Row.from_estimate("answered", "known", mean_interval(spoken, seed)))
    fabricated = [
        answer.source != "unknown" and not exact_match(answer.text, q.answers)
        for answer, q in zip(given["untaught_entities"], untaught, strict=True)
    ]
    rows.append(Row.from_estimate("fabricated", "untaught_entities", mean_interval(fabricated, seed)))
    by_memory = [
        wrong and a.source == "memory" for wrong, a in zip(fabricated, given["untaught_entities"], strict=True)
    ]
    rows.append(Row.from_estimate("fabricated", "untaught_entities_by_memory", mean_interval(by_memory, seed)))
    neighbours = given["untaught_entities"]
    bare, with_memory = [answer.backbone for answer in neighbours], [answer.memory for answer in neighbours]
    return [*rows, unchanged_row("untaught_entities", bare, with_memory, seed)]


def cost_rows(report: TeachReport, facts: int, device: str) -> list[Row]:
    """What teaching cost: exposures per fact, seconds, the process's peak memory."""
    return [
        Row("exposures_per_fact", "all", report.exposures, facts),
        Row("teach_seconds", "all", report.seconds, report.steps),
        Row("peak_memory_bytes", "all", float(peak_memory_bytes(device)), 1),
    ]


def peak_memory_bytes(device: str) -> int:
    """Peak memory in bytes: of the device's allocator on a GPU, of the process (resident) on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def recall_rows(
    split: str,
    facts: Sequence[Fact],
    asked: Sequence[Sequence[str]],
    answers: Sequence[str],
    seed: int,
    matches: Mapping[str, Match] = RECALL,
) -> list[Row]:
    """Recall; the phrasings of one fact are not independent, so the interval resamples facts.

    Args:
        split: of the rows.
        facts: those that were asked about.
        asked: per fact the phrasings, at least one.
        answers: to all of them, in their order.
        seed: of the intervals.
        matches: metric -> how right an answer is.
    """
    found = iter(answers)
    given = [[next(found) for _ in questions] for questions in asked]
    rows = []
    for metric, match in matches.items():
        scores = [
            sum(match(answer, fact.answers) for answer in each) / len(each)
            for fact, each in zip(facts, given, strict=True)
        ]
        rows.append(Row.from_estimate(metric, split, mean_interval(scores, seed)))
    return rows


def _paired_rows(
    matches: Mapping[str, Match],
    name: str,
    items: Sequence[Question],
    before: Sequence[str],
    after: Sequence[str],
    seed: int,
) -> list[Row]:
    """How right the answers of the bare backbone and of the memory are to the same questions, and the change."""
    rows = []
    for metric, match in matches.items():
        bare, with_memory = (
            [match(answer, item.answers) for answer, item in zip(side, items, strict=True)] for side in (before, after)
        )
        found = {
            "backbone": mean_interval(bare, seed),
            "memory": mean_interval(with_memory, seed),
            "change": paired_difference(bare, with_memory, seed),
        }
        rows += [Row.from_estimate(metric, split_of(name, split), estimate) for split, estimate in found.items()]
    return rows


def unchanged_row(split: str, before: Sequence[str], after: Sequence[str], seed: int) -> Row:
    """The share of questions whose answer is the bare backbone's, word for word."""
    same = [first == second for first, second in zip(before, after, strict=True)]
    return Row.from_estimate("unchanged_answers", split, mean_interval(same, seed))
