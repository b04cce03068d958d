"""A query that is learned further, for `phrasings`: a low-rank change of each memory layer's projection. Not shipped.

Between calibration and the gate, each memory layer's projection W becomes W + W A B, A [q, rank] and B [rank, q],
learned so that two wordings of a fact ask alike: where the answer's first token is predicted, the query of one wording
shall be nearer to that of another of the same fact than to those of the other facts in a batch (InfoNCE; likeness is
the mean cosine of the heads' halves, which are what product keys look up).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import SEED
from memlayers.data.encoding import encode_example, encode_prompt
from memlayers.inference.capture import collect_features
from memlayers.teaching.teacher import Teacher
from memlayers.tuner.handle import memory_handle

STEPS, BATCH, RATE, TEMPERATURE = 600, 256, 3e-3, 0.05


class LearnedQueryTeacher(Teacher):
    """A teacher whose queries are learned after calibration.

    Attributes:
        rank: of the change; 0 leaves the queries as calibration made them.
        agreement: per memory layer, before and after: how often two wordings of a fact find each other.
    """

    def __init__(self, *args: Any, rank: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rank = rank
        self.agreement: dict[str, float] = {}

    def calibrate(self) -> None:
        """Calibrates, then learns the change."""
        super().calibrate()
        if self.rank:
            self._learn_queries()

    @torch.no_grad()
    def _learn_queries(self) -> None:
        tokenizer, memory = self.tokenizer, self.memory
        prompts = [[encode_prompt(tokenizer, question) for question in fact.questions] for fact in self.facts]
        wholes = [[encode_example(tokenizer, q, fact.answer).input_ids for q in fact.questions] for fact in self.facts]
        sequences = [ids for each in wholes for ids in each]
        ends = torch.tensor([len(ids) - 1 for each in prompts for ids in each])
        starts = torch.tensor([0, *map(len, sequences[:-1])]).cumsum(0)
        _, _, key_dim = memory.config.shape
        assert key_dim is not None  # settled when the memory was put in
        half = key_dim // 2
        seen = collect_features(memory_handle(self.model, memory.adapter), sequences)
        for number, (layer, query, features) in enumerate(zip(memory.layers, memory.queries, seen, strict=True)):
            order = torch.argsort(features.sequence, stable=True)
            states = features.inputs[order][starts + ends].view(len(self.facts), len(prompts[0]), -1)
            asked = query(states.flatten(0, 1)).view(*states.shape[:2], -1)
            with torch.enable_grad():
                down, up = _learn(asked, half, self.rank)
            projection = query.projection + query.projection @ down @ up
            self.agreement[f"layer {number}, before"] = _found(asked, half)
            self.agreement[f"layer {number}, after"] = _found(asked + asked @ down @ up, half)
            layer.set_addressing(memory.adapter, query.mean.clone(), projection, float(query.scale))


def _learn(asked: Tensor, half: int, rank: int) -> tuple[Tensor, Tensor]:
    """A [q, rank] and B [rank, q] from queries [facts, wordings, q]."""
    generator = torch.Generator().manual_seed(SEED)
    facts, wordings, width = asked.shape
    down = (torch.randn(width, rank, generator=generator) * width**-0.5).requires_grad_()
    up = torch.zeros(rank, width, requires_grad=True)
    optimizer = torch.optim.Adam([down, up], lr=RATE)
    for _ in range(STEPS):
        chosen = torch.randperm(facts, generator=generator)[:BATCH]
        first = torch.randint(wordings, (len(chosen),), generator=generator)
        second = (first + torch.randint(1, wordings, (len(chosen),), generator=generator)) % wordings
        pair = torch.cat([asked[chosen, first], asked[chosen, second]])
        one, other = _halves(pair + pair @ down @ up, half).chunk(2)
        likeness = one @ other.T / TEMPERATURE
        own = torch.arange(len(chosen))
        loss = F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return down.detach(), up.detach()


def _halves(queries: Tensor, half: int) -> Tensor:
    """Queries [n, q] so scaled that a product of two is the mean cosine of their halves."""
    halves = F.normalize(queries.reshape(len(queries), -1, half), dim=-1)
    scaled: Tensor = halves.flatten(1) / halves.shape[1] ** 0.5
    return scaled


def _found(asked: Tensor, half: int) -> float:
    """How often the query nearest to a fact's first wording is the fact's own, among all facts' last wordings."""
    nearest = (_halves(asked[:, 0], half) @ _halves(asked[:, -1], half).T).argmax(1)
    return float((nearest == torch.arange(len(asked))).float().mean())
