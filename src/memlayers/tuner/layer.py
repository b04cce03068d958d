"""The memory layer: an MLP block of the backbone with a product-key memory added to its output (MLP-ADD).

::

    x ─┬─ MLP block (frozen) ──────────────────────────────────────────────(+)─ output
       └─ gate ─ open? ─ query ─ scores ─ top-k, softmax ─ value pool ─ out ─┘
                 no: nothing is looked up        (shared)   (dense recipe)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from memlayers.pool.product_keys import make_sub_keys, product_key_top_k
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner.config import MemoryConfig
from memlayers.tuner.gate import RelevanceGate
from memlayers.tuner.relation_check import RelationCheck
from memlayers.tuner.subject_index import SubjectIndex, subject_code
from memlayers.tuner.subject_watch import SubjectWatch
from memlayers.utils.errors import InputError

MERGE_REFUSAL = "a memory is a lookup and cannot be merged into weights; keep the adapter, or unload() it"


class Read(NamedTuple):
    """What a memory layer looks up for n tokens, r = heads * top_k slots each.

    Attributes:
        indices: slots, int64 [n, r], head by head, the best slot of a head first.
        weights: their softmax weights, float32 [n, r]; they sum to 1 per head.
    """

    indices: Tensor
    weights: Tensor


class Query(nn.Module):
    """q = (x - mean) @ projection, in float32, and the unit in which this layer takes the values.

    ``projection`` [d, heads * key_dim] is a parameter; ``mean`` [d] and ``scale`` [] are buffers: they are
    calibrated, never learned.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, out_features: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        normal = torch.randn(dim, out_features, generator=torch.Generator().manual_seed(seed))
        self.projection = nn.Parameter(normal * dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, heads * key_dim], float32."""
        return (x.float() - self.mean.float()) @ self.projection.float()


class GatedOutput(nn.Module):
    """Memory+ (Berges 2024, section 2.3): W_out (SiLU(W_gate x) * memory), W_out starting at zero.

    Parameters ``gate`` and ``output``, each [d, d], flat on the module for the reason given in
    `RelevanceGate`.
    """

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        normal = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed))
        self.gate = nn.Parameter(normal * dim**-0.5)
        self.output = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """[n, d] and [n, d] -> [n, d] in the parameters' dtype."""
        x, memory = x.to(self.gate.dtype), memory.to(self.gate.dtype)
        return F.linear(F.silu(F.linear(x, self.gate)) * memory, self.output)


