"""The value pool: the one table in which every memory layer of an adapter reads and writes, and its read log.

A read's gradient with respect to the table is a few numbers per token: which rows, with which weights, and one vector.
It stays in that factored form. `FactoredGradient` is what autograd leaves in ``parameter.grad``: it adds up over layers
and micro-batches, scales, and has a norm, like any gradient, without a row of it ever being built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from memlayers.kernels import kernels_for, operators
from memlayers.kernels.interface import LogEntry, Table
from memlayers.kernels.storage import write_rows
from memlayers.pool.columns import Columns, Everyones
from memlayers.pool.factored_gradient import FactoredGradient
from memlayers.pool.mapped_rows import MappedRows
from memlayers.pool.sharding import check_whole, is_sharded
from memlayers.utils.errors import WorkError

__all__ = ["FactoredGradient", "ValuePool", "is_value_pool"]

BeforeRead: TypeAlias = Callable[[Tensor | None], None]


class ValuePool(nn.Module):
    """A table of slots, read by weighted sums of rows.

    A module of its own with a forward of its own, so that hooks (accelerate, FSDP) fire whichever layer
    reads it. Its storage starts uninitialised, so that a pool about to be loaded touches no memory; see
    `initialise`. Where peft builds on the meta device, it is built there, and takes no memory at all.

    A floating pool is the parameter ``weight`` [slots, dim]. An int8 pool is the buffer ``codes`` [slots, dim] and the
    parameter ``scales`` [slots], one unit per row: torch lets no whole number learn, so the scales stand for the rows
    wherever a parameter is asked for, and `RowAdamW`, which keeps the rows in float32, writes both.

    Args:
        slots: number of rows.
        dim: width of a value, the backbone's hidden size.
        dtype: of the storage; kept through saving, loading and peft's casts.
        protectable: some slots may be kept as they are: the buffer ``protected``, bool [slots], says which (none at
            first). Where a gradient may be asked for, they are read with weight 0, so theirs is exactly 0 whatever
            the optimizer. They start at zero, and so add nothing with any weight: elsewhere the mask costs nothing.
        columns: the pool is split over processes, and this one holds these columns of it: the table is
            [slots, columns.width]. All processes read at the same time. Its ``state_dict`` has distributed tensors;
            whole ones may be loaded.
    """

    codes: Tensor
    protected: Tensor | None
    anchor: nn.Parameter | None

    def __init__(
        self,
        slots: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        protectable: bool = False,
        columns: Columns | None = None,
    ) -> None:
        super().__init__()
        self.slots, self.dim, self.columns = slots, dim, columns
        self.width = dim if columns is None else columns.width
        """Columns of the table: d, or what this process holds of them."""
        self.before_read: BeforeRead | None = None
        """Called with the slots about to be read (None: all): an optimizer that updates rows late does so now."""
        self.mapped: MappedRows | None = None
        """The file that the rows stay in, where they do."""
        self.stays = False
        """Whether it stays where it is, in host memory or on the disk, when the model is moved."""
        self.register_parameter("scales" if dtype == torch.int8 else "weight", nn.Parameter(torch.empty(0)))
        device = self.parameter.device  # meta, if peft has it so: a parameter goes there as it is registered
        if dtype == torch.int8:
            self.register_buffer("codes", torch.empty(slots, self.width, dtype=dtype, device=device))
            self.scales = nn.Parameter(torch.empty(slots, device=device))
        else:
            self.weight = nn.Parameter(torch.empty(slots, self.width, dtype=dtype, device=device))
        self._mark()
        self.register_buffer("protected", torch.zeros(slots, dtype=torch.bool) if protectable else None)
        self.register_parameter("anchor", None)
        self.shared_by: Any = None
        """A weak reference to the `DistributedDataParallel` in which all processes have the same values."""
        self.register_state_dict_pre_hook(_bring_up_to_date)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is not the optimizer's, nor the file's, nor DDP's.
        return {**self.__dict__, "before_read": None, "mapped": None, "shared_by": None}

    def _apply(self, fn: Any, recurse: bool = True) -> ValuePool:
        return self if self.stays else super()._apply(fn, recurse)

    def share_reads(self) -> list[str]:
        """Readies it for `DistributedDataParallel`, which is to leave alone the parameters and buffers named here.

        It would exchange dense gradients of the pool; its read logs are exchanged instead (`gathering`). DDP refuses a
        model in which nothing learns that it knows of, so it is given the parameter ``anchor``: one number, whose
        gradient is 0, and which is not saved.
        """
        names = [name for name, _ in (*self.named_parameters(), *self.named_buffers()) if name != "anchor"]
        if self.anchor is None:
            self.anchor = nn.Parameter(torch.zeros((), device=self.parameter.device))
        return names

    @property
    def parameter(self) -> nn.Parameter:
        """The one parameter, by which optimizers know the pool."""
        return self.weight if "weight" in self._parameters else self.scales

    @property
    def table(self) -> Table:
        """The storage, as kernels take it."""
        if "weight" in self._parameters:
            return Table(self.weight.detach())
        return Table(self.codes, self.scales.detach())

    @torch.no_grad()
    def initialise(self, init: str, seed: int) -> None:
        """Fills the table in place with zeros ("zero") or with normal values of std dim^-0.5 ("normal").

        Does nothing on the meta device, where peft builds adapters that it is about to load.
        """
        if self.parameter.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)
        std = self.dim**-0.5
        if self.table.scales is not None:
            # An int8 row: codes of the std's quarter leave room for four sigmas.
            self.scales.fill_(4 * std / 127 if init == "normal" else 0)
            if init == "normal":
                for rows in self.codes.split(1 << 14):
                    codes = torch.randn(len(rows), self.dim, generator=generator).mul_(127 / 4).round_()
                    rows.copy_(self._own(codes.clamp_(-127, 127)))
            else:
                self.codes.zero_()
        elif init == "normal" and self.columns is None:
            self.weight.normal_(0, std, generator=generator)
        elif init == "normal":
            whole = torch.empty(self.slots, self.dim, dtype=self.weight.dtype)  # once, at the start of a dense memory
            self.weight.copy_(self._own(whole.normal_(0, std, generator=generator)))
        else:
            self.weight.zero_()

    def forward(
        self, indices: Tensor, weights: Tensor, dtype: torch.dtype | None = None, shared: Tensor | None = None
    ) -> Tensor:
        """Reads sum_i w_i V_i for each token.

        Args:
            indices: [n, r] integer slots; n may be 0. Any device.
            weights: [n, r] floating; differentiable.
            dtype: of the result; None for the weights'.
            shared: the parameter as several processes share it (`gathering.shared_parameter`); None for its own.

        Returns:
            [n, dim] on the pool's device.

        Raises:
            InputError: a slot is outside the pool (see `operators.checked` for CUDA).
            WorkError: FSDP has flattened the pool, cut it up or left it out.
        """
        if not torch.compiler.is_compiling():
            return self._read(indices, weights, dtype, shared)
        if self.before_read is not None or self.columns is not None or self._learns(weights):
            # What moves rows first, or keeps a log, is no operation of a graph: torch.compile breaks its graph here.
            from memlayers.pool.graph_break import outside_of_graphs

            read: Tensor = outside_of_graphs(self._read, indices, weights, dtype, shared)
            return read
        indices, weights = indices.to(self.parameter.device), self._weights(indices, weights)
        return operators.weighted_sum(self.table, indices, weights, dtype or weights.dtype)

    def _read(self, indices: Tensor, weights: Tensor, dtype: torch.dtype | None, shared: Tensor | None) -> Tensor:
        learns = self._learns(weights)
        check_whole(self, self._held(), self.slots, learns, self.columns is not None)
        indices = operators.checked(indices, self.slots).to(self.parameter.device)
        if self.mapped is not None:
            self.mapped.fetch(indices)
        weights = self._weights(indices, weights)
        everyones = None if self.columns is None else self.columns.everyones(indices, weights.detach())
        if self.before_read is not None:
            self.before_read(indices if everyones is None else everyones.indices)
        if learns:
            self._mark()
            parameter = self.parameter if shared is None else shared
            read: Tensor = _Read.apply(parameter, weights, indices, everyones, self, dtype or weights.dtype)
            return read
        return self._sums(indices, weights, everyones, dtype or weights.dtype)

    def _sums(self, indices: Tensor, weights: Tensor, everyones: Everyones | None, dtype: torch.dtype) -> Tensor:
        """sum_i w_i V_i of own tokens, [n, d]."""
        kernels = kernels_for(indices.device)
        if self.columns is None or everyones is None:
            return kernels.weighted_sum(self.table, indices, weights, dtype)
        sums = kernels.weighted_sum(self.table, everyones.indices, everyones.weights, dtype)  # [N, width]
        return self.columns.to_askers(sums, everyones.counts)

    def write(self, rows: Tensor, values: Tensor) -> None:
        """Writes rows, rounded to the table's format; see `storage.write_rows`.

        Args:
            rows: distinct slots, int64 [q].
            values: [q, width].
        """
        largest = None
        if self.columns is not None and self.units_are_shared:
            largest = self.columns.largest(values.abs().amax(-1))
        write_rows(self.table, rows, values, largest=largest)

    @property
    def units_are_shared(self) -> bool:
        """Whether a row has one unit for columns that several processes hold: an int8 pool split by columns."""
        return self.columns is not None and "scales" in self._parameters

    def _own(self, whole: Tensor) -> Tensor:
        """This process's columns of rows [..., d]."""
        return whole if self.columns is None else self.columns.cut(whole)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}anchor", None)
        name = prefix + self.values_name
        if self.columns is not None and name in destination:
            destination[name] = self.columns.dtensor(destination[name].detach())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        name = prefix + self.values_name
        if self.columns is not None and name in state_dict:
            given = state_dict[name]
            own = given.to_local() if is_sharded(given) else self.columns.cut(given)
            state_dict = {**state_dict, name: own}
        if self.anchor is not None:
            state_dict = {**state_dict, f"{prefix}anchor": self.anchor.detach()}
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @property
    def values_name(self) -> str:
        """What the table is called in a state dict."""
        return "weight" if "weight" in self._parameters else "codes"

    def _mark(self) -> None:
        """Lets an optimizer know the parameter though its gradient is dense; a copy's is marked when it is read."""
        self.parameter.memlayers_columns = self.columns  # type: ignore[attr-defined]

    def _held(self) -> Tensor | None:
        """The parameter, if it still is one of this module: FSDP1 takes it away."""
        return self._parameters.get("weight", self._parameters.get("scales"))

    def _learns(self, weights: Tensor) -> bool:
        """Whether a read has a gradient."""
        held = self._held()
        return torch.is_grad_enabled() and (weights.requires_grad or (held is not None and held.requires_grad))

    def _weights(self, indices: Tensor, weights: Tensor) -> Tensor:
        """Weights as kernels take them, 0 for protected slots."""
        parameter = self.parameter
        weights = weights.to(parameter.device, torch.float64 if parameter.dtype == torch.float64 else torch.float32)
        if self.protected is not None and torch.is_grad_enabled():
            weights = weights.masked_fill(self.protected[indices], 0)
        return weights


