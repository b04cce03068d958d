"""Records what a memory's layers see and read in this thread's forward passes.

`capture` is the mechanism; the functions below it each ask it for one thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from memlayers.data.encoding import padded_batches
from memlayers.inference.shared_prefix import SharedPrefix, shared_prefix
from memlayers.tuner.current import Recorder, holding
from memlayers.tuner.handle import MemoryHandle, gates_off, without_memory

Captured = Literal["inputs", "block", "outputs", "reads"]
"""What can be recorded; see the attributes of `Capture`."""


class Batch(NamedTuple):
    """The sequences of one forward pass; its tokens are counted sequence by sequence, padding left out.

    Attributes:
        chosen: which sequences, in the order of their tokens.
        lengths: the tokens of each, int64 [b], on the CPU.
    """

    chosen: list[int]
    lengths: Tensor

    @property
    def sequence(self) -> Tensor:
        """Which sequence each token came from, int64 [n], on the CPU."""
        return torch.tensor(self.chosen).repeat_interleave(self.lengths)

    @property
    def starts(self) -> Tensor:
        """Each sequence's first token, int64 [b], on the CPU."""
        return self.lengths.cumsum(0) - self.lengths


@dataclass(frozen=True, slots=True)
class PoolRead:
    """What one memory layer read in one forward pass.

    Attributes:
        layer: its place among the memory layers, from 0.
        tokens: which tokens of the forward pass read, int64 [n]; None for all of them.
        indices: the slots, int64 [n, r].
        weights: with which weight each, float32 [n, r].
        queries: the queries that chose them, float32 [n, heads * key_dim].
    """

    layer: int
    tokens: Tensor | None
    indices: Tensor
    weights: Tensor
    queries: Tensor


class _Done(Exception):
    """Ends a forward pass behind the last layer that is recorded."""


@dataclass
class Capture(Recorder):
    """What a memory's layers saw and read; made by `capture`, filled by each forward pass.

    Tensors stay on the device they were on. In `run` they hold the n real tokens of one batch, as `Batch` counts them,
    and are replaced by those of the next batch; in other forward passes all tokens, padding included.

    Attributes:
        memory: which memory.
        want: what is recorded; the rest stays empty.
        layers: how many of its layers are recorded, from the first.
        inputs: per layer the MLP block's inputs, [n, d] in the backbone's dtype.
        block: per layer what the MLP block alone gave, [n, d].
        outputs: per layer what it gave with the memory, [n, d]; as `block` where the memory is off.
        reads: in the order in which they happened; `run` clears them, other callers clear them as they like.
    """

    memory: MemoryHandle
    want: Collection[Captured]
    layers: int
    inputs: dict[int, Tensor] = field(default_factory=dict)
    block: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    reads: list[PoolRead] = field(default_factory=list)
    _real: Tensor | None = None  # in `run`, of the batch under way: bool [b * t], False for padding
    _ends: bool = False  # whether the last recorded layer ends the forward pass
    _opened: Tensor | None = None  # of the layer under way: which tokens read, None for all

    def run(
        self,
        sequences: Sequence[Sequence[int]],
        batch_tokens: int = 4096,
        progress: Any = None,
        prefix: SharedPrefix | None = None,
    ) -> Iterator[Batch]:
        """Runs the backbone over sequences of like length together, as far as its last recorded layer.

        Args:
            sequences: token ids, of any lengths.
            prefix: what has been read before each of them; its tokens are none of theirs.
            batch_tokens: padded tokens per forward pass.
            progress: called with the number of sequences done after each batch.

        Yields:
            Each batch, once the attributes hold what was recorded of it.
        """
        trunk = self.memory.model.get_base_model().base_model  # without the language-model head: no logits are needed
        device = self.memory.device
        for chosen, ids, real in padded_batches(sequences, batch_tokens):
            self.reads.clear()
            self._real = real.flatten().to(device)
            try:
                with self.ending(True):
                    _read(trunk, ids.to(device), real.to(device), prefix)
            finally:
                self._real = None
            yield Batch(chosen, real.sum(1))
            if progress is not None:
                progress(len(chosen))

    @contextmanager
    def ending(self, early: bool) -> Iterator[None]:
        """A context in which a forward pass ends behind the last recorded layer, where that is early enough."""
        self._ends = early
        try:
            with suppress(_Done):
                yield
        finally:
            self._ends = False

    # What the memory layers tell, see `tuner.current.Recorder`.

    def entered(self, layer: nn.Module, x: Tensor) -> None:
        """Keeps the MLP block's input."""
        self._keep("inputs", layer, x)

    def computed(self, layer: nn.Module, x: Tensor, out: Tensor) -> None:
        """Keeps the MLP block's output."""
        self._keep("block", layer, out)

    def decided(self, layer: nn.Module, adapter: str, opened: Tensor | None, tokens: int) -> None:
        """Keeps which tokens read."""
        if adapter == self.memory.adapter:
            self._opened = opened

    def read(self, layer: nn.Module, adapter: str, query: Tensor, indices: Tensor, weights: Tensor) -> None:
        """Keeps a read."""
        number = self._number(layer)
        if adapter != self.memory.adapter or "reads" not in self.want or number is None:
            return
        found: list[Tensor] = [indices.detach().long(), weights.detach().float(), query.detach()]
        tokens = self._opened
        if self._real is not None:
            real = self._real.to(indices.device)
            rows = real if tokens is None else real[tokens]
            tokens = None if tokens is None else (real.cumsum(0) - 1)[tokens[rows]]
            found = [each[rows] for each in found]
        self.reads.append(PoolRead(number, tokens, *found))

    def left(self, layer: nn.Module, out: Tensor) -> None:
        """Keeps what the layer gives; the last one that is recorded ends the forward pass in `ending`."""
        self._keep("outputs", layer, out)
        if self._ends and self._number(layer) == self.layers - 1:
            raise _Done

    def _number(self, layer: nn.Module) -> int | None:
        """The place of a layer among the recorded ones."""
        return next((i for i, each in enumerate(self.memory.layers[: self.layers]) if each is layer), None)

    def _keep(self, kind: Captured, layer: nn.Module, tensor: Tensor) -> None:
        number = self._number(layer)
        if kind in self.want and number is not None:
            getattr(self, kind)[number] = self._real_rows(tensor)

    def _real_rows(self, tensor: Tensor) -> Tensor:
        """[b, t, d] -> a copy of the real tokens' rows, [n, d]: what follows may change the tensor in place."""
        rows = tensor.detach().reshape(-1, tensor.shape[-1])
        return rows.clone() if self._real is None else rows[self._real.to(rows.device)]


