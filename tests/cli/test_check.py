"""`memlayers facts check`: what it says, what --fix writes, the page, and what it exits with."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import FACTS, Command
from memlayers import Fact, read_facts, write_facts
from memlayers.data.facts import Question, Source
from memlayers.inference.folder import CONFIG_FILE, FACTS_FILE

TEXT = "Oakmere was founded in 1204.\n\nIts mayor is Ines <b>Marlow</b> & Sons.\n"
MAYOR = "Its mayor is Ines <b>Marlow</b> & Sons."


def fact(name: str, answer: str, evidence: str = "", **more: Any) -> Fact:
    wordings = tuple(way.format(name) for way in ("What of {}?", "Tell me of {}.", "{} is what?"))
    sources = (Source("town.txt", evidence),) if evidence else ()
    return Fact(name, name, answer, more.pop("questions", wordings), sources=sources, **more)


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three facts, of which one is not in the document, and a duplicate; in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "town.txt").write_text(TEXT)
    facts = [
        fact("Oakmere", "1204", "founded in 1204"),
        fact("Marlow & Sons", "Ines <b>Marlow</b>", MAYOR),
        fact("Velor Mill", "1300", "The mill is of 1300"),
        Fact("again", "Oakmere", "1204", ("What of Oakmere?", "Oakmere's year?")),
    ]
    write_facts("facts.jsonl", facts)
    return Path("facts.jsonl")


def test_facts_without_a_fault(command: Command, town: Path):
    write_facts(town, [fact("Oakmere", "1204", "founded in 1204")])
    assert command("facts", "check", town) == (0, f"{town}: 1 facts, 3 wordings: nothing found\n", "")


def test_findings_are_counted_and_told_with_their_lines(command: Command, town: Path):
    code, out, err = command("facts", "check", town)
    assert (code, err) == (2, "")
    assert out.startswith(f"{town}: 4 facts, 11 wordings: 1 refused, 2 to look at\n")
    assert re.search(r"evidence not where it is said to be +│ refused +│ 1 ", out)
    assert "evidence not where it is said to be, line 3: 'The mill is of 1300' is not in town.txt: " in out
    assert "duplicate, lines 1, 4: " in out


def test_what_is_only_to_be_looked_at_is_no_error_and_is_not_told_without_end(command: Command, facts: Path):
    write_facts(facts, [Fact(str(n), f"Ann {n}", str(n), (f"Who is Ann {n}?",)) for n in range(9)])
    code, out, err = command("facts", "check", facts)
    assert (code, err) == (0, "") and out.count("too few wordings, line ") == 5
    assert "too few wordings: and 4 more; --json names all" in out


def test_json(command: Command, tmp_path: Path):
    rows = ({"question": "q?", "answers": [answer]} for answer in ("one", "two", "two"))
    (tmp_path / "facts.jsonl").write_text(
        "".join(json.dumps({**row, "id": str(i)}) + "\n" for i, row in enumerate(rows))
    )
    code, out, err = command("facts", "check", tmp_path / "facts.jsonl", "--json")
    assert (code, err) == (2, "")
    report = json.loads(out)
    assert report["facts"] == 3
    (contradiction,), (duplicate,) = report["contradictions"], report["duplicates"]
    assert contradiction["lines"] == [1, 2, 3] and contradiction["answers"] == ["one", "two", "two"]
    assert duplicate["lines"] == [2, 3]
    assert report["findings"][0] | {"said": ""} == {
        "kind": "contradiction", "severity": "refused", "ids": ["0", "1", "2"], "lines": [1, 2, 3], "said": "",
        "fix": "all sides are dropped", "texts": ["q?"],
    }  # fmt: skip


def test_the_forms_that_link_neither_are_named(command: Command, tmp_path: Path):
    ways = ("Where was {} born?", "{}'s birthplace?", "Tell me where {} was born.")
    facts = [Fact(n, n, "Rome", tuple(w.format(n) for w in ways), "place of birth") for n in ("Ann Smith", "Bo Smith")]
    write_facts(tmp_path / "facts.jsonl", facts)
    code, out, _ = command("facts", "check", tmp_path / "facts.jsonl")
    assert code == 0
    assert "lines 1, 2: 'Smith' links to none of 'Ann Smith', 'Bo Smith': it could mean each of them" in out


def test_what_is_fixed_is_written_and_found_no_more(command: Command, town: Path):
    code, out, err = command("facts", "check", town, "--fix", "fixed.jsonl")
    assert (code, err) == (0, "")
    assert out.splitlines()[-3:] == [
        "  1 facts, evidence not where it is said to be: dropped",
        "  1 facts, duplicate: made one with others",
        "2 facts in fixed.jsonl",
    ]
    left = read_facts("fixed.jsonl")
    assert [each.id for each in left] == ["Oakmere", "Marlow & Sons"] and len(left[0].questions) == 4
    assert command("facts", "check", "fixed.jsonl")[:2] == (0, "fixed.jsonl: 2 facts, 7 wordings: nothing found\n")
    did = json.loads(command("facts", "check", town, "--fix", town, "--json")[1])["fixed"]
    assert did["written"] == {str(town): 2} and [each["id"] for each in did["did"]] == ["Velor Mill", "again"]
    assert town.read_bytes() == Path("fixed.jsonl").read_bytes()


def test_a_document_that_lies_elsewhere_is_given(command: Command, town: Path):
    Path("moved").mkdir()
    Path("town.txt").rename("moved/town.txt")
    code, out, _ = command("facts", "check", town)
    assert code == 0 and "lines 1, 2, 3: town.txt: no such file: not checked; say where it is with --documents" in out
    assert command("facts", "check", town, "--documents", "moved/town.txt")[0] == 2


class _Page(HTMLParser):
    """Tags, addresses, and the text of marks and of what is bold in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.marked: list[str] = []
        self.answers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "mark" in self.open:
            self.marked[-1] += data
            if self.open[-1] == "b":
                self.answers.append(data)


