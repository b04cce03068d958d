"""Fits the relation check: whether what is asked of a subject was taught (tuner/relation_check.py).

Facts that share a wording, or the name of a relation, ask for the same thing. The backbone reads their questions
without the subject, so that what is left is the wording: the same for all subjects, and read once. A state is made to
show what is asked, and not how, by a linear discriminant (Fisher 1936; Rao 1948): directions in which wordings of
different relations lie far apart, in units of how wordings of one relation scatter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.config.sections import RelationConfig
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.inference.capture import prompt_states
from memlayers.inference.record import RelationReport
from memlayers.linking.mention_forms import SubjectForms, subject_mentions
from memlayers.tuner.handle import MemoryHandle
from memlayers.tuner.relation_check import ACCEPTS_ALL, RELATION_DIM, RelationCheck, without_mention

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAIL = 0.2  # share of the scores that their tail is fitted to
_SUBJECT = "\0"  # in a wording, where the subject stands


@dataclass(frozen=True, slots=True)
class RelationExample:
    """A fact's own question: what it asks for, and which wording of it."""

    text: str
    fact: int
    relation: int
    wording: int


def relations_of(facts: Sequence[Fact]) -> list[int]:
    """A number per fact: equal where facts share a wording, apart from the subject, or the name of a relation."""
    parent = list(range(len(facts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, (fact, wordings) in enumerate(zip(facts, _wordings(facts), strict=True)):
        signs = [("wording", wording) for wording in wordings if _SUBJECT in wording]
        for sign in [*signs, *([("relation", fact.relation)] if fact.relation else [])]:
            a, b = root(first.setdefault(sign, i)), root(i)
            parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(facts))]


def relation_entries(facts: Sequence[Fact], subjects: SubjectForms) -> list[tuple[int, int]]:
    """The distinct (fingerprint of a run that spells a subject, relation); none where all facts ask the same."""
    relations = relations_of(facts)
    if len(set(relations)) < 2:
        return []
    prints = {run: subjects.letters.fingerprint(run) for run in subjects.forms}
    pairs = zip(subjects.of_fact, relations, strict=True)
    return sorted({(prints[run], relation) for runs, relation in pairs for run in runs})


def fit_relations(
    memory: MemoryHandle,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    subjects: SubjectForms,
    examples: Sequence[RelationExample],
    config: RelationConfig | None = None,
    *,
    progress: Any = None,
) -> RelationReport:
    """Fills the memory's check with keys of the facts, and settles its threshold.

    Of the two states of `prompt_states` the one is taken by which fewer questions for another relation pass. The
    threshold comes from keys made without some of the wordings, which are then asked: by a fit to their scores all but
    `config.refused` of the facts' own questions reach it, and `config.accepted` of those for another relation, if that
    is lower. The keys that are kept are made of all.

    Args:
        memory: the memory, built with a relation check.
        tokenizer: the backbone's.
        facts: what it holds.
        subjects: what `gate.subject_forms` found.
        examples: from `relation_examples`.
        config: how.
        progress: called with the number of examples done after each batch.
    """
    config = config or RelationConfig()
    entries = relation_entries(facts, subjects)
    check = memory.relation_check
    assert check is not None
    prints = torch.tensor([each for each, _ in entries], dtype=torch.int64)
    prompts = [
        without_mention(encode_prompt(tokenizer, example.text), prints, subjects.letters) for example in examples
    ]
    relations = [example.relation for example in examples]
    part = [example.wording % config.folds for example in examples]
    found = []
    for deep, states in enumerate(prompt_states(memory, prompts, progress=progress)):
        own, others = _held_out_scores(check, states, relations, part, config)
        threshold = ACCEPTS_ALL
        if len(own) >= config.least_held_out:
            threshold = _score_reached(own, config.refused)
            if others:  # where the two are far apart, there is room for wordings that are odder still
                threshold = min(threshold, float(torch.tensor(others).quantile(1 - config.accepted)))
        report = RelationReport(threshold, *(_share_from(scores, threshold) for scores in (own, others)))
        found.append((report.accepted_others, deep, report, states))
    _, deep, report, states = min(found, key=lambda each: each[:2])
    centre, projection, keys = _fit(states, relations, config.shrinkage)
    kept_keys = torch.stack([keys[relation] for _, relation in entries])
    check.fill(centre, projection, prints.tolist(), kept_keys, report.threshold, deep=bool(deep))
    return report


def _held_out_scores(
    check: RelationCheck, states: Tensor, relations: Sequence[int], part: Sequence[int], config: RelationConfig
) -> tuple[list[float], list[float]]:
    """Scores of questions by keys made without their part of the wordings: for their own relation, and for another."""
    rng = random.Random(len(states))  # one other relation is drawn for each question
    own: list[float] = []
    others: list[float] = []
    for fold in range(config.folds):
        kept = [i for i, each in enumerate(part) if each != fold]
        asked = [i for i, each in enumerate(part) if each == fold]
        if not kept or not asked:
            continue
        centre, projection, keys = _fit(states[kept], [relations[i] for i in kept], config.shrinkage)
        every, known = torch.stack(list(keys.values())), list(keys)
        rows = F.normalize((states[asked] - centre) @ projection, dim=1)
        for row, relation in zip(rows, (relations[i] for i in asked), strict=True):
            other = rng.choice(known)
            for taught, scores in ((relation, own), *([(other, others)] if other != relation else [])):
                if taught in keys:
                    scores.append(float(check.score(row, keys[taught][None], every)))
    return own, others


def relation_keys(
    memory: MemoryHandle, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], prints: Tensor
) -> Tensor:
    """The keys of facts that come later, [n, k], from their phrasings and the memory's own projection.

    Args:
        memory: it has a check.
        tokenizer: the backbone's.
        facts: the facts.
        prints: fingerprints of the surface forms of all subjects, those of these facts among them.
    """
    check, index = memory.relations, memory.index
    assert check is not None and index is not None
    prompts = [
        without_mention(encode_prompt(tokenizer, question), prints, index.table)
        for fact in facts
        for question in fact.questions
    ]
    projected = check.project(prompt_states(memory, prompts, deep=bool(check.deep))[-1].to(check.centre.device))
    means = [each.mean(0) for each in projected.split([len(fact.questions) for fact in facts])]
    return F.normalize(torch.stack(means), dim=1)


