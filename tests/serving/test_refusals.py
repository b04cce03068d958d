"""What is refused: with the right status, in OpenAI's words, and with nothing in them that is the server's own."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.editing import FACTS
from helpers.serving import chat, client, content, running
from memlayers.serving.error_objects import INTERNAL
from memlayers.serving.served import Served
from memlayers.serving.settings import LOOPBACK_NAMES, ServeSettings, check_exposure, is_loopback
from memlayers.utils.errors import InputError

ADA = FACTS[0].questions[0]
KEY = "a-key-that-is-secret"
ASKED = {"model": "codes", "messages": [{"role": "user", "content": ADA}], "max_tokens": 8}
CHAT = "/v1/chat/completions"


def refused(response: Any, status: int, *words: str) -> dict[str, Any]:
    """The error object of a response, looked through for what is not to be told."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(response.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]
    for secret in (KEY, "Traceback", "site-packages", "/tmp", "memlayers/", ".py"):
        assert secret not in response.text
    assert "\n" not in error["message"] and response.headers["x-request-id"]
    return dict(error)


@pytest.fixture(scope="module")
def locked(shared_memories: dict[str, Served]) -> Iterator[str]:
    """The address of a server with a key and narrow limits."""
    settings = ServeSettings(api_key=KEY, body_bytes=2000, upload_bytes=4000, body_seconds=0.3, queue=2)
    with running(shared_memories, settings) as found:
        yield found


