"""Errors as OpenAI's API has them: ``{"error": {"message", "type", "param", "code"}}``, each with its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_MESSAGES = {
    404: "there is nothing at this address",
    405: "this address does not take this method",
}
INTERNAL = "the server failed at this request; its log says why"
"""All that a client is told of a failure that is not its own."""


class ApiError(HTTPException):
    """A request that is refused, in words for the client: no path, trace or key in them.

    Args:
        status: of HTTP.
        message: one line.
        param: the field of the request that is wrong, if it is one.
        code: for programs, as "model_not_found".
        headers: further ones, as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.param, self.code = param, code


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: Exception) -> JSONResponse:
    """The answer to a request that failed; of errors that are not meant for clients it says nothing."""
    status = int(getattr(error, "status_code", 500))
    detail = getattr(error, "detail", None)
    if status >= 500 and not isinstance(error, ApiError):
        message = INTERNAL
    elif not isinstance(error, ApiError) and status in _MESSAGES:  # Starlette's own words: "Not Found"
        message = _MESSAGES[status]
    else:
        message = str(detail)
    content = error_object(status, message, getattr(error, "param", None), getattr(error, "code", None))
    return JSONResponse(content, status, headers=getattr(error, "headers", None))
