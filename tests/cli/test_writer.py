"""`facts from-text --writer`: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.cli import Command
from helpers.openai_server import OpenAIServer, address_of_nobody, writes_well
from memlayers.data.fact_files import read_facts

TEXT = "# Lamps\n\nThe price of Aerolamp is 30 pounds. Ah.\n"
KEY = "sk-very-secret"


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAIServer]:
    with OpenAIServer(writes_well) as server:
        yield server


@pytest.fixture
def server(running: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> OpenAIServer:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    running.begin(writes_well)
    running.key = KEY
    return running


@pytest.fixture
def arguments(server: OpenAIServer, tmp_path: Path) -> list[object]:
    (tmp_path / "lamps.md").write_text(TEXT)
    return ["facts", "from-text", tmp_path / "lamps.md", "--out", tmp_path / "facts.jsonl", "--writer", server.address]


def test_facts_tokens_and_cost(arguments: list[object], command: Command, tmp_path: Path):
    code, out, err = command(*arguments, "--price-in", 2, "--price-out", 30)
    assert (code, err) == (0, "Reading (1)\nWording (1)\n")
    assert out.splitlines() == [
        f"1 facts in {tmp_path}/facts.jsonl",
        "2 passages read in 1 document",
        "1 left out: the writer finds no fact in it",
        "writer small: 2 requests, 200 tokens read, 20 written, cost 0.0010",
    ]
    assert read_facts(tmp_path / "facts.jsonl")[0].answer == "30 pounds"
    assert (tmp_path / "facts.jsonl.writer").is_dir()
    code, out, _ = command(*arguments, "--quiet")
    assert out.splitlines()[-2:] == [
        "writer small: 0 requests, 0 tokens read, 0 written",
        "kept from before, not asked again: 2 requests, 200 tokens read, 20 written",
    ]


def test_as_json(arguments: list[object], command: Command, tmp_path: Path):
    code, out, err = command(*arguments, "--json", "--quiet", "--cache", tmp_path / "kept", "--workers", 2)
    told = json.loads(out)
    assert (code, err, told["facts"]) == (0, "", 1)
    assert told["writer"]["model"] == "small" and told["writer"]["requests"] == 2 and "cost" not in told["writer"]
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_dry_run_sends_nothing_and_shows_the_request(
    arguments: list[object], server: OpenAIServer, command: Command, tmp_path: Path
):
    code, out, _ = command(*arguments, "--dry-run", "--model", "small")
    assert code == 0 and not server.asked and sorted(each.name for each in tmp_path.iterdir()) == ["lamps.md"]
    assert out.startswith("1 requests would be sent for 1 chunks, about ") and "the answers to 0 are kept" in out
    command(*arguments)
    [sent] = [body for body in server.asked if TEXT.strip() in str(body["messages"][-1]["content"])]
    assert all(f"[{each['role']}]\n{each['content']}" in out for each in sent["messages"])
    code, out, _ = command(*arguments, "--dry-run", "--model", "small", "--json")
    told = json.loads(out)
    assert told == {"chunks": 1, "requests": 0, "estimated_tokens": 0, "first": {}}


@pytest.mark.parametrize("flag", [("--model", "m"), ("--dry-run",), ("--cache", "kept")])
def test_a_writers_flags_need_one(flag: tuple[str, ...], arguments: list[object], command: Command):
    code, _, err = command(*arguments[:-2], *flag)
    assert code == 2 and "name one with --writer" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "flag",
    [
        ("--workers", 0),
        ("--timeout", 0),
        ("--timeout", "nan"),
        ("--price-in", -1),
        ("--price-out", -1),
        ("--most-words", 0),
    ],
)
def test_numbers_that_cannot_be(
    flag: tuple[str, object], arguments: list[object], server: OpenAIServer, command: Command
):
    code, _, err = command(*arguments, *flag)
    assert code == 2 and "give at least 1" in err and len(err.splitlines()) == 1 and not server.asked


def test_a_wrong_key_is_one_line_without_it(
    arguments: list[object], server: OpenAIServer, command: Command, tmp_path: Path
):
    server.key = "sk-other"
    code, out, err = command(*arguments, "--quiet")
    assert (code, out) == (2, "") and "refuses the key in OPENAI_API_KEY (401)" in err
    assert KEY not in err and len(err.splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["lamps.md"]


def test_a_writer_that_is_not_there(arguments: list[object], command: Command, tmp_path: Path):
    code, out, err = command(*arguments[:-1], address_of_nobody(), "--quiet", "--model", "small")
    assert (code, out) == (1, "") and "cannot be reached" in err and len(err.splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["lamps.md"]


def test_a_writer_that_fails_in_the_middle(
    arguments: list[object], server: OpenAIServer, command: Command, tmp_path: Path
):
    (tmp_path / "more.md").write_text(TEXT.replace("Aerolamp", "Sealamp"))
    server.first = [(200, {}), (500, {"x-should-retry": "false"})]
    arguments.insert(2, tmp_path / "more.md")
    code, out, err = command(*arguments, "--quiet", "--workers", 1, "--timeout", 20)
    folder = tmp_path / "facts.jsonl.writer"
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert "its server failed (500: " in err and f"1 of 2 chunks are kept in {folder}; the same command resumes" in err
    code, out, _ = command(*arguments, "--quiet")
    assert code == 0 and out.startswith("2 facts in ") and "kept from before, not asked again: 1 requests" in out


def test_nonsense(arguments: list[object], server: OpenAIServer, command: Command):
    server.answer = lambda body: "Hm."
    code, out, err = command(*arguments, "--quiet")
    assert (code, out) == (1, "") and "answered nonsense" in err and len(err.splitlines()) == 1


def test_nothing_found(arguments: list[object], server: OpenAIServer, command: Command):
    server.answer = lambda body: '{"facts": []}'
    code, out, err = command(*arguments, "--quiet")
    assert (code, out) == (2, "") and "no facts in 2 passages (2 the writer finds no fact in it)" in err


def test_a_folder_of_answers_that_cannot_be(
    arguments: list[object], server: OpenAIServer, command: Command, tmp_path: Path
):
    code, _, err = command(*arguments, "--quiet", "--cache", tmp_path / "lamps.md")
    assert code == 2 and not server.asked and len(err.splitlines()) == 1


def test_ctrl_c_says_what_is_kept(
    arguments: list[object], command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from memlayers.sources import writer

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "with_wordings", interrupt)
    code, _, err = command(*arguments, "--quiet")
    assert code == 130 and f"are kept in {tmp_path}/facts.jsonl.writer; the same command goes on" in err