def with_key(key: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_asked_for(locked: str):
    for path in (CHAT, "/v1/completions", "/v1/responses", "/load_model"):
        refused(client().post(locked + path, json=ASKED), 401, "an API key is needed")
    for path in ("/v1/models", "/v1/memories", "/v1/memories/codes/facts", "/metrics", "/v1/nothing"):
        refused(client().get(locked + path), 401)
    for wrong in ("another", KEY[:-1], KEY + "x", "schlüssel".encode().decode("latin-1")):
        headers = {"Authorization": f"Bearer {wrong}".encode("latin-1")}
        error = refused(client().post(locked + CHAT, json=ASKED, headers=headers), 401, "the API key is wrong")
        assert error["code"] == "invalid_api_key"
    assert client().get(f"{locked}/health").json() == {"status": "ok"}
    answer = client().post(locked + CHAT, json=ASKED, headers=with_key())
    assert content(answer.json()) == "red"


def test_chat_may_be_open_where_the_facts_are_not(shared_memories: dict[str, Served]):
    with running(shared_memories, ServeSettings(api_key=KEY, open_chat=True)) as address:
        assert content(chat(address, ADA)) == "red"
        for path in ("/v1/memories", "/v1/memories/codes/facts", "/metrics"):
            refused(client().get(address + path), 401)
        refused(client().post(f"{address}/v1/memories/codes/facts", json={}), 401)
    with pytest.raises(InputError, match="no API key"):
        ServeSettings(open_chat=True)


def test_what_is_wrong_with_a_request_is_said(address: str):
    def asked(body: Any, path: str = CHAT) -> Any:
        return client().post(address + path, json=body)

    assert refused(asked({**ASKED, "model": "gpt-4"}), 404, "'gpt-4'")["code"] == "model_not_found"
    refused(client().get(f"{address}/v1/models/gpt-4"), 404)
    refused(asked({"model": "gpt-4"}, "/load_model"), 404)
    headers = {"Content-Type": "application/json"}
    for text in ("{", "", "nothing", '{"model": "codes",}'):
        refused(client().post(address + CHAT, content=text, headers=headers), 400)
    for body in ([], "text", 3, None):
        refused(asked(body), 400)
    refused(client().post(address + CHAT, content=json.dumps(ASKED)), 400)  # not sent as JSON
    wrong: tuple[tuple[str, Any], ...] = (
        ("model", 3), ("messages", []), ("messages", "Who?"), ("messages", [3]), ("messages", [{"content": "Who?"}]),
        ("messages", [{"role": "robot", "content": "Who?"}]), ("messages", [{"role": "user", "content": 3}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
        ("temperature", "hot"), ("temperature", -1), ("temperature", 1e9), ("top_p", 0), ("max_tokens", 0),
        ("max_tokens", "many"), ("seed", -1), ("seed", 2**70), ("n", 2), ("stop", [""]), ("stop", 3),
        ("abstain", "yes"),
        ("logit_bias", {"x": 1}), ("stream", "yes"), ("tools", "all"), ("chat_template_kwargs", {"tokenize": False}),
        ("generation_config", "{"), ("generation_config", "[]"), ("generation_config", '{"temperature": "hot"}'),
        ("no_such_field", 1), ("frequency_penalty", -1),
    )  # fmt: skip
    for name, value in wrong:
        refused(asked({**ASKED, name: value}), 400)
    calls: list[Any] = [{"function": {"name": "f"}}]
    for message in ({"role": "assistant", "tool_calls": calls}, {"role": "assistant", "tool_calls": 3}):
        refused(asked({**ASKED, "messages": [message, *ASKED["messages"]]}), 400)  # type: ignore[misc]
    refused(asked({"model": "codes"}), 400, "'messages' is missing")
    refused(asked({"model": "codes", "prompt": ["a", "b"]}, "/v1/completions"), 400)
    refused(asked({"model": "codes", "prompt": "a", "abstain": True}, "/v1/completions"), 400)
    refused(asked({"model": "codes", "input": 3}, "/v1/responses"), 400)
    refused(asked({"model": "codes", "input": [{"type": "picture"}]}, "/v1/responses"), 400)
    assert content(chat(address, ADA)) == "red"


def test_a_prompt_longer_than_the_context_is_refused(address: str):
    long = "river " * 300
    for stream in (False, True):
        for path, asked in (
            (CHAT, {"messages": [{"role": "user", "content": long}]}),
            ("/v1/completions", {"prompt": long}),
            ("/v1/responses", {"input": long}),
        ):
            response = client().post(address + path, json={"model": "codes", "stream": stream, **asked})
            assert refused(response, 400, "context 192")["code"] == "context_length_exceeded"


def test_other_addresses_and_methods_are_errors_too(address: str):
    for path in ("/v1/nothing", "/docs", "/openapi.json", "/v1/systemone", "/v1/audio/transcriptions", "/reset"):
        response = client().post(address + path, json={})
        assert response.status_code in (404, 405)
        refused(response, response.status_code)
    refused(client().get(address + CHAT), 405)
    refused(client().delete(f"{address}/v1/models"), 405)


def test_a_body_over_the_limit_is_refused_however_it_comes(locked: str):
    long = {**ASKED, "messages": [{"role": "user", "content": "x" * 3000}]}
    error = refused(client().post(locked + CHAT, json=long, headers=with_key()), 413, "2,000 bytes")
    assert error["code"] == "request_too_large"

    def parts() -> Iterator[bytes]:
        yield from [b"x" * 1000] * 1000

    headers = {**with_key(), "Content-Type": "application/json"}
    refused(client().post(locked + CHAT, content=parts(), headers=headers), 413)
    refused(client().post(locked + CHAT, content=b"x" * 20_000_000, headers=headers), 413)
    refused(client().post(locked + CHAT, content=b"x" * 20_000_000), 401)
    upload = f"{locked}/v1/memories/codes/import"
    response = client().post(upload, content=b"x" * 3000, headers=with_key())
    assert response.status_code != 413
    refused(client().post(upload, content=b"x" * 5000, headers=with_key()), 413, "4,000 bytes")


def test_slow_and_broken_clients_hold_nothing_up(locked: str):
    place = locked.removeprefix("http://").split(":")

    def connection(text: str) -> socket.socket:
        made = socket.create_connection((place[0], int(place[1])), timeout=10)
        made.sendall(text.encode())
        return made

    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    slow = connection(f"{head}Content-Length: 100\r\n\r\n{{")
    connection(f"{head}Content-Length: 100\r\n\r\n{{").close()
    body = json.dumps({**ASKED, "stream": True})
    connection(f"{head}Content-Length: {len(body)}\r\n\r\n{body}").close()  # gone before the answer
    connection("nonsense\r\n\r\n").close()
    assert content(client().post(locked + CHAT, json=ASKED, headers=with_key()).json()) == "red"
    assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
    slow.close()


def test_more_requests_than_the_queue_holds_are_refused(locked: str, shared_memories: dict[str, Served]):
    go_on, served = threading.Event(), shared_memories["codes"]
    served.thread.submit(go_on.wait, 30)  # requests wait
    waiting = [
        threading.Thread(target=client().post, args=(locked + CHAT,), kwargs={"json": ASKED, "headers": with_key()})
        for _ in range(2)
    ]
    for each in waiting:
        each.start()
    until = time.monotonic() + 10
    while "memlayers_active_requests 2.0" not in client().get(f"{locked}/metrics", headers=with_key()).text:
        assert time.monotonic() < until
    response = client().post(locked + CHAT, json=ASKED, headers=with_key())
    go_on.set()
    assert refused(response, 503)["code"] == "overloaded" and response.headers["retry-after"] == "1"
    for each in waiting:
        each.join(30)
    assert client().post(locked + CHAT, json=ASKED, headers=with_key()).status_code == 200


def test_a_client_asks_only_so_often(shared_memories: dict[str, Served]):
    with running(shared_memories, ServeSettings(rate="3/minute")) as address:
        for _ in range(3):
            assert client().get(f"{address}/v1/models").status_code == 200
        response = client().get(f"{address}/v1/models")
        assert refused(response, 429)["code"] == "rate_limit_exceeded" and int(response.headers["retry-after"]) > 0
        assert client().get(f"{address}/health").status_code == 200
    with pytest.raises(InputError, match="the rate 'often' is none"), running({}, ServeSettings(rate="often")):
        pass


def test_pages_of_other_sites_are_kept_out_where_there_is_no_key(shared_memories: dict[str, Served]):
    with running(shared_memories, ServeSettings(hosts=LOOPBACK_NAMES)) as address:
        own = address.removeprefix("http://")
        refused(client().post(address + CHAT, json=ASKED, headers={"Host": "evil.example"}), 403)
        refused(client().post(address + CHAT, json=ASKED, headers={"Origin": "https://evil.example"}), 403)
        refused(client().post(address + CHAT, json=ASKED, headers={"Origin": "null"}), 403)
        for headers in ({}, {"Origin": address}, {"Host": f"localhost:{own.partition(':')[2]}"}):
            assert client().post(address + CHAT, json=ASKED, headers=headers).status_code == 200


def test_a_failure_of_the_servers_own_says_nothing_of_it(address: str, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"/secret/path/{KEY}")

    monkeypatch.setattr("memlayers.serving.generation.answer", fails)
    for path, asked in ((CHAT, ASKED), ("/v1/responses", {"model": "codes", "input": ADA})):
        assert refused(client().post(address + path, json=asked), 500, INTERNAL)["type"] == "server_error"
        streamed = client().post(address + path, json={**asked, "stream": True})
        assert streamed.status_code == 200 and INTERNAL in streamed.text and KEY not in streamed.text
    monkeypatch.undo()
    assert content(chat(address, ADA)) == "red"


def test_other_machines_need_a_key():
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"):
        assert is_loopback(host)
        check_exposure(host, ServeSettings())
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(InputError, match="give --api-key"):
            check_exposure(host, ServeSettings())
        check_exposure(host, ServeSettings(api_key=KEY))
    with pytest.raises(InputError, match="key is empty"):
        ServeSettings(api_key=" ")


def test_health_fails_with_the_thread_that_answers(shared_memories: dict[str, Served], monkeypatch: pytest.MonkeyPatch):
    ended = threading.Thread(target=print)
    with running(shared_memories) as address:
        monkeypatch.setattr(shared_memories["codes"].thread, "_thread", ended)
        assert client().get(f"{address}/health").status_code == 503


def test_metrics_and_logs_tell_of_requests_and_hold_no_key(
    shared_memories: dict[str, Served], caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    from memlayers.serving.logs import JsonLines

    caplog.set_level("INFO", "memlayers")
    with running(shared_memories, ServeSettings(api_key=KEY)) as address:
        answer = client().post(address + CHAT, json=ASKED, headers={**with_key(), "X-Request-Id": "one"})
        assert answer.headers["x-request-id"] == answer.json()["id"] == "one"
        client().get(f"{address}/somewhere/else", headers=with_key())
        text = client().get(f"{address}/metrics", headers=with_key()).text
    assert 'memlayers_answers_total{model="codes",source="memory"} 1.0' in text
    assert 'memlayers_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'memlayers_memory_version{memory="codes"} 0.0' in text and "somewhere" not in text
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name.startswith("memlayers")]
    one = [line for line in lines if line.get("request_id") == "one"]
    assert {line["event"] for line in one} == {"answered", "request"}
    assert next(line for line in one if line["event"] == "request")["status"] == 200
    assert KEY not in json.dumps(lines)
    record = caplog.records[0]
    record.msg, record.args = "Authorization: Bearer abc api_key=xyz", ()
    assert "abc" not in JsonLines().format(record) and "xyz" not in JsonLines().format(record)
