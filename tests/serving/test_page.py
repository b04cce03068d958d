"""The page in a real Chromium: every view driven end to end, by mouse and by keyboard, narrow, dark, with axe-core."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.editing import CONFIG, FACTS, QUICK
from helpers.serving import running, trust
from memlayers.data.fact_files import write_facts
from memlayers.data.facts import Source
from memlayers.serving.memories import close_memories, open_memories
from memlayers.serving.served import Served
from memlayers.serving.settings import ServeSettings

pytest.importorskip("playwright", reason="playwright is not installed")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

TITLES = {"chat": "Chat", "facts": "Facts", "import": "Import", "edits": "Edits", "scores": "Scores"}


@pytest.fixture(scope="module")
def shared_memories(
    taught_folder: Path, tmp_path_factory: pytest.TempPathFactory, short_answers: None
) -> Iterator[dict[str, Served]]:
    folder = Path(shutil.copytree(taught_folder, tmp_path_factory.mktemp("page") / "codes"))
    ada = replace(FACTS[0], sources=(Source("codes.csv", "red", row=2, column="code"),))
    write_facts(folder / "facts.jsonl", [ada, *FACTS[1:]])
    memories = open_memories([folder], device="cpu", dtype="float32", edits=QUICK)
    trust(memories)
    yield memories
    close_memories(memories.values())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, opened anew; it loads nothing from elsewhere, and no script of it fails."""
    made = browser.new_page(viewport={"width": 1000, "height": 760})
    made.set_default_timeout(20_000)
    expect.set_options(timeout=20_000)
    asked: list[str] = []
    failed: list[str] = []
    made.on("request", lambda request: asked.append(request.url))
    made.on("pageerror", lambda error: failed.append(str(error)))
    made.on("console", lambda message: failed.append(message.text) if "Content Security" in message.text else None)
    made.goto(address)
    expect(made.locator("#standing")).to_contain_text("version")
    yield made
    made.close()
    assert failed == [] and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def view(page: Page, name: str) -> None:
    page.get_by_role("tab", name=TITLES[name]).click()
    expect(page.locator(f"#{name}")).to_be_visible()


