"""The gradient of a value pool in factored form: the log of the reads it came from.

It is what autograd leaves in ``parameter.grad``. What training usually does to gradients is done to the log. Whatever
else torch is asked for is done to the dense gradient, as to any other tensor's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from memlayers.kernels import kernels_for
from memlayers.kernels.interface import Inverted, LogEntry
from memlayers.utils.errors import InputError, WorkError

NO_DENSE_GRADIENT = (
    "an int8 pool is taught by memlayers.RowAdamW only and has no dense gradient (torch's optimizers, FSDP, clamps and "
    "penalties need one): take RowAdamW alone, or a bfloat16 pool"
)
NO_READ_LOG = (
    "the value pool's gradient is dense (FSDP makes it so, DDP around anything but a PEFT model, a penalty on the "
    "pool, a clamp or a view of the gradient), and RowAdamW needs its read log: take torch.optim.AdamW, or train "
    "without these"
)


@dataclass(slots=True)
class _Content:
    """What a gradient holds: a log, or the dense gradient in its place.

    Attributes:
        entries: the log; empty where the gradient is dense.
        factor: on all entries.
        dense: the gradient once something was written into it that no log can say; None before.
        is_copy: whether this is a clone (a momentum begins as one) rather than a gradient.
        inverted: the inverted log, once asked for.
    """

    entries: tuple[LogEntry, ...] = ()
    factor: float = 1.0
    dense: Tensor | None = None
    is_copy: bool = False
    inverted: Inverted | None = None


class FactoredGradient(Tensor):
    """The gradient of a value pool, as the log of the reads it came from.

    To torch it is a tensor of the parameter's shape, dtype and device. Adding two joins their logs; scaling, detaching,
    copying, zeroing, the 2-norm and the gradient scaler's unscaling work on the log. Any other operation that only
    reads sees the dense gradient, built for that one call: so every optimizer works, if not at every pool's size. An
    operation that writes into it, or returns a view of it, makes it dense, until it is zeroed.

    Args:
        pool: the value pool whose gradient it is.
        like: a tensor of the gradient's shape, strides, dtype and device.
        entries: the log.
        factor: on all of them.
        dtype: where it is not that of `like`.
    """

    pool: Any  # a `ValuePool`
    _content: _Content

    @staticmethod
    def __new__(
        cls, pool: nn.Module, like: Tensor, entries: Sequence[LogEntry], factor: float = 1.0, dtype: Any = None
    ) -> FactoredGradient:
        """Makes a tensor without storage."""
        made = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=dtype or like.dtype, device=like.device
        )
        made.pool, made._content = pool, _Content(tuple(entries), factor)
        return made

    def __init__(self, *arguments: Any, **keywords: Any) -> None: ...

    def __repr__(self) -> str:  # type: ignore[override]
        if self.is_dense:
            return f"FactoredGradient(shape={tuple(self.shape)}, dense)"
        reads = sum(entry.indices.numel() for entry in self.entries)
        return f"FactoredGradient(shape={tuple(self.shape)}, entries={len(self.entries)}, reads={reads})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled and saved as the dense gradient: a log would bring the pool along."""
        return self.to_dense().__reduce_ex__(protocol)

    @property
    def is_dense(self) -> bool:
        """Whether something was written into it that no log can say."""
        return self._content.dense is not None

    @property
    def entries(self) -> tuple[LogEntry, ...]:
        """The log, by process and then as it was made: the order of one process that does all of their work in turn.

        Raises:
            InputError: the gradient is dense.
        """
        if self.is_dense:
            raise InputError(NO_READ_LOG)
        return tuple(sorted(self._content.entries, key=lambda entry: entry.process))

    @property
    def factor(self) -> float:
        """On all entries of the log."""
        return self._content.factor

    def inverted(self) -> Inverted:
        """Which tokens read each slot; worked out once."""
        if self._content.inverted is None:
            entries, kernels = self.entries, kernels_for(self.device)
            if self.pool.columns is None:
                self._content.inverted = kernels.invert(entries)
            else:  # no token is left out: others' columns may have what these have not
                alive = [each._replace(gradient=each.gradient.new_ones(len(each.indices), 1)) for each in entries]
                self._content.inverted = kernels.invert(alive)._replace(prepared=None)
        return self._content.inverted

    def norm_squared(self) -> Tensor:
        """The squared 2-norm over the whole pool, a float64 scalar."""
        dense = self._content.dense
        if dense is not None:
            norm: Tensor = torch.linalg.vector_norm(dense, dtype=torch.float64).square()
        else:
            norm = kernels_for(self.device).square_norm(self.entries, self.inverted()) * self.factor**2
        return norm if self.pool.columns is None else self.pool.columns.total(norm)

    def is_finite(self) -> Tensor:
        """Whether nothing in the log, or in the dense gradient, is infinite or NaN: a bool scalar."""
        if self._content.dense is not None:
            parts = [self._content.dense]
        else:
            parts = [part for entry in self.entries for part in (entry.gradient, entry.weights)]
        found = [torch.isfinite(part).all() for part in parts]
        finite = torch.stack(found).all() if found else torch.ones((), dtype=torch.bool, device=self.device)
        return finite if self.pool.columns is None else self.pool.columns.total((~finite).long()) == 0

    @torch.no_grad()
    def to_dense(self, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        """The gradient as an ordinary tensor of the pool's size, by torch's own embedding_bag backward.

        Args:
            dtype: of the result; None for the gradient's.

        Raises:
            WorkError: an int8 pool has no such gradient.
        """
        dense = self._summed() if self._content.dense is None else self._content.dense
        return dense if dtype is None else dense.to(dtype)

    def become_dense(self) -> Tensor:
        """Puts the dense gradient in the log's place, and returns it: what is written there is not lost."""
        dense = self.to_dense()
        self._content.dense = dense
        self.become((), 1.0)
        return dense

    def become(self, entries: tuple[LogEntry, ...], factor: float) -> FactoredGradient:
        """Takes another log."""
        self._content.entries, self._content.factor, self._content.inverted = entries, factor, None
        return self

    def zeroed(self) -> FactoredGradient:
        """Becomes the empty log, be it dense now or not."""
        if self._content.dense is not None:
            self._content.dense.zero_()  # for whoever has a view of it
            self._content.dense = None
        return self.become((), 1.0)

    def overwritten(self) -> None:
        """Becomes a dense gradient whose values are about to be written, whatever they are now."""
        self._content.dense = self._new_dense()
        self.become((), 1.0)

    def scaled(self, by: float) -> FactoredGradient:
        """Becomes `by` times what it is. The inverted log stays: it knows nothing of the factor."""
        self._content.factor *= by
        return self

    def like_this(
        self, entries: Sequence[LogEntry], factor: float, dtype: torch.dtype | None = None, *, is_copy: bool = False
    ) -> FactoredGradient:
        """Another gradient of the same pool."""
        made = FactoredGradient(self.pool, self, entries, factor, dtype)
        made._content.is_copy = is_copy
        return made

    def alias(self) -> FactoredGradient:
        """The same gradient as another tensor: what happens to one happens to both, as with a shared storage."""
        made = self.like_this((), 1.0)
        made._content = self._content
        return made

    def joined(self, other: FactoredGradient) -> tuple[tuple[LogEntry, ...], float]:
        """Both logs under one factor."""
        if self.factor == other.factor:
            return self.entries + other.entries, self.factor
        logs = (entry._replace(weights=entry.weights * each.factor) for each in (self, other) for entry in each.entries)
        return tuple(logs), 1.0

    def may_join(self, other: FactoredGradient) -> bool:
        """Whether `other` may be added to the log in place.

        A momentum (a clone, scaled and added to in every step) becomes dense instead: its log would grow without end.
        """
        return self.dim() == 1 or not self._content.is_copy or self.factor == other.factor

    def _summed(self) -> Tensor:
        entries = self.entries
        if not entries:
            return self._new_dense().zero_()
        compute = torch.promote_types(self._dense_dtype(), torch.float32)
        reads = torch.cat(
            [each.indices.new_full((len(each.indices),), each.indices.shape[1]) for each in entries]
        ).long()
        tokens = torch.arange(len(reads), device=self.device).repeat_interleave(reads)
        slots = torch.cat([entry.indices.flatten() for entry in entries]).long()
        weights = torch.cat([entry.weights.flatten() for entry in entries]) * self.factor
        gradients = torch.cat([entry.gradient.to(compute) for entry in entries])
        summed: Tensor = torch.ops.aten._embedding_bag_dense_backward(
            gradients, slots, tokens, reads, reads[:0], len(self), False, 0, weights.to(compute)
        )
        return summed.to(self.dtype)

    def _new_dense(self) -> Tensor:
        return torch.empty(self.shape, dtype=self._dense_dtype(), device=self.device)

    def _dense_dtype(self) -> torch.dtype:
        if self.dim() == 1:  # the scales of an int8 pool
            raise WorkError(NO_DENSE_GRADIENT)
        return self.dtype

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return _densely(func, args, kwargs or {})


def _densely(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operation on dense gradients.

    The schema says what it writes and what it returns views of: such a gradient becomes dense, so that nothing written
    is lost. What is only read is dense for this call.
    """
    written: dict[int, FactoredGradient] = {}

    def lasting(gradient: FactoredGradient) -> Tensor:
        dense = gradient.become_dense()
        written[id(dense)] = gradient
        return dense

    def dense(argument: Any, value: Any) -> Any:
        lasts = argument.alias_info is not None and not (argument.name == "grads" and _leaves_gradients(func, kwargs))
        return tree_map_only(FactoredGradient, lasting if lasts else FactoredGradient.to_dense, value)

    arguments = func._schema.arguments
    by_name = {argument.name: argument for argument in arguments}
    positional = [dense(argument, value) for argument, value in zip(arguments, args, strict=False)]
    named = {name: dense(by_name[name], value) for name, value in kwargs.items()}
    result = func(*positional, **named)
    return tree_map_only(Tensor, lambda tensor: written.get(id(tensor), tensor), result)


def _leaves_gradients(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether it is a fused optimizer that unscales nothing: its schema says that it writes gradients even then."""
    return str(func._schema.name).startswith("aten::_fused_") and kwargs.get("grad_scale") is None


# -- what torch does to gradients, done to a log ----------------------------------------------------------------


def _is_log(value: Any) -> bool:
    return isinstance(value, FactoredGradient) and not value.is_dense


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _add(a: Any, b: Any, *, alpha: float = 1) -> Any:
    return a.like_this(*a.joined(b)) if _is_log(a) and _is_log(b) and alpha == 1 else NotImplemented


def _add_(a: Any, b: Any, *, alpha: float = 1) -> Any:
    if not (_is_log(a) and _is_log(b) and alpha == 1 and a.may_join(b)):
        return NotImplemented
    return a.become(*a.joined(b))


def _mul(a: Any, b: Any) -> Any:
    if _is_log(b):
        a, b = b, a
    return a.like_this(a.entries, a.factor * float(b)) if _is_log(a) and _is_scalar(b) else NotImplemented


def _mul_(a: Any, b: Any) -> Any:
    return a.scaled(float(b)) if _is_log(a) and _is_scalar(b) else NotImplemented


def _div(a: Any, b: Any) -> Any:
    return _mul(a, 1 / float(b)) if _is_log(a) and _is_scalar(b) and float(b) else NotImplemented


def _div_(a: Any, b: Any) -> Any:
    return _mul_(a, 1 / float(b)) if _is_log(a) and _is_scalar(b) and float(b) else NotImplemented


def _clone(a: Any, **_: Any) -> Any:
    return a.like_this(a.entries, a.factor, is_copy=True) if _is_log(a) else NotImplemented


def _to_copy(a: Any, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Any:
    if not _is_log(a) or (device is not None and torch.device(device) != a.device):
        return NotImplemented
    return a.like_this(a.entries, a.factor, dtype, is_copy=True)


def _new_empty_strided(a: Any, size: Any, stride: Any, **options: Any) -> Any:
    """Half of how autograd copies a gradient that a hook holds on to; `_copy_` is the other."""
    alike = (tuple(size), tuple(stride), options.get("dtype", a.dtype)) == (tuple(a.shape), a.stride(), a.dtype)
    return a.like_this((), 1.0) if alike else NotImplemented


def _copy_(a: Any, b: Any, *_: Any, **__: Any) -> Any:
    if not _is_log(a):
        return NotImplemented
    if _is_log(b):
        return a.become(b.entries, b.factor)
    a.overwritten()
    return NotImplemented


def _vector_norm(a: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if not _is_log(a) or ord != 2 or dim is not None or keepdim:
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
        _aten.detach.default: FactoredGradient.alias,
        _aten.alias.default: FactoredGradient.alias,
        _aten.clone.default: _clone,
        _aten._to_copy.default: _to_copy,
        _aten.new_empty_strided.default: _new_empty_strided,
        _aten.copy_.default: _copy_,
        _aten.zero_.default: FactoredGradient.zeroed,
        _aten.linalg_vector_norm.default: _vector_norm,
        _aten._foreach_norm.Scalar: _foreach_norm,
        _aten._foreach_mul_.Tensor: _foreach_mul_,
        _aten._foreach_mul_.Scalar: _foreach_mul_,
        _aten._foreach_mul_.List: _foreach_mul_,
        _aten._foreach_zero_.default: _foreach_zero_,
        _aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale_,
    }
)
