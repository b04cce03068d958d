"""What the tests of serving share: a real server on a free loopback port, in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx
import uvicorn

from memlayers.serving.app import create_app
from memlayers.serving.served import Served
from memlayers.serving.settings import ServeSettings
from memlayers.tuner.handle import active_memories


@contextmanager
def running(memories: Mapping[str, Served], settings: ServeSettings | None = None) -> Iterator[str]:
    """The address of a server of these memories, as ``http://127.0.0.1:PORT``."""
    app = create_app(memories, settings)
    config = uvicorn.Config(app, "127.0.0.1", 0, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    listening.listen()  # who connects before the server is up waits
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        httpx.get(f"{address}/health", timeout=30).raise_for_status()
        yield address
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@cache
def client() -> httpx.Client:
    """One for all: to make one takes longer than to use it."""
    return httpx.Client(timeout=60)


def chat(address: str, question: Any, model: str = "codes", **fields: Any) -> dict[str, Any]:
    """A chat completion, as JSON."""
    messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": 8, **fields}
    response = client().post(f"{address}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def events(address: str, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream."""
    with client().stream("POST", f"{address}{path}", json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def content(answer: Mapping[str, Any]) -> str:
    """What a chat completion says."""
    return str(answer["choices"][0]["message"]["content"])


def trust(memories: Mapping[str, Served]) -> None:
    """Has the memories' answers be given however unsure they are: a random backbone is sure of nothing."""
    for served in memories.values():
        for memory in active_memories(served.model):
            assert memory.index is not None
            memory.index.thresholds = memory.index.thresholds.clone()  # the writer's stay, and so what it saves
            memory.index.thresholds[0] = 1e-4
