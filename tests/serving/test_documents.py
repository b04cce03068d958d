"""What docs/serving.md shows is run, and what starts a server elsewhere uses options that there are."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from helpers.serving import chat, client
from memlayers.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "serving.md"


def shown(language: str, address: str) -> list[str]:
    """The blocks of a language, about the server at this address."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [
        each.replace("http://127.0.0.1:8000", address).replace('"model": "memory"', '"model": "codes"')
        .replace('model="memory"', 'model="codes"') for each in found
    ]  # fmt: skip


def test_the_python_and_the_curl_shown_run(address: str, capsys: pytest.CaptureFixture[str]):
    (block,) = shown("python", address)
    exec(compile(block, str(PAGE), "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "red" and said[1].startswith("memory [{'id': 'ada'")
    (asking,) = (each for each in shown("bash", address) if "curl" in each)
    done = subprocess.run(["bash", "-c", asking], capture_output=True, text=True, timeout=60, check=True)
    answer, rest = json.JSONDecoder().raw_decode(done.stdout)
    assert answer["choices"][0]["message"]["content"] == "red"
    assert json.loads(done.stdout[rest:])["object"] == "list"


def test_the_fields_of_an_answer_and_the_metrics_are_those_described(address: str):
    page = PAGE.read_text(encoding="utf-8")
    for name in chat(address, "What is the code of Ada?")["memlayers"]:
        assert f"`{name}`" in page
    assert "memlayers_answers_total" in client().get(f"{address}/metrics").text


@pytest.mark.parametrize("name", ["Dockerfile", "contrib/memlayers.service"])
def test_what_starts_a_server_uses_options_that_there_are(name: str):
    if not (ROOT / name).is_file():
        pytest.skip(f"{name} is not in this checkout")
    command: Any = typer.main.get_command(app)
    known = {option for parameter in command.commands["serve"].params for option in parameter.opts}
    starts = [line for line in (ROOT / name).read_text().splitlines() if line.startswith(("ENTRYPOINT", "ExecStart"))]
    assert len(starts) == 1 and set(re.findall(r"--[a-z-]+", starts[0])) <= known
