"""The value pool: the one table in which every memory layer of an adapter reads and writes, and its read log.

A read's gradient with respect to the table is a few numbers per token: which rows, with which weights, and one vector.
It stays in that factored form. `FactoredGradient` is what autograd leaves in ``parameter.grad``: it adds up over layers
and micro-batches, scales, and has a norm, like any gradient, without a row of it ever being built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from memlayers.kernels import kernels_for
from memlayers.kernels.interface import Inverted, LogEntry, Table
from memlayers.utils.errors import WorkError

BeforeRead: TypeAlias = Callable[[Tensor | None], None]


class ValuePool(nn.Module):
    """A table of slots, read by weighted sums of rows.

    A module of its own with a forward of its own, so that hooks (accelerate, FSDP) fire whichever layer
    reads it. Its storage starts uninitialised, so that a pool about to be loaded touches no memory; see
    `initialise`.

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
    """

    codes: Tensor
    protected: Tensor | None

    def __init__(self, slots: int, dim: int, dtype: torch.dtype = torch.float32, protectable: bool = False) -> None:
        super().__init__()
        self.slots, self.dim = slots, dim
        self.before_read: BeforeRead | None = None
        """Called with the slots about to be read (None: all): an optimizer that updates rows late does so now."""
        if dtype == torch.int8:
            self.register_buffer("codes", torch.empty(slots, dim, dtype=dtype))
            self.scales = nn.Parameter(torch.empty(slots))
        else:
            self.weight = nn.Parameter(torch.empty(slots, dim, dtype=dtype))
        self.register_buffer("protected", torch.zeros(slots, dtype=torch.bool) if protectable else None)
        self.register_state_dict_pre_hook(_bring_up_to_date)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "before_read": None}  # a copy is not the optimizer's

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
                    rows.copy_(torch.randn(rows.shape, generator=generator).mul_(127 / 4).round_().clamp_(-127, 127))
            else:
                self.codes.zero_()
        elif init == "normal":
            self.weight.normal_(0, std, generator=generator)
        else:
            self.weight.zero_()

    def forward(self, indices: Tensor, weights: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Reads sum_i w_i V_i for each token.

        Args:
            indices: [n, r] integer slots; n may be 0. Any device.
            weights: [n, r] floating; differentiable.
            dtype: of the result; None for the weights'.

        Returns:
            [n, dim] on the pool's device.
        """
        device = self.parameter.device
        indices = indices.to(device, torch.int32 if self.slots < 2**31 else torch.int64)
        weights = weights.to(device, torch.float64 if self.parameter.dtype == torch.float64 else torch.float32)
        if self.protected is not None and torch.is_grad_enabled():
            weights = weights.masked_fill(self.protected[indices], 0)
        if self.before_read is not None:
            self.before_read(indices)
        read: Tensor = _Read.apply(self.parameter, weights, indices, self, dtype or weights.dtype)
        return read


def _bring_up_to_date(pool: Any, prefix: str, keep_vars: bool) -> None:
    """What is saved is what would be read."""
    if pool.before_read is not None:
        pool.before_read(None)


