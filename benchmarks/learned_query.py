"""A lever of `phrasings.py` that is not shipped: a learned low-rank change of the query.

Between calibration and the gate, each memory layer's projection W becomes W + W A B, A [q, rank] and B [rank, q],
learned so that two wordings of a fact ask alike: where the answer's first token is predicted, the query of one wording
shall be nearer to that of another of the same fact than to those of the other facts in a batch (InfoNCE; likeness is
the mean cosine of the heads' halves, which are what product keys look up).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers import Fact
from memlayers.backbones import load_backbone
from memlayers.data.encoding import encode_example, encode_prompt
from memlayers.inference.capture import LayerFeatures, collect_features
from memlayers.teaching import teach
from memlayers.teaching.calibrate import calibrate
from memlayers.tuner import memory_layers

STEPS, BATCH, RATE, TEMPERATURE, SEED = 600, 256, 3e-3, 0.05, 137


@contextmanager
def learned_query(facts: Sequence[Fact], rank: int | None) -> Iterator[dict[str, float]]:
    """Within it, teaching these facts learns the change (rank None: none); tells how often wordings find each other."""
    told: dict[str, float] = {}
    if rank is None:
        yield told
        return
    tokenizer = load_backbone("pocket", "float32")[1]

    def calibrate_and_learn(model: Any, adapter: str, features: Sequence[Sequence[LayerFeatures]]) -> None:
        calibrate(model, adapter, features)
        prompts = [[encode_prompt(tokenizer, question) for question in fact.questions] for fact in facts]
        wholes = [[encode_example(tokenizer, q, fact.answer).input_ids for q in fact.questions] for fact in facts]
        sequences = [ids for each in wholes for ids in each]
        ends = torch.tensor([len(ids) - 1 for each in prompts for ids in each])
        for number, seen in enumerate(collect_features(model, adapter, sequences)):
            layer = memory_layers(model, adapter)[number]
            query: Any = layer.memlayers_query[adapter]
            order = torch.argsort(seen.sequence, stable=True)
            starts = torch.tensor([0, *map(len, sequences[:-1])]).cumsum(0)
            states = seen.inputs[order][starts + ends].view(len(facts), len(prompts[0]), -1)
            asked = query(states.flatten(0, 1)).view(*states.shape[:2], -1)
            half = layer.memlayers_sub_keys[adapter].shape[-1]
            with torch.enable_grad():
                down, up = _learn(asked, half, rank)
            projection = query.projection + query.projection @ down @ up
            told[f"layer {number}, before"] = _found(asked, half)
            told[f"layer {number}, after"] = _found(asked + asked @ down @ up, half)
            layer.set_addressing(adapter, query.mean.clone(), projection, float(query.scale))

    with mock.patch.object(teach, "calibrate", calibrate_and_learn):
        yield told


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
