"""Asking a writer: again where it answered nonsense, never twice for the same, several things at once."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from memlayers.data.conversations import Message
from memlayers.sources.claims import LeftOut
from memlayers.sources.writer_client import RequestTooLong, Writer
from memlayers.sources.writer_prompts import repair_message
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import atomic_write_text

T = TypeVar("T")
R = TypeVar("R")

_VERSION: Final = 1  # of the files below
_TRIES: Final = 3  # for an answer that can be read
_MOST_REPEATED: Final = 4000  # characters of a wrong answer that the writer is shown again


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What an answer holds.

    Attributes:
        good: what can be used, by what makes it the same when it is said again.
        faults: what is wrong with the rest, in words for the writer.
        left_out: the same for people; empty where nothing is lost by it.
    """

    good: Mapping[Any, T]
    faults: Sequence[str] = ()
    left_out: Sequence[LeftOut] = ()


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """Something to ask a writer.

    Attributes:
        messages: the conversation that asks.
        schema: of the answer.
        read: makes of an answer what it holds; None where it is nonsense.
    """

    messages: Sequence[Message]
    schema: Mapping[str, Any]
    read: Callable[[str], Reading[T] | None]

    @property
    def characters(self) -> int:
        """Of all messages."""
        return sum(len(each["content"]) for each in self.messages)


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """What came of a request.

    Attributes:
        good: what can be used, in the order in which it was said.
        left_out: what was wrong, still.
        readable: whether any answer was.
        kept: whether it was answered in an earlier run, so that nothing was sent.
        requests: sent for it, now or then.
        prompt_tokens: read for it, now or then.
        completion_tokens: written for it, now or then.
    """

    good: list[T]
    left_out: list[LeftOut]
    readable: bool
    kept: bool
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True)
class Usage:
    """What a writer was asked in all.

    Attributes:
        requests: sent in this run.
        prompt_tokens: read for them, as the writer counts.
        completion_tokens: written for them.
        kept_requests: whose answers were kept from an earlier run.
        kept_prompt_tokens: read for those, then.
        kept_completion_tokens: written for those, then.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    kept_requests: int = 0
    kept_prompt_tokens: int = 0
    kept_completion_tokens: int = 0

    def add(self, answered: Answered[Any]) -> None:
        """Counts an answer."""
        kept = "kept_" if answered.kept else ""
        for name in ("requests", "prompt_tokens", "completion_tokens"):
            setattr(self, kept + name, getattr(self, kept + name) + getattr(answered, name))

    def cost(self, price_in: float, price_out: float) -> float:
        """Of this run's requests, by the prices of a million tokens read and written."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1_000_000