def ask(page: Page, question: str) -> Any:
    """Asks, and waits for both answers; the turn."""
    turns = page.locator(".turn").count()
    page.locator("#question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    turn = page.locator(".turn").nth(turns)
    expect(turn.locator("article:not([aria-busy])")).to_have_count(2)
    return turn


def undo(page: Page, shared_memories: dict[str, Served]) -> None:
    version = shared_memories["codes"].state.version
    page.locator("[data-undo]:visible").click()
    expect(page.locator("#standing")).to_contain_text(f"version {version + 1}")


def faults(page: Page) -> list[str]:
    """What axe-core finds, and whether the page is wider than its window."""
    found = [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in Axe().run(page).response["violations"]]
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return [*found, *(["it scrolls sideways"] if wide else [])]


def test_chat_side_by_side_a_mark_opens_the_fact_and_it_is_corrected_there(
    page: Page, shared_memories: dict[str, Served], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shared_memories["codes"]._memory, "edits", replace(CONFIG, refuse=False))
    turn = ask(page, FACTS[0].questions[0])
    with_memory, without = turn.locator("article").all()
    expect(with_memory.locator(".answer")).to_have_text("red")
    expect(with_memory).to_contain_text("from the memory")
    expect(with_memory).to_contain_text("codes.csv, row 2, column code")
    assert without.locator(".spoke").count() == 0 and "red" not in without.locator(".answer").inner_text()
    with_memory.locator(".spoke").first.click()
    dialog = page.locator("#detail")
    dialog.get_by_text("2 questions").click()
    for text in (
        "Ada, code",
        "red",
        FACTS[0].questions[1],
        "codes.csv, row 2, column code",
        "none since it was taught",
    ):
        expect(dialog).to_contain_text(text)
    assert faults(page) == []
    version = shared_memories["codes"].state.version
    dialog.get_by_role("button", name="Correct").click()
    page.get_by_label("The right answer").fill("green")
    dialog.get_by_role("button", name="Save").click()
    expect(page.locator("#status")).to_contain_text("green")
    expect(page.locator("#standing")).to_contain_text(f"version {version + 1}")
    again = ask(page, FACTS[0].questions[0]).locator("article").first
    expect(again.locator(".answer")).to_have_text("green")
    expect(again).to_contain_text(f"version {version + 1}")
    again.locator(".spoke").first.click()
    expect(dialog).to_contain_text(f"{version + 1}: update")
    dialog.get_by_role("button", name="Close").click()
    page.get_by_label("Say so where neither side is sure").check()
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    unsure = ask(page, "Where does the river run to?").locator("article").first
    expect(unsure.locator(".answer")).to_have_text("I was not taught that.")
    page.get_by_label("Say so where neither side is sure").uncheck()
    other = ask(page, "Where does the river run to?").locator("article").first
    expect(other).to_contain_text("the same as without it, to the bit")
    assert other.locator(".spoke").count() == 0
    view(page, "edits")
    expect(page.locator("#journal tbody tr").first).to_contain_text("update")
    undo(page, shared_memories)
    expect(page.locator("#journal tbody tr").nth(1)).to_contain_text("taken back")
    assert shared_memories["codes"].state.facts[0].answer == "red"


def test_facts_are_searched_added_corrected_forgotten_and_taken_back(page: Page, shared_memories: dict[str, Served]):
    view(page, "facts")
    rows = page.locator("#table tbody tr")
    expect(rows).to_have_count(7)
    page.get_by_label("Search").fill("ada food")
    expect(rows).to_have_count(1)
    expect(page.locator("#found")).to_have_text("1 fact")
    page.get_by_label("Search").fill("")
    expect(rows).to_have_count(7)
    page.get_by_text("Add a fact").click()
    page.get_by_label("Subject", exact=True).fill("Gus Orr")
    page.get_by_label("Relation, as").fill("code")
    page.get_by_label("Answer", exact=True).fill("<b>amber</b>")
    page.get_by_label("Questions, one a line").fill("What is the code of Gus Orr?")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(rows).to_have_count(8)
    expect(rows.last).to_contain_text("<b>amber</b>")  # text, no markup
    page.get_by_role("button", name="Correct Gus Orr, code").click()
    page.get_by_label("The right answer").fill("teal")
    page.get_by_role("button", name="Save").click()
    expect(rows.last).to_contain_text("teal")
    page.get_by_role("button", name="Forget Gus Orr, code").click()
    expect(rows).to_have_count(7)
    for left in (8, 8, 7):
        undo(page, shared_memories)
        expect(rows).to_have_count(left)
    page.get_by_role("button", name="Correct Bob, code").click()
    page.get_by_label("The right answer").fill("A" * 4000)
    page.get_by_role("button", name="Save").click()  # the server refuses, and the page says so
    expect(page.locator("#status.failed")).not_to_be_empty()
    assert shared_memories["codes"].state.fact("bob") == FACTS[1]


def test_a_table_is_dropped_and_watched_being_learned(
    page: Page, shared_memories: dict[str, Served], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    view(page, "import")
    version = shared_memories["codes"].state.version
    table = base64.b64encode(b"room,name,code\n1,Gus Orr,amber\n2,Ida,\n").decode()
    page.evaluate(
        """(data) => {
          const dropped = new DataTransfer();
          dropped.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], "staff.csv"));
          const event = new DragEvent("drop", { dataTransfer: dropped, bubbles: true });
          document.getElementById("drop").dispatchEvent(event);
        }""",
        table,
    )
    plan = page.locator("#plan")
    expect(plan).to_contain_text("staff.csv")
    page.get_by_label("Column that says what a row is about").select_option("name")
    expect(plan).to_contain_text("left out: empty cell")
    page.get_by_label("room", exact=True).uncheck()
    expect(plan.locator("li")).to_have_count(1)
    expect(plan).to_contain_text("1 new")
    assert faults(page) == []
    page.get_by_role("button", name="Learn 1 fact").click()
    expect(page.locator("#steps li")).to_contain_text(f"Added Gus Orr (version {version + 1}")
    expect(page.locator("#bar-label")).to_contain_text("1 of 1 learned")
    assert page.locator("#bar").evaluate("bar => bar.value / bar.max") == 1
    assert faults(page) == []
    (tmp_path / "staff.csv").write_bytes(b"name,code\nGus Orr,amber\n")
    page.locator("#file").set_input_files(tmp_path / "staff.csv")
    expect(page.get_by_role("button", name="Nothing to learn")).to_be_disabled()
    (tmp_path / "wrong.csv").write_bytes(b"")
    page.locator("#file").set_input_files(tmp_path / "wrong.csv")
    expect(page.locator("#status.failed")).to_contain_text("wrong.csv")
    view(page, "facts")
    expect(page.locator("#table tbody tr").last).to_contain_text("staff.csv, row 2, column code")
    undo(page, shared_memories)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_view_wide_or_narrow(page: Page, scheme: Any, shared_memories: dict[str, Served]):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360 if scheme == "dark" else 1000, "height": 700})
    ask(page, FACTS[0].questions[0])
    for name in TITLES:
        view(page, name)
        if name == "facts":
            page.get_by_text("Add a fact").click()
            expect(page.locator("#table tbody tr")).to_have_count(7)
        if name == "scores":
            expect(page.get_by_role("img", name=re.compile("Recall over exposures"))).to_be_visible()
            page.get_by_text("The curve as a table").click()
        assert (name, faults(page)) == (name, [])
    page.set_viewport_size({"width": 1000 if scheme == "dark" else 360, "height": 700})
    for name in TITLES:
        view(page, name)
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), name


def test_all_of_it_by_keyboard(page: Page):
    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.className"))

    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") in ("#main", "#chat")
    for _ in range(10):
        page.keyboard.press("Tab")
        if focused() == "question":
            break
    page.keyboard.type(FACTS[0].questions[0])
    page.keyboard.press("Enter")
    expect(page.locator(".turn article:not([aria-busy])")).to_have_count(2)
    for _ in range(10):
        page.keyboard.press("Shift+Tab")
        if focused() == "spoke":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).not_to_be_visible()
    assert focused() == "spoke"  # back where it was
    for _ in range(10):
        page.keyboard.press("Shift+Tab")
        if focused() == "tab-chat":
            break
    page.keyboard.press("ArrowRight")
    assert focused() == "tab-facts"
    expect(page.locator("#facts")).to_be_visible()
    page.keyboard.press("End")
    assert focused() == "tab-scores"
    expect(page.locator("#scores")).to_be_visible()
    page.keyboard.press("ArrowRight")
    assert focused() == "tab-chat"


def test_the_page_asks_for_the_key_and_keeps_it_in_its_tab(browser: Browser, shared_memories: dict[str, Served]):
    with running(shared_memories, ServeSettings(api_key="right")) as address:
        page = browser.new_page()
        page.goto(address)
        for key in ("wrong", "right"):
            expect(page.locator("#key")).to_be_visible()
            page.get_by_label("Key", exact=True).fill(key)
            page.get_by_role("button", name="Use it").click()
        expect(page.locator("#standing")).to_contain_text("7 facts")
        stored = json.loads(page.evaluate("JSON.stringify([Object.values(sessionStorage), localStorage.length])"))
        assert stored == [["right"], 0]
        page.close()
