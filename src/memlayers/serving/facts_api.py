"""The facts' own API, under /v1/memories: what a memory holds, its edits, its scores; and imports (`import_api`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Query, Request
from fastapi.responses import JSONResponse

from memlayers.data.facts import folded
from memlayers.editing.journal import last_undoable
from memlayers.editing.memory import Memory
from memlayers.editing.report import EditReport
from memlayers.serving import import_api
from memlayers.serving.as_json import clean, edited_json, fact_json, memory_json, records_json, scores_json
from memlayers.serving.error_objects import ApiError
from memlayers.serving.facts_requests import (
    editable,
    facts_of,
    published,
    row_fact,
    served_memory,
    stored_fact,
    text_of,
    texts_of,
)
from memlayers.serving.served import Served
from memlayers.utils.errors import InputError

MOST_LISTED = 1000
"""Facts or edits in one answer."""

router = APIRouter(prefix="/v1/memories")

Fields = Annotated[dict[str, Any], Body()]
Limit = Annotated[int, Query(ge=1, le=MOST_LISTED)]


def include_in(app: FastAPI) -> None:
    """Adds the routes to an app whose ``state.memories`` has what is served, by id."""
    app.include_router(router)
    app.include_router(import_api.router)


# -- reading ----------------------------------------------------------------------------------------------------------


@router.get("")
def list_memories(request: Request) -> JSONResponse:
    """All memories that are served; bare backbones are none."""
    memories: Mapping[str, Served] = request.app.state.memories
    return JSONResponse({"object": "list", "data": [memory_json(each) for each in memories.values() if not each.bare]})


@router.get("/{memory_id}")
def one_memory(request: Request, memory_id: str) -> JSONResponse:
    """One memory."""
    return JSONResponse(memory_json(served_memory(request, memory_id)))


@router.get("/{memory_id}/facts")
def list_facts(
    request: Request, memory_id: str, q: str = "", subject: str | None = None, after: str | None = None,
    limit: Limit = 100,
) -> JSONResponse:  # fmt: skip
    """The facts that hold all words of `q` somewhere, in order; the next page begins after the last one's id."""
    state = served_memory(request, memory_id).state
    start = 0
    if after is not None:
        if after not in state.places:
            raise ApiError(400, f"'after': no stored fact has the id {after!r}", param="after", code="fact_not_found")
        start = state.places[after] + 1
    matching: Sequence[int] = range(len(state.facts))
    for word in q.casefold().split():
        matching = [place for place in matching if word in state.texts[place]]
    if subject is not None:
        name = folded(subject)
        matching = [place for place in matching if folded(state.facts[place].subject) == name]
    page = [place for place in matching if place >= start][: limit + 1]
    listed = [state.facts[place] for place in page[:limit]]
    return JSONResponse(
        {
            "object": "list",
            "data": [fact_json(fact) for fact in listed],
            "has_more": len(page) > limit,
            "first_id": listed[0].id if listed else None,
            "last_id": listed[-1].id if listed else None,
            "total": len(matching),
            "version": state.version,
        }
    )


@router.get("/{memory_id}/facts/{fact_id:path}")
def one_fact(request: Request, memory_id: str, fact_id: str) -> JSONResponse:
    """A fact, with the edits that concerned it, the latest first."""
    state = served_memory(request, memory_id).state
    fact = stored_fact(state.fact(fact_id), fact_id)
    edits = [each for each in records_json(state.records) if fact_id in each["ids"]]
    return JSONResponse({**fact_json(fact), "edits": edits, "version": state.version})


@router.get("/{memory_id}/aliases")
def list_aliases(request: Request, memory_id: str, subject: str | None = None) -> JSONResponse:
    """The aliases of the subjects that have some."""
    state = served_memory(request, memory_id).state
    data = [
        {"object": "memory.aliases", "subject": name, "aliases": list(aliases)}
        for name, aliases in state.aliases.items()
        if subject is None or folded(name) == folded(subject)
    ]
    return JSONResponse({"object": "list", "data": data, "version": state.version})


@router.get("/{memory_id}/journal")
def journal(
    request: Request, memory_id: str, before: int | None = None, fact: str | None = None, limit: Limit = 100
) -> JSONResponse:
    """The edits, the latest first; the next page has those before the last one's number."""
    state = served_memory(request, memory_id).state
    found = [
        each for each in records_json(state.records)
        if (before is None or each["number"] < before) and (fact is None or fact in each["ids"])
    ]  # fmt: skip
    last = last_undoable(state.records)
    return JSONResponse(
        {
            "object": "list",
            "data": found[:limit],
            "has_more": len(found) > limit,
            "undoable": None if last is None else last.number,
            "version": state.version,
        }
    )


@router.get("/{memory_id}/scores")
def scores(request: Request, memory_id: str) -> JSONResponse:
    """What teaching, the last evaluation and the last certificate say of it."""
    served = served_memory(request, memory_id)
    assert served.folder is not None
    try:
        return JSONResponse(scores_json(served.folder))
    except InputError as error:
        raise ApiError(500, clean(served, str(error)), code="damaged_record") from None


