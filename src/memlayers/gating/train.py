"""Trains the relevance gate on the bare backbone, before a single value is written (docs/method.md).

A small network tells the facts' contexts, question and answer, from general text. Its threshold is hard, so that a
closed gate leaves the backbone's logits as they are, to the bit; teaching then happens under it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.config.sections import GateConfig
from memlayers.inference.capture import LayerFeatures
from memlayers.inference.record import GateReport
from memlayers.tuner.handle import MemoryHandle
from memlayers.tuner.subject_index import SubjectIndex

STEPS = 500
"""Optimizer steps per gate where none are given (docs/LOG.md)."""


def train_gates(
    memory: MemoryHandle,
    facts: Sequence[LayerFeatures],
    general: Sequence[LayerFeatures],
    config: GateConfig | None = None,
    *,
    passages: int = 0,
    sequences: Sequence[Sequence[int]] = (),
    seed: int = 0,
    progress: Any = None,
) -> list[GateReport]:
    """Trains each memory layer's gate to open on fact contexts and to stay closed on general text.

    A memory that knows its subjects has one gate, at its first layer. It need not tell entities apart, so of the
    general text the passages alone are its negatives (where there are any). Its positives are, of the facts' contexts,
    the tokens behind the subject (the gate is not asked about others), and the general text's chats:
    questions of every kind, so that it does not close on a kind of question that the facts had none of.

    Class-balanced binary cross-entropy with Adam, as in the v0.2 reference recipe.
    A tenth of the sequences is held out for the report.

    Args:
        memory: the memory, built with gates.
        facts: features of the facts' contexts, one entry per memory layer.
        general: features of general text, one entry per memory layer.
        config: threshold, steps, batch size and rate. The threshold is raised, by at most `config.most_raised`, to the
            largest logit on held-out passages: on running text a gate has no business at all.
        passages: number of the general text's sequences that are running text rather than chats; they come first.
        sequences: the token ids of the facts' contexts; needed where the memory knows its subjects.
        seed: of the order of the tokens.
        progress: called with 1 after each step.

    Returns:
        One report per gate.
    """
    config = config or GateConfig()
    steps = config.steps or STEPS
    reports = []
    layers, index = memory.layers, memory.index
    chats = facts[0].inputs[:0]
    if index is not None:
        kept = _behind_the_subject(index, facts[0], sequences)
        layers, facts = layers[:1], [_rows(facts[0], kept)]
        chats = general[0].inputs[general[0].sequence >= passages] if passages else chats
        general = [_rows(general[0], general[0].sequence < passages) if passages else general[0]]
    for layer, positive, negative in zip(layers, facts, general, strict=True):
        gate: Any = layer.memlayers_gate[memory.adapter]
        device = gate.mean.device
        generator = torch.Generator().manual_seed(seed)
        train_positive, held_positive = _held_out(positive)
        train_negative, held_negative = _held_out(negative)
        train_positive = torch.cat([train_positive, chats])
        rows = torch.cat([train_positive, train_negative]).float()
        gate.mean.copy_(rows.mean(0))
        gate.std.copy_(rows.std(0).clamp_min(1e-6))
        half = config.batch_size // 2
        labels = torch.cat([torch.ones(half), torch.zeros(half)]).to(device)
        parameters = [parameter.requires_grad_(True) for parameter in gate.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=config.rate)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = config.rate * (1 - step / steps)
            picked = [
                source[torch.randint(len(source), (half,), generator=generator)]
                for source in (train_positive, train_negative)
            ]
            loss = F.binary_cross_entropy_with_logits(gate(torch.cat(picked).to(device)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(1)
        for parameter in parameters:
            parameter.requires_grad_(False)
        largest = _largest_on_passages(gate, negative, passages)
        settled = min(max(config.threshold, largest), config.threshold + config.most_raised)
        gate.threshold.fill_(settled)
        gate.trained.fill_(1)
        opened = [gate.is_open(rows.to(device)).float().mean().item() for rows in (held_positive, held_negative)]
        reports.append(GateReport(settled, *opened))
    return reports


def _behind_the_subject(index: SubjectIndex, features: LayerFeatures, sequences: Sequence[Sequence[int]]) -> Any:
    """Bool per row of the features: a token of a context that may read, were the gate open."""
    order = torch.unique_consecutive(features.sequence).tolist()
    device = index.fingerprints.device
    contexts = [torch.tensor([list(sequences[i])], device=device) for i in order]
    return torch.cat([index.subjects_in(ids)[0, features.skipped :] != 0 for ids in contexts]).cpu()


def _rows(features: LayerFeatures, kept: Any) -> LayerFeatures:
    return replace(features, inputs=features.inputs[kept], sequence=features.sequence[kept])


@torch.no_grad()
def _largest_on_passages(gate: Any, general: LayerFeatures, passages: int) -> float:
    """The gate's largest logit on the held-out passages; minus infinity where there are none."""
    rows = general.inputs[_is_held_out(general) & (general.sequence < passages)]
    return float(gate(rows.to(gate.mean.device)).max()) if len(rows) else -math.inf


def _held_out(features: LayerFeatures) -> tuple[Tensor, Tensor]:
    """Splits the rows by sequence; where there are too few to hold any out, all are in both parts."""
    held = _is_held_out(features)
    return features.inputs[~held], features.inputs[held] if bool(held.any()) else features.inputs


def _is_held_out(features: LayerFeatures) -> Tensor:
    """Bool per row: every tenth sequence is held out (none where there are fewer than ten)."""
    return features.sequence % 10 == 9
