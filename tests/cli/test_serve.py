"""`memlayers serve` as a command: what it refuses, and that it serves and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.7"])
def test_other_machines_need_a_key(host: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MEMLAYERS_API_KEY", raising=False)
    code, out, err = command("serve", tmp_path / "memory", "--host", host)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--host {host} can be reached from other machines: give --api-key" in err


def test_what_cannot_be_served_is_refused_in_one_line(command: Command, tmp_path: Path):
    for options, said in (
        ((tmp_path / "nothing",), "not a memory folder"),
        ((tmp_path / "one", tmp_path / "two" / "one"), "both be served as 'one'"),
        ((tmp_path / "one", "--open-chat"), "no API key"),
        ((tmp_path / "one", "--api-key", " "), "key is empty"),
        ((tmp_path / "one", "--log-level", "loud"), "--log-level loud"),
    ):
        code, out, err = command("serve", *options, "--port", 0, "--quiet")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert said in err


def test_a_rate_that_is_none_and_a_port_in_use_are_refused_in_one_line(command: Command, taught_folder: Path):
    code, _, err = command("serve", taught_folder, "--rate", "often", "--port", 0, "--quiet")
    assert (code, err.count("\n")) == (2, 1) and "the rate 'often' is none" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = command("serve", taught_folder, "--port", port, "--quiet")
        assert (code, err.count("\n")) == (1, 1) and f"cannot listen on 127.0.0.1:{port}" in err


SERVE = """
import sys
sys.argv = ["memlayers", "serve", *sys.argv[1:]]
from memlayers.cli import main
main()
"""


def test_it_serves_and_ends(warm_python: Any, taught_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEMLAYERS_API_KEY", "of-the-environment")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = warm_python.start(SERVE, taught_folder, "--port", port, "--device", "cpu")
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < until, process.err.read_text()
        try:
            httpx.get(f"{address}/health").raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.05)
    body = {"model": "memory", "messages": [{"role": "user", "content": "What is the code of Ada?"}], "max_tokens": 4}
    assert httpx.post(f"{address}/v1/chat/completions", json=body).status_code == 401
    headers = {"Authorization": "Bearer of-the-environment"}
    assert httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers).json()["memlayers"]["version"] == 0
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() in (0, 130)
    lines = process.err.read_text().splitlines()
    assert f"memlayers: serving memory, memory:bare at {address} (Ctrl-C ends it)" in lines
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert [each["status"] for each in logged if each["event"] == "request" and each["route"] != "/health"] == [
        401,
        200,
    ]
    assert "of-the-environment" not in process.err.read_text() and "Traceback" not in process.err.read_text()
