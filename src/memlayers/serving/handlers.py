"""Transformers' handlers of chat completions, completions and responses, one for each request.

Of transformers are the reading of the request, its sampling settings and the shape of the answer. What is added: the
memory is asked (serving/answers.py), the object ``memlayers`` tells what an answer came from, and everything that is
wrong with a request is told as OpenAI's API tells it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import BaseHandler, Modality

from memlayers.data.encoding import end_token_id, ends_at_newline
from memlayers.serving.answers import Request, conversation
from memlayers.serving.bodies import check_body, check_messages, settings_of
from memlayers.serving.error_objects import INTERNAL, ApiError, error_object
from memlayers.serving.generation import Failed, MemoryManager, RequestManager, RequestState
from memlayers.serving.provenance import Provenance

if TYPE_CHECKING:
    from transformers import GenerationConfig

_LOG = logging.getLogger(__name__)

Observer = Callable[[str, str, int, float], None]
"""Is told of each answer: the model's id, its source, its tokens, and the seconds since the request came."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What all handlers of a server share.

    Attributes:
        manager: of the models.
        abstain: whether to abstain where a request does not say.
        observe: is told of each answer.
    """

    manager: MemoryManager
    abstain: bool
    observe: Observer


class _Memlayers(BaseHandler):
    """What the three handlers have in common: made for one request, it answers it once."""

    model_manager: MemoryManager

    def __init__(self, serving: Serving) -> None:
        # Templates with a thinking mode are asked for the direct answer, as in teaching.
        super().__init__(serving.manager, None, {"enable_thinking": False})  # type: ignore[arg-type]  # set by `_begin`
        self._serving = serving
        self._answering: RequestManager | None = None

    # -- what a request asks ------------------------------------------------------------------------------------------

    def _begin(self, body: dict[str, Any], request_id: str, messages: Any, *, raises: bool = True) -> None:
        """Makes the manager of this request; takes out of its body what transformers does not know.

        Args:
            body: checked.
            request_id: for the log.
            messages: as transformers has read them; None for a text.
            raises: see `RequestManager`.
        """
        manager, model_id = self._serving.manager, str(body["model"])
        served = manager.served(model_id)
        request = Request(
            served, manager.bare(model_id), manager.indexes(model_id),
            None if messages is None else conversation(messages),
            bool(body.pop("abstain", self._serving.abstain)), body.pop("seed", None), manager.sampling,
        )  # fmt: skip
        if messages is not None and request.messages is None:  # nothing is asked of the memory
            request = replace(request, served=request.bare)
        began = time.perf_counter()

        def done(provenance: Provenance, tokens: int) -> None:
            seconds = time.perf_counter() - began
            self._serving.observe(model_id, provenance.source, tokens, seconds)
            fields = {
                "request_id": request_id, "model": model_id, "source": provenance.source, "version": provenance.version,
                "tokens": tokens, "seconds": round(seconds, 4),
            }  # fmt: skip
            _LOG.info("answered", extra={"fields": fields})

        self._answering = RequestManager(request, done, raises=raises)
        self.generation_state = RequestState(self._answering)

    @property
    def _memlayers(self) -> dict[str, Any] | None:
        """What the answer came from."""
        found = None if self._answering is None else self._answering.provenance
        return None if found is None else found.as_json()

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        """As transformers'; of a generation config in the request only what a request may choose is taken."""
        given = body.get("generation_config")
        chosen = {} if given is None else settings_of(given)
        body = {**chosen, **{name: value for name, value in body.items() if name != "generation_config"}}
        config: GenerationConfig = super()._build_generation_config(body, model_generation_config, use_cb)
        for name in ("top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size"):
            if name in chosen:
                setattr(config, name, chosen[name])
        if body.get("temperature") == 0:
            config.do_sample, config.temperature = False, None
        elif "do_sample" in chosen or any(name in body for name in ("temperature", "top_p", "top_k", "min_p")):
            config.do_sample = chosen.get("do_sample", True)  # who sets how to sample wants to
        return config

    def _end_turns(self, config: GenerationConfig, model_id: str) -> GenerationConfig:
        """Has an answer end where `Memory.ask` has it end."""
        tokenizer = self.model_manager.served(model_id).tokenizer
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        config.eos_token_id = list(
            dict.fromkeys([each for each in ends if each is not None] + [end_token_id(tokenizer)])
        )
        if config.pad_token_id is None:
            config.pad_token_id = config.eos_token_id[0]
        if ends_at_newline(tokenizer) and not config.stop_strings:
            config.stop_strings = ["\n"]
        return config

    # -- what is answered ---------------------------------------------------------------------------------------------

    async def _handled(self, handle: Callable[[], Any]) -> JSONResponse | StreamingResponse:
        """What transformers' handler answers, with the object ``memlayers``; what fails there in OpenAI's words."""
        try:
            response = await handle()
        except (ApiError, Failed):
            raise
        except HTTPException as error:
            raise ApiError(400 if error.status_code == 422 else error.status_code, str(error.detail)) from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, TemplateError) as error:
            if self._answering is not None and self._answering.provenance is not None:
                raise  # the answer was there: it is ours
            _LOG.info("a request could not be read: %s", type(error).__name__)
            raise ApiError(400, "the request is not as OpenAI's API has it; see its fields and their kinds") from None
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._stream(response.body_iterator)
            response.headers["Cache-Control"] = "no-cache"
            return response
        return JSONResponse({**json.loads(bytes(response.body)), "memlayers": self._memlayers})

    async def _stream(self, parts: Any) -> AsyncIterator[str]:
        """The events of a stream, up to its end or to an error."""
        try:
            async for part in parts:
                yield part
            yield "data: [DONE]\n\n"
        except Failed:
            yield f"data: {json.dumps(error_object(500, INTERNAL))}\n\n"

    def chunk_to_sse(self, chunk: Any) -> str:  # type: ignore[override]  # a static method there, called on the handler
        """As transformers'; the last chunk has the object ``memlayers``."""
        if any(getattr(choice, "finish_reason", None) for choice in getattr(chunk, "choices", ())):
            chunk.memlayers = self._memlayers
        return BaseHandler.chunk_to_sse(chunk)