class _Read(torch.autograd.Function):
    """`ValuePool.forward`; backward logs the read instead of building row gradients."""

    @staticmethod
    def forward(
        ctx: Any, parameter: Tensor, weights: Tensor, indices: Tensor, pool: ValuePool, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(indices, weights)
        ctx.pool = pool
        return kernels_for(indices.device).weighted_sum(pool.table, indices, weights, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        indices, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        log = weights_gradient = None
        if ctx.needs_input_grad[0]:
            log = FactoredGradient(ctx.pool, [LogEntry(indices, weights, gradient)])
        if ctx.needs_input_grad[1]:
            weights_gradient = kernels_for(indices.device).weight_gradient(ctx.pool.table, indices, gradient)
        return log, weights_gradient, None, None, None


class FactoredGradient(Tensor):
    """The gradient of a value pool, as the log of the reads it came from.

    To torch it is a tensor of the parameter's shape, dtype and device. Adding two joins their logs; scaling, detaching,
    copying, zeroing, the 2-norm and the gradient scaler's unscaling work on the log. Any other operation sees the dense
    gradient, built for that one call: so every optimizer works, if not at every pool's size.

    Attributes:
        pool: whose gradient it is.
        entries: the log.
        factor: on all of them.
    """

    pool: ValuePool
    entries: tuple[LogEntry, ...]
    factor: float

    @staticmethod
    def __new__(
        cls, pool: ValuePool, entries: Sequence[LogEntry], factor: float = 1.0, dtype: torch.dtype | None = None
    ) -> FactoredGradient:
        """Makes a tensor without storage."""
        like = pool.parameter
        made = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=dtype or like.dtype, device=like.device
        )
        made.pool, made.entries, made.factor = pool, tuple(entries), factor
        made._inverted = None
        return made

    _inverted: Inverted | None

    def __init__(self, *arguments: Any, **keywords: Any) -> None: ...

    def __repr__(self) -> str:  # type: ignore[override]
        reads = sum(entry.indices.numel() for entry in self.entries)
        return f"FactoredGradient(shape={tuple(self.shape)}, entries={len(self.entries)}, reads={reads})"

    def inverted(self) -> Inverted:
        """Which tokens read each slot; worked out once."""
        if self._inverted is None:
            self._inverted = kernels_for(self.device).invert(self.entries)
        return self._inverted

    def norm_squared(self) -> Tensor:
        """The squared 2-norm over the whole pool, a float64 scalar."""
        norm: Tensor = kernels_for(self.device).square_norm(self.entries, self.inverted()) * self.factor**2
        return norm

    def is_finite(self) -> Tensor:
        """Whether no gradient in the log is infinite or NaN, a bool scalar."""
        finite = [torch.isfinite(entry.gradient).all() for entry in self.entries]
        return torch.stack(finite).all() if finite else torch.ones((), dtype=torch.bool, device=self.device)

    @torch.no_grad()
    def to_dense(self, *arguments: Any, **keywords: Any) -> Tensor:
        """The gradient as an ordinary tensor of the pool's size, by torch's own embedding_bag backward.

        Raises:
            WorkError: an int8 pool has no such gradient.
        """
        if self.pool.table.scales is not None:
            raise WorkError("an int8 pool is taught by memlayers.RowAdamW only: take it, or a bfloat16 pool")
        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        compute = torch.promote_types(self.dtype, torch.float32)
        for indices, weights, gradient in self.entries:
            n, reads = indices.shape
            bags = torch.arange(n, dtype=indices.dtype, device=self.device)
            dense += torch.ops.aten._embedding_bag_dense_backward(
                gradient.to(compute), indices.flatten(), bags.repeat_interleave(reads), torch.full_like(bags, reads),
                bags[:0], self.pool.slots, False, 0, (weights * self.factor).flatten().to(compute),
            )  # fmt: skip
        return dense

    def _with(self, entries: Sequence[LogEntry], factor: float, dtype: torch.dtype | None = None) -> FactoredGradient:
        return FactoredGradient(self.pool, entries, factor, dtype or self.dtype)

    def _become(self, entries: tuple[LogEntry, ...], factor: float) -> FactoredGradient:
        self.entries, self.factor, self._inverted = entries, factor, None
        return self

    def _scale(self, by: Any) -> FactoredGradient:
        self.factor *= float(by)
        return self

    def _joined(self, other: FactoredGradient) -> tuple[tuple[LogEntry, ...], float]:
        """Both logs under one factor."""
        if self.factor == other.factor:
            return self.entries + other.entries, self.factor
        logs = (entry._replace(weights=entry.weights * each.factor) for each in (self, other) for entry in each.entries)
        return tuple(logs), 1.0

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        if args and func._schema.is_mutable and _holds_one(args[0]):
            raise NotImplementedError(f"{func} cannot change a value pool's factored gradient in place")
        args, kwargs = tree_map_only(FactoredGradient, FactoredGradient.to_dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def _holds_one(argument: Any) -> bool:
    items = argument if isinstance(argument, (list, tuple)) else [argument]
    return any(isinstance(item, FactoredGradient) for item in items)


# -- what torch does to gradients, done to a log ----------------------------------------------------------------


def _add(a: Any, b: Any, *, alpha: float = 1) -> Any:
    if not (isinstance(a, FactoredGradient) and isinstance(b, FactoredGradient)) or alpha != 1:
        return NotImplemented
    return a._with(*a._joined(b))


def _add_(a: Any, b: Any, *, alpha: float = 1) -> Any:
    if not (isinstance(a, FactoredGradient) and isinstance(b, FactoredGradient)) or alpha != 1:
        return NotImplemented
    return a._become(*a._joined(b))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _mul(a: Any, b: Any) -> Any:
    if isinstance(b, FactoredGradient):
        a, b = b, a
    return a._with(a.entries, a.factor * float(b)) if _is_scalar(b) else NotImplemented


def _mul_(a: Any, b: Any) -> Any:
    return a._scale(b) if isinstance(a, FactoredGradient) and _is_scalar(b) else NotImplemented


def _div(a: Any, b: Any) -> Any:
    return (
        a._with(a.entries, a.factor / float(b)) if isinstance(a, FactoredGradient) and _is_scalar(b) else NotImplemented
    )


def _div_(a: Any, b: Any) -> Any:
    return a._scale(1 / float(b)) if isinstance(a, FactoredGradient) and _is_scalar(b) else NotImplemented


def _same(a: Any, **_: Any) -> Any:
    return a._with(a.entries, a.factor)


def _to_copy(a: Any, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Any:
    if device is not None and torch.device(device) != a.device:
        return NotImplemented
    return a._with(a.entries, a.factor, dtype)


def _zero_(a: Any) -> Any:
    return a._become((), 1.0)


def _vector_norm(a: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if ord != 2 or dim is not None or keepdim:
        return NotImplemented
    return a.norm_squared().sqrt().to(dtype or a.dtype)


def _foreach_norm(tensors: Any, ord: Any = 2, dtype: Any = None) -> Any:
    return [torch.linalg.vector_norm(each, ord, dtype=dtype) for each in tensors]


def _foreach_mul_(tensors: Any, by: Any) -> None:
    for number, each in enumerate(tensors):
        each.mul_(by[number] if isinstance(by, (list, tuple)) else by)


def _foreach_zero_(tensors: Any) -> None:
    for each in tensors:
        each.zero_()


def _unscale_(tensors: Any, found_inf: Tensor, inverse_scale: Tensor) -> None:
    """torch.amp.GradScaler's check and unscaling."""
    for each in tensors:
        if isinstance(each, FactoredGradient):
            found_inf.logical_or_(~each.is_finite())
            each.mul_(inverse_scale)
        else:
            torch._amp_foreach_non_finite_check_and_unscale_([each], found_inf, inverse_scale)


_aten = torch.ops.aten
_HANDLERS: MappingProxyType[Any, Callable[..., Any]] = MappingProxyType(
    {
        _aten.add.Tensor: _add,
        _aten.add_.Tensor: _add_,
        _aten.mul.Tensor: _mul,
        _aten.mul.Scalar: _mul,
        _aten.mul_.Tensor: _mul_,
        _aten.mul_.Scalar: _mul_,
        _aten.div.Tensor: _div,
        _aten.div.Scalar: _div,
        _aten.div_.Tensor: _div_,
        _aten.div_.Scalar: _div_,
        _aten.detach.default: _same,
        _aten.alias.default: _same,
        _aten.clone.default: _same,
        _aten._to_copy.default: _to_copy,
        _aten.zero_.default: _zero_,
        _aten.linalg_vector_norm.default: _vector_norm,
        _aten._foreach_norm.Scalar: _foreach_norm,
        _aten._foreach_mul_.Tensor: _foreach_mul_,
        _aten._foreach_mul_.Scalar: _foreach_mul_,
        _aten._foreach_mul_.List: _foreach_mul_,
        _aten._foreach_zero_.default: _foreach_zero_,
        _aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale_,
    }
)
