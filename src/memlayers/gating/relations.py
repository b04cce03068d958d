"""Fits the relation check: whether what is asked of a subject was taught (tuner/relation_check.py).

Facts that share a wording, or the name of a relation, ask for the same thing. A state is made to show what is asked,
and not of which subject, by a linear discriminant (Fisher 1936; Rao 1948): directions in which questions for different
things lie far apart, in units of how questions for one thing scatter. Its examples are the taught questions, and their
wordings put to the subjects of other facts: so that "writer" and "place of birth" are told apart by the question, not
by the person.
"""

from __future__ import annotations

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
from memlayers.tuner.relation_check import ACCEPTS_ALL, RELATION_DIM
from memlayers.tuner.subject_index import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUBJECT = "\0"  # in a wording, where the subject stands


@dataclass(frozen=True, slots=True)
class RelationExample:
    """A question put to a fact's subject: what it asks for, and which wording of it."""

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
    prints = {run: fingerprint(run) for run in subjects.forms}
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

    The threshold comes from keys made without some of the wordings, which are then asked: all but `config.refused` of
    the facts' own questions reach it. The keys that are kept are made of all.

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
    relations = relations_of(facts)
    states = prompt_states(memory, [encode_prompt(tokenizer, example.text) for example in examples], progress=progress)
    own: list[Tensor] = []
    others: list[Tensor] = []
    taught_of: dict[str, set[int]] = {}
    for fact, relation in zip(facts, relations, strict=True):
        taught_of.setdefault(fact.subject, set()).add(relation)
    for fold in range(config.folds):
        kept = [i for i, example in enumerate(examples) if example.wording % config.folds != fold]
        asked = [i for i, example in enumerate(examples) if example.wording % config.folds == fold]
        if not kept or not asked:
            continue
        mean, projection, keys = _fit(states[kept], [examples[i].relation for i in kept], config.shrinkage)
        rows = F.normalize((states[asked].float() - mean) @ projection, dim=1)
        for i, row in zip(asked, rows, strict=True):
            example = examples[i]
            relation = relations[example.fact]
            if relation in keys:
                same = example.relation in taught_of[facts[example.fact].subject] | {relation}
                (own if same else others).append(row @ keys[relation])
    mean, projection, keys = _fit(states, [example.relation for example in examples], config.shrinkage)
    threshold = float(torch.stack(own).quantile(config.refused)) if len(own) >= config.least_held_out else ACCEPTS_ALL
    entries = relation_entries(facts, subjects)
    check = memory.relation_check
    assert check is not None
    kept_keys = torch.stack([keys[relation] for _, relation in entries])
    check.fill(mean, projection, [each for each, _ in entries], kept_keys, threshold)
    return RelationReport(threshold, *(_share_from(scores, threshold) for scores in (own, others)))


def relation_keys(memory: MemoryHandle, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> Tensor:
    """The keys of facts that come later, [n, k], from their phrasings and the memory's own projection."""
    check = memory.relations
    assert check is not None
    prompts = [encode_prompt(tokenizer, question) for fact in facts for question in fact.questions]
    projected = check.project(prompt_states(memory, prompts).to(check.mean.device))
    means = [each.mean(0) for each in projected.split([len(fact.questions) for fact in facts])]
    return F.normalize(torch.stack(means), dim=1)


def _wordings(facts: Sequence[Fact]) -> list[list[str]]:
    """The facts' phrasings with `_SUBJECT` in the place of what names the subject."""
    return [
        [question.replace(name, _SUBJECT) for question, name in zip(fact.questions, names, strict=True)]
        for fact, names in zip(facts, subject_mentions(facts), strict=True)
    ]


def relation_examples(facts: Sequence[Fact], config: RelationConfig, seed: int) -> list[RelationExample]:
    """What the check is fitted to: taught questions, at least two per relation that has them, and swapped wordings.

    Args:
        facts: what the memory holds.
        config: how many of each kind.
        seed: of the choice.
    """
    relations = relations_of(facts)
    rng = random.Random(f"{seed}:relations")
    names, wordings = subject_mentions(facts), _wordings(facts)
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
    rng.shuffle(taught)
    needed: dict[int, int] = {}
    kept: list[RelationExample] = []
    for example in taught:
        needed[example.relation] = needed.get(example.relation, 0) + 1
        if needed[example.relation] <= 2 or len(kept) < config.examples:
            kept.append(example)
    swapped = []
    for _ in range(min(config.swapped, 2 * len(taught))):
        example, other = rng.choice(taught), rng.randrange(len(facts))
        name = rng.choice(names[other])
        wording = wordings[example.fact][facts[example.fact].questions.index(example.text)]
        if _SUBJECT in wording:
            text = wording.replace(_SUBJECT, name)
            swapped.append(RelationExample(text, other, example.relation, example.wording))
    return kept + swapped


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


def _share_from(scores: Iterable[Tensor], threshold: float) -> float:
    passed = [float(score) >= threshold for score in scores]
    return sum(passed) / len(passed) if passed else 1.0