# -- editing ----------------------------------------------------------------------------------------------------------


@router.post("/{memory_id}/facts", status_code=201)
async def add_facts(request: Request, memory_id: str, body: Fields) -> JSONResponse:
    """Adds a fact, or those of ``facts``, in one edit."""
    facts = facts_of(body)
    return await _edit(request, memory_id, lambda memory: memory.add(facts), 201)


@router.patch("/{memory_id}/facts")
async def update_facts(request: Request, memory_id: str, body: Fields) -> JSONResponse:
    """Gives stored facts new answers, in one edit; they are found by id, subject and relation, or question."""
    facts = facts_of(body)
    return await _edit(request, memory_id, lambda memory: memory.update(facts))


@router.patch("/{memory_id}/facts/{fact_id:path}")
async def update_fact(request: Request, memory_id: str, fact_id: str, body: Fields) -> JSONResponse:
    """Gives one stored fact a new answer; with ``sources`` alone, notes where it was found."""
    served = served_memory(request, memory_id)
    stored = stored_fact(served.state.fact(fact_id), fact_id)
    known = ("answer", "aliases", "questions", "unseen_questions", "subject_aliases", "sources")
    for name in body:
        if name not in known:
            raise ApiError(400, f"unknown field {name!r}; known fields: {', '.join(known)}", param=name)
    if set(body) == {"sources"}:
        found = row_fact({"question": "?", "answer": "?", "sources": body["sources"]})
        noted = replace(stored, sources=found.sources)
        return await _edit(request, memory_id, lambda memory: memory.set_sources([noted]))
    if "answer" not in body:
        raise ApiError(400, "missing field 'answer'; give the new one", param="answer")
    about: dict[str, Any] = {"subject": stored.subject} if stored.subject else {}
    answers: dict[str, Any] = {"answer": body["answer"], "aliases": body.get("aliases", [])}
    if not stored.subject:
        answers = {"answers": [body["answer"], *answers["aliases"]]}
    others = ("unseen_questions", "subject_aliases", "sources")
    rest: dict[str, Any] = {name: body[name] for name in others if name in body}
    questions = body.get("questions", list(stored.questions[:1]))
    fact = row_fact({"id": fact_id, **about, "questions": questions, **answers, **rest})
    return await _edit(request, memory_id, lambda memory: memory.update([fact]))


@router.delete("/{memory_id}/facts")
async def forget_facts(
    request: Request, memory_id: str, id: Annotated[list[str] | None, Query()] = None, subject: str | None = None,
    purge: bool = False,
) -> JSONResponse:  # fmt: skip
    """Forgets the facts of these ids, and all about a subject, in one edit."""
    ids = id or []
    return await _edit(request, memory_id, lambda memory: memory.forget(ids=ids, subject=subject, purge=purge))


@router.delete("/{memory_id}/facts/{fact_id:path}")
async def forget_fact(request: Request, memory_id: str, fact_id: str, purge: bool = False) -> JSONResponse:
    """Forgets one fact."""
    stored_fact(served_memory(request, memory_id).state.fact(fact_id), fact_id)
    return await _edit(request, memory_id, lambda memory: memory.forget(ids=[fact_id], purge=purge))


@router.post("/{memory_id}/aliases", status_code=201)
async def add_aliases(request: Request, memory_id: str, body: Fields) -> JSONResponse:
    """Has a subject be known by ``aliases`` too."""
    subject, aliases = text_of(body, "subject"), texts_of(body, "aliases")
    return await _edit(request, memory_id, lambda memory: memory.add_aliases(subject, aliases), 201)


@router.delete("/{memory_id}/aliases")
async def remove_aliases(
    request: Request, memory_id: str, subject: str, alias: Annotated[list[str], Query()]
) -> JSONResponse:
    """Has a subject be known by some aliases no more."""
    return await _edit(request, memory_id, lambda memory: memory.remove_aliases(subject, alias))


@router.post("/{memory_id}/undo")
async def undo(request: Request, memory_id: str, body: Annotated[dict[str, Any] | None, Body()] = None) -> JSONResponse:
    """Takes the last edit back, bit for bit; with ``number``, only where that is the last one still."""
    number = (body or {}).get("number")
    if number is not None and type(number) is not int:
        raise ApiError(400, "'number' is no whole number; give that of an edit, or leave it out", param="number")

    def take_back(memory: Memory) -> EditReport:
        last = last_undoable(memory.journal)
        if number is not None and last is not None and last.number != number:
            raise ApiError(409, f"edit {last.number} was made since; take that back first", code="not_the_last_edit")
        return memory.undo()

    return await _edit(request, memory_id, take_back)


async def _edit(
    request: Request, memory_id: str, action: Callable[[Memory], EditReport], status: int = 200
) -> JSONResponse:
    """Makes one edit, and answers once it is saved and published."""
    return JSONResponse(edited_json(await published(editable(request, memory_id), action)), status)
