"""Pictures of the page for the documents: serves a copy of a memory, drives the page in Chromium, and saves small PNGs.

Needs ``memlayers[serve]``, playwright, and a Chromium on the PATH.

Example: ``python scripts/page_screenshots.py runs/demo/memory``
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, expect, sync_playwright

from memlayers.serving.app import create_app
from memlayers.serving.memories import close_memories, open_memories
from memlayers.serving.served import Served

WIDE, NARROW = {"width": 1000, "height": 640}, {"width": 360, "height": 720}


def main() -> None:
    """Makes chat.png, fact.png, facts.png, import.png, scores.png and narrow.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory", type=Path, help="its facts should have sources; it is copied, and stays as it is")
    parser.add_argument("--question", help="asked in the chat; the first fact's first unseen one if not given")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("no Chromium on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(given.memory, Path(folder) / given.memory.resolve().name))
        memories = open_memories([copy])
        fact = memories[copy.name].state.facts[0]
        question = given.question or next(iter(fact.unseen_questions), fact.questions[0])
        try:
            with _running(memories) as address, sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport=WIDE)  # type: ignore[arg-type]  # a typed dict of playwright's
                page.goto(address)
                expect(page.locator("#standing")).to_contain_text("version")
                _take(page, question, given.out, Path(folder) / "new-staff.csv")
                browser.close()
        finally:
            close_memories(memories.values())


def _take(page: Page, question: str, out: Path, table: Path) -> None:
    """Goes through the page, and takes its pictures.

    Args:
        page: opened.
        question: that the memory answers.
        out: where the pictures go.
        table: a file to write and to import.
    """
    expect.set_options(timeout=120_000)
    page.set_default_timeout(120_000)

    def show(view: str) -> None:
        page.get_by_role("tab", name=view).click()

    def picture(name: str) -> None:
        page.evaluate("document.activeElement.blur(); document.getElementById('status').textContent = ''")
        page.screenshot(path=out / f"page-{name}.png")

    page.locator("#question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".turn article:not([aria-busy])")).to_have_count(2)
    picture("chat")
    page.locator(".spoke").first.click()
    expect(page.locator("#detail .fact").first).to_be_visible()
    picture("fact")
    page.keyboard.press("Escape")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size(NARROW)  # type: ignore[arg-type]
    picture("narrow")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    show("Facts")
    expect(page.locator("#table tbody tr").first).to_be_visible()
    picture("facts")
    show("Import")
    table.write_text("name,desk,room\nIda Thorne,12,Harbour\nPer Aldous,31,Loft\n", encoding="utf-8")
    page.locator("#file").set_input_files(table)
    page.get_by_role("button", name="Learn 4 facts").click()
    expect(page.locator("#bar-label")).to_contain_text("learned")
    picture("import")
    show("Scores")
    expect(page.locator("#figures")).not_to_be_empty()
    picture("scores")


@contextmanager
def _running(memories: dict[str, Served]) -> Iterator[str]:
    """The address of a server of these memories."""
    config = uvicorn.Config(create_app(memories), "127.0.0.1", 0, log_level="warning")
    server, socket = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    main()
