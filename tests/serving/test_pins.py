"""What is relied on of transformers' serving: a new version that changes it fails here first."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import (
    BaseHandler,
    DirectStreamer,
    GenerateManager,
    GenerationState,
    InferenceThread,
)

from memlayers.serving.generation import MemoryManager, Queue, RequestManager, RequestState
from memlayers.serving.handlers import Chat, Completions, Responses


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_handlers_are_called_and_call_as_is_relied_on():
    for handler in (ChatCompletionHandler, CompletionHandler, ResponseHandler):
        assert parameters(handler.handle_request) == ["self", "body", "request_id"]
        assert parameters(handler._build_generation_config) == ["self", "body", "model_generation_config", "use_cb"]
        source = inspect.getsource(handler)
        for call in (
            "self._resolve_model(body)", "self.generation_state.get_manager(model_id, use_cb=use_cb)",
            "gen_manager.generate_streaming(", "gen_manager.generate_non_streaming(", "await queue.get()",
        ):  # fmt: skip
            assert call in source, call
    for handler in (ChatCompletionHandler, CompletionHandler):
        assert "return self.chunk_to_sse(chunk)" in inspect.getsource(handler)
    assert parameters(BaseHandler.__init__) == [
        "self", "model_manager", "generation_state", "chat_template_kwargs",
    ]  # fmt: skip
    assert not any("__init__" in vars(each) for each in (ChatCompletionHandler, CompletionHandler, ResponseHandler))
    for kind, base in ((Chat, ChatCompletionHandler), (Completions, CompletionHandler), (Responses, ResponseHandler)):
        assert issubclass(kind, base)


def test_the_managers_have_these_methods():
    for method in ("generate_streaming", "generate_non_streaming"):
        own, theirs = parameters(getattr(RequestManager, method)), parameters(getattr(GenerateManager, method))
        assert own == theirs
    for method in (
        "load_model_and_processor",
        "load_model_streaming",
        "process_model_name",
        "get_gen_models",
        "shutdown",
    ):
        assert hasattr(ModelManager, method) and method in vars(MemoryManager)
    for method in ("use_continuous_batching", "get_manager"):
        assert parameters(getattr(RequestState, method)) == parameters(getattr(GenerationState, method))
    assert parameters(DirectStreamer.__init__)[:5] == ["self", "tokenizer", "loop", "queue", "response_parser"]
    assert parameters(InferenceThread.submit)[:2] == ["self", "fn"]


def test_the_server_has_these_routes():
    nobody: Any = None
    app = build_server(nobody, nobody, nobody, nobody, nobody, nobody, GenerationState())
    paths = {getattr(route, "path", "") for route in app.router.routes}
    assert paths >= {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models"}


def test_an_exception_in_a_queue_is_raised_where_it_is_taken_out():
    async def taken() -> list[Any]:
        queue, seen = Queue(), list[Any]()
        for item in ("a", ValueError("b"), "c", ValueError("d")):
            queue.put_nowait(item)
        for take in (queue.get, queue.get, None, None):
            try:
                seen.append(await take() if take is not None else queue.get_nowait())
            except ValueError as error:
                seen.append(str(error))
        return seen

    assert asyncio.run(taken()) == ["a", "b", "c", "d"]
