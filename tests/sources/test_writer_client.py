from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.openai_server import Body, OpenAIServer, address_of_nobody
from memlayers.sources.writer_client import BackboneWriter, OpenAIWriter, RequestTooLong, open_writer
from memlayers.utils.errors import InputError, WorkError

MESSAGES = [{"role": "user", "content": "Hello?"}]
SCHEMA = {"title": "words", "type": "object"}
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAIServer]:
    with OpenAIServer(lambda body: "Hello!") as server:
        yield server


@pytest.fixture
def server(running: OpenAIServer) -> OpenAIServer:
    running.begin(lambda body: "Hello!")
    return running


def said_by(error: type[Exception], server: OpenAIServer | str, model: str | None = "small", **options: float) -> str:
    address = server if isinstance(server, str) else server.address
    with pytest.raises(error) as raised:
        OpenAIWriter(address, model, **{"tries_again": 0, **options}).complete(MESSAGES, SCHEMA)
    return str(raised.value)


def test_an_answer_with_its_tokens(server: OpenAIServer):
    made = OpenAIWriter(server.address, "small").complete(MESSAGES, SCHEMA)
    assert (made.text, made.prompt_tokens, made.completion_tokens) == ("Hello!", 100, 10)
    [asked] = server.asked
    assert asked["messages"] == MESSAGES and asked["model"] == "small" and asked["temperature"] == 0
    assert asked["response_format"]["json_schema"] == {"name": "words", "schema": SCHEMA, "strict": True}


def test_the_path_of_an_address_may_be_left_out(server: OpenAIServer):
    assert OpenAIWriter(server.address.removesuffix("/v1"), "small").complete(MESSAGES, SCHEMA).text == "Hello!"


def test_the_only_model_need_not_be_named(server: OpenAIServer):
    writer = open_writer(server.address)
    assert writer.model == "small" and writer.complete(MESSAGES, SCHEMA).text == "Hello!"


@pytest.mark.parametrize("models", [[], [f"m{i}" for i in range(20)]])
def test_one_of_several_models_must_be_named(models: list[str], server: OpenAIServer):
    server.models = models
    said = said_by(InputError, server, None)
    assert "--model" in said and ("m7 and 12 more" in said if models else "it lists none" in said)


def test_an_unknown_model_is_refused_with_those_there_are(server: OpenAIServer):
    assert said_by(InputError, server, "large") == f"{server.address}: has no model 'large'; it has small"


def test_an_address_need_not_list_its_models(server: OpenAIServer):
    server.models = None
    assert OpenAIWriter(server.address, "small").complete(MESSAGES, SCHEMA).text == "Hello!"
    assert "lists no models; name one with --model" in said_by(InputError, server, None)


def test_a_path_that_is_none(server: OpenAIServer):
    assert "not found (404)" in said_by(InputError, server.address.replace("/v1", "/api"))


@pytest.mark.parametrize(
    "refused", [{"response_format"}, {"temperature", "max_tokens"}, {"temperature", "response_format"}]
)
def test_what_a_server_refuses_is_left_out_from_then_on(refused: set[str], server: OpenAIServer):
    server.refuses = refused
    writer = OpenAIWriter(server.address, "small")
    assert [writer.complete(MESSAGES, SCHEMA).text for _ in range(2)] == ["Hello!"] * 2
    assert len(server.asked) == 2 + len(refused)
    assert not refused & set(server.asked[-1])


def test_a_request_refused_for_anything_else(server: OpenAIServer):
    server.first = [(400, {})] * 2  # with the schema, and without
    assert "refuses the request (400: " in said_by(InputError, server)


def test_too_long_a_request(server: OpenAIServer):
    server.reply = (400, {"error": {"message": "maximum context length is 10 tokens"}})
    assert "too long" in said_by(RequestTooLong, server)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(status: int, server: OpenAIServer):
    server.first = [(status, {"retry-after-ms": "1"})] * 2
    assert OpenAIWriter(server.address, "small").complete(MESSAGES, SCHEMA).text == "Hello!"
    assert len(server.asked) == 3


@pytest.mark.parametrize(("status", "said"), [(429, "takes no more requests"), (500, "its server failed (500: ")])
def test_but_not_for_ever(status: int, said: str, server: OpenAIServer):
    server.first = [(status, {})]
    assert said in said_by(WorkError, server)


def test_nobody_there():
    address = address_of_nobody()
    said = said_by(WorkError, address, tries_again=4)
    assert said.startswith(f"{address}: cannot be reached (") and "check the address" in said


def test_no_answer_in_time(server: OpenAIServer):
    server.seconds = 0.5
    assert "no answer within 0.1 s; give it more with --timeout" in said_by(WorkError, server, seconds=0.1)


def test_a_connection_that_drops(server: OpenAIServer):
    server.lives_for = 0
    assert "cannot be reached (" in said_by(WorkError, server)


def test_a_key_is_sent_and_never_told(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch):
    server.key = KEY
    assert (
        said_by(InputError, server) == f"{server.address}: wants a key (401); set OPENAI_API_KEY to one that it takes"
    )
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}-wrong")
    said = said_by(InputError, server)
    assert "refuses the key in OPENAI_API_KEY (401)" in said and KEY not in said
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert OpenAIWriter(server.address, "small").complete(MESSAGES, SCHEMA).text == "Hello!"
    server.reply = (500, {"error": {"message": f"bad {KEY}"}})
    assert KEY not in said_by(WorkError, server)


def test_a_key_that_can_be_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "clé\n1")
    with pytest.raises(InputError, match="OPENAI_API_KEY: holds characters"):
        OpenAIWriter("http://localhost:1/v1")


def test_a_password_in_an_address_is_not_told():
    assert "hidden" not in said_by(WorkError, address_of_nobody().replace("//", "//me:hidden@"))


@pytest.mark.parametrize("body", ["<html>", None, {}, {"choices": []}])
def test_an_answer_that_is_no_chat(body: Body, server: OpenAIServer):
    server.reply = (200, body)
    assert "check the address" in said_by(WorkError, server)


@pytest.mark.parametrize("name", ["http://", "ftp://there/v1", "http://a:99999/v1", "http://[::1/v1"])
def test_an_address_that_is_none(name: str):
    with pytest.raises(InputError, match="not an address"):
        open_writer(name)


def test_an_address_without_its_scheme_and_a_backbone_with_a_model():
    with pytest.raises(InputError, match="http:// or https://"):
        open_writer("localhost:8000/v1")
    with pytest.raises(InputError, match="leave --model out"):
        open_writer("pocket", "small")


def test_a_backbone_that_cannot_read_so_much():
    with pytest.raises(RequestTooLong, match="the backbone 'pocket' reads .* tokens, a request has"):
        BackboneWriter("pocket").complete([{"role": "user", "content": "many words " * 300}], SCHEMA)


def test_a_backbone_answers():
    made = BackboneWriter("pocket", most_tokens=4).complete(MESSAGES, SCHEMA)
    assert made.prompt_tokens > 0 and made.completion_tokens <= 4