def _wordings(facts: Sequence[Fact]) -> list[list[str]]:
    """The facts' phrasings with `_SUBJECT` in the place of what names the subject."""
    return [
        [question.replace(name, _SUBJECT) for question, name in zip(fact.questions, names, strict=True)]
        for fact, names in zip(facts, subject_mentions(facts), strict=True)
    ]


def relation_examples(facts: Sequence[Fact], config: RelationConfig, seed: int) -> list[RelationExample]:
    """What the check is fitted to: taught questions, two per relation that has them, then one per wording, then others.

    Args:
        facts: what the memory holds.
        config: how many.
        seed: of the choice.
    """
    relations, wordings = relations_of(facts), _wordings(facts)
    numbers: dict[tuple[int, str], int] = {}  # of the wordings within their relation
    counts: dict[int, int] = {}
    taught: list[RelationExample] = []
    for i, (fact, relation) in enumerate(zip(facts, relations, strict=True)):
        for question, wording in zip(fact.questions, wordings[i], strict=True):
            sign = relation, wording
            if sign not in numbers:
                numbers[sign] = counts.get(relation, 0)
                counts[relation] = numbers[sign] + 1
            taught.append(RelationExample(question, i, relation, numbers[sign]))
    random.Random(f"{seed}:relations").shuffle(taught)
    first: list[RelationExample] = []
    other: list[RelationExample] = []
    again: list[RelationExample] = []
    of_relation: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    for example in taught:
        of_relation[example.relation] = of_relation.get(example.relation, 0) + 1
        new = (example.relation, example.wording) not in seen
        seen.add((example.relation, example.wording))
        (first if of_relation[example.relation] <= 2 else other if new else again).append(example)
    return [*first, *[*other, *again][: max(0, config.examples - len(first))]]


def _fit(states: Tensor, relations: Sequence[int], shrinkage: float) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """The discriminant's mean [d] and projection [d, k], and the unit key [k] of each relation; float32."""
    present = sorted(set(relations))
    order = {relation: i for i, relation in enumerate(present)}
    place = torch.tensor([order[relation] for relation in relations])
    x = states.double()
    counts = torch.bincount(place, minlength=len(present)).double()
    means = torch.zeros(len(present), x.shape[1], dtype=torch.float64).index_add(0, place, x) / counts[:, None]
    scatter = x - means[place]
    variances, directions = torch.linalg.eigh(scatter.T @ scatter / len(x))
    spread = variances.clamp_min(0) + shrinkage * variances.clamp_min(0).mean().clamp_min(1e-12)
    whiten = directions * spread.rsqrt()
    mean = means.mean(0)
    apart = torch.linalg.svd((means - mean) @ whiten, full_matrices=False)[2]
    projection = whiten @ apart[: min(RELATION_DIM, max(1, len(present) - 1))].T
    rows = F.normalize((x - mean) @ projection, dim=1)
    keys = torch.zeros(len(present), rows.shape[1], dtype=torch.float64).index_add(0, place, rows)
    keys = F.normalize(keys, dim=1).float()
    return mean.float(), projection.float(), dict(zip(present, keys, strict=True))


def _score_reached(scores: Sequence[float], share: float) -> float:
    """The score that all but a share of such questions reach, from a fitted tail.

    The quantile itself would be the score of the one or two oddest wordings. Below the lowest fifth scores are taken
    to fall off exponentially, by their mean shortfall (peaks over a threshold, Pickands 1975); never below the lowest.
    """
    found = torch.tensor(scores)
    low = found.quantile(_TAIL)
    below = (low - found)[found < low]
    fitted = low - below.mean() * math.log(_TAIL / share) if len(below) else low
    return float(torch.maximum(fitted, found.min()))


def _share_from(scores: Iterable[float], threshold: float) -> float:
    passed = [score >= threshold for score in scores]
    return sum(passed) / len(passed) if passed else 1.0
