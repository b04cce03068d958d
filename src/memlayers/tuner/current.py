"""What holds in this thread: the forward pass under way, and what a caller asked of the memories for a while.

All of it is per thread, so two requests in two threads never touch; nothing of it lies on a module. A `threading.local`
rather than a context variable, since torch.compile can trace the one and not the other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memlayers.pool.columns import Split
    from memlayers.tuner.forward_pass import ForwardPass


class Recorder:
    """Is told of everything that the memory layers see and read, while it is `current().recorder`; this one ignores it.

    The tensors are the layers' own: a recorder changes none of them.
    """

    def entered(self, layer: nn.Module, x: Tensor) -> None:
        """The MLP block's input, [..., d]."""

    def computed(self, layer: nn.Module, x: Tensor, out: Tensor) -> None:
        """What the MLP block made of `x`, without the residual stream where the block adds that itself."""

    def decided(self, layer: nn.Module, adapter: str, opened: Tensor | None, tokens: int) -> None:
        """The tokens that may read, int64 [open], of this many; None for all."""

    def read(self, layer: nn.Module, adapter: str, query: Tensor, indices: Tensor, weights: Tensor) -> None:
        """What they read: the query [n, heads * key_dim] and the slots and weights, [n, r]."""

    def left(self, layer: nn.Module, out: Tensor) -> None:
        """The same with what the memories add. May raise, to end the forward pass here."""


class Current:
    """What holds in one thread; the values here are those of a new one.

    Attributes:
        forward: the forward pass under way.
        bare: memory layers that add nothing.
        ungated: memory layers that let every token read.
        recorder: told of what the memory layers see.
        rows: of a batch in which each row names its memory, the names; "__base__" for none.
        token_ids: of embeddings that `generate` was given beside them.
        split: over which processes, and how, the pools of memories that are built now are split by columns.
    """

    def __init__(self) -> None:
        self.forward: ForwardPass | None = None
        self.bare: frozenset[nn.Module] = frozenset()
        self.ungated: frozenset[nn.Module] = frozenset()
        self.recorder: Recorder | None = None
        self.rows: tuple[str, ...] | None = None
        self.token_ids: Tensor | None = None
        self.split: Split | None = None


class _PerThread(threading.local):
    # torch.compile loses what is set on a thread's own attributes, but not what is set on an object that is one.
    def __init__(self) -> None:
        self.current = Current()


_PER_THREAD = _PerThread()


def current() -> Current:
    """What holds in this thread."""
    return _PER_THREAD.current


@contextmanager
def holding(**values: Any) -> Iterator[None]:
    """A context in which attributes of `current()` have these values."""
    here = current()
    before = {name: getattr(here, name) for name in values}
    for name, value in values.items():
        setattr(here, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(here, name, value)
