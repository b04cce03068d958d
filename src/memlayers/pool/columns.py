"""A value pool split by columns over processes: each holds some columns of every row.

A read is sum_i w_i V_i, element by element. So a process can sum its columns alone, and the additions are those of one
process in their order: the same bits. (Meta's memory layers split their pool by columns too; Berges et al. 2024,
section 2.2.) Every process sums its columns for the tokens of all processes, and each token's sums go back to the
process that asked for them::

    reads of all processes     indices, weights [N, r]     N = n_0 + ... + n_(P-1) tokens, r reads each
    own columns of their sums  [N, d / P]
    own tokens' sums           [n, d]

Backward goes the same way back: the columns' gradients [N, d / P] stay where the columns are, with their log and their
optimizer. Nothing of the pool itself is ever sent, and no step is agreed on beyond the norm of the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from memlayers.pool.sharding import is_sharded
from memlayers.utils.errors import InputError
from memlayers.utils.ranks import reaching_others

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


PIECE_BYTES: Final = 64 * 2**20  # of rows that are put together at a time


class Everyones(NamedTuple):
    """The reads of all processes, in their order.

    Attributes:
        indices: int32 or int64 [N, r].
        weights: floating [N, r].
        counts: tokens of each process; N together.
    """

    indices: Tensor
    weights: Tensor
    counts: list[int]


@dataclass(frozen=True)
class Columns:
    """Which columns of a value pool this process holds, and how it works with those that hold the others.

    Every process must make the same reads in the same order, if only of no token. The last shares are padded where the
    width does not divide evenly; padding is zero and stays zero.

    Args:
        mesh: of one dimension; its processes share the pool.
        dim: width of a value, d.
        unit: the width of a share is a multiple of it: `STATE_BLOCK` where moments of 8 bits are scaled by blocks.
        average: a gradient is the mean over the processes, as DDP and FSDP have it, each taking the loss of its own
            tokens; otherwise the sum.
    """

    mesh: DeviceMesh
    dim: int
    unit: int = 1
    average: bool = True

    def __post_init__(self) -> None:
        if self.mesh.ndim != 1:
            raise InputError(f"a pool is split over a mesh of one dimension, not {self.mesh.ndim}: take mesh['name']")

    def __deepcopy__(self, memo: dict[int, Any]) -> Columns:
        return self  # a copy of a pool is shared by the same processes

    @cached_property
    def group(self) -> ProcessGroup:
        """The processes."""
        group: ProcessGroup = self.mesh.get_group()
        return group

    @cached_property
    def shares(self) -> int:
        """How many processes there are, P."""
        return int(self.mesh.size())

    @cached_property
    def rank(self) -> int:
        """Which of them this one is."""
        return int(self.mesh.get_local_rank())

    @property
    def width(self) -> int:
        """Columns that each process holds, padding included."""
        return -(-self.dim // (self.shares * self.unit)) * self.unit

    def cut(self, whole: Tensor, width: int | None = None) -> Tensor:
        """This process's columns [..., width] of a tensor [..., d], padded with zeros.

        Args:
            whole: it may be padded already.
            width: of a share; None for that of the values. Scales of 8-bit state have one column a block.
        """
        width = self.width if width is None else width
        own = whole[..., self.rank * width : (self.rank + 1) * width]
        return torch.nn.functional.pad(own, (0, width - own.shape[-1]))

    # -- reading ----------------------------------------------------------------------------------------------------

    def everyones(self, indices: Tensor, weights: Tensor) -> Everyones:
        """The reads of all processes, this one's being indices and weights [n, r]."""
        counts: list[int] = self._gathered(torch.tensor([len(indices)], device=indices.device)).tolist()
        packed = torch.cat([_as_bytes(indices), _as_bytes(weights)], 1)  # [n, bytes], one exchange for both
        everything = self._exchanged(packed.repeat(self.shares, 1), [len(indices)] * self.shares, counts)
        size = indices.element_size() * indices.shape[1]
        return Everyones(
            everything[:, :size].contiguous().view(indices.dtype),
            everything[:, size:].contiguous().view(weights.dtype),
            counts,
        )

    def to_askers(self, sums: Tensor, counts: Sequence[int]) -> Tensor:
        """Own columns of everyone's sums [N, width] -> own tokens' sums [n, d]."""
        own = counts[self.rank]
        back = self._exchanged(sums, counts, [own] * self.shares)  # [P * n, width]
        return self._side_by_side(back).contiguous()

    def to_holders(self, gradient: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Own tokens' gradients [n, d] -> own columns of everyone's, [N, width]; and whether all of a token is 0.

        Returns:
            The columns, and bool [N]: whether a token's gradient has a number other than 0 in any column.
        """
        padded = torch.nn.functional.pad(gradient, (0, self.shares * self.width - self.dim))
        alive = gradient.ne(0).any(-1).to(gradient)[:, None, None].expand(-1, self.shares, 1)
        parts = torch.cat([padded.view(-1, self.shares, self.width), alive], -1)  # [n, P, width + 1]
        parts = parts.transpose(0, 1).reshape(-1, self.width + 1)
        held = self._exchanged(parts, [counts[self.rank]] * self.shares, counts)
        return held[:, : self.width].contiguous(), held[:, self.width] != 0

    def summed_for_askers(self, parts: Tensor, counts: Sequence[int]) -> Tensor:
        """What own columns add to a number of each read, of everyone's [N, r] -> of own reads, all columns' [n, r]."""
        own = counts[self.rank]
        back = self._exchanged(parts, counts, [own] * self.shares)
        return back.view(self.shares, own, parts.shape[1]).sum(0)

    # -- stepping and saving ------------------------------------------------------------------------------------------

    def total(self, part: Tensor) -> Tensor:
        """The sum over the processes of a scalar, added up in their order: the same bits in each."""
        return self._gathered(part.reshape(1)).sum()

    def largest(self, part: Tensor) -> Tensor:
        """The largest over the processes, element by element."""
        found = part.clone()
        with reaching_others():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, self.group)
        return found

    def whole(self, own: Tensor) -> Tensor:
        """All columns [q, d], without padding, of rows of which this process holds [q, width]; in each process.

        Scales of 8-bit state, one a block, are put together likewise.
        """
        return self._side_by_side(self._gathered(own.contiguous()))

    def by_pieces(self, own: Tensor) -> Iterator[Tensor]:
        """`whole`, some rows at a time."""
        rows = max(1, PIECE_BYTES // (self.dim * own.element_size()))
        return (self.whole(piece) for piece in own.split(rows))

    def together(self, tensor: Tensor) -> Tensor:
        """What `dtensor` made, whole; other tensors as they are."""
        return self.whole(tensor.to_local()) if is_sharded(tensor) else tensor  # type: ignore[attr-defined]

    def dtensor(self, own: Tensor) -> DTensor:
        """Own columns as torch's distributed tensor, ``Shard(1)`` of [rows, P * width], for torch's own checkpoints."""
        from torch.distributed.tensor import DTensor, Shard

        return DTensor.from_local(own, self.mesh, [Shard(1)])

    def _side_by_side(self, parts: Tensor) -> Tensor:
        """Every process's columns of the same rows, [P * q, width], one after the other -> [q, d], without padding."""
        rows, width = len(parts) // self.shares, parts.shape[1]
        together = parts.view(self.shares, rows, width).transpose(0, 1).reshape(rows, self.shares * width)
        return together[:, : -(-self.dim * width // self.width)]

    # -- the two collectives ------------------------------------------------------------------------------------------

    def _gathered(self, own: Tensor) -> Tensor:
        """The same tensor of every process, one after the other."""
        parts = [torch.empty_like(own) for _ in range(self.shares)]
        with reaching_others():
            torch.distributed.all_gather(parts, own, self.group)
        return torch.cat(parts)

    def _exchanged(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Sends so many rows to each process, in their order, and returns what they sent."""
        out = rows.new_empty(sum(received), rows.shape[1])
        with reaching_others():
            torch.distributed.all_to_all_single(out, rows.contiguous(), list(received), list(sent), self.group)
        return out


def _as_bytes(tensor: Tensor) -> Tensor:
    """[n, r] -> uint8 [n, bytes]."""
    return tensor.contiguous().view(torch.uint8)


class Split(NamedTuple):
    """How the pools of memories that are built are split by columns; the attributes are those of `Columns`."""

    mesh: DeviceMesh
    unit: int = 1
    average: bool = True

    def of(self, dim: int) -> Columns | None:
        """Of a pool of width `dim`; None in a mesh of one process, which holds all."""
        return None if self.mesh.size() == 1 else Columns(self.mesh, dim, self.unit, self.average)