class Chat(_Memlayers, ChatCompletionHandler):
    """Answers one request of /v1/chat/completions."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        """Answers it.

        Raises:
            ApiError: it is refused.
        """
        body = check_body(body, "model", "messages")
        check_messages(body["messages"])

        async def handle() -> Any:
            self._begin(body, request_id, self.get_processor_inputs_from_messages(body["messages"], Modality.LLM))
            return await super(_Memlayers, self).handle_request(body, request_id)

        return await self._handled(handle)

    def _build_generation_config(self, body: dict[str, Any], *args: Any, **options: Any) -> GenerationConfig:
        return self._end_turns(super()._build_generation_config(body, *args, **options), body["model"])


class Completions(_Memlayers, CompletionHandler):
    """Answers one request of /v1/completions: a text that the model with its memory goes on with."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        """Answers it; raises as `Chat`'s."""
        body = check_body(body, "model", "prompt")
        if "abstain" in body:
            raise ApiError(400, "a text that is gone on with asks nothing: 'abstain' is for chat", param="abstain")

        async def handle() -> Any:
            self._begin(body, request_id, None)
            return await super(_Memlayers, self).handle_request(body, request_id)

        return await self._handled(handle)


class Responses(_Memlayers, ResponseHandler):
    """Answers one request of /v1/responses."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        """Answers it; raises as `Chat`'s."""
        body = {"stream": False, **check_body(body, "model", "input")}

        async def handle() -> Any:
            messages = self._normalize_input(dict(body))
            check_messages([each for each in messages if each.get("role") != "tool"], "input")
            said = self.get_processor_inputs_from_messages(messages, Modality.LLM)
            self._begin(body, request_id, said, raises=False)
            return await super(_Memlayers, self).handle_request(body, request_id)

        return await self._handled(handle)

    def _build_generation_config(self, body: dict[str, Any], *args: Any, **options: Any) -> GenerationConfig:
        return self._end_turns(super()._build_generation_config(body, *args, **options), body["model"])

    async def _stream(self, parts: Any) -> AsyncIterator[str]:
        """The events; that of the whole response has the object ``memlayers``."""
        async for part in parts:
            if '"type":"response.completed"' in part:
                event = json.loads(part.removeprefix("data: "))
                event["response"]["memlayers"] = self._memlayers
                yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
            else:
                yield part


class OneEach:
    """A handler as transformers' routes call it: each request gets one of its own.

    Args:
        kind: of the handler.
        serving: what they share.
    """

    def __init__(self, kind: type[Chat] | type[Completions] | type[Responses], serving: Serving) -> None:
        self._kind, self._serving = kind, serving

    async def handle_request(self, body: Mapping[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        """Answers a request; raises as `Chat`'s."""
        return await self._kind(self._serving).handle_request(dict(body), request_id)
