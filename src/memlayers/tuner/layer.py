"""The memory layer: an MLP block of the backbone with a product-key memory added to its output (MLP-ADD).

::

    x ─┬─ MLP block (frozen) ──────────────────────────────────────────────(+)─ output
       └─ gate ─ open? ─ query ─ scores ─ top-k, softmax ─ value pool ─ out ─┘
                 no: nothing is looked up        (shared)   (dense recipe)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from memlayers.backbones import adds_residual
from memlayers.pool.product_keys import make_sub_keys
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner.addressing import Query, Read, choose, imbalance, tempered_scores
from memlayers.tuner.config import MemoryConfig
from memlayers.tuner.current import current
from memlayers.tuner.forward_pass import Decided
from memlayers.tuner.gate import RelevanceGate
from memlayers.tuner.gated_output import GatedOutput
from memlayers.tuner.hooks import ForwardPassHooks
from memlayers.tuner.relation_check import RelationCheck
from memlayers.tuner.shapes import asks, static_shapes
from memlayers.tuner.subject_index import SubjectIndex, subject_code
from memlayers.utils.errors import InputError

OUTSIDE = (
    "a memory layer ran outside of its model's forward pass, where no token ids are known: call the model itself; for "
    "gradient checkpointing take model.gradient_checkpointing_enable()"
)
MERGE_REFUSAL = "a memory is a lookup and cannot be merged into weights; keep the adapter, or unload() it"


class MemoryLayer(nn.Module, BaseTunerLayer):
    """An MLP block wrapped with one memory per adapter.

    All memory layers of an adapter read one value pool. It is registered, and so saved, on the first of them only; the
    others hold an unregistered reference to the first one's container.

    Args:
        base_layer: the MLP block; its first argument is [..., d], its output (or the output's first
            element, for blocks that return a tuple) has the same shape.
        dim: d, the backbone's hidden size.
        hooks: by which the model's forward passes are known; None for a layer that is used by itself.
    """

    adapter_layer_names = (
        "memlayers_pool",
        "memlayers_sub_keys",
        "memlayers_query",
        "memlayers_out",
        "memlayers_gate",
        "memlayers_subjects",
        "memlayers_relations",
    )
    other_param_names = ("memlayers_config", "memlayers_pool_owner", "_load_balance")

    def __init__(self, base_layer: nn.Module, dim: int, hooks: ForwardPassHooks | None = None) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dim = dim
        self.hooks = hooks
        self.adds_residual = adds_residual(base_layer)
        self.gate_enabled = True
        self.memlayers_pool = nn.ModuleDict()
        self.memlayers_sub_keys = nn.ParameterDict()
        self.memlayers_query = nn.ModuleDict()
        self.memlayers_out = nn.ModuleDict()
        self.memlayers_gate = nn.ModuleDict()
        self.memlayers_subjects = nn.ModuleDict()
        self.memlayers_relations = nn.ModuleDict()
        # Plain dicts, so that torch registers nothing of what they hold.
        self.memlayers_config: dict[str, MemoryConfig] = {}
        self.memlayers_pool_owner: dict[str, nn.ModuleDict] = {}
        self._load_balance: dict[str, Tensor | None] = {}
        # What peft keeps on the class as a default, mutable or not, belongs to the instance here.
        self.merged_adapters: list[str] = []
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}

    def add_adapter(self, adapter: str, config: MemoryConfig, layer: int, owner: MemoryLayer | None) -> None:
        """Builds the memory `adapter` on this layer.

        Args:
            adapter: its name.
            config: settled, see `MemoryModel`.
            layer: number of this layer in the backbone; every layer has keys of its own.
            owner: the memory layer that holds the value pool, None when this one shall.
        """
        sub_keys, heads, key_dim = config.shape
        assert key_dim is not None  # settled
        self.memlayers_config[adapter] = config
        self._load_balance[adapter] = None
        if owner is None:
            split = current().split
            columns = None if split is None else split.of(self.dim)
            pool = ValuePool(config.slots, self.dim, config.torch_pool_dtype, config.protectable, columns)
            # About to be loaded: skip the slow random start. Zeros, not garbage, should nothing follow.
            init = "zero" if config.inference_mode else str(config.pool_init)
            pool.initialise(init, config.derived_seed(0))
            self.memlayers_pool[adapter] = pool
        self.memlayers_pool_owner[adapter] = (owner or self).memlayers_pool
        self.memlayers_sub_keys[adapter] = nn.Parameter(
            make_sub_keys(heads, sub_keys, key_dim // 2, config.derived_seed(1, layer))
        )
        self.memlayers_query[adapter] = Query(self.dim, heads * key_dim, config.derived_seed(2, layer))
        if config.gated_output:
            self.memlayers_out[adapter] = GatedOutput(self.dim, config.derived_seed(3, layer))
        frozen = () if config.trainable_addressing else ("memlayers_sub_keys", "memlayers_query")
        self.frozen_peft_weight_names[adapter] = ("memlayers_gate", *frozen)
        self.make_gate(adapter, config, layer)

    def make_gate(self, adapter: str, config: MemoryConfig, layer: int) -> None:
        """Gives the memory `adapter` the gate that `config` asks for, new, in place of the one it has; the rest stays.

        Args:
            adapter: its name.
            config: settled; kept as the memory's own.
            layer: number of this layer in the backbone.
        """
        for parts in (self.memlayers_subjects, self.memlayers_relations, self.memlayers_gate):
            if adapter in parts:
                del parts[adapter]
        self.memlayers_config[adapter] = config
        first = adapter in self.memlayers_pool  # with subjects one decision, here, serves all layers
        if config.subjects and first:
            vocabulary = (config.fingerprint or {}).get("vocab_size", 0)
            self.memlayers_subjects[adapter] = SubjectIndex(vocabulary)
        if config.relations and first:
            self.memlayers_relations[adapter] = RelationCheck(self.dim)
        if config.gate and (first or not config.subjects):
            seed = config.derived_seed(4, layer)
            self.memlayers_gate[adapter] = RelevanceGate(self.dim, config.gate_hidden, seed)
        self._move_adapter_to_device_of_base_layer(adapter)

    def copy_addressing(self, source: str, target: str) -> None:
        """Gives one memory the calibration, gate and index of another that is built alike; not what it was taught."""
        parts = (self.memlayers_query, self.memlayers_gate, self.memlayers_subjects, self.memlayers_relations)
        for part in parts:
            if source in part:
                part[target].load_state_dict(part[source].state_dict())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, plus the memory of every active adapter for the tokens its gate opens for.

        A token whose gate is closed keeps the block's output to the bit; where all are closed nothing is looked up.
        """
        x = args[0] if args else next(iter(kwargs.values()))
        recorder = current().recorder
        if recorder is not None:
            recorder.entered(self, x)
        result = self.base_layer(*args, **kwargs)
        out, *rest = result if isinstance(result, tuple) else (result,)
        if recorder is not None:
            residual = (*args, *kwargs.values())[1] if self.adds_residual else None
            recorder.computed(self, x, out if residual is None else out - residual)
        if not self.disable_adapters and self not in current().bare:
            for adapter in dict.fromkeys(current().rows or self.active_adapters):
                if adapter in self.memlayers_config:
                    out = self._add_memory(out, x, adapter)
        if recorder is not None:
            recorder.left(self, out if residual is None else out - residual)
        return (out, *rest) if isinstance(result, tuple) else out

    def read(self, x: Tensor, adapter: str, subjects: Tensor | None = None) -> Read:
        """Looks up which slots each token reads; the values are not touched.

        Computed in float32 whatever the dtype of `x`. Without trainable addressing no gradient is recorded.

        Args:
            x: [n, d], inputs of the MLP block.
            adapter: name of the memory.
            subjects: the subject of each token, int64 [n], 0 for none (`ForwardPass.subjects`); None where queries
                do not carry subjects.

        Returns:
            Indices and weights, [n, heads * top_k] each.
        """
        query: Any = self.memlayers_query[adapter]
        code = None if subjects is None else subject_code(subjects, query.width)
        with self._addressing(x, adapter):
            return self._read(query(x), adapter, code)[0]

    def gate_logits(self, x: Tensor, adapter: str) -> Tensor:
        """The relevance gate's logits, float32 [n] for x [n, d].

        Raises:
            InputError: this memory was built without gates.
        """
        if adapter not in self.memlayers_gate:
            raise InputError(f"the memory {adapter!r} has no gate: build it with MemoryConfig(gate=True)")
        logits: Tensor = self.memlayers_gate[adapter](x)
        return logits

    @torch.no_grad()
    def set_addressing(self, adapter: str, mean: Tensor, projection: Tensor, scale: float = 1.0) -> None:
        """Sets what calibration finds, in place: the query (x - mean) @ projection and the values' unit.

        Args:
            adapter: name of the memory.
            mean: [d].
            projection: [d, heads * key_dim], for example from `product_keys.whitening`.
            scale: the unit of the values: this layer adds scale * sum_i w_i V_i.

        Raises:
            InputError: a shape does not fit.
        """
        query: Any = self.memlayers_query[adapter]
        query.scale.fill_(scale)
        for name, given in (("mean", mean), ("projection", projection)):
            own: Tensor = getattr(query, name)
            if own.shape != given.shape:
                raise InputError(f"{name} is {tuple(given.shape)}: this memory's is {tuple(own.shape)}")
            own.copy_(given)

    def take_load_balance(self) -> list[Tensor]:
        """Hands out the load-balance losses of the last forward, one scalar per adapter, and forgets them."""
        losses = [loss for loss in self._load_balance.values() if loss is not None]
        self._load_balance = dict.fromkeys(self._load_balance)
        return losses

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: what a memory adds depends on its input."""
        raise NotImplementedError(MERGE_REFUSAL)

    def unmerge(self) -> None:
        """Does nothing, since nothing can have been merged."""

    def _add_memory(self, out: Tensor, x: Tensor, adapter: str) -> Tensor:
        rows = x.reshape(-1, self.dim)
        opened = self._opened(x, adapter)
        if opened is None:
            memory = self._memory(rows, adapter, self._code(rows, adapter, None))
            gate = self._soft_gate(adapter)
            if gate is not None:
                memory = memory * gate(rows).sigmoid().unsqueeze(-1)
            return out + memory.to(out).view_as(out)
        if opened.dtype == torch.bool:
            memory = self._memory(rows, adapter, self._code(rows, adapter, None)).to(out)
            return torch.where(opened.view(*out.shape[:-1], 1), out + memory.view_as(out), out)
        if opened.numel() == 0 and not self._always_reads(adapter):
            return out
        memory = self._memory(rows[opened], adapter, self._code(rows, adapter, opened)).to(out)
        return out.reshape(-1, self.dim).index_add(0, opened, memory).view_as(out)

    @torch.no_grad()
    def _opened(self, x: Tensor, adapter: str) -> Tensor | None:
        """The tokens, int64 [open], that may read this memory; bool [n] where shapes are static; None for all.

        A memory that knows its subjects decides once, at its first layer, whose input is the bare backbone's whatever
        the memory adds; the other layers follow. Otherwise each layer has a gate of its own.
        """
        config, forward = self.memlayers_config[adapter], current().forward
        decided = None if forward is None or not config.subjects else forward.decided.get(adapter)
        if decided is not None:
            opened: Tensor | None = decided.tokens
            opened = None if opened is None else opened.to(x.device)
        elif config.subjects and adapter not in self.memlayers_pool:
            raise InputError(OUTSIDE)
        else:
            may_read = self._may_read(x.reshape(-1, self.dim), adapter)
            opened = self._as_opened(may_read, x, adapter)
            if forward is not None and config.subjects:
                forward.decided[adapter] = Decided(opened)
        recorder = current().recorder
        if recorder is not None:
            recorder.decided(self, adapter, opened, x.numel() // self.dim)
        return opened

    def _may_read(self, x: Tensor, adapter: str) -> Tensor | None:
        """The decision of this layer, bool [n]; None for all."""
        index, forward = self._index(adapter, x), current().forward
        if index is not None and forward is None:
            raise InputError(OUTSIDE)
        subjects = None if index is None or forward is None else forward.subjects(adapter, index, len(x))
        if not self._gate_in_force or self.memlayers_config[adapter].gate_soft:
            return None
        gate: Any = self.memlayers_gate[adapter] if adapter in self.memlayers_gate else None
        if subjects is None or index is None or forward is None:
            return None if gate is None else gate.is_open(x)
        unfilled = (index.reach == 0).expand_as(subjects)  # holds nothing back; only where compiled
        may_read = (subjects != 0) | unfilled
        if gate is not None and (not asks(x) or bool(may_read.any())):
            opened = _where_open(gate, x, may_read.to(x.device)).to(subjects.device)
            may_read = torch.where(unfilled, opened, forward.keep_open(adapter, opened))
        return may_read.to(x.device)

    @property
    def _gate_in_force(self) -> bool:
        return self.gate_enabled and self not in current().ungated

    def _index(self, adapter: str, x: Tensor) -> SubjectIndex | None:
        """The index of subjects, if this layer has one that is filled."""
        index: Any = self.memlayers_subjects[adapter] if adapter in self.memlayers_subjects else None
        return index if index is not None and (static_shapes(x) or index.reach) else None

    def _as_opened(self, may_read: Tensor | None, x: Tensor, adapter: str) -> Tensor | None:
        """Bool [n] or None -> see `_opened`; in a batch whose rows name their memories, this one's rows only."""
        rows = current().rows
        if rows is not None:
            named, each = torch.tensor([name == adapter for name in rows]), x.numel() // self.dim
            if x.dim() < 3 or len(x) % len(named):
                raise InputError(
                    f"adapter_names are {len(named)} for {len(x)} rows: give one for each row of the batch"
                )
            own = named.repeat_interleave(each // len(named)).to(x.device)
            may_read = own if may_read is None else may_read & own
        if may_read is None or static_shapes(x):
            return may_read
        return may_read.nonzero().squeeze(-1)

    def _code(self, x: Tensor, adapter: str, opened: Tensor | None) -> Tensor | None:
        """The directions of the reading tokens' subjects, float32 [open, width]; None where queries have none."""
        forward = current().forward
        if not self.memlayers_config[adapter].subject_weight or forward is None:
            return None
        query: Any = self.memlayers_query[adapter]
        code = forward.code(adapter, opened, query.width)
        return None if code is None else code.to(x.device)

    def _soft_gate(self, adapter: str) -> RelevanceGate | None:
        """The gate that multiplies what the memory adds, if there is a trained one in force."""
        soft = self._gate_in_force and self.memlayers_config[adapter].gate_soft
        if not soft or adapter not in self.memlayers_gate:
            return None
        gate: Any = self.memlayers_gate[adapter]
        return gate if gate.trained else None

    def _always_reads(self, adapter: str) -> bool:
        """Whether the pool is read also for no token.

        Where it learns: its gradient is then zero, not missing. And where several processes share it, since they read
        it, or gather it (FSDP makes a class of its own of the pool's), together.
        """
        pool: Any = self.memlayers_pool_owner[adapter][adapter]
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in pool.parameters())
        return learns or type(pool) is not ValuePool or pool.columns is not None

    def _memory(self, x: Tensor, adapter: str, code: Tensor | None) -> Tensor:
        """What the memory adds, [n, d]."""
        config, project = self.memlayers_config[adapter], self.memlayers_query[adapter]
        with self._addressing(x, adapter):
            query: Tensor = project(x)
            read, scores = self._read(query, adapter, code)
            if config.load_balance:
                # Overwritten by every forward, so that a loss nobody took cannot reach a later step.
                balance = imbalance(scores[0]) + imbalance(scores[1])
                self._load_balance[adapter] = config.load_balance * balance if self.training and len(x) else None
        scale: Any = project.scale
        weights = read.weights * scale
        recorder = current().recorder
        if recorder is not None:
            recorder.read(self, adapter, query, read.indices, weights)
        pool: Any = self.memlayers_pool_owner[adapter][adapter]
        forward = current().forward
        shared = None if forward is None else forward.shared_parameter(pool)
        memory: Tensor = pool(read.indices, weights, x.dtype, shared).to(x.device)
        return self.memlayers_out[adapter](x, memory) if config.gated_output else memory

    def _read(self, query: Tensor, adapter: str, code: Tensor | None) -> tuple[Read, tuple[Tensor, Tensor]]:
        """What queries [n, heads * key_dim] read, and the scores of both halves by which it was chosen."""
        config = self.memlayers_config[adapter]
        scores = tempered_scores(query, code, self.memlayers_sub_keys[adapter].float(), config)
        return choose(*scores, config.top_k), scores

    @contextmanager
    def _addressing(self, x: Tensor, adapter: str) -> Iterator[None]:
        """Float32 even under autocast, so that teaching and answering read the same slots."""
        learns = torch.is_grad_enabled() and bool(self.memlayers_config[adapter].trainable_addressing)
        with torch.autocast(x.device.type, enabled=False), torch.set_grad_enabled(learns):
            yield

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        # peft looks for `.weight`, which an MLP block lacks, and would cast the memory to its dtype.
        parameter = next(base_layer.parameters(), None)
        if parameter is None:
            return None, None
        if not parameter.is_meta:
            return parameter.device, None
        # accelerate keeps the weights elsewhere and brings them to where they are needed.
        hooks = (getattr(module, "_hf_hook", None) for module in base_layer.modules())
        found = (getattr(hook, "execution_device", None) for hook in hooks)
        device = next((each for each in found if each is not None), None)
        return (None if device is None else torch.device(device)), None


def _where_open(gate: RelevanceGate, x: Tensor, candidates: Tensor) -> Tensor:
    """Bool [n]: the tokens that the gate opens for, among the candidates, bool [n]."""
    if not asks(x):
        return gate.is_open(x) & candidates
    opened, rows = torch.zeros_like(candidates), candidates.nonzero().squeeze(-1)
    if rows.numel():
        opened[rows] = gate.is_open(x[rows])
    return opened
