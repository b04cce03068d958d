"""Imports over HTTP: a file is sent, and its facts are learned edit by edit, with their progress as events."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from memlayers.certificate.steps import Step
from memlayers.serving.as_json import fact_json
from memlayers.serving.error_objects import ApiError, error_object
from memlayers.serving.facts_requests import editable, published, telling
from memlayers.serving.imports import Progress, Read, read_upload
from memlayers.serving.served import Served
from memlayers.sources.reading import ReadOptions

router = APIRouter(prefix="/v1/memories")

_UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.post("/{memory_id}/import", response_model=None)
async def import_file(request: Request, memory_id: str) -> JSONResponse | StreamingResponse:
    """Learns a file that is sent as a form's ``file``: a table, a document or facts. Tells its progress as events.

    The form's other fields: ``subject``, the column that says what each row is about (the first one if not given);
    ``columns``, those to read, with commas between; ``sheet`` of a workbook; ``about``, whom a document is about whose
    title does not say it; ``encoding``; ``dry_run``, "true" to be told what would be learned, as JSON. A client that
    goes away ends the import after the edit under way.
    """
    served = editable(request, memory_id)
    async with request.form(max_files=1, max_fields=16) as form:
        read = await _read(served, form)
        if str(form.get("dry_run", "")).casefold() == "true":
            return JSONResponse({**_read_json(read), "examples": [fact_json(each) for each in read.found.facts[:5]]})
    return StreamingResponse(_learning(served, read), media_type="text/event-stream", headers=_UNBUFFERED)


async def _read(served: Served, form: FormData) -> Read:
    file = form.get("file")
    if not isinstance(file, UploadFile) or not file.filename:
        raise ApiError(400, "no file; send one as the field 'file' of a form (multipart/form-data)", param="file")
    fields = ("subject", "columns", "sheet", "about", "encoding")
    texts = {name: str(form[name]).strip() for name in fields if form.get(name)}
    columns = [each.strip() for each in texts.get("columns", "").split(",") if each.strip()]
    options = ReadOptions(
        subject=texts.get("subject"), columns=columns or None, sheet=texts.get("sheet"), about=texts.get("about", ""),
        encoding=texts.get("encoding"),
    )  # fmt: skip
    name = PurePosixPath(file.filename.replace("\\", "/")).name
    if not name.isprintable() or name.startswith(".") or len(name.encode()) > 200:
        raise ApiError(400, "the file's name cannot be used; rename it", param="file")
    with tempfile.TemporaryDirectory(prefix="memlayers-") as folder:
        path = Path(folder) / name

        def run() -> Read:
            with open(path, "wb") as target:
                while block := file.file.read(1 << 20):
                    target.write(block)
            return read_upload(path, served.state.facts, options)

        return await telling(served, asyncio.to_thread(run))


def _read_json(read: Read) -> dict[str, Any]:
    told = read.told
    return {
        "object": "memory.import",
        "file": read.name,
        "subject": read.subject or None,
        "columns": list(read.columns),
        "facts": len(read.found.facts),
        "added": len(told.added),
        "updated": len(told.updated),
        "forgotten": len(told.forgotten),
        "moved": len(told.moved),
        "unchanged": len(told.unchanged),
        "left_out": read.left_out,
    }


async def _learning(served: Served, read: Read) -> AsyncIterator[str]:
    """The events of an import: ``read``, ``progress`` after each edit, then ``done`` or ``error``."""
    steps = read.steps()
    progress = Progress(sum(len(step.facts) for step in steps))
    yield _event("read", {**_read_json(read), "total": progress.total, "version": served.state.version})
    try:
        while steps:
            step = steps.pop(0)
            taken, version, seconds = True, served.state.version, 0.0
            try:
                edited = await published(served, step.run)
                version, seconds = edited.version, edited.report.seconds + edited.report.saving
                progress.done += len(step.facts)
            except ApiError as error:
                if error.status_code not in (400, 409):
                    raise
                if halves := step.halves():
                    steps[:0] = halves
                    continue
                progress.refused.append((step.facts[0], str(error.detail)))
                progress.done += 1
                taken = False
            yield _event(
                "progress",
                {**progress.as_json(), "kind": step.kind, "subjects": _subjects(step), "version": version}
                | {"seconds": seconds, "taken": taken},
            )
        yield _event("done", {**progress.as_json(), "version": served.state.version})
    except ApiError as error:
        told = error_object(error.status_code, str(error.detail), error.param, error.code)
        yield _event("error", {**progress.as_json(), **told, "version": served.state.version})


def _subjects(step: Step) -> list[str]:
    return list(dict.fromkeys(fact.subject or fact.questions[0] for fact in step.facts))[:5]


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, ensure_ascii=False)}\n\n"
