"""A memory is edited while it answers: before an edit or after it, bit for bit, and durably."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.editing import CONFIG, FACTS, NEW, QUICK
from memlayers.data.facts import Source
from memlayers.editing.journal import digests, read_journal
from memlayers.editing.memory import Memory, load_memory
from memlayers.editing.report import EditRefused, EditReport
from memlayers.inference.folder import stored_facts
from memlayers.inference.generation import generate_answers
from memlayers.serving.memories import close_memories, open_memories
from memlayers.serving.served import Served
from memlayers.tuner.handle import memory_handle
from memlayers.utils.errors import InputError


def said(served: Served, question: str) -> str:
    """What the reader answers, as a request is answered: on the inference thread."""
    answers = served.thread.submit(generate_answers, served.model, served.tokenizer, [question]).result()
    return str(answers[0].text)


def same_as_folder(served: Served, folder: Path) -> None:
    """The reader holds what the folder does, to the bit."""
    reloaded = load_memory(folder, device="cpu", dtype="float32")
    own, other = served.model.state_dict(), reloaded.model.state_dict()
    assert list(own) == list(other)
    assert [
        name for name in own if own[name].shape != other[name].shape or not torch.equal(own[name], other[name])
    ] == []
    assert served.state.facts == reloaded.facts
    assert served.state.version == len(read_journal(folder)[0])


def test_the_reader_holds_what_the_folder_holds_after_every_kind_of_edit(
    memories: dict[str, Served], served_folder: Path
):
    served = memories["codes"]
    served._memory.edits = QUICK  # type: ignore[union-attr]
    before = {name: tensor.clone() for name, tensor in served.model.state_dict().items()}
    edits: list[Callable[[Memory], EditReport]] = [
        lambda memory: memory.add([NEW]),
        lambda memory: memory.update([replace(FACTS[2], answer="green")]),
        lambda memory: memory.forget(ids=["eve"]),
        lambda memory: memory.add_aliases("Bob", ["Robert Quill"]),
    ]
    for number, edit in enumerate(edits, start=1):
        assert served.edit(edit).result().version == number == served.state.version
    same_as_folder(served, served_folder)
    assert served.state.aliases["Bob"] == ("Robert Quill",)
    assert served.state.linker is not None and served.state.linker.facts_about("Gus Orr")
    for number in range(5, 9):
        assert served.edit(lambda memory: memory.undo()).result().version == number
    same_as_folder(served, served_folder)
    after = served.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert served.state.fact("eve") == FACTS[4] and served.state.fact("gus") is None


def test_answers_go_on_during_an_edit_and_see_it_once_it_is_done(memories: dict[str, Served]):
    served = memories["codes"]
    question = NEW.questions[0]
    before, reached, go_on = said(served, question), threading.Event(), threading.Event()

    def add(memory: Memory) -> EditReport:
        report = memory.add([NEW])  # in the writer, and durable
        reached.set()
        assert go_on.wait(30)
        return report

    edited = served.edit(add)
    behind = served.edit(lambda memory: memory.forget(ids=["gus"]))
    assert reached.wait(30) and not edited.done()
    assert served.waiting == 2 and served.state.version == 0 and served.state.fact("gus") is None
    assert said(served, question) == before != NEW.answer
    blocked = threading.Event()
    held = served.thread.submit(blocked.wait, 30)  # a request that is under way
    go_on.set()
    time.sleep(0.05)
    assert not edited.done() and served.state.version == 0
    blocked.set()
    assert held.result() and edited.result().version == 1
    assert behind.result().version == 2 and said(served, question) == before
    assert served.edit(lambda memory: memory.undo()).result().version == 3
    assert said(served, question) == NEW.answer and served.waiting == 0


def test_no_request_sees_a_mixture(memories: dict[str, Served]):
    """Each request's answer is that of the version it ran at, under a stream of edits."""
    served = memories["codes"]
    answers = {0: "red"}
    seen: list[tuple[int, str]] = []
    done = threading.Event()

    def ask() -> None:
        def one() -> tuple[int, str]:
            version = served.state.version
            given = generate_answers(served.model, served.tokenizer, [FACTS[0].questions[0]])[0].text
            assert served.state.version == version
            return version, given

        while not done.wait(0.01):  # the edits need the processor too
            seen.append(served.thread.submit(one).result())

    asking = threading.Thread(target=ask)
    asking.start()
    edits: list[tuple[str, Callable[[Memory], EditReport]]] = [
        ("green", lambda memory: memory.update([replace(FACTS[0], answer="green")])),
        ("red", lambda memory: memory.undo()),
        ("red", lambda memory: memory.set_sources([replace(FACTS[1], sources=(Source("codes.csv", "blue"),))])),
    ]
    for answer, edit in edits:
        answers[served.edit(edit).result().version] = answer
    done.set()
    asking.join()
    assert len({version for version, _ in seen}) > 1
    assert [pair for pair in seen if answers[pair[0]] != pair[1]] == []


