"""The clients that people have work against the server unchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from helpers.editing import FACTS
from memlayers.serving.served import Served

ADA, CLOSED = FACTS[0].questions[0], "What runs to the sea?"
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": ADA}]


@pytest.fixture(scope="module")
def own(address: str) -> Any:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openais_client(own: OpenAI):
    assert [model.id for model in own.models.list()] == ["codes", "codes:bare", "more", "more:bare"]
    assert own.models.retrieve("codes").id == "codes"
    answer = own.chat.completions.create(model="codes", messages=ASKED, temperature=0)
    assert answer.choices[0].message.content == "red"
    assert answer.model_extra is not None and answer.model_extra["memlayers"]["source"] == "memory"
    assert answer.usage is not None and answer.usage.total_tokens > answer.usage.prompt_tokens > 0
    chunks = list(own.chat.completions.create(model="codes", messages=ASKED, stream=True, max_completion_tokens=8))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "red"
    assert chunks[-1].model_extra is not None and chunks[-1].model_extra["memlayers"]["facts"][0]["id"] == "ada"
    with own.chat.completions.stream(model="codes", messages=ASKED, extra_body={"abstain": True}) as stream:
        assert stream.get_final_completion().choices[0].message.content == "red"


def test_openais_client_completes_a_text(own: OpenAI):
    text = "<|im_start|>user\nWhat is the code of Bob?<|im_end|>\n<|im_start|>assistant\n"
    assert own.completions.create(model="codes", prompt=text, max_tokens=8).choices[0].text == "blue"
    chunks = list(own.completions.create(model="codes", prompt=text, max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "blue"
    assert chunks[-1].model_extra is not None and chunks[-1].model_extra["memlayers"]["source"] == "memory"


def test_openais_client_of_responses(own: OpenAI):
    answer = own.responses.create(model="codes", input=ADA, max_output_tokens=8)
    assert answer.output_text == "red" and answer.status == "completed"
    assert answer.model_extra is not None and answer.model_extra["memlayers"]["source"] == "memory"
    talk: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": ADA}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "red"}]},
        {"role": "user", "content": "And what does she eat?"},
    ]
    with own.responses.stream(model="codes", input=talk, instructions="Be brief.") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert final.output_text == "lime"
    assert final.model_extra is not None and final.model_extra["memlayers"]["facts"][0]["id"] == "ada-2"
    closed = own.responses.create(model="codes", input=CLOSED, max_output_tokens=4)
    assert closed.model_extra is not None and closed.model_extra["memlayers"]["identical_to_backbone"]


def test_openais_client_tells_what_is_wrong(own: OpenAI):
    with pytest.raises(openai.NotFoundError) as unknown:
        own.chat.completions.create(model="gpt-4", messages=ASKED)
    assert (unknown.value.code, unknown.value.param, unknown.value.type) == (
        "model_not_found", "model", "not_found_error",
    )  # fmt: skip
    with pytest.raises(openai.BadRequestError) as long:
        own.chat.completions.create(model="codes", messages=[{"role": "user", "content": "river " * 300}])
    assert long.value.code == "context_length_exceeded"


def test_curl(address: str):
    if (curl := shutil.which("curl")) is None:
        pytest.skip("there is no curl here")
    body = json.dumps({"model": "codes", "messages": ASKED})
    command = [curl, "-sS", f"{address}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    answer = json.loads(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)
    assert answer["choices"][0]["message"]["content"] == "red"
    streamed = [*command[:-1], json.dumps({**json.loads(body), "stream": True})]
    lines = subprocess.run(streamed, capture_output=True, timeout=60, check=True, text=True).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and json.loads(lines[-3][6:])["memlayers"]["source"] == "memory"


def test_langchain(address: str):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="codes", base_url=f"{address}/v1", api_key="none", temperature=0, max_retries=0)  # type: ignore[arg-type]
    assert model.invoke(ADA).content == "red"
    talk = [("system", "Be brief."), ("user", ADA), ("assistant", "red"), ("user", "And what does she eat?")]
    assert model.invoke(talk).content == "lime"
    assert "".join(str(chunk.content) for chunk in model.stream("What is the code of Bob?")) == "blue"


def test_transformers_chat(address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from transformers.cli import chat

    typed = iter((ADA, "And what does she eat?", "!exit"))
    monkeypatch.setattr(chat.RichInterface, "input", lambda _: next(typed))
    chat.Chat("codes", address, user="somebody")
    said = capsys.readouterr().out
    assert "was already loaded" in said
    assert [line.strip() for line in said.splitlines() if line.strip() in ("red", "lime")] == ["red", "lime"]


def test_a_tools_result_is_read_by_the_backbone(own: OpenAI, shared_memories: dict[str, Served]):
    call: Any = {"id": "1", "type": "function", "function": {"name": "code", "arguments": '{"of": "Ada"}'}}
    messages: Any = [
        *ASKED, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "green"},
    ]  # fmt: skip
    answer = own.chat.completions.create(model="codes", messages=messages, max_tokens=4)
    assert answer.model_extra is not None and answer.model_extra["memlayers"]["source"] == "backbone"