class MemoryLayer(nn.Module, BaseTunerLayer):
    """An MLP block wrapped with one memory per adapter.

    All memory layers of an adapter read one value pool. It is registered, and so saved, on the first of them
    only; the others hold an unregistered reference to the first one's container.

    Args:
        base_layer: the MLP block; its first argument is [..., d], its output (or the output's first
            element, for blocks that return a tuple) has the same shape.
        dim: d, the backbone's hidden size.
        watch: follows the token ids of this model; one for all of its memory layers. None makes one.
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

    def __init__(self, base_layer: nn.Module, dim: int, watch: SubjectWatch | None = None) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dim = dim
        self.watch = watch or SubjectWatch()
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
            pool = ValuePool(config.slots, self.dim, config.torch_pool_dtype, config.protectable)
            # About to be loaded: skip the slow random start. Zeros, not garbage, should nothing follow.
            init = "zero" if config.inference_mode else str(config.pool_init)
            pool.initialise(init, _derived_seed(config.seed, 0))
            self.memlayers_pool[adapter] = pool
        self.memlayers_pool_owner[adapter] = (owner or self).memlayers_pool
        self.memlayers_sub_keys[adapter] = nn.Parameter(
            make_sub_keys(heads, sub_keys, key_dim // 2, _derived_seed(config.seed, 1, layer))
        )
        self.memlayers_query[adapter] = Query(self.dim, heads * key_dim, _derived_seed(config.seed, 2, layer))
        if config.gated_output:
            self.memlayers_out[adapter] = GatedOutput(self.dim, _derived_seed(config.seed, 3, layer))
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
            self.watch.indexes[adapter] = self.memlayers_subjects
        if config.relations and first:
            self.memlayers_relations[adapter] = RelationCheck(self.dim)
        if config.gate and (first or not config.subjects):
            seed = _derived_seed(config.seed, 4, layer)
            self.memlayers_gate[adapter] = RelevanceGate(self.dim, config.gate_hidden, seed)
        self._move_adapter_to_device_of_base_layer(adapter)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, plus the memory of every active adapter for the tokens its gate opens for.

        A token whose gate is closed keeps the block's output to the bit; where all are closed nothing is
        looked up.
        """
        result = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return result
        x = args[0] if args else next(iter(kwargs.values()))
        out, *rest = result if isinstance(result, tuple) else (result,)
        for adapter in self.active_adapters:
            if adapter in self.memlayers_config:
                out = self._add_memory(out, x.reshape(-1, self.dim), adapter)
        return (out, *rest) if isinstance(result, tuple) else out

    def read(self, x: Tensor, adapter: str, subjects: Tensor | None = None) -> Read:
        """Looks up which slots each token reads; the values are not touched.

        Computed in float32 whatever the dtype of `x`. Without trainable addressing no gradient is recorded.

        Args:
            x: [n, d], inputs of the MLP block.
            adapter: name of the memory.
            subjects: the subject of each token, int64 [n], 0 for none (`SubjectWatch.subjects`); None where queries
                do not carry subjects.

        Returns:
            Indices and weights, [n, heads * top_k] each.
        """
        with self._addressing(x, adapter):
            return self._choose(*self._scores(x, adapter, subjects), adapter)

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
        opened = self._opened(x, adapter)
        subjects = self._subjects(x, adapter)
        if opened is None:
            memory = self._memory(x, adapter, subjects)
            gate = self._gate(adapter) if self.memlayers_config[adapter].gate_soft and self.gate_enabled else None
            if gate is not None:
                memory = memory * gate(x).sigmoid().unsqueeze(-1)
            return out + memory.to(out).view_as(out)
        if opened.numel() == 0:
            return out
        memory = self._memory(x[opened], adapter, None if subjects is None else subjects[opened]).to(out)
        return out.reshape(-1, self.dim).index_add(0, opened, memory).view_as(out)

    @torch.no_grad()
    def _opened(self, x: Tensor, adapter: str) -> Tensor | None:
        """The tokens, int64 [open], that may read this memory; None for all.

        A memory that knows its subjects decides once, at its first layer, whose input is the bare backbone's whatever
        the memory adds; the other layers follow. Otherwise each layer has a gate of its own.
        """
        decided = self.watch.decided
        if not self.gate_enabled or self.memlayers_config[adapter].gate_soft:
            decided[adapter] = None
            return None
        if self.memlayers_config[adapter].subjects and adapter not in self.memlayers_pool:
            opened = decided.get(adapter)
            return None if opened is None else opened.to(x.device)
        subjects, gate = self.watch.subjects(adapter, len(x)), self._gate(adapter)
        if subjects is None:
            opened = None if gate is None else gate.is_open(x).nonzero().squeeze(-1)
        else:
            may_read = (subjects != 0).to(x.device)
            if gate is not None:
                may_read = self.watch.keep_open(adapter, _where_open(gate, x, may_read)).to(x.device)
            opened = may_read.nonzero().squeeze(-1)
        decided[adapter] = opened
        return opened

    def _subjects(self, x: Tensor, adapter: str) -> Tensor | None:
        """The subject of each token, int64 [n], where this memory's queries carry it."""
        if not self.memlayers_config[adapter].subject_weight:
            return None
        subjects = self.watch.subjects(adapter, len(x))
        return None if subjects is None else subjects.to(x.device)

    def _gate(self, adapter: str) -> RelevanceGate | None:
        """The gate, if there is a trained one."""
        if adapter not in self.memlayers_gate:
            return None
        gate: Any = self.memlayers_gate[adapter]
        return gate if gate.trained else None

    def _memory(self, x: Tensor, adapter: str, subjects: Tensor | None) -> Tensor:
        """What the memory adds, [n, d]."""
        config = self.memlayers_config[adapter]
        with self._addressing(x, adapter):
            scores_a, scores_b = self._scores(x, adapter, subjects)
            read = self._choose(scores_a, scores_b, adapter)
            if config.load_balance:
                # Overwritten by every forward, so that a loss nobody took cannot reach a later step.
                balance = _imbalance(scores_a) + _imbalance(scores_b)
                self._load_balance[adapter] = config.load_balance * balance if self.training else None
        query: Any = self.memlayers_query[adapter]
        pool: Any = self.memlayers_pool_owner[adapter][adapter]
        memory: Tensor = pool(read.indices, read.weights * query.scale, x.dtype).to(x.device)
        return self.memlayers_out[adapter](x, memory) if config.gated_output else memory

    def _scores(self, x: Tensor, adapter: str, subjects: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tempered scores of both halves, float32 [n, heads, m] each."""
        config = self.memlayers_config[adapter]
        heads = config.shape.heads
        sub_keys = self.memlayers_sub_keys[adapter].float()
        query = self.memlayers_query[adapter](x).view(x.shape[0], heads, 2, sub_keys.shape[-1])
        if config.qk_norm:
            query = F.normalize(query, dim=-1)
            if subjects is not None:
                code = subject_code(subjects, query[0].numel()).view_as(query)  # each half of norm (2 heads)^-0.5
                query = F.normalize(query + config.subject_weight * (2 * heads) ** 0.5 * code, dim=-1)
            if config.trainable_addressing:  # frozen ones are made with unit norm
                sub_keys = F.normalize(sub_keys, dim=-1)
        query = (config.temperature * query).permute(2, 1, 0, 3)  # [2, h, n, key_dim / 2]
        scores = query.flatten(0, 1) @ sub_keys.flatten(0, 1).mT  # [2 h, n, m]: one product per half and head
        by_half = scores.unflatten(0, (2, heads)).transpose(1, 2)  # [2, n, h, m], a view
        return by_half[0], by_half[1]

    def _choose(self, scores_a: Tensor, scores_b: Tensor, adapter: str) -> Read:
        scores, indices = product_key_top_k(scores_a, scores_b, self.memlayers_config[adapter].top_k)
        return Read(indices.flatten(1), scores.softmax(-1).flatten(1))

    @contextmanager
    def _addressing(self, x: Tensor, adapter: str) -> Iterator[None]:
        """Float32 even under autocast, so that teaching and answering read the same slots."""
        learns = torch.is_grad_enabled() and bool(self.memlayers_config[adapter].trainable_addressing)
        with torch.autocast(x.device.type, enabled=False), torch.set_grad_enabled(learns):
            yield

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        # peft looks for `.weight`, which an MLP block lacks, and would cast the memory to its dtype.
        parameter = next(base_layer.parameters(), None)
        return (None if parameter is None else parameter.device), None


def _where_open(gate: RelevanceGate, x: Tensor, candidates: Tensor) -> Tensor:
    """Bool [n]: the tokens that the gate opens for, among the candidates, bool [n]."""
    opened, rows = torch.zeros_like(candidates), candidates.nonzero().squeeze(-1)
    if rows.numel():
        opened[rows] = gate.is_open(x[rows])
    return opened


def _imbalance(scores: Tensor) -> Tensor:
    """0 when the sub-keys of scores [n, h, m] are used evenly, m - 1 when every token uses the same one."""
    use = scores.softmax(-1).mean(0)  # [h, m]
    return (use.square().sum(-1) * use.shape[-1] - 1).mean()


def _derived_seed(seed: int, *path: int) -> int:
    """A seed for one of many random starts."""
    for step in path:
        seed = (seed * 1_000_003 + step + 1) % 2**63
    return seed
