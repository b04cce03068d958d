"""The page at ``/``: chat with and without a memory side by side, its facts, imports, edits and scores.

Plain files, served as they are: one HTML file, one style sheet, ES modules. Nothing is built, nothing is from another
host, and no text of a model or a fact becomes markup.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).with_name("static")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def include_in(app: FastAPI) -> None:
    """Adds the page to an app: ``/``, and what it loads under ``/page``."""

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=_HEADERS)

    app.mount("/page", StaticFiles(directory=STATIC), name="page")
