"""After the last exposure: which facts are held in every taught wording, and how the others are taught further."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memlayers.config.sections import ScheduleConfig
from memlayers.data.answers import exact_match
from memlayers.data.encoding import Encoded
from memlayers.data.facts import Fact
from memlayers.inference.generation import answer_limit, answer_questions
from memlayers.inference.record import NotHeld
from memlayers.inference.scoring import answer_confidences
from memlayers.utils.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SURE = 0.5
"""The probability from which an answer is likelier than all others together."""

Wording = tuple[int, int]
"""A fact's place, and that of one of its wordings."""

Wordings = dict[int, list[int]]
"""Of some facts, by their place, the places of some of their wordings."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of every fact in every taught wording found.

    Attributes:
        right: per fact and wording, whether greedy decoding writes the answer.
        confidence: per fact and wording, the probability of the answer and its end, 0 to 1.
    """

    right: list[list[bool]]
    confidence: list[list[float]]

    @property
    def recall(self) -> float:
        """Share of all wordings that are answered rightly, 0 to 1."""
        everything = [right for fact in self.right for right in fact]
        return sum(everything) / len(everything)

    @property
    def wrong(self) -> Wordings:
        """The facts that are not held, with the wordings that are answered wrongly."""
        return self._where(lambda right, _: not right)

    def below(self, confidence: float) -> Wordings:
        """The wordings that are answered wrongly, or with less than this confidence."""
        return self._where(lambda right, sure: not right or sure < confidence)

    def held_confidences(self, fact: int, shown: Collection[int]) -> list[float]:
        """The confidence of a fact's answer in each wording that is answered rightly.

        Args:
            fact: its place.
            shown: the wordings that teaching showed, which count only where all were shown.
        """
        sure = self.confidence[fact]
        right = [j for j, each in enumerate(self.right[fact]) if each]
        return [sure[j] for j in right if j not in shown or len(shown) == len(sure)]

    def _where(self, chosen: Callable[[bool, float], bool]) -> Wordings:
        found = {
            i: [j for j, each in enumerate(zip(right, sure, strict=True)) if chosen(*each)]
            for i, (right, sure) in enumerate(zip(self.right, self.confidence, strict=True))
        }
        return {i: wordings for i, wordings in found.items() if wordings}


@dataclass(frozen=True, slots=True)
class Round:
    """A round of teaching further, between two of its epochs.

    Attributes:
        wrong: how many facts were not held before it.
        taught: how many facts it teaches.
        left: what was not answered surely before it, nor when it was shown since.
        epoch: how many epochs are over.
    """

    wrong: int
    taught: int
    left: Wordings
    epoch: int = 0

    @classmethod
    def after(cls, before: Checked) -> Round:
        """The round that a check calls for."""
        left = before.below(SURE)
        return cls(len(before.wrong), len(left), left)


def check_wordings(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Sequence[Encoded]],
    progress: Any = None,
    *,
    ranks: Ranks = ALONE,
) -> Checked:
    """Asks every fact in every taught wording, by one forward pass each.

    Args:
        model: the PEFT model.
        tokenizer: the backbone's.
        examples: per fact its wordings with the answer.
        progress: called with the number of wordings asked after each batch.
        ranks: the processes that share the work.
    """
    everything = [example for wordings in examples for example in wordings]
    found = iter(answer_confidences(model, tokenizer, everything, progress=progress, ranks=ranks))
    each = [[next(found) for _ in wordings] for wordings in examples]
    return Checked([[right for right, _ in fact] for fact in each], [[sure for _, sure in fact] for fact in each])


def others_of_their_subjects(subjects: Sequence[str], facts: Collection[int]) -> list[int]:
    """All other facts of these facts' subjects, by their places in order; "" is no subject."""
    named = {subjects[i] for i in facts} - {""}
    return [i for i, subject in enumerate(subjects) if i not in facts and subject in named]


def further_batches(
    examples: Sequence[Sequence[Encoded]],
    subjects: Sequence[str],
    left: Mapping[int, Sequence[int]],
    batch_size: int,
    seed: str,
) -> list[list[Wording]]:
    """The batches of an epoch over what is not held surely, beside others lest those be lost.

    The others are the same subjects' other facts, which read nearly the same slots.

    Args:
        examples: per fact its wordings with the answer.
        subjects: per fact its subject, "" where it has none.
        left: what is not held surely; each fact is shown in the first of these wordings.
        batch_size: sequences per batch.
        seed: of the order, and of the others' wordings.

    Returns:
        Places of facts and of their wordings.
    """
    rng = random.Random(seed)
    shown = [(i, wordings[0]) for i, wordings in left.items()]
    shown += [(i, rng.randrange(len(examples[i]))) for i in others_of_their_subjects(subjects, left)]
    rng.shuffle(shown)
    return [shown[start : start + batch_size] for start in range(0, len(shown), batch_size)]


def still_left(left: Mapping[int, Sequence[int]], held: Mapping[Wording, bool]) -> Wordings:
    """What is left after an epoch: not a wording whose answer was sure when it was shown.

    Args:
        left: what was not held surely before it.
        held: the wordings that the epoch showed, and whether each was held surely before its step. One that was not
            comes last of its fact's next.
    """
    after: Wordings = {}
    for i, (first, *others) in left.items():
        again = others if held[i, first] else [*others, first]
        if again:
            after[i] = again
    return after


def generated_check(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    wrong: Mapping[int, Sequence[int]],
    settings: ScheduleConfig,
    seed: int,
    *,
    ranks: Ranks = ALONE,
) -> tuple[float, list[NotHeld]]:
    """The final check, in free generation: of a sample of the facts, and of what is not held.

    Args:
        model: the PEFT model.
        tokenizer: the backbone's.
        facts: all that were taught.
        wrong: what a check by forward passes found.
        settings: how many facts are asked.
        seed: of the sample.
        ranks: the processes that share the work.

    Returns:
        Recall: the share of the sample's taught wordings that is answered rightly, 0 to 1. And the facts that are not
        held, with what is answered instead in the first wording that goes wrong; one of which generation gives an
        accepted answer to all of these wordings is held.
    """
    rng = random.Random(f"{seed}:recall")
    sample = rng.sample(range(len(facts)), min(len(facts), settings.recall_sample))
    each = max(1, settings.recall_sample // len(sample))  # a few facts are asked in several wordings
    asked = [
        (i, j) for i in sample for j in rng.sample(range(len(facts[i].questions)), min(each, len(facts[i].questions)))
    ]
    doubted = [(i, j) for i, wordings in wrong.items() for j in wordings]
    put = list(dict.fromkeys([*asked, *doubted]))
    given = answer_questions(
        model, tokenizer, [facts[i].questions[j] for i, j in put], ranks=ranks,
        max_new_tokens=answer_limit(model, tokenizer, facts),
    )  # fmt: skip
    right = [exact_match(answer, facts[i].answers) for answer, (i, _) in zip(given, put, strict=True)]
    lost: dict[int, dict[int, str]] = {}
    for (i, j), answer, held in zip(put, given, right, strict=True):
        if not held:
            lost.setdefault(i, {})[j] = answer
    not_held = [
        NotHeld(
            fact.id,
            fact.questions[min(wordings)],
            fact.answer,
            wordings[min(wordings)],
            len(wordings),
            len(fact.questions),
        )
        for fact, wordings in ((facts[i], lost[i]) for i in sorted(lost))
    ]
    return sum(right[: len(asked)]) / len(asked), not_held
