"""What the routes of the facts' API have in common: which memory, which facts, and refusals in words for the client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request

from memlayers.data.fact_rows import BadRow, fact_of
from memlayers.data.facts import Fact, Source
from memlayers.editing.memory import Memory
from memlayers.editing.report import EditRefused, EditReport
from memlayers.serving.as_json import clean
from memlayers.serving.error_objects import ApiError
from memlayers.serving.served import Edited, Served
from memlayers.sources.claims import Claim
from memlayers.sources.wordings import worded
from memlayers.utils.errors import InputError, WorkError

MOST_WAITING = 32
"""Edits of one memory in its queue; more are refused."""

_Result = TypeVar("_Result")


def served_memory(request: Request, memory_id: str) -> Served:
    """The memory of this id."""
    served: Served | None = request.app.state.memories.get(memory_id)
    if served is None:
        raise ApiError(404, f"no memory {memory_id!r} is served here", param="memory_id", code="memory_not_found")
    if served.bare:
        raise ApiError(404, f"{memory_id!r} is a bare backbone, which holds no facts", code="memory_not_found")
    return served


def editable(request: Request, memory_id: str) -> Served:
    """The memory of this id, where it takes an edit now."""
    served = served_memory(request, memory_id)
    if served.fixed:
        raise ApiError(409, f"{memory_id}: {clean(served, served.fixed)}", code="not_editable")
    if served.waiting >= MOST_WAITING:
        raise ApiError(
            429, f"{memory_id}: {MOST_WAITING} edits are waiting already; send it again in a while",
            code="too_many_edits", headers={"Retry-After": "2"},
        )  # fmt: skip
    return served


def stored_fact(fact: Fact | None, fact_id: str) -> Fact:
    """The fact, where there is one."""
    if fact is None:
        raise ApiError(404, f"no stored fact has the id {fact_id!r}", param="fact_id", code="fact_not_found")
    return fact


async def published(served: Served, action: Callable[[Memory], EditReport]) -> Edited:
    """Makes one edit; returns once it is saved and published. Raises `ApiError`."""

    async def edit() -> Edited:
        return await asyncio.wrap_future(served.edit(action))

    return await telling(served, edit())


async def telling(served: Served, work: Awaitable[_Result]) -> _Result:
    """Awaits it; what is refused is refused in words for the client, by an `ApiError`."""
    try:
        return await work
    except EditRefused as error:
        raise ApiError(409, clean(served, str(error)), code="edit_refused") from None
    except InputError as error:
        raise ApiError(400, clean(served, str(error)), code="invalid_edit") from None
    except WorkError as error:
        raise ApiError(500, clean(served, str(error)), code="edit_failed") from None
    except asyncio.CancelledError:
        if served.fixed:
            raise ApiError(503, f"{served.id}: the server is closing", code="closing") from None
        raise


def facts_of(body: dict[str, Any]) -> list[Fact]:
    """The facts of a body: those of ``facts``, or the one that it is itself."""
    rows = body.get("facts", [body])
    if "facts" in body and len(body) > 1:
        other = next(name for name in body if name != "facts")
        raise ApiError(400, f"'facts' and {other!r} are two ways to say it; give one of them", param=other)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
        raise ApiError(400, "'facts' must be a list of objects, at least one", param="facts")
    several = "facts" in body
    return [row_fact(row, f"facts[{i}]" if several else "") for i, row in enumerate(rows)]


def row_fact(row: dict[str, Any], name: str = "") -> Fact:
    """The fact of a row as facts files have it; one with subject, relation and answer alone gets questions."""
    try:
        if set(row) <= {"subject", "relation", "answer", "sources"} and {"subject", "relation", "answer"} <= set(row):
            return _worded(row)
        return fact_of(row)
    except (BadRow, InputError) as error:
        raise ApiError(400, f"{name}: {error}" if name else str(error), param=name or None, code="bad_fact") from None


def _worded(row: dict[str, Any]) -> Fact:
    """A fact with the questions that a table's cell would get (`sources.wordings`)."""
    given = fact_of({**row, "questions": ["?"]})
    source = given.sources[0] if given.sources else Source("", given.answer)
    claim = Claim(given.subject, given.relation, given.answer, source)
    found = worded([claim])
    if not found.facts:
        raise InputError(f"{given.subject!r} holds no letter and no digit; name what it is about")
    return replace(found.facts[0], sources=given.sources)


def text_of(body: dict[str, Any], name: str) -> str:
    """A text among a body's fields."""
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ApiError(400, f"{name!r} must be a text", param=name)
    return value


def texts_of(body: dict[str, Any], name: str) -> list[str]:
    """A list of texts among them."""
    value = body.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise ApiError(400, f"{name!r} must be a list of texts, at least one", param=name)
    return value