def is_value_pool(parameter: Tensor) -> bool:
    """Whether it is the parameter of a value pool."""
    return hasattr(parameter, "memlayers_columns")


def columns_of(parameter: Tensor) -> Columns | None:
    """The columns that this process holds of a value pool, by its parameter; None where it holds all."""
    columns: Columns | None = getattr(parameter, "memlayers_columns", None)
    return columns


def _bring_up_to_date(pool: Any, prefix: str, keep_vars: bool) -> None:
    """What is saved is what would be read."""
    if pool.before_read is not None:
        pool.before_read(None)


class _Read(torch.autograd.Function):
    """`ValuePool.forward`; backward logs the read instead of building row gradients."""

    @staticmethod
    def forward(
        ctx: Any, parameter: Tensor, weights: Tensor, indices: Tensor, everyones: Everyones | None, pool: ValuePool,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        ctx.pool, ctx.like = pool, parameter.detach()
        ctx.counts = None if everyones is None else everyones.counts
        ctx.save_for_backward(*((indices, weights) if everyones is None else everyones[:2]))
        return pool._sums(indices, weights, everyones, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise WorkError("a value pool has no second derivative: do without create_graph=True")
        indices, weights = ctx.saved_tensors
        gradient = gradient.detach().contiguous()
        pool, columns, counts = ctx.pool, ctx.pool.columns, ctx.counts
        entries, factor, weights = [LogEntry(indices, weights.detach(), gradient)], 1.0, weights.detach()
        if columns is not None:
            gradient, alive = columns.to_holders(gradient, counts)  # [N, width]
            # Tokens whose whole gradient is zero are left out here: one process's columns alone do not tell.
            parts = [each.split(counts) for each in (indices, weights, gradient, alive)]
            entries = [LogEntry(i[a], w[a], g[a], p) for p, (i, w, g, a) in enumerate(zip(*parts, strict=True))]
            factor = 1 / columns.shares if columns.average else 1.0
        log = weights_gradient = None
        if ctx.needs_input_grad[0]:
            log = FactoredGradient(pool, ctx.like, entries, factor)
        if ctx.needs_input_grad[1]:
            weights_gradient = kernels_for(indices.device).weight_gradient(pool.table, indices, gradient)
            if columns is not None:
                weights_gradient = columns.summed_for_askers(weights_gradient, counts)
        return log, weights_gradient, None, None, None, None