def test_the_page_marks_the_evidence_and_the_answer_and_loads_nothing(command: Command, town: Path):
    code, out, _ = command("facts", "check", town, "--html", "page.html")
    assert code == 2 and out.endswith("The page is page.html\n")
    text = Path("page.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == [] and not page.tags & {"script", "img", "link", "iframe"}
    assert all(address.startswith("#") for address in page.addresses) and "url(" not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert {"founded in 1204", MAYOR, "The mill is of 1300"} <= set(page.marked)
    assert {"1204", "Ines <b>Marlow</b>", "1300"} <= set(page.answers)
    assert "Oakmere was <mark>founded in <b>1204</b></mark>." in text  # what stands around it
    for anchor in page.addresses:
        assert f'id="{anchor[1:]}"' in text


def test_with_a_memory_new_facts_and_updates_go_into_files_of_their_own(command: Command, town: Path):
    Path("memory").mkdir()
    Path("memory", CONFIG_FILE).write_text("{}")
    write_facts(Path("memory", FACTS_FILE), [fact("Oakmere", "1205"), fact("Marlow & Sons", "ines <b>marlow</b>")])
    code, out, _ = command("facts", "check", town, "--memory", "memory", "--fix", "new.jsonl")
    assert code == 0
    assert out.endswith("1 facts in new.updates.jsonl: memlayers update memory --facts new.updates.jsonl\n")
    assert "the memory answers 'What of Oakmere?' with '1205', this file with '1204': " in out
    assert [each.answer for each in read_facts("new.updates.jsonl")] == ["1204"] and not Path("new.jsonl").exists()
    write_facts(town, [*read_facts(town), fact("Veloria", "Tamsin")])
    assert (
        "1 facts in new.jsonl: memlayers add memory --facts new.jsonl\n"
        in (command("facts", "check", town, "--memory", "memory", "--fix", "new.jsonl")[1])
    )


def test_a_backbone_is_asked_what_it_knows(
    command: Command, chat_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from memlayers.evaluation import known

    def half(model: Any, tokenizer: Any, asked: list[Question], **_: Any) -> list[Question]:
        assert tokenizer("a")["input_ids"] and not model.training
        return [each for each in asked if "Ann" in each.question]

    monkeypatch.setattr(known, "questions_known", half)
    write_facts(tmp_path / "facts.jsonl", FACTS)
    flags = ["--backbone", chat_backbone, "--device", "cpu", "--quiet", "--fix", tmp_path / "out.jsonl"]
    code, out, err = command("facts", "check", tmp_path / "facts.jsonl", *flags)
    assert (code, err) == (0, "") and "known to the backbone, line 1: " in out
    assert read_facts(tmp_path / "out.jsonl") == FACTS[1:]
