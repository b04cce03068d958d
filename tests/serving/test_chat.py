"""Answers over HTTP: what the memory holds, what the backbone says, and what each answer came from."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from transformers import GenerationConfig

from helpers.editing import FACTS
from helpers.serving import chat, client, content, events, running, trust
from memlayers.inference.answering import UNKNOWN, ask_model
from memlayers.linking.config import LinkConfig
from memlayers.serving import answers as answering
from memlayers.serving.answers import Request
from memlayers.serving.generation import MemoryManager
from memlayers.serving.served import Served

ADA, CLOSED = FACTS[0].questions[0], "What runs to the sea?"


def bare_answer(served: Served, question: str, tokens: int = 8) -> str:
    """What the bare backbone generates, by transformers alone."""
    inputs = served.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        said = served.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=2)
    return str(served.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_the_memory_answers_what_it_holds_and_says_by_which_fact(address: str, shared_memories: dict[str, Served]):
    for fact in FACTS:
        answer = chat(address, fact.questions[0])
        own = answer["memlayers"]
        assert (content(answer), own["source"]) == (fact.answer, "memory")
        assert [each["id"] for each in own["facts"]] == [fact.id]
        assert own["score"] >= own["threshold"] and own["version"] == 0 and not own["identical_to_backbone"]
        assert "".join(each["token"] for each in own["open_tokens"]) == fact.answer
        assert own["open_tokens"][0]["position"] == 0
        assert answer["model"] == "codes" and answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] > 0
    misspelled = chat(address, "what is the code of ADA")["memlayers"]
    assert misspelled["taken_for"] == [{"words": "ADA", "subject": "Ada"}]


def test_answers_are_those_of_ask(address: str, shared_memories: dict[str, Served]):
    served = shared_memories["codes"]
    talk: list[Any] = [
        {"role": "user", "content": ADA},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "And what does she eat?"},
    ]
    both = "What is the code of Bob and Dot?"
    asked: list[Any] = [
        *(fact.unseen_questions[0] for fact in FACTS if fact.unseen_questions),
        talk,
        both,
        "Whose code is Oslo?",
        CLOSED,
    ]
    expected = served.thread.submit(
        ask_model, served.model, served.tokenizer, asked, linker=served.state.linker
    ).result()  # fmt: skip
    assert {each.source for each in expected} >= {"memory"}
    for question, answer in zip(asked, expected, strict=True):
        given = chat(address, question, abstain=True, max_tokens=40)
        own = given["memlayers"]
        assert own["source"] == answer.source
        if answer.source == "memory":
            assert content(given) == answer.text
            assert own["score"] == pytest.approx(answer.score, abs=1e-3)
            assert [each["id"] for each in own["facts"]] == [fact.id for fact in answer.facts]


def test_a_memory_that_does_not_look_back_is_asked_so(address: str, shared_memories: dict[str, Served]):
    served = shared_memories["codes"]
    talk = [{"role": "user", "content": ADA}, {"role": "user", "content": "And what does she eat?"}]
    before = served.state
    try:
        for focus in (True, False):
            served.state = replace(before, links=LinkConfig(focus=focus))
            own = chat(address, talk)["memlayers"]
            assert (own["score"] is not None) == focus  # whether the memory was asked
    finally:
        served.state = before


def test_where_the_gate_stays_closed_the_answer_is_the_bare_backbones(address: str, shared_memories: dict[str, Served]):
    bare = shared_memories["codes:bare"]
    for question in (CLOSED, "Tell me more.", "Who is Zed?"):
        expected = bare_answer(bare, question)
        for model in ("codes", "codes:bare", "more"):
            answer = chat(address, question, model)
            assert answer["memlayers"]["identical_to_backbone"] and answer["memlayers"]["source"] == "backbone"
            assert content(answer) == expected
    own = chat(address, ADA, "codes:bare")
    assert content(own) == bare_answer(bare, ADA) and own["memlayers"]["identical_to_backbone"]


def test_a_stream_says_the_same_and_its_last_chunk_what_it_came_from(address: str):
    for question in (ADA, CLOSED):
        messages = [{"role": "user", "content": question}]
        chunks = events(address, "/v1/chat/completions", {"model": "codes", "messages": messages, "max_tokens": 8})
        whole = chat(address, question)
        said = "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks)
        assert said == content(whole).replace("\ufffd", "")  # what is no character is not streamed
        assert chunks[-1]["memlayers"] == whole["memlayers"] and "memlayers" not in chunks[0]
        assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_a_text_is_gone_on_with_and_its_open_tokens_told(address: str, shared_memories: dict[str, Served]):
    served = shared_memories["codes"]
    prompt = str(
        served.tokenizer.apply_chat_template(
            [{"role": "user", "content": ADA}], add_generation_prompt=True, tokenize=False
        )
    )
    body = {"model": "codes", "prompt": prompt, "max_tokens": 8}
    answer = client().post(f"{address}/v1/completions", json=body).json()
    own = answer["memlayers"]
    assert answer["choices"][0]["text"] == "red" and own["source"] == "memory" and own["score"] is None
    assert [each["id"] for each in own["facts"]] == ["ada"]
    assert "".join(each["token"] for each in own["open_tokens"]) == "red"
    chunks = events(address, "/v1/completions", body)
    assert "".join(each["choices"][0]["text"] for each in chunks) == "red" and chunks[-1]["memlayers"] == own
    closed = client().post(f"{address}/v1/completions", json={**body, "prompt": "The river"}).json()
    bare = (
        client().post(f"{address}/v1/completions", json={**body, "prompt": "The river", "model": "codes:bare"}).json()
    )
    assert closed["memlayers"]["identical_to_backbone"] and closed["choices"][0]["text"] == bare["choices"][0]["text"]


def test_who_is_not_sure_says_so_where_asked_to(
    address: str, shared_memories: dict[str, Served], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("memlayers.inference.answering.answer_thresholds", lambda _: (1e-4, 1.1))
    answer = chat(address, CLOSED, abstain=True, max_tokens=40)
    assert content(answer) == UNKNOWN and answer["memlayers"]["source"] == "unknown"
    assert not answer["memlayers"]["identical_to_backbone"]
    assert content(chat(address, ADA, abstain=True)) == "red"
    assert content(chat(address, CLOSED)) != UNKNOWN
    chunks = events(
        address, "/v1/chat/completions",
        {"model": "codes", "messages": [{"role": "user", "content": CLOSED}], "abstain": True},
    )  # fmt: skip
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks) == UNKNOWN


def test_an_answer_keeps_to_the_tokens_and_stops_of_its_request(address: str):
    short = chat(address, "What is the code of Dot?", max_tokens=1)
    assert short["choices"][0]["finish_reason"] == "length" and short["usage"]["completion_tokens"] == 1
    assert "Oslo".startswith(content(short))
    assert content(chat(address, "What is the code of Dot?", stop="sl")) == "Osl"


def test_sampling_is_the_requests_own(address: str):
    def sampled(seed: int) -> str:
        return content(chat(address, CLOSED, temperature=1.5, seed=seed))

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1
    assert content(chat(address, ADA, temperature=1.5)) == "red"  # what the memory holds is not up to chance


def test_a_seed_holds_whatever_other_backbones_draw(shared_memories: dict[str, Served]):
    manager, drawn = MemoryManager(shared_memories), threading.Event()

    def sampled(name: str, seed: int | None) -> list[int]:
        served = shared_memories[name]
        inputs = served.tokenizer.apply_chat_template(
            [{"role": "user", "content": CLOSED}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        config = GenerationConfig(do_sample=True, temperature=1.5, max_new_tokens=8, eos_token_id=2, pad_token_id=0)
        request = Request(served, manager.bare(name), (), None, seed=seed, sampling=manager.sampling)
        return answering.answer(request, inputs, config).tokens

    def drawing() -> None:
        while not drawn.is_set():
            sampled("more:bare", None)

    expected = sampled("codes:bare", 1)
    with ThreadPoolExecutor(1) as other:
        other.submit(drawing)
        try:
            assert [sampled("codes:bare", 1) for _ in range(5)] == [expected] * 5
        finally:
            drawn.set()


def test_an_answer_that_nobody_waits_for_ends(address: str, shared_memories: dict[str, Served]):
    served, gone, passes = shared_memories["codes:bare"], threading.Event(), []

    def active() -> float:
        text = client().get(f"{address}/metrics").text
        return float(text.partition("\nmemlayers_active_requests ")[2].split()[0])

    def wait(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 3:
            assert gone.wait(30)

    hook = served.model.register_forward_pre_hook(wait)
    try:
        body = {"model": "codes:bare", "messages": [{"role": "user", "content": CLOSED}], "max_tokens": 100}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/chat/completions", json=body, timeout=httpx.Timeout(30, read=0.5))
        until = time.monotonic() + 30
        while active() and time.monotonic() < until:
            time.sleep(0.02)
        gone.set()
        served.thread.submit(lambda: None).result(30)
        assert len(passes) == 3
    finally:
        gone.set()
        hook.remove()
    assert content(chat(address, ADA)) == "red"


def test_a_server_that_closes_says_so(shared_memories: dict[str, Served], caplog: pytest.LogCaptureFixture):
    served, begun, closed = shared_memories["codes:bare"], threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        begun.set()
        assert closed.wait(30)

    hook = served.model.register_forward_pre_hook(wait)
    body = {"model": "codes:bare", "messages": [{"role": "user", "content": CLOSED}], "max_tokens": 4}
    try:
        with ThreadPoolExecutor(2) as threads:
            with running(shared_memories) as here:
                whole = threads.submit(client().post, f"{here}/v1/chat/completions", json=body)
                streamed = threads.submit(events, here, "/v1/chat/completions", body)
                assert begun.wait(30)
            closed.set()
            assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "closing")
            assert streamed.result()[-1]["error"]["code"] == "closing"
    finally:
        closed.set()
        hook.remove()
    assert not [record for record in caplog.records if record.exc_info]


def test_two_threads_get_what_each_asked(address: str):
    asked = [(fact.questions[0], fact.answer) for fact in FACTS] * 3
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda pair: content(chat(address, pair[0])), asked))
    assert answers == [answer for _, answer in asked]


def test_requests_under_edits_see_whole_versions_only(memories: dict[str, Served]):
    trust(memories)
    served = memories["codes"]
    answers = {0: "red"}
    done = threading.Event()

    def ask(_: int) -> list[tuple[int, str, str]]:
        seen = []
        while not done.wait(0.05):  # the edits need the processor too
            answer = chat(address, ADA)
            own = answer["memlayers"]
            seen.append((own["version"], content(answer), own["facts"][0]["answer"] if own["facts"] else ""))
        return seen

    with running(memories) as address, ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask, number) for number in range(3)]
        for answer in ("green", "amber"):
            edited = served.edit(lambda memory, to=answer: memory.update([replace(FACTS[0], answer=to)])).result()  # type: ignore[misc]
            answers[edited.version] = answer
            assert content(chat(address, ADA)) == answer
        done.set()
        seen = [each for one in asking for each in one.result()]
    assert len({version for version, _, _ in seen}) > 1
    assert [each for each in seen if not answers[each[0]] == each[1] == each[2]] == []


def test_memories_and_bare_backbones_are_models(address: str):
    listed = client().get(f"{address}/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["codes", "codes:bare", "more", "more:bare"]
    one = client().get(f"{address}/v1/models/codes").json()
    assert one == listed["data"][0]
    assert one["memlayers"] == {"bare": False, "version": 0, "facts": len(FACTS)}
