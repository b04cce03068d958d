"""What the documents show is run: the guide's Python, the options of every command, the links, the columns."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from helpers.cli import all_commands
from memlayers.cli import app
from memlayers.config.teach import read_teach_config
from memlayers.data import general_text

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCUMENTS]
GUIDE = ROOT / "docs" / "guide.md"
GLOSSARY = ROOT / "docs" / "glossary.md"


def _blocks(document: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language with the number of their first line."""
    text = document.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def _commands() -> list[tuple[str, str]]:
    """(document, command line) of every call of memlayers, lines continued by a backslash joined."""
    calls = []
    for document in DOCUMENTS:
        for _, block in _blocks(document, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.search(r"(?:^|; do )(memlayers [^;]*)", line):
                    calls.append((document.name, found[1]))
    return calls


@pytest.mark.usefixtures("quick_gates")
def test_the_guides_python_runs(general_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One namespace from top to bottom, as a reader would."""
    monkeypatch.setattr(general_text, "SHIPPED", general_file)  # seconds instead of a minute
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    blocks = _blocks(GUIDE, "python")
    assert blocks
    for line, block in blocks:
        exec(compile("\n" * (line - 1) + block, str(GUIDE), "exec"), namespace)  # errors name the guide's own line
    assert {path.name for path in tmp_path.iterdir()} >= {"facts.jsonl", "memory", "two", "memory-2", "untaught"}


def test_the_guides_facts_files_are_read_and_the_error_is_the_one_shown(tmp_path: Path) -> None:
    from memlayers import InputError, read_facts

    for language, suffix in (("json", "jsonl"), ("csv", "csv")):
        blocks = _blocks(GUIDE, language)
        assert blocks
        for _, block in blocks:
            path = tmp_path / f"facts.{suffix}"
            path.write_text(block, encoding="utf-8")
            (fact,) = read_facts(path, strict=True)
            assert len(fact.questions) == (1 if fact.subject == "" else 2)
    (shown,) = re.findall(r"print\(error\)  # (bad\.jsonl:1: .*)", GUIDE.read_text(encoding="utf-8"))
    (row,) = re.findall(r"""write_text\('(.*)\\n'\)""", GUIDE.read_text(encoding="utf-8"))
    (tmp_path / "bad.jsonl").write_text(row + "\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_facts(tmp_path / "bad.jsonl")
    assert str(error.value) == f"{tmp_path}/{shown}"


@pytest.mark.parametrize(("document", "call"), _commands())
def test_the_commands_take_these_options(document: str, call: str) -> None:
    words = shlex.split(call, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{document}: no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for option in (word for word in words if word.startswith("-")):
        assert option in known, f"{document}: {option} is no option of {command.name}"


def test_the_flags_named_in_the_guide_exist() -> None:
    known = {
        option
        for one in all_commands().values()
        for parameter in one.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    for document in DOCUMENTS:
        if document.name == "LOG.md":  # history may name flags that are gone
            continue
        named = set(re.findall(r"`(--[a-z-]+)", document.read_text(encoding="utf-8")))
        assert named <= known, f"{document.name}: {sorted(named - known)}"


@pytest.mark.parametrize(
    "recipe", sorted({word for _, call in _commands() for word in re.findall(r"recipes/\S+\.yaml", call)})
)
def test_the_recipes_named_are_there(recipe: str) -> None:
    if not (ROOT / "recipes").is_dir():
        pytest.skip("no recipes/ in this checkout yet")
    read_teach_config(ROOT / recipe, {})


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_files_and_links_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / target).exists(), target
    if document.name == "LOG.md":
        return
    for name in re.findall(r"`((?:src|tests|docs|scripts)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"[`(]((?:[a-z_]+/)*[a-z_]+\.py)[`)]", text):
        assert (ROOT / "src" / "memlayers" / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_the_headings_that_links_point_to_exist(document: Path) -> None:
    for page, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text(encoding="utf-8")):
        target = document.parent / page if page else document
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{page}#{anchor}"


def _prose(text: str) -> list[tuple[int, str]]:
    """The numbered lines of a document outside fenced and indented code, tables, pictures and comments."""
    lines, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("    ", "|", "![", "<!--")):
            lines.append((number, line))
    return lines


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_prose_is_wrapped_at_120_columns(document: Path) -> None:
    for number, line in _prose(document.read_text(encoding="utf-8")):
        without_links = re.sub(r"\]\([^)]*\)|https?://\S+", "", line)
        without_code = re.sub(r"`[^`]*`", "", without_links)
        assert len(without_code) <= 120, f"{document.name}:{number}: {len(without_code)} columns"


def test_the_log_has_one_heading_a_day_newest_first() -> None:
    headings = re.findall(r"^#+ .*$", (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1:]
    assert headings
    assert all(re.fullmatch(r"## \d{4}-\d\d-\d\d", heading) for heading in headings)
    assert headings == sorted(set(headings), reverse=True)


def test_the_glossary_is_linked_and_has_one_line_a_term() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    terms = [term for term, _ in rows if term != "term"]
    assert len(terms) >= 25
    assert len(terms) == len(set(terms))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        assert "(docs/glossary.md)" in page.read_text(encoding="utf-8")
