"""Learned queries: what is asked of a subject with several facts must choose the slots; calibration learns how.

Whitening keeps all directions in which states differ, also those in which two wordings of one question do. So each
memory layer's projection W becomes W + W A B, A [q, rank] and B [rank, q], such that the queries of two wordings of a
fact are nearer to each other than to those of other facts: at each token that predicts one of the answer, the subject's
direction included, by cosine as product keys compare (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748). It is
folded into the projection, so reading costs what it did and files are as they were. The figures: docs/LOG.md,
2026-12-01.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.config.sections import QueryConfig
from memlayers.data.encoding import IGNORED_LABEL, encode_example
from memlayers.data.facts import Fact
from memlayers.inference.capture import capture
from memlayers.inference.shared_prefix import shared_prefix
from memlayers.tuner.addressing import unit_halves
from memlayers.tuner.handle import MemoryHandle, without_memory
from memlayers.tuner.subject_index import subject_code

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Asked(NamedTuple):
    """Queries at the tokens that predict an answer. Those of a fact at one place of its answer are a class.

    Attributes:
        queries: of each memory layer, float32 [n, q]; those of a class together.
        first: of each class its first query, int64 [classes].
        wordings: of each class how many queries it has, one a wording, int64 [classes].
        subject: of each class, counted from 1, int64 [classes].
    """

    queries: list[Tensor]
    first: Tensor
    wordings: Tensor
    subject: Tensor


def share_subjects(facts: Sequence[Fact]) -> bool:
    """Whether subjects have two facts and more on average, so that learned queries tell more than the subject does."""
    return len(facts) >= 2 * len({fact.subject for fact in facts})


@torch.no_grad()
def learn_queries(
    memory: MemoryHandle,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[tuple[Fact, list[str]]],
    config: QueryConfig,
    *,
    seed: int = 0,
    progress: Any = None,
) -> None:
    """Learns each memory layer's projection further, in place.

    Args:
        memory: a calibrated memory of the addressed recipe whose queries carry subjects.
        tokenizer: the backbone's.
        chosen: facts with their wordings, see `wordings_to_learn_from`; of fewer than two nothing is learned.
        config: how.
        seed: of the change.
        progress: called with the number of wordings read after each batch.
    """
    if len(chosen) < 2:
        return
    asked = _read(memory, tokenizer, chosen, config, progress)
    for number, (layer, query) in enumerate(zip(memory.layers, memory.queries, strict=True)):
        given = asked.queries[number].to(query.projection.device)
        down, up = _change(given, asked, memory, config, seed + number)
        projection = query.projection + query.projection.float() @ down @ up
        layer.set_addressing(memory.adapter, query.mean.clone(), projection, float(query.scale))


def wordings_to_learn_from(facts: Sequence[Fact], config: QueryConfig, seed: int) -> list[tuple[Fact, list[str]]]:
    """The facts, drawn where they are too many, with some of each one's wordings; those with two and more."""
    rng = random.Random(f"{seed}:queries")
    fit = [fact for fact in facts if len(fact.questions) > 1]
    if len(fit) > config.facts:
        fit = rng.sample(fit, config.facts)
    return [(fact, rng.sample(fact.questions, min(len(fact.questions), config.wordings))) for fact in fit]


def _read(
    memory: MemoryHandle,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[tuple[Fact, list[str]]],
    config: QueryConfig,
    progress: Any,
) -> _Asked:
    examples = [encode_example(tokenizer, each, fact.answer) for fact, wordings in chosen for each in wordings]
    asks = [example.labels.count(IGNORED_LABEL) - 1 for example in examples]  # predicts an answer's first token
    places: list[list[int]] = []  # of each example, where in `queries` its tokens go
    first, count, subject = [], [], []
    known: dict[str, int] = {}
    done, i = 0, 0
    for fact, wordings in chosen:
        own = range(i, i + len(wordings))
        depth = min(config.places, *(len(examples[k].input_ids) - 1 - asks[k] for k in own))
        places += [[done + place * len(own) + k for place in range(depth)] for k in range(len(own))]
        first += [done + place * len(own) for place in range(depth)]
        count += [len(own)] * depth
        subject += [known.setdefault(fact.subject, len(known) + 1)] * depth
        done, i = done + depth * len(own), own.stop
    queries = [torch.empty(done, query.width) for query in memory.queries]
    with without_memory(memory.model):
        sequences = [example.input_ids for example in examples]
        prefix = shared_prefix(memory.model, sequences)
        skipped = len(prefix.ids) if prefix is not None else 0
        with capture(memory, "inputs") as seen:
            for batch in seen.run([ids[skipped:] for ids in sequences], progress=progress, prefix=prefix):
                rows = torch.cat([
                    start + asks[k] - skipped + torch.arange(len(places[k]))
                    for k, start in zip(batch.chosen, batch.starts.tolist(), strict=True)
                ])  # fmt: skip
                to = torch.tensor([place for k in batch.chosen for place in places[k]])
                for number, query in enumerate(memory.queries):
                    states = seen.inputs[number]
                    queries[number][to] = query(states[rows.to(states.device)]).cpu()
    return _Asked(queries, torch.tensor(first), torch.tensor(count), torch.tensor(subject))


def _change(
    given: Tensor, asked: _Asked, memory: MemoryHandle, config: QueryConfig, seed: int
) -> tuple[Tensor, Tensor]:
    """A [q, rank] and B [rank, q] for a layer's queries [n, q]."""
    generator = torch.Generator().manual_seed(seed)
    width, device = given.shape[1], given.device
    down = (torch.randn(width, config.rank, generator=generator) * width**-0.5).to(device)
    up = torch.zeros(config.rank, width, device=device)
    optimizer = torch.optim.Adam([down.requires_grad_(), up.requires_grad_()], lr=config.rate)
    with torch.enable_grad():
        for _ in range(config.steps):
            chosen = torch.randperm(len(asked.first), generator=generator)[: config.batch_size]
            count = asked.wordings[chosen]
            one = (torch.rand(len(chosen), generator=generator) * count).long()
            step = 1 + (torch.rand(len(chosen), generator=generator) * (count - 1)).long()
            places = [asked.first[chosen] + each for each in (one, (one + step) % count)]
            code = subject_code(asked.subject[chosen].to(device), width)
            pair = [_as_read(given[place] + given[place] @ down @ up, code, memory) for place in places]
            likeness = pair[0] @ pair[1].T / config.temperature  # [classes, classes]
            own = torch.arange(len(chosen), device=device)
            loss = F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return down.detach(), up.detach()


def _as_read(query: Tensor, code: Tensor, memory: MemoryHandle) -> Tensor:
    """Queries [n, q], with their subjects, so scaled that a product of two is the mean cosine of their halves."""
    heads = memory.config.shape.heads
    halves = unit_halves(query.view(len(query), heads, 2, -1), code, memory.config.subject_weight)
    scaled: Tensor = halves.flatten(1) / (2 * heads) ** 0.5
    return scaled
