"""One memory being served: answers are read from one module tree while edits are made in another.

::

    requests ── inference thread ── READER ◄── publication: changed rows, entries ── WRITER ── writer thread ── edits
                                       └────────── the backbone's tensors, once ───────┘

The writer is an ordinary `Memory` that saves each edit: it is durable before it is acknowledged. Publication is a task
of the inference thread, which runs one request after the other, so a request sees the memory before an edit or after
it. Nothing that an edit does not change is there twice.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from memlayers.data.facts import Fact, aliases_by_subject
from memlayers.editing.journal import Record
from memlayers.editing.memory import Memory
from memlayers.editing.report import EditReport
from memlayers.editing.rows import Kept
from memlayers.inference.confidence import ReadWordings
from memlayers.inference.folder import ADAPTER
from memlayers.tuner.handle import MemoryHandle, memory_handle
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memlayers.linking.config import LinkConfig
    from memlayers.linking.linker import Linker


class InferenceThread(Protocol):
    """What runs one task after the other: transformers' InferenceThread."""

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Runs it in the thread, after what was submitted before."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a memory knows at one version; replaced whole at publication, so a request takes it once.

    Attributes:
        version: number of the journal's last edit or undo, 0 for none: it never falls, and outlives a restart.
        facts: the stored facts, in order.
        records: the journal, oldest first.
        linker: finds the stored subjects in a question; None where names are not linked.
        links: what is made of a question beside its names; None for all that can be.
        aliases: of each subject that has some.
        places: of each fact in `facts`, by its id.
        texts: of each fact in `facts` all that a search looks at, without case.
    """

    version: int = 0
    facts: tuple[Fact, ...] = ()
    records: tuple[Record, ...] = ()
    linker: Linker | None = None
    links: LinkConfig | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Mapping[str, int] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    def fact(self, fact_id: str) -> Fact | None:
        """The stored fact of this id."""
        place = self.places.get(fact_id)
        return None if place is None else self.facts[place]


@dataclass(frozen=True, slots=True)
class Edited:
    """An edit that is saved and published.

    Attributes:
        report: what it did.
        version: the memory's from it on.
    """

    report: EditReport
    version: int


class Served:
    """A memory, or a bare backbone, that is being served.

    Args:
        id: by which requests name it.
        model: the READER, which requests read, on `thread` alone: a PEFT model with its memory, or a bare backbone.
        tokenizer: the backbone's; the reader's own, since a fast tokenizer is not for several threads at once.
        thread: where all models of this backbone run.
        memory: the WRITER, held (`Memory.hold`) unless it is `fixed`; None for a bare backbone. From now on this
            object's writer thread alone touches it.
        fixed: why it cannot be edited, in one line; "" where it can.

    Attributes:
        id: by which requests name it.
        folder: of the memory; None for a bare backbone.
        model: the reader.
        tokenizer: the reader's.
        thread: see above.
        state: what it knows now.
        wordings: that the backbone has read for it; on `thread` alone.
        fixed: why it cannot be edited, in one line; "" where it can.
    """

    def __init__(
        self,
        id: str,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        thread: InferenceThread,
        memory: Memory | None = None,
        fixed: str = "",
    ) -> None:
        self.id, self.model, self.tokenizer, self.thread = id, model, tokenizer, thread
        self.folder: Path | None = None if memory is None else memory.folder
        self.state, self.wordings, self.fixed = Snapshot(), ReadWordings(), fixed
        self._memory, self._unpublished = memory, list[Tensor]()
        self._writer: ThreadPoolExecutor | None = None
        self._counting, self._waiting = threading.Lock(), 0
        if memory is None:
            self.fixed = "a bare backbone holds no facts; edit the memory on it"
            return
        memory.written = self._unpublished.append
        try:
            self.state = _snapshot(memory, self.state)
        except InputError as error:
            self.fixed = fixed or str(error).removeprefix(f"{memory.folder}: ")
        if not self.fixed:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"edits of {id}")
            self._writer.submit(memory.prepare)  # what the first edit would wait for; an error comes back with that one

    @property
    def bare(self) -> bool:
        """Whether it is a backbone without a memory."""
        return self._memory is None

    def edit(self, action: Callable[[Memory], EditReport]) -> Future[Edited]:
        """Queues an edit behind those before it; answers go on meanwhile.

        Args:
            action: makes one edit, or several, each of which is saved by itself, on the memory that it is given; its
                last report is kept.

        Returns:
            Done when the edit is saved and every request that begins from now on sees it. Where the action raises,
            what it had saved before is published too.

        Raises:
            InputError: it cannot be edited; `fixed` says why.
        """
        if self._writer is None or self.fixed:
            raise InputError(f"{self.id}: {self.fixed}")
        self._count(1)
        edited = self._writer.submit(self._edit, action)
        edited.add_done_callback(lambda _: self._count(-1))
        return edited

    @property
    def waiting(self) -> int:
        """How many edits are under way or in the queue."""
        return self._waiting

    def close(self) -> None:
        """Ends the edit under way, drops those in the queue, and lets others edit the folder."""
        self.fixed = self.fixed or "closed"
        if self._writer is not None:
            self._writer.shutdown(wait=True, cancel_futures=True)
        if self._memory is not None:
            self._memory.close()

    def _count(self, more: int) -> None:
        with self._counting:
            self._waiting += more

    # -- in the writer thread -----------------------------------------------------------------------------------------

    def _edit(self, action: Callable[[Memory], EditReport]) -> Edited:
        memory = self._memory
        assert memory is not None
        try:
            report = action(memory)
        finally:
            self._publish(memory)
        return Edited(report, self.state.version)

    def _publish(self, memory: Memory) -> None:
        """Has the reader hold what the writer holds, between two requests; nothing where it does."""
        state = _snapshot(memory, self.state)
        if state.version == self.state.version:
            return
        news = _News.of(memory_handle(memory.model, ADAPTER), self._unpublished)

        def put() -> None:
            news.put(memory_handle(self.model, ADAPTER))
            self.state = state

        self.thread.submit(put).result()
        self._unpublished.clear()


def _snapshot(memory: Memory, before: Snapshot) -> Snapshot:
    """What a memory knows now; of facts that it had `before` the texts are taken from there."""
    facts, records = memory.facts, memory.journal
    texts = {id(fact): text for fact, text in zip(before.facts, before.texts, strict=True)}
    return Snapshot(
        version=records[-1].number if records else 0,
        facts=facts,
        records=records,
        linker=memory.name_linker(),
        links=memory.links,
        aliases=aliases_by_subject(facts),
        places={fact.id: place for place, fact in enumerate(facts)},
        texts=tuple(texts.get(id(fact)) or _searched(fact) for fact in facts),
    )


def _searched(fact: Fact) -> str:
    names = (fact.id, fact.subject, fact.relation, *fact.subject_aliases)
    return "\n".join((*names, *fact.questions, *fact.unseen_questions, *fact.answers)).casefold()


@dataclass(frozen=True, slots=True)
class _News:
    """All that edits change in a memory, as the writer has it.

    Attributes:
        kept: the rows of the pool that changed.
        entries: the buffers of the index of subjects and of the relation check that edits change, by the module.
    """

    kept: Kept
    entries: tuple[dict[str, Tensor], dict[str, Tensor]]

    @classmethod
    def of(cls, writer: MemoryHandle, rows: list[Tensor]) -> _News:
        """What the writer has in these rows, int64 each, and in the buffers."""
        changed = torch.cat(rows).unique() if rows else torch.zeros(0, dtype=torch.int64)
        return cls(Kept.of(writer.pool, changed), (_entries(writer.index), _entries(writer.relation_check)))

    @torch.no_grad()
    def put(self, reader: MemoryHandle) -> None:
        """Has a reader hold it. No temporary is larger than the rows."""
        self.kept.put_back(reader.pool)
        for part, entries in zip((reader.index, reader.relation_check), self.entries, strict=True):
            for name, tensor in entries.items():
                setattr(part, name, tensor)


_EDITED = ("fingerprints", "subjects", "reach", "prints", "keys")
"""The buffers that edits change. `store` replaces them and never writes into them, so the two trees may share them;
`reach`, a number, is written into, and so copied."""


def _entries(part: nn.Module | None) -> dict[str, Tensor]:
    buffers = {} if part is None else dict(part.named_buffers(recurse=False))
    return {name: buffers[name].clone() if name == "reach" else buffers[name] for name in _EDITED if name in buffers}


def twin(model: Any) -> Any:
    """Another module tree on the same tensors: one that can be given a memory of its own.

    No parameter and no buffer is copied; what holds no tensor is.
    """
    return copy.deepcopy(model, _shared(model))


def reader_of(model: Any) -> Any:
    """Another module tree on a PEFT model's tensors; of its memory, what edits change is copied."""
    memory = memory_handle(model, ADAPTER)
    own = [*memory.pool.parameters(), *memory.pool.buffers()]
    own += [tensor for part in (memory.index, memory.relation_check) for tensor in _entries_now(part)]
    apart = set(map(id, own))
    return copy.deepcopy(model, {key: tensor for key, tensor in _shared(model).items() if key not in apart})


def _entries_now(part: nn.Module | None) -> list[Tensor]:
    return [] if part is None else [tensor for name, tensor in part.named_buffers(recurse=False) if name in _EDITED]


def _shared(model: nn.Module) -> dict[int, Tensor]:
    """Every tensor of a model, as `copy.deepcopy` takes what is not to be copied."""
    plain = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers(), *plain)}
