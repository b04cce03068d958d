"""Runs a model over sequences and keeps what its memory layers did: what they read, with which queries, and added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memlayers.inference.capture import PoolRead, capture
from memlayers.tuner.handle import MemoryHandle


class Watched:
    """What the memory layers did on some sequences, added up batch by batch.

    Everything is a list with one entry per memory layer, except `pairs`: sequence * slots + slot of every read.
    `at` holds, per kind of marked token, the inputs, queries and slots there, row by row as the sequences come.
    """

    def __init__(self, layers: int, slots: int, dim: int) -> None:
        self.slots = slots
        self.tokens = 0
        self.reading = [0] * layers
        self.ratios: list[list[Tensor]] = [[] for _ in range(layers)]
        self.entropies: list[list[Tensor]] = [[] for _ in range(layers)]
        self.weight = [torch.zeros(slots, dtype=torch.float64) for _ in range(layers)]
        self.counts = torch.zeros(slots, dtype=torch.int64)
        self.inputs_sum = [torch.zeros(dim, dtype=torch.float64) for _ in range(layers)]
        self.queries_sum: list[Tensor | float] = [0.0] * layers
        self.pairs: list[Tensor] = []
        self.at: dict[str, list[dict[int, tuple[Tensor, Tensor | None, Tensor | None]]]] = {}


@torch.inference_mode()
def watch(
    memory: MemoryHandle, sequences: Sequence[Sequence[int]], marks: dict[str, Sequence[int]] | None = None
) -> Watched:
    """Runs the model, its memory as it is, over sequences.

    Args:
        memory: the memory, on its model.
        sequences: token ids.
        marks: per kind, one position in each sequence whose input, query and slots are kept.
    """
    marks = marks or {}
    found = Watched(len(memory.layers), memory.pool.slots, memory.layers[0].dim)
    found.at = {kind: [{} for _ in memory.layers] for kind in marks}
    with capture(memory, "inputs", "block", "outputs", "reads") as seen:
        for batch in seen.run(sequences, 2048):
            sequence, starts = batch.sequence, dict(zip(batch.chosen, batch.starts.tolist(), strict=True))
            places = {
                kind: {i: start + positions[i] for i, start in starts.items()} for kind, positions in marks.items()
            }
            found.tokens += len(sequence)
            by_layer = {read.layer: read for read in seen.reads}
            for number in range(len(memory.layers)):
                x, base, out = (kept[number].cpu() for kept in (seen.inputs, seen.block, seen.outputs))
                found.inputs_sum[number] += x.double().sum(0)
                for kind, rows in places.items():
                    for i, place in rows.items():
                        found.at[kind][number][i] = x[place].float(), None, None
                if number in by_layer:
                    _add_read(found, by_layer[number], x, out.float() - base.float(), base.float(), sequence, places)
    return found


def _add_read(
    found: Watched, read: PoolRead, x: Tensor, added: Tensor, base: Tensor, sequence: Tensor,
    places: dict[str, dict[int, int]],
) -> None:  # fmt: skip
    """Adds one layer's read of one batch; the tensors hold a row per token of the batch."""
    number = read.layer
    tokens = torch.arange(len(x)) if read.tokens is None else read.tokens.cpu()
    indices, weights, queries = read.indices.cpu(), read.weights.cpu(), read.queries.cpu().float()
    if not len(tokens):
        return
    found.reading[number] += len(tokens)
    found.ratios[number].append(added[tokens].norm(dim=1) / base[tokens].norm(dim=1).clamp_min(1e-12))
    share = weights / weights.sum(1, keepdim=True)
    found.entropies[number].append(-(share * share.clamp_min(1e-12).log2()).sum(1))
    found.weight[number] += torch.bincount(indices.flatten(), share.double().flatten(), found.slots)
    found.counts += torch.bincount(indices.flatten(), minlength=found.slots)
    found.queries_sum[number] = found.queries_sum[number] + queries.double().sum(0)
    found.pairs.append((sequence[tokens][:, None] * found.slots + indices).unique())
    row_of = {token: row for row, token in enumerate(tokens.tolist())}
    for kind, rows in places.items():
        for i, place in rows.items():
            if place in row_of:
                row = row_of[place]
                found.at[kind][number][i] = x[place].float(), queries[row], indices[row]
