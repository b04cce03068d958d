"""One handle on a memory: where its parts are on a model. And what holds for all memories of a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from torch import Tensor, nn

from memlayers.pool.columns import Split
from memlayers.pool.sharding import is_sharded
from memlayers.pool.value_pool import ValuePool
from memlayers.pool.weights_file import write_weights
from memlayers.tuner.addressing import Query
from memlayers.tuner.config import MemoryConfig
from memlayers.tuner.current import current, holding
from memlayers.tuner.gate import RelevanceGate
from memlayers.tuner.layer import MemoryLayer
from memlayers.tuner.model import memory_layers
from memlayers.tuner.relation_check import RelationCheck
from memlayers.tuner.subject_index import SubjectIndex
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, slots=True)
class MemoryHandle:
    """One memory on one model: where its parts are. Made by `memory_handle`; it holds nothing that can change.

    Attributes:
        model: the PEFT model.
        adapter: name of the memory.
        layers: its memory layers, in layer order.
    """

    model: Any
    adapter: str
    layers: tuple[MemoryLayer, ...]

    @property
    def config(self) -> MemoryConfig:
        """How it is built."""
        return self.layers[0].memlayers_config[self.adapter]

    @property
    def pool(self) -> ValuePool:
        """The value pool that its layers share."""
        pool = self.layers[0].memlayers_pool_owner[self.adapter][self.adapter]
        assert isinstance(pool, ValuePool)
        return pool

    @property
    def index(self) -> SubjectIndex | None:
        """The index of subjects, where its gate knows them."""
        return _part(self.layers[0].memlayers_subjects, self.adapter, SubjectIndex)

    @property
    def relation_check(self) -> RelationCheck | None:
        """The check of what is asked, where the memory was built with one."""
        return _part(self.layers[0].memlayers_relations, self.adapter, RelationCheck)

    @property
    def relations(self) -> RelationCheck | None:
        """`relation_check`, where it has keys."""
        check = self.relation_check
        return check if check is not None and check.filled else None

    @property
    def gates(self) -> list[RelevanceGate]:
        """Its relevance gates, in layer order; one alone where it knows its subjects."""
        found = (_part(layer.memlayers_gate, self.adapter, RelevanceGate) for layer in self.layers)
        return [gate for gate in found if gate is not None]

    @property
    def queries(self) -> list[Query]:
        """What turns its layers' inputs into queries, in layer order."""
        found = (_part(layer.memlayers_query, self.adapter, Query) for layer in self.layers)
        return [query for query in found if query is not None]

    @property
    def device(self) -> torch.device:
        """Where the backbone's embeddings are, and so the token ids of a forward pass."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def tensors_beside_values(self) -> list[Tensor]:
        """Its parameters and buffers but for the pool's values: how it is addressed, and when it may be read."""
        values = (self.pool.parameter, *self.pool.table)
        return [
            tensor
            for layer in self.layers
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers())
            if name.startswith("memlayers_") and not any(tensor is each for each in values)
        ]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that is saved of it, by the names that peft gives them; no copies."""
        found: dict[str, Tensor] = get_peft_model_state_dict(
            self.model, adapter_name=self.adapter, save_embedding_layers=False
        )
        return found

    def save(self, folder: str | Path) -> None:
        """Writes the adapter into a folder, as peft does: safetensors and JSON.

        Where processes split the pool all of them must call it, and the first writes.
        """
        tensors, pool, split = self.tensors, self.pool, {}
        if pool.columns is not None:
            (name,) = (name for name, tensor in tensors.items() if is_sharded(tensor))
            split[name] = pool.columns.by_pieces(pool.table.values)
            tensors[name] = torch.empty(pool.slots, pool.dim, dtype=pool.table.values.dtype, device="meta")
            if pool.columns.rank:
                deque(split[name], maxlen=0)  # takes part
                return
        # peft's own writing makes a copy of every tensor, and lays them out such that an edit moves them all.
        self.model.save_pretrained(str(folder), selected_adapters=[self.adapter], state_dict={})
        own = Path(folder) if self.adapter == "default" else Path(folder) / self.adapter  # as peft has it
        write_weights(own / SAFETENSORS_WEIGHTS_NAME, tensors, pieces=split)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes the tensors that `save` wrote, in place."""
        from peft.utils.save_and_load import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, tensors, adapter_name=self.adapter)

    def make_gate(self, config: MemoryConfig) -> None:
        """Gives the memory the gate that `config` asks for, new, in place of the one it has; the rest stays.

        Args:
            config: this memory's, but for its fields about the gate.
        """
        for layer, number in zip(self.layers, config.layers or (), strict=True):
            layer.make_gate(self.adapter, config, number)
        self.model.peft_config[self.adapter] = config


