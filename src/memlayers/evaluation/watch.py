"""Runs a model over sequences and keeps what its memory layers did: what they read, with which queries, and added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memlayers.data.encoding import padded_batches
from memlayers.inference.capture import SeenRead, watched_reads
from memlayers.tuner import memory_layers, value_pool


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
    model: Any, adapter: str, sequences: Sequence[Sequence[int]], marks: dict[str, Sequence[int]] | None = None
) -> Watched:
    """Runs the model, its memory as it is, over sequences.

    Args:
        model: with a memory.
        adapter: name of the memory.
        sequences: token ids.
        marks: per kind, one position in each sequence whose input, query and slots are kept.
    """
    layers = memory_layers(model, adapter)
    pool = value_pool(model, adapter)
    marks = marks or {}
    trunk = model.get_base_model().base_model
    device = next(model.parameters()).device
    found = Watched(len(layers), pool.slots, layers[0].dim)
    found.at = {kind: [{} for _ in layers] for kind in marks}
    own: dict[int, Tensor] = {}
    whole: dict[int, tuple[Tensor, Tensor]] = {}
    queries: dict[int, Tensor] = {}

    def keep_own(number: int) -> Any:
        def keep(_: Any, arguments: Any, output: Any) -> None:
            own[number] = _output_of(output)

        return keep

    def keep_whole(number: int) -> Any:
        def keep(_: Any, arguments: Any, output: Any) -> None:
            whole[number] = arguments[0], _output_of(output)

        return keep

    def keep_query(number: int) -> Any:
        def keep(_: Any, arguments: Any, output: Tensor) -> None:
            queries[number] = output

        return keep

    hooks = []
    for number, layer in enumerate(layers):
        query: Any = layer.memlayers_query[adapter]
        hooks += [
            layer.base_layer.register_forward_hook(keep_own(number)),
            layer.register_forward_hook(keep_whole(number)),
            query.register_forward_hook(keep_query(number)),
        ]
    try:
        with watched_reads(model, adapter) as seen:
            for chosen, ids, mask in padded_batches(sequences, 2048):
                longest = ids.shape[1]
                trunk(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False)
                places = {
                    kind: {i: row * longest + positions[i] for row, i in enumerate(chosen)}
                    for kind, positions in marks.items()
                }
                found.tokens += int(mask.sum())
                by_layer = {read.layer: read for read in seen}
                for number, layer in enumerate(layers):
                    x, out = (tensor.reshape(-1, layer.dim).cpu() for tensor in whole[number])
                    base = own[number].reshape(-1, layer.dim).cpu()
                    found.inputs_sum[number] += x[mask.flatten()].double().sum(0)
                    for kind, rows in places.items():
                        for i, place in rows.items():
                            found.at[kind][number][i] = x[place].float(), None, None
                    if number in by_layer:
                        _add_read(
                            found, by_layer[number], queries[number].cpu(), x, out.float() - base.float(), base.float(),
                            mask.flatten(), torch.tensor(chosen).repeat_interleave(longest), places,
                        )  # fmt: skip
                seen.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _add_read(
    found: Watched, read: SeenRead, queries: Tensor, x: Tensor, added: Tensor, base: Tensor, mask: Tensor,
    owners: Tensor, places: dict[str, dict[int, int]],
) -> None:  # fmt: skip
    """Adds one layer's read of one batch; the tensors hold a row per token of the batch, padding included."""
    number = read.layer
    tokens = torch.arange(len(mask)) if read.tokens is None else read.tokens.cpu()
    kept = mask[tokens]
    tokens = tokens[kept]
    indices, weights, queries = read.indices.cpu()[kept], read.weights.cpu()[kept], queries[kept].float()
    if not len(tokens):
        return
    found.reading[number] += len(tokens)
    found.ratios[number].append(added[tokens].norm(dim=1) / base[tokens].norm(dim=1).clamp_min(1e-12))
    share = weights / weights.sum(1, keepdim=True)
    found.entropies[number].append(-(share * share.clamp_min(1e-12).log2()).sum(1))
    found.weight[number] += torch.bincount(indices.flatten(), share.double().flatten(), found.slots)
    found.counts += torch.bincount(indices.flatten(), minlength=found.slots)
    found.queries_sum[number] = found.queries_sum[number] + queries.double().sum(0)
    found.pairs.append((owners[tokens][:, None] * found.slots + indices).unique())
    row_of = {token: row for row, token in enumerate(tokens.tolist())}
    for kind, rows in places.items():
        for i, place in rows.items():
            if place in row_of:
                row = row_of[place]
                found.at[kind][number][i] = x[place].float(), queries[row], indices[row]


def _output_of(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