@dataclass(slots=True)
class Answers:
    """A writer, and the folder in which its answers are kept: a file each, named by the SHA-256 of what was asked.

    Attributes:
        writer: that is asked.
        folder: of the answers; made with the first of them.
        workers: requests at the same time; of a backbone always one.
        usage: of all that was asked.
    """

    writer: Writer
    folder: Path
    workers: int = 4
    usage: Usage = field(default_factory=Usage)

    def ask_all(
        self, requests: Sequence[Request[T]], what: str, advance: Callable[..., None] = lambda: None
    ) -> list[Answered[T]]:
        """Asks each request, several at once; the answers come in the order of the requests.

        Args:
            requests: any number.
            what: they are about, in an error: "chunks".
            advance: called after each.

        Raises:
            InputError: the writer refuses a request.
            WorkError: it is not there, or not any more; what it answered is kept.
        """
        done = 0

        def one_done(answered: Answered[T]) -> None:
            nonlocal done
            done += 1
            self.usage.add(answered)
            advance()

        try:
            return _in_order(self.ask, requests, self.workers if self.writer.parallel else 1, one_done)
        except (InputError, WorkError) as error:
            if not done or isinstance(error, RequestTooLong):
                raise
            kept = f"{done} of {len(requests)} {what} are kept in {self.folder}; the same command resumes"
            raise type(error)(f"{error}; {kept}") from error

    def is_kept(self, request: Request[Any]) -> bool:
        """Whether nothing would be sent for a request."""
        return self._read_kept(request) is not None

    def ask(self, request: Request[T]) -> Answered[T]:
        """Asks until an answer can be read, and once more for what is wrong in it; what was answered before is kept.

        Raises:
            InputError: the writer refuses the request.
            WorkError: it is not there.
        """
        if (kept := self._read_kept(request)) is not None:
            return kept
        texts: list[str] = []  # the answers that can be read
        messages = list(request.messages)
        tokens = [0, 0]
        sent = 0
        while sent < _TRIES:
            try:
                made = self.writer.complete(messages, request.schema)
            except RequestTooLong:
                if not sent:
                    raise
                break  # a conversation about mistakes has grown too long
            sent += 1
            tokens = [tokens[0] + made.prompt_tokens, tokens[1] + made.completion_tokens]
            reading = request.read(made.text)
            if reading is not None:
                texts.append(made.text)
                if not reading.faults or len(texts) > 1:
                    break
            faults = ["it is no JSON of the form that was asked for"] if reading is None else reading.faults
            said: Message = {"role": "assistant", "content": made.text[:_MOST_REPEATED] or "..."}
            messages = [*request.messages, said, repair_message(faults)]
        if texts:
            row = {"version": _VERSION, "model": self.writer.model, "answers": texts, "requests": sent,
                   "prompt_tokens": tokens[0], "completion_tokens": tokens[1]}  # fmt: skip
            atomic_write_text(self._place(request), json.dumps(row, ensure_ascii=False, indent=1) + "\n")
        return _answered(request, texts, False, sent, *tokens)

    def _place(self, request: Request[Any]) -> Path:
        asked = [_VERSION, self.writer.model, request.schema, [dict(each) for each in request.messages]]
        text = json.dumps(asked, ensure_ascii=False, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def _read_kept(self, request: Request[T]) -> Answered[T] | None:
        """What an earlier run kept; a file that is none of ours, or damaged, is as good as none."""
        try:
            row = json.loads(self._place(request).read_text("utf-8"))
            texts = [str(each) for each in row["answers"]]
            counts = [int(row[name]) for name in ("requests", "prompt_tokens", "completion_tokens")]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return _answered(request, texts, True, *counts)


def _answered(
    request: Request[T], texts: Sequence[str], kept: bool, requests: int, prompt_tokens: int, completion_tokens: int
) -> Answered[T]:
    good: dict[Any, T] = {}
    left_out: Sequence[LeftOut] = ()
    for text in texts:
        reading = request.read(text)
        if reading is not None:
            good |= reading.good
            if reading.good or reading.left_out:  # an answer that only takes back loses nothing from sight
                left_out = reading.left_out
    return Answered(list(good.values()), list(left_out), bool(texts), kept, requests, prompt_tokens, completion_tokens)


def _in_order(work: Callable[[T], R], items: Sequence[T], workers: int, one_done: Callable[[R], None]) -> list[R]:
    """Does some work on each item in threads, and returns what came of it in their order.

    After a first error nothing more is begun; what was begun is waited for, and its error raised. The threads are
    daemons: Ctrl-C waits for none of them.
    """
    results: dict[int, R] = {}
    if workers <= 1 or len(items) <= 1:
        for i, item in enumerate(items):
            results[i] = work(item)
            one_done(results[i])
        return [results[i] for i in range(len(items))]
    waiting = iter(range(len(items)))
    lock, stopped = threading.Lock(), threading.Event()
    finished: queue.SimpleQueue[tuple[int, R | None, Exception | None]] = queue.SimpleQueue()

    def serve() -> None:
        while not stopped.is_set():
            with lock:
                i = next(waiting, None)
            if i is None:
                break
            try:
                finished.put((i, work(items[i]), None))
            except Exception as error:
                stopped.set()
                finished.put((i, None, error))
        finished.put((-1, None, None))  # this thread has ended

    running = min(workers, len(items))
    for _ in range(running):
        threading.Thread(target=serve, daemon=True).start()
    first: Exception | None = None
    try:
        while running:
            i, result, error = finished.get()
            running -= i < 0
            first = first or error
            if i >= 0 and error is None:
                results[i] = result  # type: ignore[assignment]  # there is one where there is no error
                one_done(results[i])
    finally:
        stopped.set()
    if first is not None:
        raise first
    return [results[i] for i in range(len(items))]