_Part = TypeVar("_Part", bound=nn.Module)


def _part(parts: nn.ModuleDict, adapter: str, kind: type[_Part]) -> _Part | None:
    if adapter not in parts:
        return None
    part = parts[adapter]
    assert isinstance(part, kind)
    return part


def memory_handle(model: nn.Module, adapter: str | None = None) -> MemoryHandle:
    """One handle on a memory.

    Args:
        model: a PEFT model with a memory.
        adapter: its name; None for the first active one.

    Raises:
        InputError: the model has no memory of this name, or none that is active.
    """
    if adapter is None:
        active = active_memories(model)
        if not active:
            raise InputError("the model has no active memory")
        return active[0]
    layers = memory_layers(model, adapter)
    if not layers:
        raise InputError(f"the model has no memory named {adapter!r}")
    return MemoryHandle(model, adapter, tuple(layers))


def value_pool(model: nn.Module, adapter: str | None = None) -> ValuePool:
    """The value pool of one memory; see `memory_handle`."""
    return memory_handle(model, adapter).pool


def active_memories(model: nn.Module) -> list[MemoryHandle]:
    """The memories that are read in a forward pass, in their order; none for a bare backbone."""
    layers = memory_layers(model)
    active = dict.fromkeys(name for layer in layers for name in layer.active_adapters)
    found = ((name, tuple(layer for layer in layers if name in layer.memlayers_config)) for name in active)
    return [MemoryHandle(model, name, own) for name, own in found if own]


def set_gate_enabled(model: nn.Module, enabled: bool) -> None:
    """Puts the trained gates of all memory layers in force, or has every layer read for every token."""
    for layer in memory_layers(model):
        layer.gate_enabled = enabled


def memory_auxiliary_loss(model: nn.Module) -> Tensor:
    """The load-balance loss of the last training forward, weighted by `MemoryConfig.load_balance`.

    Add it to the loss before each backward. It is handed out once and belongs to the last forward alone.

    Returns:
        A scalar on the model's device: the mean over the memory layers; 0 where there is none.
    """
    losses = [loss for layer in memory_layers(model) for loss in layer.take_load_balance()]
    device = next(model.parameters()).device
    if not losses:
        return torch.zeros((), device=device)
    return torch.stack([loss.to(device) for loss in losses]).mean()


@contextmanager
def without_memory(model: Any) -> Iterator[None]:
    """A context in which `model` is its bare backbone in this thread; the model itself where it has no memory."""
    with holding(bare=current().bare | frozenset(memory_layers(model))):
        yield


@contextmanager
def splitting_pools(mesh: DeviceMesh, *, unit: int = 1, average: bool = True) -> Iterator[None]:
    """A context in which memories that are built, or loaded, in this thread have their pools split by columns.

    Args:
        mesh: of one dimension, `torch.distributed.device_mesh.init_device_mesh`; each of its processes holds a share.
        unit: the width of a share is a multiple of it: 128 for `RowAdamW(state_bits=8)`.
        average: gradients are means over the processes, as DDP has it; otherwise sums.
    """
    with holding(split=Split(mesh, unit, average)):
        yield


@contextmanager
def gates_off(model: Any) -> Iterator[None]:
    """A context in which every token reads in this thread, whether or not a layer's gate is in force."""
    with holding(ungated=current().ungated | frozenset(memory_layers(model))):
        yield
