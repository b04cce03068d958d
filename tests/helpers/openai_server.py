"""A server of real HTTP that speaks /v1/models and /v1/chat/completions, and answers as a test has it answer."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


class OpenAIServer:
    """Runs in a thread while the `with` block does.

    Attributes:
        asked: the bodies of all requests for a chat, in order of arrival.
        answer: from a request's body to the answer's text.
        models: that it lists; None knows no /v1/models.
        key: that it demands; "" for none.
        refuses: options of a request that it does not take.
        first: (status, headers) of its first replies, in place of an answer; 200 answers.
        seconds: that it waits before each answer.
        reply: status and body of every reply, in place of an answer.
        lives_for: requests that it answers, before it drops every connection; None for ever.
    """

    def __init__(self, answer: Callable[[Body], str]) -> None:
        self._lock = threading.Lock()
        self.begin(answer)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/v1"

    def begin(self, answer: Callable[[Body], str]) -> None:
        """Behaves as a new one."""
        self.answer = answer
        self.asked: list[Body] = []
        self.models: list[str] | None = ["small"]
        self.key = ""
        self.refuses: set[str] = set()
        self.first: list[tuple[int, dict[str, str]]] = []
        self.seconds = 0.0
        self.lives_for: int | None = None
        self.reply: tuple[int, Any] | None = None

    def __enter__(self) -> OpenAIServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Nobody listens there any more."""
        self._server.shutdown()
        self._server.server_close()

    def chat(self, body: Body) -> tuple[int, dict[str, str], Body] | None:
        """Status, headers and body of a reply; None drops the connection."""
        with self._lock:
            self.asked.append(body)
            number = len(self.asked)
            canned = self.first.pop(0) if self.first else None
        if self.lives_for is not None and number > self.lives_for:
            return None
        if self.reply is not None:
            return self.reply[0], {}, self.reply[1]
        if canned is not None and canned[0] != 200:
            return canned[0], canned[1], _error("so the test says")
        if self.models is not None and body["model"] not in self.models:
            return 404, {}, _error(f"The model `{body['model']}` does not exist")
        if refused := self.refuses & set(body):
            return 400, {}, _error(f"Unsupported parameter: {sorted(refused)[0]}")
        time.sleep(self.seconds)
        message = {"role": "assistant", "content": self.answer(body)}
        return 200, {}, {
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }  # fmt: skip


def address_of_nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.endswith("/v1/models") or server.models is None:
                self._reply(404, {}, _error("not found"))
            elif self._is_let_in():
                listed = [{"id": each, "object": "model", "created": 0, "owned_by": "me"} for each in server.models]
                self._reply(200, {}, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.path.endswith("/v1/chat/completions"):
                self._reply(404, {}, _error("not found"))
            elif self._is_let_in():
                if (reply := server.chat(body)) is None:
                    self.close_connection = True
                else:
                    self._reply(*reply)

        def _is_let_in(self) -> bool:
            if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
                self._reply(401, {}, _error(f"Incorrect API key provided: {self.headers['Authorization']}"))
                return False
            return True

        def _reply(self, status: int, headers: dict[str, str], body: Body) -> None:
            data = json.dumps(body).encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client waits no longer
                pass

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _error(message: str) -> Body:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


# Answers


def writes_well(body: Body) -> str:
    """What a good writer answers about texts whose sentences all are "The RELATION of SUBJECT is VALUE."."""
    asked = body["messages"][-1]["content"]
    task = body["messages"][0]["content"]
    if task.startswith("List every fact"):
        return answer_of([
            {"subject": found[2], "relation": found[1], "answer": found[3], "evidence": found[0]}
            for found in re.finditer(r"The ([\w ]+?) of ([\w ]+?) is ([\w ]+)\.", asked)
        ])  # fmt: skip
    if task.startswith("For each fact"):
        facts = [json.loads(line) for line in asked.splitlines() if line.startswith('{"number"')]
        return answer_of([
            {
                "number": fact["number"],
                "questions": [f"Question {i}: the {fact['relation']} of {fact['subject']}?" for i in range(13)],
                "reversed": [f"Question {i}: whose {fact['relation']} is {fact['answer']}?" for i in range(5)],
            }
            for fact in facts
        ])  # fmt: skip
    starts = re.findall(r'^(\d+)\. start "(.*?)"; .*?: (.*?): .*?; .*?: (.*?): ', asked, re.MULTILINE)
    return answer_of([
        {"number": int(number), "questions": [f"{i}: the {last} of the {first} of {start}?" for i in range(13)]}
        for number, start, first, last in starts
    ])  # fmt: skip


def answer_of(items: list[Body]) -> str:
    return json.dumps({"facts": items})