def test_an_edit_that_fails_leaves_the_reader_as_it_was_and_those_before_it_in_one_action_are_seen(
    memories: dict[str, Served], served_folder: Path
):
    served = memories["codes"]
    with pytest.raises(InputError, match="no stored fact has the id"):
        served.edit(lambda memory: memory.forget(ids=["nobody"])).result()
    assert served.state.version == 0

    def two(memory: Memory) -> EditReport:
        memory.forget(ids=["fay"])
        memory.edits = replace(CONFIG, steps=1, least_recall=1.0)
        try:
            return memory.add([NEW])
        finally:
            memory.edits = CONFIG

    with pytest.raises(EditRefused):
        served.edit(two).result()
    assert served.state.version == 1 and served.state.fact("fay") is None
    same_as_folder(served, served_folder)


def test_memories_on_one_backbone_share_its_tensors_and_never_touch(
    taught_folder: Path, tmp_path: Path, short_answers: None
):
    first, second = (Path(shutil.copytree(taught_folder, tmp_path / name)) for name in ("one", "two"))
    opened = open_memories([first, second], device="cpu", dtype="float32", edits=CONFIG)
    try:
        assert list(opened) == ["one", "one:bare", "two", "two:bare"]
        one, two, bare = opened["one"], opened["two"], opened["one:bare"]
        assert bare.model is opened["two:bare"].model and bare.bare and not one.bare
        assert one.thread is two.thread is bare.thread
        storage = {tensor.data_ptr() for tensor in bare.model.state_dict().values()}
        for served in (one, two):
            own = {tensor.data_ptr() for name, tensor in served.model.state_dict().items() if "memlayers" not in name}
            assert own == storage
        writer = one._memory.model  # type: ignore[union-attr]
        shared, apart = memory_handle(one.model), memory_handle(writer)
        assert shared.layers[0].memlayers_sub_keys["default"] is apart.layers[0].memlayers_sub_keys["default"]
        assert shared.pool.parameter.data_ptr() != apart.pool.parameter.data_ptr()
        asked = [FACTS[0].questions[0], FACTS[1].questions[0]]
        alone = [said(bare, question) for question in asked]
        one.edit(lambda memory: memory.update([replace(FACTS[0], answer="green")])).result()
        assert [said(one, question) for question in asked] == ["green", "blue"]
        assert [said(two, question) for question in asked] == ["red", "blue"]
        assert [said(bare, question) for question in asked] == alone
        same_as_folder(two, second)
        with pytest.raises(InputError, match="bare backbone holds no facts"):
            bare.edit(lambda memory: memory.undo())
    finally:
        close_memories(opened.values())


def test_what_cannot_be_served_or_edited_is_said_in_one_line(
    memories: dict[str, Served], served_folder: Path, tmp_path: Path
):
    with pytest.raises(InputError, match="both be served as 'codes'"):
        open_memories([served_folder, tmp_path / "else" / "codes"])
    with pytest.raises(InputError, match="not a memory folder"):
        open_memories([tmp_path / "nothing"])
    beside = open_memories([served_folder], device="cpu", dtype="float32")["codes"]  # while the first one holds it
    with pytest.raises(InputError, match="is editing it"):
        beside.edit(lambda memory: memory.undo())
    assert said(beside, FACTS[0].questions[0]) == "red" and beside.state.facts == tuple(FACTS)
    close_memories([beside])
    with pytest.raises(InputError, match="is editing it"):
        load_memory(served_folder).undo()
    close_memories(memories.values())
    with pytest.raises(InputError, match="closed"):
        memories["codes"].edit(lambda memory: memory.undo())
    (served_folder / "facts.jsonl").unlink()
    unknown = open_memories([served_folder], device="cpu", dtype="float32")["codes"]
    with pytest.raises(InputError, match="does not remember its facts"):
        unknown.edit(lambda memory: memory.undo())
    assert said(unknown, FACTS[0].questions[0]) == "red"


KILLED = """
import sys
from dataclasses import replace

sys.path.insert(0, sys.argv[2])
from helpers.editing import FACTS, QUICK
from memlayers.inference import generation
from memlayers.serving.memories import open_memories

generation.MAX_NEW_TOKENS = 8
served = open_memories([sys.argv[1]], device="cpu", dtype="float32", edits=QUICK)["codes"]
for number in range(1000):
    answer = ("green", "amber")[number % 2]
    edited = served.edit(lambda memory: memory.update([replace(FACTS[0], answer=answer)]))
    while not edited.done():  # under load
        served.thread.submit(generation.generate_answers, served.model, served.tokenizer, ["What now?"]).result()
    print(edited.result().version, answer, flush=True)
"""


def test_kill_9_in_the_middle_of_an_edit_leaves_the_old_memory_or_the_new_one(warm_python: Any, served_folder: Path):
    process = warm_python.start(KILLED, served_folder, Path(__file__).parents[1])
    until = time.monotonic() + 60
    while process.out.read_text().count("\n") < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is None, process.err.read_text()
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.err.read_text()
    acknowledged = process.out.read_text().splitlines()[-1].split()
    opened = load_memory(served_folder, device="cpu", dtype="float32")
    number, answer = opened.journal[-1].number, opened.facts[0].answer
    assert number in (int(acknowledged[0]), int(acknowledged[0]) + 1)  # none that was acknowledged is lost
    assert answer == ("green", "amber")[(number + 1) % 2]
    assert (opened.notice, opened.journal[-1].after) == (None, digests(served_folder))
    assert stored_facts(served_folder)[1:] == FACTS[1:]
    with load_memory(served_folder, device="cpu", dtype="float32", edits=QUICK) as again:
        again.undo()
        assert again.facts[0].answer == ("green", "amber")[number % 2]