def _read(trunk: Any, ids: Tensor, real: Tensor, prefix: SharedPrefix | None) -> Tensor:
    """The trunk's last hidden states, [b, t, d], of ids [b, t], of which some are real, behind a shared prefix."""
    mask = real.long()
    if prefix is None:
        seen = trunk(input_ids=ids, attention_mask=mask, use_cache=False)
    else:
        seen = trunk(input_ids=ids, attention_mask=prefix.mask(mask), past_key_values=prefix.cache(len(ids)))
    hidden: Tensor = seen[0]
    return hidden


@contextmanager
def capture(memory: MemoryHandle, *want: Captured, layers: int | None = None) -> Iterator[Capture]:
    """A context in which each forward pass of the memory's model in this thread is recorded.

    Args:
        memory: which memory.
        want: what to record; the other attributes stay empty.
        layers: how many of its layers, from the first; None for all.
    """
    seen = Capture(memory, want, layers or len(memory.layers))
    with holding(recorder=seen):
        yield seen


@dataclass(frozen=True, slots=True)
class LayerFeatures:
    """What one memory layer saw on the bare backbone.

    Attributes:
        inputs: the MLP block's inputs, [n, d] in the backbone's dtype, on the CPU; none where they were not to be kept.
        sequence: which sequence each row came from, int64 [n].
        output_rms: root mean square of the MLP block's outputs on the same tokens.
        skipped: tokens at the beginning of every sequence that are left out: all have them in common.
        moments: the inputs' mean [d] and mean outer product [d, d], float64; None to take them of `inputs`.
    """

    inputs: Tensor
    sequence: Tensor
    output_rms: float
    skipped: int = 0
    moments: tuple[Tensor, Tensor] | None = None


@torch.inference_mode()
def collect_features(
    memory: MemoryHandle,
    sequences: Sequence[Sequence[int]],
    *,
    keep: int | None = None,
    batch_tokens: int = 4096,
    progress: Any = None,
) -> list[LayerFeatures]:
    """Runs the bare backbone over sequences; keeps what its memory layers see.

    Args:
        memory: the memory, on its model.
        sequences: token ids, at least one sequence, of any lengths.
        keep: of how many layers, from the first, every input is kept; None for all. Of the others the moments alone.
        batch_tokens: padded tokens per forward pass.
        progress: called with the number of sequences done after each batch.

    Returns:
        One entry per memory layer, in layer order; rows in the order of the sequences' lengths.
    """
    layers = len(memory.layers)
    kept: list[list[Tensor]] = [[] for _ in range(layers if keep is None else keep)]
    dim = memory.layers[0].dim
    sums = [torch.zeros(dim, dtype=torch.float64) for _ in range(layers)]
    products = [torch.zeros(dim, dim, dtype=torch.float64) for _ in range(layers)]
    squares = [0.0] * layers
    owners: list[Tensor] = []
    with without_memory(memory.model):
        prefix = shared_prefix(memory.model, sequences)
        skipped = len(prefix.ids) if prefix is not None else 0
        rest = [ids[skipped:] for ids in sequences]
        with capture(memory, "inputs", "block") as seen:
            for batch in seen.run(rest, batch_tokens, progress, prefix):
                owners.append(batch.sequence)
                for number in range(layers):
                    rows = seen.inputs[number].cpu()
                    if number < len(kept):
                        kept[number].append(rows)
                    sums[number] += rows.sum(0, dtype=torch.float64)
                    products[number] += rows.double().T @ rows.double()
                    squares[number] += seen.block[number].double().square().mean(-1).sum().item()
    sequence = torch.cat(owners)
    n = len(sequence)
    inputs = [torch.cat(rows) for rows in kept] + [torch.empty(0, dim)] * (layers - len(kept))
    return [
        LayerFeatures(inputs[i], sequence, (squares[i] / n) ** 0.5, skipped, (sums[i] / n, products[i] / n))
        for i in range(layers)
    ]


