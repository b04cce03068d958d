"""The app: transformers' serving with memories in it, the facts' own API, the page, and what guards all of them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

from memlayers.serving.bodies import check_body
from memlayers.serving.error_objects import ApiError, error_response
from memlayers.serving.generation import MemoryManager
from memlayers.serving.guard import METRICS, Guard, Rates
from memlayers.serving.handlers import Chat, Completions, OneEach, Responses, Serving
from memlayers.serving.metrics import CONTENT_TYPE, Metrics
from memlayers.serving.settings import ServeSettings

if TYPE_CHECKING:
    from memlayers.serving.served import Served

_KEPT = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models")
"""Of transformers' routes. Not served: loading and unloading, speech, decisions, and the pages that describe the API,
which take their scripts from another host."""
_LOG = logging.getLogger(__name__)


def create_app(memories: Mapping[str, Served], settings: ServeSettings | None = None) -> FastAPI:
    """Builds the app.

    Args:
        memories: what is served, by id (`open_memories`); the caller's to close, after the app has ended.
        settings: what is allowed; None for the defaults.

    Raises:
        InputError: the rate is none.
    """
    settings = settings or ServeSettings()
    metrics, manager = Metrics(memories), MemoryManager(memories)
    serving = Serving(manager, settings.abstain, metrics.answer)
    chat, completions, responses = (OneEach(kind, serving) for kind in (Chat, Completions, Responses))
    nobody: Any = None  # of what is not served
    app: FastAPI = build_server(
        manager, chat, completions, responses, nobody, nobody, GenerationState()  # type: ignore[arg-type]  # called alike
    )  # fmt: skip
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") in _KEPT]
    app.state.memories, app.state.settings = memories, settings
    _add_routes(app, manager, metrics)
    for kind in (HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _refused)
    rates = None if settings.rate is None else Rates(settings.rate)
    app.add_middleware(Guard, settings=settings, metrics=metrics, rates=rates)
    _include(app, "facts_api", "page")
    return app


def _add_routes(app: FastAPI, manager: MemoryManager, metrics: Metrics) -> None:
    """Health, metrics, one model, and the readiness that `transformers chat` asks for."""

    @app.get("/health")
    def health() -> JSONResponse:
        threads = {id(each.thread): each.thread for each in manager.memories.values()}.values()
        alive = all(getattr(getattr(each, "_thread", None), "is_alive", lambda: True)() for each in threads)
        return JSONResponse({"status": "ok" if alive else "unhealthy"}, 200 if alive else 503)

    @app.get(METRICS)
    def of_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models/{model_id}")
    def one_model(model_id: str) -> JSONResponse:
        return JSONResponse(manager.entry(model_id))

    @app.post("/load_model")
    def load_model(body: dict[str, Any]) -> StreamingResponse:
        model_id = str(check_body(body, "model")["model"])
        manager.served(model_id)
        return StreamingResponse(manager.load_model_streaming(model_id), media_type="text/event-stream")


def _include(app: FastAPI, *parts: str) -> None:
    """Has other modules of this package add their routes, each by its ``include_in(app)``."""
    for part in parts:
        try:
            module = importlib.import_module(f"memlayers.serving.{part}")
        except ModuleNotFoundError:
            continue
        module.include_in(app)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """What a request that failed is told."""
    if isinstance(error, RequestValidationError):
        return error_response(_unread(error))
    if not isinstance(error, HTTPException):
        fields = {"request_id": getattr(request.state, "request_id", "")}
        _LOG.error("a request failed", exc_info=error, extra={"fields": fields})
    return error_response(error)


def _unread(error: RequestValidationError) -> ApiError:
    """A request that FastAPI could not read."""
    first = error.errors()[0] if error.errors() else {}
    place = ".".join(str(each) for each in first.get("loc", ())[1:]) or None
    if first.get("type") == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json")
    if place is None:
        return ApiError(400, "the body must be a JSON object, sent as application/json", code="invalid_json")
    return ApiError(400, f"{place!r}: {first.get('msg', 'wrong')}", param=place, code="invalid_value")
