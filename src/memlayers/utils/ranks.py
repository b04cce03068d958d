"""The processes of one job, as ``torchrun`` or ``accelerate launch`` starts them: which is this one, and what all know.

torch.distributed does the work. Every process calls the same methods in the same order; one process alone has nobody to
ask and needs no process group. Loads torch only where there are several.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from memlayers.utils.errors import InputError, WorkError, reason_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

ROLL_CALL_SECONDS: Final = 10.0
"""How long the processes that are left wait for the others to say how they ended."""

LAUNCHED: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What launchers tell a process of its job, in its environment."""


class _OthersEnded(BaseException):
    """A collective failed, or this process was told to end: another one is to say why."""


class Unreachable(WorkError):
    """A process does not answer in a read that all make together."""


class Ranks:
    """The processes of one job.

    Args:
        rank: this one's number, from 0.
        size: how many they are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files, shows progress and prints."""
        return self.rank == 0

    def has(self, number: int) -> bool:
        """Whether the n-th of some pieces of work is this process's: they are dealt in turn."""
        return number % self.size == self.rank

    def run_of(self, parts: int) -> range:
        """Which of some parts are this process's: neighbours, so that the order of ranks is that of the parts."""
        return range(self.rank * parts // self.size, (self.rank + 1) * parts // self.size)

    # -- what all of them know ---------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks; anything that can be pickled."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        with _meeting():
            distributed.all_gather_object(values, value)
        return values

    def gather_dealt(self, own: Mapping[int, T]) -> list[T]:
        """What became of all pieces of work that were dealt, in their order, given this process's by their numbers."""
        everyones = {number: each for some in self.gather(own) for number, each in some.items()}
        return [everyones[number] for number in range(len(everyones))]

    def gather_tensors(self, tensors: Sequence[Tensor], device: torch.device) -> list[list[Tensor]]:
        """Every process's tensors, in the order of ranks: any number, of any shapes and dtypes, on this device.

        Two collectives: the sizes, and all bytes. The tensors of this process come back as they are.
        """
        if self.size == 1:
            return [list(tensors)]
        with _meeting():
            return gather_tensors(tensors, device)

    def broadcast(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Gives every process the values that one of them has, in place."""
        if self.size > 1:
            with _meeting():
                broadcast_tensors(tensors, source)

    def meet(self) -> None:
        """Waits until all are here."""
        self.gather(None)

    def agree(self, what: Mapping[str, Any], told: str) -> None:
        """Has all processes compare something.

        Args:
            what: by name.
            told: what they would do otherwise, for the error.

        Raises:
            InputError: theirs differ: names the process and the first thing that does.
        """
        everything = self.gather(dict(what))
        for rank, other in enumerate(everything):
            for name, value in everything[0].items():
                if other.get(name) != value:
                    error = InputError(
                        f"the processes do not {told}: rank {rank} has another {name} than rank 0; give all of them "
                        "the same"
                    )
                    raise _told_by(error, 0)

    # -- how they end ------------------------------------------------------------------------------------------------

    @contextmanager
    def ending_together(self, then: str = "") -> Iterator[None]:
        """Where the block fails in one process, it fails in all of them within seconds, and one of them says why.

        It ends the job: connections by gloo are closed then.

        Args:
            then: what to do where a process is gone, for the error.

        Raises:
            InputError, WorkError: what failed, in all processes alike, with the rank where it is not the first. A
                process that vanished is named by the others.
        """
        if self.size == 1:
            yield
            return
        try:
            with _on_sigterm(_end):
                yield
        except (_OthersEnded, Unreachable) as ended:
            raise self._told(ended, then) from ended.__cause__
        except Exception as error:
            if told_by(error) is not None:
                raise
            told = self._told(error, then)
            raise told if isinstance(error, (InputError, WorkError)) else error from None

    def _told(self, error: BaseException, then: str) -> Exception:
        """What the processes that are left make of an end: the same in all of them."""
        own = (
            None
            if isinstance(error, (_OthersEnded, Unreachable))
            else (isinstance(error, InputError), _in_words(error))
        )
        for each in (error, error.__cause__):
            traceback.clear_frames(each.__traceback__ if each is not None else None)  # they hold the process group
        with _on_sigterm(signal.SIG_IGN):  # the launcher ends the others, too; this one has something to say yet
            try:
                said = self._roll_call(own)
            except Exception:  # no launcher kept the store: it went with the first process
                said = {**dict.fromkeys(range(1, self.size)), self.rank: own}
        failed = sorted(rank for rank, each in said.items() if each is not None)
        gone = [rank for rank in range(self.size) if rank not in said]
        if failed:
            is_input, words = said[failed[0]]
            words = words if failed[0] == 0 else f"rank {failed[0]}: {words}"
            return _told_by(InputError(words) if is_input else WorkError(words), failed[0])
        speaker = min(said)
        if gone:
            which = f"rank{'s' if len(gone) > 1 else ''} {', '.join(map(str, gone))} of {self.size}"
            return _told_by(WorkError(f"{which} ended without a word (killed, or out of memory){then}"), speaker)
        cause, why = error.__cause__, "ended by SIGTERM"
        if isinstance(cause, Exception):
            why = f"the processes lost each other ({reason_of(cause)})"
        return _told_by(WorkError(why + then), speaker)

    def _roll_call(self, own: Any) -> dict[int, Any]:
        """How each process that still says anything ended: (wrong input, what was wrong), or None where others did."""
        import json

        from torch import distributed

        store = distributed.distributed_c10d._get_default_store()
        keys = [f"memlayers/ended/{rank}" for rank in range(self.size)]
        store.set(keys[self.rank], json.dumps(own))
        if distributed.get_backend() == "gloo":  # who waits for this one, or for one that waits for it, waits no more
            distributed.destroy_process_group()
            gc.collect()  # the connections end with the last that holds them
        said: dict[int, Any] = {self.rank: own}
        until = time.monotonic() + ROLL_CALL_SECONDS
        while time.monotonic() < until and len(said) < self.size:
            if own is not None and all(rank in said for rank in range(self.rank)):
                break  # nobody before this one has more to say
            for rank, key in enumerate(keys):
                if rank not in said and store.check([key]):
                    said[rank] = json.loads(store.get(key))
            time.sleep(0.02)
        return said


ALONE: Final = Ranks()
"""One process that nobody launched with others."""


def join_ranks(device: str | None = None) -> Ranks:
    """The processes of this one's job; makes their process group, by accelerate, where there is none yet.

    Args:
        device: on which they work, where that is known: "cpu" has them meet by gloo.
    """
    from torch import distributed

    if not distributed.is_available():
        return ALONE
    if not distributed.is_initialized():
        if not launched():
            return ALONE
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")
    size = distributed.get_world_size()
    return Ranks(distributed.get_rank(), size) if size > 1 else ALONE


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def told_by(error: BaseException) -> int | None:
    """Which process says an error that all of them have; None where each has its own."""
    found: int | None = getattr(error, "told_by", None)
    return found


def _told_by(error: Exception, rank: int) -> Exception:
    error.told_by = rank  # type: ignore[attr-defined]
    return error


def _in_words(error: BaseException) -> str:
    known = isinstance(error, (InputError, WorkError))
    return str(error) if known else f"{type(error).__name__}: {reason_of(error)}"  # type: ignore[arg-type]


@contextmanager
def _meeting() -> Iterator[None]:
    """A collective; it fails where a process is gone."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's own kinds are RuntimeErrors
        raise _OthersEnded from error


@contextmanager
def reaching_others() -> Iterator[None]:
    """A collective outside of `Ranks`.

    Raises:
        Unreachable: a process is gone, or does something else.
    """
    try:
        yield
    except RuntimeError as error:
        raise Unreachable(f"another process of the job does not answer ({reason_of(error)})") from error


def _end(*_: Any) -> None:
    raise _OthersEnded


@contextmanager
def _on_sigterm(handler: Callable[..., None] | signal.Handlers) -> Iterator[None]:
    """What SIGTERM, by which launchers end a job, does meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        with suppress(TypeError):  # a handler that Python does not know stays away
            signal.signal(signal.SIGTERM, before)


def broadcast_tensors(tensors: Sequence[Tensor], source: int = 0, group: Any = None) -> None:
    """`Ranks.broadcast` in any process group; `source` counts in it."""
    import torch
    from torch import distributed

    for tensor in tensors:
        whole = tensor.detach().contiguous()
        if whole.numel():  # as bytes: not all backends know all dtypes
            distributed.broadcast(whole.view(-1).view(torch.uint8), group=group, group_src=source)
        if whole.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(whole)


def gather_tensors(tensors: Sequence[Tensor], device: torch.device, group: Any = None) -> list[list[Tensor]]:
    """`Ranks.gather_tensors` in any process group."""
    import json

    import torch
    from torch import distributed

    rank, size = distributed.get_rank(group), distributed.get_world_size(group)
    here, device = device, torch.device("cpu") if distributed.get_backend(group) == "gloo" else device
    kinds = [(str(each.dtype).removeprefix("torch."), list(each.shape)) for each in tensors]
    head = torch.frombuffer(bytearray(json.dumps(kinds).encode()), dtype=torch.uint8)
    parts = [_padded(head), *(_padded(each.detach().contiguous().flatten().view(torch.uint8)) for each in tensors)]
    own = torch.cat([part.to(device) for part in parts])
    sizes = list(torch.empty(size, 2, dtype=torch.int64, device=device))
    distributed.all_gather(sizes, torch.tensor([len(head), len(own)], device=device), group)
    lengths = torch.stack(sizes).tolist()
    longest = max(length for _, length in lengths)
    everything = list(torch.empty(size, longest, dtype=torch.uint8, device=device))
    distributed.all_gather(everything, torch.nn.functional.pad(own, (0, longest - len(own))), group)
    found: list[list[Tensor]] = []
    for number, ((heading, _), row) in enumerate(zip(lengths, everything, strict=True)):
        if number == rank:
            found.append(list(tensors))
            continue
        at, theirs = heading + -heading % 8, []
        for name, shape in json.loads(bytes(row[:heading].tolist())):
            dtype = getattr(torch, name)
            count = torch.Size(shape).numel() * dtype.itemsize
            theirs.append(row[at : at + count].clone().view(dtype).view(shape).to(here))
            at += count + -count % 8
        found.append(theirs)
    return found


def _padded(part: Tensor) -> Tensor:
    """Bytes, up to a multiple of eight, so that a tensor of any dtype begins at one."""
    import torch

    return torch.nn.functional.pad(part, (0, -len(part) % 8))