@torch.inference_mode()
def prompt_states(
    memory: MemoryHandle,
    prompts: Sequence[Sequence[int]],
    *,
    deep: bool = True,
    batch_tokens: int = 4096,
    progress: Any = None,
) -> list[Tensor]:
    """What the bare backbone makes of each prompt's last token; equal prompts are read once.

    Args:
        memory: the memory, on its model.
        prompts: token ids, of any lengths.
        deep: whether the backbone is run to its end; as far as the first memory layer otherwise.
        batch_tokens: padded tokens per forward pass.
        progress: called with the number of prompts done after each batch.

    Returns:
        The first memory layer's input, and the last hidden state if `deep`; float32 [n, d] each, on the CPU.
    """
    places: dict[tuple[int, ...], int] = {}
    place = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    distinct, copies = list(places), Counter(place)
    found: list[list[Tensor]] = [[] for _ in distinct]
    trunk = memory.model.get_base_model().base_model
    with without_memory(memory.model):
        prefix = shared_prefix(memory.model, distinct)
        rest = [prompt[len(prefix.ids) if prefix is not None else 0 :] for prompt in distinct]
        with capture(memory, "inputs", layers=1) as seen:
            for chosen, ids, real in padded_batches(rest, batch_tokens):
                rows, last, hidden = torch.arange(len(ids)), real.sum(1) - 1, None
                with seen.ending(not deep):
                    hidden = _read(trunk, ids.to(memory.device), real.to(memory.device), prefix)
                states = [seen.inputs[0].view(*ids.shape, -1), *([] if hidden is None else [hidden])]
                kept = [each[rows.to(each.device), last.to(each.device)].float().cpu() for each in states]
                for row, i in enumerate(chosen):
                    found[i] = [each[row] for each in kept]
                if progress is not None:
                    progress(sum(copies[i] for i in chosen))
    return [torch.stack([found[i][kind] for i in place]) for kind in range(1 + deep)]


@contextmanager
def watched_reads(memory: MemoryHandle) -> Iterator[list[PoolRead]]:
    """A context in which every read of the pool is appended to the list it gives; empty the list as you like."""
    with capture(memory, "reads") as seen:
        yield seen.reads


@torch.inference_mode()
def count_reads(
    memory: MemoryHandle, sequences: Sequence[Sequence[int]], *, batch_tokens: int = 4096, progress: Any = None
) -> Tensor:
    """How often each slot is read when all of the sequences' tokens read, over all memory layers.

    Args:
        memory: the memory, on its model.
        sequences: token ids, at least one sequence.
        batch_tokens: padded tokens per forward pass.
        progress: called with the number of sequences done after each batch.

    Returns:
        int64 [slots], on the CPU.
    """
    reads = torch.zeros(memory.pool.slots, dtype=torch.int64)
    with gates_off(memory.model), capture(memory, "reads") as seen:
        for _ in seen.run(sequences, batch_tokens, progress):
            for read in seen.reads:
                reads += torch.bincount(read.indices.cpu().flatten(), minlength=len(reads))
    return reads


@torch.no_grad()
def slots_read(
    memory: MemoryHandle, sequences: Sequence[Sequence[int]], owners: Sequence[int], *, batch_tokens: int = 4096
) -> list[tuple[Tensor, Tensor]]:
    """Which slots are read for some sequences, by all memory layers, through the gate.

    Args:
        memory: the memory, on its model.
        sequences: token ids.
        owners: whose each sequence is, from 0, ascending.
        batch_tokens: padded tokens per forward pass.

    Returns:
        For each owner the distinct slots, int64 ascending, and how often each was read, int64.
    """
    slots, whose = memory.pool.slots, torch.tensor(list(owners), dtype=torch.int64)
    found: list[list[Tensor]] = [[] for _ in range(max(owners, default=-1) + 1)]
    with capture(memory, "reads") as seen:
        for batch in seen.run(sequences, batch_tokens):
            owner = whose[batch.sequence].to(memory.device)
            keys = [
                ((owner if read.tokens is None else owner[read.tokens])[:, None] * slots + read.indices).flatten()
                for read in seen.reads
            ]
            for number, part in _by_owner(torch.cat(keys).sort().values, slots) if keys else ():
                found[number].append(part)
    counted = (torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64) for parts in found)
    return [torch.unique(each, return_counts=True) for each in counted]


def _by_owner(keys: Tensor, slots: int) -> list[tuple[int, Tensor]]:
    """Ascending owner * slots + slot -> the slots of each owner, on the CPU."""
    owners, sizes = torch.unique_consecutive(keys // slots, return_counts=True)
    parts = (keys % slots).cpu().split(sizes.tolist())
    return list(zip(owners.tolist(), parts, strict=True))
