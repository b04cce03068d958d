"""Transformers' serving with memories in it: who is asked (the model manager), and how (the generate manager)."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import (
    DirectStreamer,
    GenerateManager,
    GenerationState,
    _GenerationCancelled,
    _StreamError,
)

from memlayers.data.encoding import plain_text_ids
from memlayers.serving.answers import Given, Request, answer, check_room
from memlayers.serving.error_objects import INTERNAL, ApiError
from memlayers.serving.memories import BARE
from memlayers.serving.provenance import Provenance
from memlayers.tuner.handle import active_memories
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from memlayers.serving.served import Served
    from memlayers.tuner.subject_index import SubjectIndex

_LOG = logging.getLogger(__name__)

# What encode_prompt writes where a tokenizer has no template of its own.
_PLAIN_TEMPLATE = (
    "{{ start }}{% for m in messages %}{{ {'user': 'Question: ', 'assistant': 'Answer: '}.get(m.role, '') }}"
    "{{ m.content }}\n{% endfor %}Answer:"
)


class Failed(Exception):
    """A generation failed, for a reason that the log has and the client need not know."""


class MemoryManager(ModelManager):
    """Hands out memories that are open already; loads and unloads nothing.

    Args:
        memories: what is served, by id; each memory's bare backbone under its id and ":bare".

    Attributes:
        memories: the same.
        sampling: held while tokens are drawn, see `Request`.
    """

    def __init__(self, memories: Mapping[str, Served]) -> None:
        super().__init__(device="cpu", model_timeout=-1)  # its own are never loaded
        self.memories, self.sampling = memories, threading.Lock()
        self._opened_at = int(time.time())
        self._indexes = {
            name: tuple(memory.index for memory in active_memories(each.model)) for name, each in memories.items()
        }
        # Transformers' handlers tokenize on the event loop; a fast tokenizer is not for two threads at once.
        copies: dict[int, PreTrainedTokenizerBase] = {}
        self._tokenizers = {
            name: copies.setdefault(id(each.tokenizer), _for_handlers(each.tokenizer))
            for name, each in memories.items()
        }

    def served(self, model_id: str) -> Served:
        """What is served under an id.

        Raises:
            ApiError: 404, nothing is.
        """
        found = self.memories.get(model_id)
        if found is None:
            raise ApiError(
                404, f"no model {model_id[:100]!r} is served here; GET /v1/models lists those that are",
                param="model", code="model_not_found",
            )  # fmt: skip
        return found

    def bare(self, model_id: str) -> Served:
        """The bare backbone of what is served under an id."""
        return self.memories.get(model_id + BARE) or self.memories[model_id]

    def indexes(self, model_id: str) -> tuple[SubjectIndex | None, ...]:
        """The indexes of subjects of a memory; they are edited, and stay the same objects."""
        return self._indexes[model_id]

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The id as it is: memories have no revisions."""
        return model_id

    def load_model_and_processor(self, model_id_and_revision: str, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The reader and a tokenizer for the event loop; raises as `served`."""
        return self.served(model_id_and_revision).model, self._tokenizers[model_id_and_revision]

    async def load_model_streaming(
        self, model_id_and_revision: str, gguf_file: str | None = None
    ) -> AsyncIterator[str]:
        """Says that it is there; `transformers chat` asks before it begins."""
        yield f'data: {{"status": "ready", "model": "{model_id_and_revision}", "cached": true}}\n\n'

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]  # a cached static method there
        """OpenAI's list of models."""
        return [self.entry(model_id) for model_id in self.memories]

    def entry(self, model_id: str) -> dict[str, Any]:
        """One model as OpenAI's list has it, and what memlayers says of it; raises as `served`."""
        state = self.served(model_id).state
        bare = model_id.endswith(BARE)
        own = {"bare": bare, "version": state.version, "facts": len(state.facts)}
        return {
            "id": model_id, "object": "model", "created": self._opened_at, "owned_by": "memlayers", "memlayers": own,
        }  # fmt: skip

    def shutdown(self) -> None:
        """Leaves the memories to whoever opened them."""


def _for_handlers(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer, whose chat template writes what a memory is taught where it has none of its own."""
    own: PreTrainedTokenizerBase = copy.deepcopy(tokenizer)
    if own.chat_template is None:
        plain = own.encode("a", add_special_tokens=False)
        ids = plain_text_ids(own, "a")
        start = own.decode(ids[: len(ids) - len(plain)])
        own.chat_template = _PLAIN_TEMPLATE.replace("{{ start }}", f"{{{{ {start!r} }}}}" if start else "")
    return own


class Queue(asyncio.Queue[Any]):
    """The items of a stream; an exception among them is raised where it is taken out."""

    def _get(self) -> Any:
        item = super()._get()
        if isinstance(item, Exception):
            raise item
        return item


class RequestManager(GenerateManager):
    """Answers one request in its backbone's inference thread.

    Args:
        request: what is asked.
        done: told of the answer: what it came from, and its tokens.
        raises: a failure of a stream is raised where its queue is read, for the handler to tell; otherwise it is put
            into the queue as transformers has it.

    Attributes:
        provenance: what the answer came from, once it is there.
    """

    def __init__(self, request: Request, done: Callable[[Provenance, int], None], *, raises: bool = True) -> None:
        self._thread = request.served.thread  # type: ignore[assignment]  # transformers' own, behind a protocol
        self._request, self._done, self._raises = request, done, raises
        self.provenance: Provenance | None = None

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Mapping[str, Any],
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue[Any], DirectStreamer]:
        """As transformers', with what the memory answers in it."""
        self._check_room(inputs, gen_config)
        loop, queue = asyncio.get_running_loop(), Queue()
        streamer = DirectStreamer(processor._tokenizer, loop, queue, response_parser=response_parser)

        def put(item: Any) -> None:
            _tell(loop, queue.put_nowait, item)

        def run() -> None:
            if streamer._cancelled.is_set():  # nobody waits for it any more
                return
            try:
                given = self._answer(inputs, gen_config, streamer)
                if not given.streamed:
                    streamer.total_tokens = len(given.tokens)
                    put(given.text)
                    put(None)
            except _GenerationCancelled:
                put(None)
            except Exception:
                _LOG.exception("generation failed", extra={"fields": {"request_id": request_id}})
                put(Failed() if self._raises else _StreamError(INTERNAL))

        self._thread.submit(run)
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Mapping[str, Any], gen_config: GenerationConfig, request_id: str
    ) -> tuple[str, int, Any]:
        """As transformers', with what the memory answers in it."""
        self._check_room(inputs, gen_config)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Given] = loop.create_future()

        def end(given: Given | None) -> None:
            if not future.done():
                if given is None:
                    future.set_exception(Failed())
                else:
                    future.set_result(given)

        def run() -> None:
            if future.cancelled():
                return
            given = None
            try:
                given = self._answer(inputs, gen_config, None)
            except Exception:
                _LOG.exception("generation failed", extra={"fields": {"request_id": request_id}})
            _tell(loop, end, given)

        self._thread.submit(run)
        try:
            given = await future
        except asyncio.CancelledError:
            self._request.left.set()
            raise
        return given.text, int(inputs["input_ids"].shape[-1]), torch.tensor(given.tokens, dtype=torch.int64)

    def _answer(self, inputs: Mapping[str, Any], config: GenerationConfig, streamer: Any) -> Given:
        given = answer(self._request, inputs, config, _Noting(streamer) if streamer is not None else None)
        self.provenance = given.provenance
        self._done(given.provenance, len(given.tokens))
        if given.streamed:
            streamer.end()
        return given

    def _check_room(self, inputs: Mapping[str, Any], config: GenerationConfig) -> None:
        try:
            check_room(self._request.served, int(inputs["input_ids"].shape[-1]), config)
        except InputError as error:
            raise ApiError(400, str(error), code="context_length_exceeded") from None


class _Noting:
    """A streamer that ends later: when what the answer came from is known."""

    def __init__(self, streamer: DirectStreamer) -> None:
        self._streamer = streamer

    def put(self, value: Any) -> None:
        """As the streamer's own."""
        self._streamer.put(value)

    def end(self) -> None:
        """Leaves the end to whoever knows what the answer came from."""


class RequestState(GenerationState):
    """Hands transformers' handlers the manager of the one request that they have."""

    def __init__(self, manager: RequestManager) -> None:
        super().__init__()
        self._manager = manager

    def use_continuous_batching(self, model: Any, modality: Any) -> bool:
        """Not offered: one request after the other, so each has one version of the memory."""
        return False

    def get_manager(self, model_id: str, use_cb: bool = False) -> RequestManager:
        """The request's own."""
        return self._manager


def _tell(loop: asyncio.AbstractEventLoop, told: Callable[[Any], object], item: Any) -> None:
    """Calls a function in an event loop; where that has ended, nobody listens any more."""
    try:
        loop.call_soon_threadsafe(told, item)
    except RuntimeError:
        _LOG.info("an answer came after the server had stopped")
