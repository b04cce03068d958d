"""What stands before every request: names, key, rate, size and queue; and what is counted and logged of it.

Plain ASGI, so that a body is counted as it arrives and a stream passes through as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from memlayers.serving.error_objects import INTERNAL, ApiError, error_object, error_response
from memlayers.serving.metrics import Metrics
from memlayers.serving.settings import ServeSettings
from memlayers.utils.errors import InputError

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

FACTS_API, METRICS = "/v1/memories", "/metrics"
_ANSWERING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_WITH_KEY = ("/v1", "/load_model", METRICS)
_SAFE = ("GET", "HEAD", "OPTIONS")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
_MOST_DROPPED, _DROPPING_SECONDS = 256 * 2**20, 20.0  # of a body that is refused, so that its sender hears of it
_POLICY = (
    b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_LOG = logging.getLogger(__name__)


class Guard:
    """Lets requests through to an app.

    Args:
        app: behind it.
        settings: what is allowed.
        metrics: what is counted.
        rates: how often each client may ask; None for any number.
    """

    def __init__(self, app: App, settings: ServeSettings, metrics: Metrics, rates: Rates | None = None) -> None:
        self._app, self._settings, self._metrics, self._rates = app, settings, metrics, rates
        self._key = None if settings.api_key is None else _digest(settings.api_key.encode())
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, sent = time.perf_counter(), _Sent(send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        named = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
        scope["headers"] = [*named, (b"x-request-id", request_id.encode())]
        sent.request_id = request_id
        body = _Body(receive, self._most_bytes(scope["path"]), self._settings.body_seconds)
        counted = False
        try:
            self._check(scope, headers)
            body.check_length(headers.get("content-length"))
            if scope["path"] in _ANSWERING and scope["method"] == "POST":
                if not await body.read():  # who sends slowly takes nobody's place
                    return
                self._enter()
                counted = True
                await self._answer(scope, body, sent)
            else:
                await self._app(scope, body, sent)
        except ApiError as error:
            await body.drop()
            await sent.refuse(scope, receive, error)
        except asyncio.CancelledError:  # the server is closing, and has waited long enough
            await sent.refuse(scope, receive, ApiError(503, "the server is closing", code="closing"))
        except Exception:
            _LOG.exception("a request failed", extra={"fields": {"request_id": request_id}})
            await sent.refuse(scope, receive, ApiError(500, INTERNAL))
        finally:
            if counted:
                self._active -= 1
                self._metrics.active.dec()
            self._note(scope, sent, time.perf_counter() - began)

    async def _answer(self, scope: Scope, body: _Body, sent: _Sent) -> None:
        """Has a request answered, as long as its client is there."""
        answering, leaving = (asyncio.ensure_future(each) for each in (self._app(scope, body, sent), body.left()))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sent.whole:
                answering.cancel()  # nothing where it is done
        await asyncio.wait((answering,))
        if not answering.cancelled():
            answering.result()

    # -- what is refused ----------------------------------------------------------------------------------------------

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        settings, path = self._settings, str(scope["path"])
        if settings.hosts is not None and _name_of(headers.get("host", "")) not in settings.hosts:
            raise ApiError(
                403, "this server answers by the names of this machine only; give it a key to be reached otherwise"
            )
        if self._key is None and scope["method"] not in _SAFE and "origin" in headers:
            if headers["origin"].partition("://")[2] != headers.get("host"):
                raise ApiError(403, "a page of another site may not use this server; give it a key")
        if self._rates is not None and path != "/health":
            self._rates.check((scope.get("client") or ("",))[0])
        if self._key is not None and self._needs_key(path):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._key):
                what = "the API key is wrong" if key else "an API key is needed: send it as 'Authorization: Bearer KEY'"
                raise ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _needs_key(self, path: str) -> bool:
        of_facts = _is_under(path, FACTS_API) or _is_under(path, METRICS)
        return of_facts or (not self._settings.open_chat and any(_is_under(path, each) for each in _WITH_KEY))

    def _enter(self) -> None:
        if self._active >= self._settings.queue:
            raise ApiError(
                503,
                "too many requests wait for an answer; try again soon",
                code="overloaded",
                headers={"Retry-After": "1"},
            )
        self._active += 1
        self._metrics.active.inc()

    def _most_bytes(self, path: str) -> int:
        uploads = _is_under(path, FACTS_API) and path.endswith("/import")
        return self._settings.upload_bytes if uploads else self._settings.body_bytes

    def _note(self, scope: Scope, sent: _Sent, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        status = sent.status or 499  # the client left before there was an answer
        self._metrics.request(scope["method"], route, status, seconds)
        fields = {
            "request_id": sent.request_id, "method": scope["method"], "route": route, "status": status,
            "seconds": round(seconds, 4), "client": (scope.get("client") or ("",))[0],
        }  # fmt: skip
        level = logging.DEBUG if route in ("/health", METRICS) else logging.INFO
        _LOG.log(level, "request", extra={"fields": fields})


class _Body:
    """A request's body as it arrives: no longer, and no slower, than is allowed."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most, self._seconds = receive, most, seconds
        self._read, self._ended = 0, False
        self._whole: MutableMapping[str, Any] | None = None

    def check_length(self, declared: str | None) -> None:
        """Refuses a body that says it is too long."""
        if declared is not None and declared.isdecimal() and int(declared) > self._most:
            raise self._too_long()

    async def __call__(self) -> MutableMapping[str, Any]:
        """The next part."""
        if self._whole is not None:
            whole, self._whole = self._whole, None
            return whole
        if self._ended:
            return await self._receive()  # waits for the client to leave
        try:
            message = await asyncio.wait_for(self._receive(), self._seconds)
        except asyncio.TimeoutError:
            self._ended = True
            raise ApiError(408, "the request's body did not arrive in time", headers={"Connection": "close"}) from None
        self._take(message)
        if self._read > self._most:
            raise self._too_long()
        return message

    async def read(self) -> bool:
        """Waits for all of it, which is the next part then; False where the client has left."""
        parts = []
        while not self._ended:
            message = await self()
            if message["type"] == "http.disconnect":
                return False
            parts.append(message.get("body", b""))
        self._whole = {"type": "http.request", "body": b"".join(parts), "more_body": False}
        return True

    async def left(self) -> None:
        """Waits until the client has left; its body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def drop(self) -> None:
        """Reads what is left of the body and keeps none of it: who still sends would not read the answer."""
        until = time.monotonic() + _DROPPING_SECONDS
        while not self._ended and self._read <= _MOST_DROPPED and (left := until - time.monotonic()) > 0:
            try:
                self._take(await asyncio.wait_for(self._receive(), left))
            except asyncio.TimeoutError:
                return

    def _take(self, message: MutableMapping[str, Any]) -> None:
        self._read += len(message.get("body", b""))
        self._ended = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def _too_long(self) -> ApiError:
        return ApiError(413, f"the request's body is longer than {self._most:,} bytes", code="request_too_large")


class _Sent:
    """What is sent, with headers of the guard's own; remembers the status, and whether it is all of it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status, self.request_id, self.whole = 0, "", False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Sends a part."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            headers = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
            names = {name for name, _ in headers}
            added = {b"x-request-id": self.request_id.encode(), b"x-content-type-options": b"nosniff",
                     b"referrer-policy": b"no-referrer"}  # fmt: skip
            if any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers):
                added[b"content-security-policy"] = _POLICY
            message["headers"] = [*headers, *((name, value) for name, value in added.items() if name not in names)]
        await self._send(message)
        self.whole = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def refuse(self, scope: Scope, receive: Receive, error: ApiError) -> None:
        """Tells what is wrong; in a stream that has begun, as its last event."""
        if not self.status:
            await error_response(error)(scope, receive, self)
            return
        last = json.dumps(error_object(error.status_code, str(error.detail), error.param, error.code))
        await self._send({"type": "http.response.body", "body": f"data: {last}\n\n".encode(), "more_body": False})


class Rates:
    """How often each client may ask.

    Args:
        rate: see `ServeSettings`.

    Raises:
        InputError: it is none.
    """

    def __init__(self, rate: str) -> None:
        from limits import parse_many
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        try:
            self._limits = parse_many(rate)
        except ValueError:
            raise InputError(f"the rate {rate!r} is none: give it as 60/minute, or 5/second;1000/hour") from None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def check(self, client: str) -> None:
        """Counts a request, or refuses it."""
        for limit in self._limits:
            if not self._limiter.hit(limit, client):
                reset = self._limiter.get_window_stats(limit, client).reset_time
                wait = max(1, round(reset - time.time()))
                raise ApiError(
                    429, f"more than {limit}: try again in {wait} s", code="rate_limit_exceeded",
                    headers={"Retry-After": str(wait)},
                )  # fmt: skip


def _is_under(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def _name_of(host: str) -> str:
    """The name in a header Host, without the port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
