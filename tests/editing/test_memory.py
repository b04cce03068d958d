from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from memlayers.backbones import load_backbone
from memlayers.cli import app
from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import encode_prompt
from memlayers.data.fact_files import write_facts
from memlayers.data.facts import Fact
from memlayers.editing.config import EditConfig
from memlayers.editing.edit import edit_under_way
from memlayers.editing.journal import digests, read_journal
from memlayers.editing.memory import Memory, load_memory
from memlayers.editing.report import EditRefused, EditReport
from memlayers.editing.rows import Kept
from memlayers.editing.slot_use import choose_slots
from memlayers.inference.capture import prompt_states
from memlayers.inference.folder import UNDO_FOLDER, stored_facts
from memlayers.inference.generation import generate_answers
from memlayers.teaching.teach import teach_facts
from memlayers.tuner import memory_layers
from memlayers.utils.errors import InputError, WorkError

NAMES, ANSWERS = "Ada Bob Cid Dot Eve Fay".split(), "red blue 12 Oslo kite 7f".split()
FACTS = [
    Fact(
        id=name.lower(), subject=name, relation="code", answer=answer, unseen_questions=(f"{name} has which code?",),
        questions=(f"What is the code of {name}?", f"Name {name}'s code."),
    )
    for name, answer in zip(NAMES, ANSWERS, strict=True)
]  # fmt: skip
FACTS.append(Fact("ada-2", "Ada", "lime", ("What does Ada eat?", "Name Ada's food."), "food"))
NEW = Fact("gus", "Gus Orr", "amber", ("What is the code of Gus Orr?", "Name Gus Orr's code."), "code")
CONFIG = EditConfig(rate=1.0, steps=60, slot_count=None)
Open = Callable[..., Memory]


@pytest.fixture(scope="session")
def taught_folder(chat_backbone: Path, general_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of seven facts behind a gate that knows its subjects, on the tiny backbone."""
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(general_file), sub_keys=24, heads=2, top_k=4, key_dim=8,
        gate_threshold=-1e9, gate_steps=20, exposures=120, batch_size=7, value_rate=1.0, warmup=1, recall_sample=14,
        dtype="float32", device="cpu", seed=1,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("taught") / "memory"
    taught = teach_facts(FACTS, out, config, quiet=True)
    assert taught.report.recall == 1.0
    return out


@pytest.fixture
def folder(taught_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught_folder, tmp_path / "memory"))


@pytest.fixture
def opened(folder: Path) -> Any:
    with load_memory(folder, edits=CONFIG) as memory:
        yield memory


def _answers(memory: Any, facts: list[Fact] | tuple[Fact, ...]) -> list[str]:
    questions = [question for fact in facts for question in fact.questions]
    return [given.text for given in generate_answers(memory.model, memory.tokenizer, questions)]


def _right(facts: list[Fact]) -> list[str]:
    return [fact.answer for fact in facts for _ in fact.questions]


def _state(memory: Memory) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in memory.model.state_dict().values()]


def _same(before: list[torch.Tensor], memory: Memory) -> bool:
    after = list(memory.model.state_dict().values())
    return len(before) == len(after) and all(map(torch.equal, before, after))


def test_teaching_leaves_the_facts_with_the_memory(taught_folder: Path):
    assert stored_facts(taught_folder) == FACTS


def test_what_general_text_reads_counts_where_no_gate_keeps_it_out(opened: Memory, chat_backbone: Path, tmp_path: Path):
    opened.prepare()
    assert opened._editing().session.use.passages == 0  # no passage has a stored name in it
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), sub_keys=24, heads=2, top_k=4, key_dim=8, gate=False, exposures=1,
        dtype="float32", device="cpu",
    )  # fmt: skip
    teach_facts(FACTS, tmp_path / "ungated", config, quiet=True)
    with load_memory(tmp_path / "ungated", edits=EditConfig(slot_count=8)) as memory:
        memory.prepare()
        session = memory._editing().session
        use = session.use
        assert use.passages > 100 and int(use.general.max()) > use.passages // 2
        alone = [choose_slots(rows, counts, use.frequency, 7, "tfidf", 8) for rows, counts in session.reads(FACTS)]
        with edit_under_way(session, EditReport(1, "add", ())) as edit:
            chosen = edit.choose(FACTS)
        read = use.general.double()
        assert read[chosen].mean() < read[torch.cat(alone).unique()].mean()


def test_an_update_takes_and_the_rest_stays(opened: Memory, folder: Path):
    report = opened.update([replace(FACTS[1], answer="green", questions=("Bob's code is?",))])
    bob = opened.facts[1]
    assert bob.questions == (*FACTS[1].questions, "Bob's code is?")
    assert (report.recalled, report.asked, report.opened, report.changed) == (1.0, 3, 1.0, ())
    assert report.slots > 0 and report.neighbours > 0
    assert _answers(opened, [bob]) == ["green"] * 3
    others = [*FACTS[:1], *FACTS[2:]]
    assert _answers(opened, others) == _right(others)
    assert stored_facts(folder) == list(opened.facts)
    assert _answers(load_memory(folder), [bob]) == ["green"] * 3


def _indexed(folder: Path) -> int:
    """How many entries the saved index of subjects has."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return next(len(value) for name, value in tensors.items() if name.endswith("memlayers_subjects.subjects"))


def test_an_added_fact_is_answered_by_plain_peft_too(opened: Memory, folder: Path, chat_backbone: Path):
    before = _indexed(folder)
    report = opened.add([NEW])
    assert (report.recalled, report.opened) == (1.0, 1.0)
    assert _answers(opened, opened.facts) == _right([*FACTS, NEW])
    assert _indexed(folder) > before
    model, tokenizer = load_backbone(chat_backbone, "float32")
    loaded = PeftModel.from_pretrained(model, str(folder)).eval()
    assert [a.text for a in generate_answers(loaded, tokenizer, NEW.questions)] == ["amber", "amber"]


def test_a_phrasing_with_a_longer_name_is_entered_and_loosens_nothing(opened: Memory):
    index: Any = memory_layers(opened.model)[0].memlayers_subjects["default"]
    marks, entries = index.marks.clone(), index.entries
    odd = replace(NEW, id="hal", subject="Hal", questions=("What is the code of Hal?", "What is the Halish code?"))
    opened.add([odd])
    assert _answers(opened, [odd]) == ["amber", "amber"]
    assert torch.equal(index.marks, marks)
    others = generate_answers(opened.model, opened.tokenizer, ["What is the Bobish code?"])
    assert not others[0].opened
    opened.forget(ids=["hal"])
    assert torch.equal(index.entries, entries)
    assert not any(a.opened for a in generate_answers(opened.model, opened.tokenizer, odd.questions))


def test_a_forgotten_fact_is_gone_and_its_gate_is_closed(opened: Memory):
    report = opened.forget(ids=["bob"])
    asked = [*FACTS[1].questions, *FACTS[1].unseen_questions]
    given = generate_answers(opened.model, opened.tokenizer, asked)
    assert not any(answer.opened for answer in given)
    for kind, n in (("taught", 2), ("unseen", 1)):
        stand = report.evidence[kind]
        assert stand["after"] == stand["backbone"]
        assert (stand["before"]["n"], stand["after"]["given"], stand["always_on"]["given"]) == (n, 0.0, 0.0)
    assert report.evidence["taught"]["before"]["given"] == 1.0
    rest = [*FACTS[:1], *FACTS[2:]]
    assert list(opened.facts) == rest
    assert _answers(opened, rest) == _right(rest)


def test_one_fact_of_a_subject_is_forgotten_and_the_other_stays(opened: Memory):
    report = opened.forget(facts=[FACTS[0]])
    assert report.evidence["taught"]["before"]["given"] == 1.0
    assert report.evidence["taught"]["after"]["given"] == 0.0
    given = generate_answers(opened.model, opened.tokenizer, FACTS[0].questions)
    assert all(answer.opened and answer.text != "red" for answer in given)
    assert _answers(opened, [FACTS[6]]) == ["lime", "lime"]
    assert opened.forget(subject="Ada").ids == ("ada-2",)
    assert not any(a.opened for a in generate_answers(opened.model, opened.tokenizer, FACTS[0].questions))


def test_everything_is_undone_bit_for_bit(opened: Memory, folder: Path):
    start, states, hashes = _state(opened), [], []
    edits: list[Callable[[], Any]] = [
        lambda: opened.update([replace(FACTS[2], answer="green")]),
        lambda: opened.add([NEW]),
        lambda: opened.forget(ids=["eve", "ada"]),
    ]
    for edit in edits:
        states.append(_state(opened))
        hashes.append(digests(folder))
        edit()
    for state, found in zip(reversed(states), reversed(hashes), strict=True):
        opened.undo()
        assert digests(folder) == found
        assert _same(state, opened)
    assert _same(start, opened)
    assert list(opened.facts) == FACTS
    assert [record.kind for record in read_journal(folder)[0]] == ["update", "add", "forget", "undo", "undo", "undo"]
    with pytest.raises(InputError, match="no edit to take back"):
        opened.undo()


def test_the_check_of_relations_follows_the_facts(opened: Memory):
    check: Any = memory_layers(opened.model)[0].memlayers_relations["default"]
    prints, keys = check.prints.clone(), check.keys.clone()
    opened.add([NEW])
    prompt = encode_prompt(opened.tokenizer, NEW.questions[0])
    (score,) = check.scores([prompt], prompt_states(opened.model, "default", [prompt])).tolist()
    assert len(check.prints) > len(prints) and score > 0.5  # it knows what is asked of the newcomer
    opened.update([replace(NEW, answer="green")])
    size = len(check.prints)
    opened.forget(ids=["gus"])
    assert size > len(prints) and torch.equal(check.prints, prints) and torch.equal(check.keys, keys)


def test_what_was_forgotten_of_a_subject_is_no_longer_asked_of_it(opened: Memory):
    check: Any = memory_layers(opened.model)[0].memlayers_relations["default"]
    prompts = [encode_prompt(opened.tokenizer, fact.questions[0]) for fact in (FACTS[0], FACTS[-1])]

    def scores() -> list[float]:
        found: list[float] = check.scores(prompts, prompt_states(opened.model, "default", prompts)).tolist()
        return found

    before, size = scores(), len(check.prints)
    opened.forget(ids=["ada-2"])
    after = scores()
    assert after[0] == before[0] and after[1] < before[1] - 0.2
    assert len(check.prints) < size
    opened.undo()
    assert scores() == before


def test_an_undo_after_the_memory_was_opened_anew(folder: Path):
    before = digests(folder)
    with load_memory(folder, edits=CONFIG) as memory:
        memory.forget(ids=["cid"])
    with load_memory(folder, edits=CONFIG) as memory:
        memory.undo()
        assert _answers(memory, FACTS) == _right(FACTS)
    assert digests(folder) == before


def test_the_journal_says_what_was_done(opened: Memory, folder: Path):
    before = digests(folder)
    opened.update([replace(FACTS[3], answer="green")])
    (record,), notice = read_journal(folder)
    assert notice is None
    assert (record.number, record.kind, record.ids) == (1, "update", ("dot",))
    assert (record.before, record.after) == (before, digests(folder))
    assert record.slots > 0 and record.evidence["recalled"] == 1.0


def test_edits_saved_together_are_undone_one_by_one(folder: Path):
    start = digests(folder)
    with load_memory(folder, edits=CONFIG, autosave=False) as memory:
        memory.add([NEW])
        middle = _state(memory)
        memory.forget(ids=["gus"])
        assert digests(folder) == start
    assert len(read_journal(folder)[0]) == 2
    with load_memory(folder, edits=CONFIG) as memory:
        memory.undo()
        assert _same(middle, memory)
        memory.undo()
    assert digests(folder) == start


def test_an_edit_that_would_change_others_is_refused_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = digests(folder)
    with load_memory(folder, edits=replace(CONFIG, repairs=0)) as memory:
        state = _state(memory)
        monkeypatch.setattr("memlayers.editing.guard.lost_by", lambda _, asked: asked[:1])
        for edit in (lambda: memory.add([NEW]), lambda: memory.forget(ids=["eve"])):
            with pytest.raises(EditRefused, match="refused, as it would change the answer of 1 of") as told:
                edit()
            assert len(told.value.report.changed) == 1
            assert _same(state, memory)
        assert list(memory.facts) == FACTS
    assert digests(folder) == before and not read_journal(folder)[0]


def test_a_neighbour_that_an_edit_breaks_is_taught_again(folder: Path):
    # All rows and a crude rate: the edit alone breaks others.
    with load_memory(folder, edits=replace(CONFIG, slots="all", rate=4.0, repairs=8)) as memory:
        report = memory.update([replace(FACTS[1], answer="green")])
        rest = [*FACTS[:1], *FACTS[2:]]
        assert report.repaired
        assert _answers(memory, rest) == _right(rest)


def test_what_is_rehearsed_beside_an_edit_is_kept(folder: Path):
    rest = [*FACTS[:1], *FACTS[2:]]
    lost = {}
    for rehearsed in (0, 14):
        crude = replace(CONFIG, slots="all", rate=4.0, neighbours=0, rehearsed=rehearsed)
        with load_memory(folder, edits=crude, autosave=False) as memory:
            memory.update([replace(FACTS[1], answer="green")])
            lost[rehearsed] = sum(a != b for a, b in zip(_answers(memory, rest), _right(rest), strict=True))
            memory.close()
    assert lost[0] > 0 and lost[14] < lost[0]


def test_what_edits_overwrote_is_repaired_and_nothing_else_is_touched(folder: Path):
    before = digests(folder)
    with load_memory(folder, edits=replace(CONFIG, slots="all", rate=4.0, neighbours=0)) as careless:
        careless.update([replace(FACTS[1], answer="green")])
        facts = list(careless.facts)
    with load_memory(folder, edits=CONFIG) as memory:
        lost = {f.id for f in facts if _answers(memory, [f]) != _right([f])}
        broken = digests(folder)
        report = memory.repair()
        assert lost and (report.kind, set(report.ids), report.recalled) == ("repair", lost, 1.0)
        assert _answers(memory, facts) == _right(facts) and list(memory.facts) == facts
        repaired = digests(folder)
        again = memory.repair()
        assert (again.number, again.ids, again.recalled, again.asked) == (0, (), 1.0, 14)
        assert digests(folder) == repaired
        memory.undo()
        assert digests(folder) == broken
        memory.undo()
    assert digests(folder) == before


def test_an_edit_that_does_not_take_is_refused(folder: Path):
    with load_memory(folder, edits=replace(CONFIG, steps=1, rate=1e-6)) as memory:
        with pytest.raises(EditRefused, match="does not take: 0% of 2 taught phrasings"):
            memory.add([NEW])
        memory.forget(ids=["ada"])


def test_what_cannot_be_meant_is_one_line(opened: Memory):
    other = replace(NEW, id="x", questions=(FACTS[0].questions[0].upper(),))
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: opened.forget(ids=["nobody"]), "no stored fact has the id 'nobody'"),
        (lambda: opened.forget(subject="Nobody"), "no stored fact is about 'Nobody'"),
        (lambda: opened.forget(), "nothing to forget"),
        (lambda: opened.add([FACTS[0]]), "'ada' is stored already"),
        (lambda: opened.add([NEW, NEW]), "'gus' is stored already"),
        (lambda: opened.add([other]), "fact 'x' answers 'WHAT IS THE CODE OF ADA"),
        (lambda: opened.add([NEW, replace(NEW, id="y", answer="teal")]), "fact 'y' answers .* fact 'gus' with 'amber'"),
        (lambda: opened.update([NEW]), "fact 'gus' is not stored"),
        (lambda: opened.update([replace(FACTS[0], subject="Bob")]), "'ada' is about 'Ada', its update about 'Bob'"),
        (lambda: opened.update([FACTS[0], replace(FACTS[0], answer="9")]), "'ada' is updated twice"),
        (
            lambda: opened.update([replace(FACTS[0], answer="9", questions=FACTS[1].questions)]),
            "fact 'ada' answers .* fact 'bob' with 'blue'",
        ),
    ]
    before = _state(opened)
    for case, line in cases:
        with pytest.raises(InputError, match=line) as told:
            case()
        assert "\n" not in str(told.value)
    assert _same(before, opened) and list(opened.facts) == FACTS
    opened.forget(ids=["ada"])
    with pytest.raises(InputError, match=r"no stored fact has the id 'ada' \(any more\)"):
        opened.forget(ids=["ada"])


def test_an_update_is_found_by_subject_and_relation_or_by_a_question(opened: Memory):
    by_name = Fact("?", "Bob", "green", ("Bob's code, please?",), "code")
    by_question = Fact("??", "", "teal", ("what is the code of cid",))
    report = opened.update([by_name, by_question])
    assert report.ids == ("bob", "cid")
    assert [opened.facts[i].answer for i in (1, 2)] == ["green", "teal"]
    assert report.recalled == 1.0


def test_a_memory_that_cannot_be_edited_says_so(folder: Path, chat_backbone: Path):
    (folder / "facts.jsonl").unlink()
    with pytest.raises(InputError, match="does not remember its facts"):
        load_memory(folder).prepare()
    write_facts(folder / "facts.jsonl", FACTS)
    with load_memory(folder) as memory:  # put there by hand
        memory.prepare()
        with pytest.raises(InputError, match=f"process {os.getpid()} is editing it"):
            load_memory(folder).prepare()
    with load_memory(folder) as memory:
        memory.prepare()
    assert not list(folder.parent.glob(".*"))


def test_something_else_that_changed_the_memory_stops_undo(opened: Memory, folder: Path):
    opened.forget(ids=["bob"])
    opened.close()
    path = folder / "facts.jsonl"
    path.write_text(path.read_text() + "\n")
    with (
        load_memory(folder) as memory,
        pytest.raises(InputError, match="something else changed this memory since edit 1"),
    ):
        memory.undo()


def test_forgetting_for_good_leaves_no_undo_data(opened: Memory, folder: Path):
    opened.update([replace(FACTS[1], answer="green")])
    opened.forget(ids=["bob"], purge=True)
    assert not (folder / UNDO_FOLDER).exists()
    for path in folder.rglob("*"):
        assert not path.is_file() or b"Name Bob" not in path.read_bytes()
    with pytest.raises(InputError, match="its undo data is gone"):
        opened.undo()


def test_a_full_disk_leaves_model_and_folder_as_they_were(
    opened: Memory, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before, state = digests(folder), _state(opened)
    with monkeypatch.context() as patch:
        patch.setattr("memlayers.editing.saving.save_file", full)
        with pytest.raises(WorkError, match="No space left"):
            opened.forget(ids=["bob"])
    assert digests(folder) == before and _same(state, opened) and list(opened.facts) == FACTS
    assert not [path for path in folder.parent.glob(".*") if "lock" not in path.name]
    opened.forget(ids=["bob"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_kill_at_any_step_of_saving_leaves_the_old_memory_or_the_new_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
):
    if not can_exchange:
        monkeypatch.setattr("memlayers.utils.files.exchange", lambda *_: False)
    memory = load_memory(folder, edits=CONFIG, autosave=False)
    memory.add([NEW])
    original = shutil.copytree(folder, folder.parent / "original")
    old, states = digests(folder), set()
    for step in range(1, 500):
        finished = _killed_while_saving(memory, step)
        lock = folder.parent / ".memory.memlayers-lock"
        assert lock.exists() or finished
        from memlayers.utils.files import recover_directory

        recover_directory(folder)  # what opening does first
        records, notice = read_journal(folder)
        facts = stored_facts(folder)
        assert notice is None
        if digests(folder) == old:
            assert (facts, records) == (FACTS, [])
            states.add("old")
        else:
            assert facts == [*FACTS, NEW]
            assert records[-1].after == digests(folder)
            states.add("new")
            shutil.rmtree(folder)
            shutil.copytree(original, folder)
        if finished:
            break
    assert finished and states == {"old", "new"} and step > 20
    memory.close()


def _killed_while_saving(memory: Memory, step: int) -> bool:
    """Saves in a process that dies at its `step`-th file operation; whether it came to the end before."""
    child = os.fork()
    if child == 0:
        left = step
        names = ("open", "os.", "shutil.", "ctypes.")

        def die(event: str, _: Any) -> None:
            nonlocal left
            if event.startswith(names):
                left -= 1
                if left == 0:
                    os._exit(1)

        sys.addaudithook(die)
        memory.save()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_rows_of_every_format_are_put_back_bit_for_bit():
    from memlayers.pool.value_pool import ValuePool

    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        pool = ValuePool(9, 4, dtype)
        pool.initialise("normal", 0)
        before = {name: tensor.clone() for name, tensor in pool.state_dict().items()}
        kept = Kept.of(pool, torch.tensor([1, 3, 5])).joined(Kept.of(pool, torch.tensor([3, 7])))
        assert kept.rows.tolist() == [1, 3, 5, 7]
        with torch.no_grad():
            pool.table.values[3] += 1
            if pool.table.scales is not None:
                pool.table.scales[7] *= 2
        changed = kept.changed(pool)
        assert changed.rows.tolist() == ([3, 7] if dtype == torch.int8 else [3])
        changed.put_back(pool)
        assert all(torch.equal(before[name], tensor) for name, tensor in pool.state_dict().items())


def test_settings_out_of_range_are_one_line():
    for bad in (
        {"slots": "some"},
        {"steps": 0},
        {"rate": 0.0},
        {"neighbours": -1},
        {"rehearsed": -1},
        {"least_recall": 2},
    ):
        with pytest.raises(InputError):
            EditConfig(**bad)  # type: ignore[arg-type]


def _run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if isinstance(done.exception, (InputError, WorkError)):
        return 2, str(done.exception)
    return done.exit_code, done.stdout


def test_the_verbs_on_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("memlayers.editing.config.EditConfig", lambda **given: replace(CONFIG, **given))
    before = digests(folder)
    facts = tmp_path / "new.jsonl"
    write_facts(facts, [NEW])
    listed = [line.split(maxsplit=2) for line in _run("list", folder)[1].splitlines()]
    assert listed[0] == ["ada", "Ada", "What is the code of Ada?  red"] and listed[1][0] == "bob"
    assert json.loads(_run("list", folder, "--json")[1].splitlines()[1])["questions"] == list(FACTS[1].questions)
    code, told = _run("add", folder, "--facts", facts)
    assert code == 0 and "edit 1 (add): 1 facts" in told and "100.0% of 2 taught phrasings" in told
    write_facts(facts, [replace(NEW, answer="teal")])
    code, told = _run("update", folder, "--facts", facts, "--slots", "kl", "--json")
    report = json.loads(told)
    assert (report["kind"], report["recalled"]) == ("update", 1.0)
    code, told = _run("forget", folder, "--ids", "gus,bob")
    assert code == 0 and "taught phrasings, after: old answer given 0% of 4" in told
    assert _run("forget", folder, "--ids", "gus") == (2, _gone("gus"))
    assert _run("forget", folder)[0] == 2
    assert _run("repair", folder)[1] == "nothing to repair: all 12 taught phrasings are answered rightly\n"
    for number in (4, 5, 6):
        assert f"edit {number} (undo)" in _run("undo", folder)[1]
    assert digests(folder) == before


def _gone(fact_id: str) -> str:
    return f"no stored fact has the id {fact_id!r} (any more); `memlayers list` shows what is stored"


def test_settings_on_the_command_line(taught_folder: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def opened(folder: Path, edits: EditConfig, **_: Any) -> Any:
        seen.append(edits)
        raise InputError("enough seen")

    monkeypatch.setattr("memlayers.editing.memory.load_memory", opened)
    assert _run("repair", taught_folder, "--slot-count", 8, "--rehearsed", 4, "--slots", "kl") == (2, "enough seen")
    assert _run("repair", taught_folder) == (2, "enough seen")
    assert seen == [EditConfig(slots="kl", slot_count=8, rehearsed=4), EditConfig()]


def test_one_object_is_asked_and_edited(opened: Memory, folder: Path):
    assert opened.folder == folder and list(opened.facts) == FACTS and opened.notice is None
    one = opened.ask(FACTS[1].questions[0])
    assert [one] == opened.ask([FACTS[1].questions[0]]) and one.memory == "blue"
    opened.update([replace(FACTS[1], answer="green")])
    assert opened.ask(FACTS[1].questions[0]).memory == "green" and opened.facts[1].answer == "green"
    with pytest.raises(InputError, match="a question is empty"):
        opened.ask("")


def test_reading_takes_no_lock_and_the_first_edit_does(folder: Path):
    first, second = load_memory(folder, edits=CONFIG), load_memory(folder, edits=CONFIG)
    assert first.facts == second.facts and not list(folder.parent.glob(".*"))
    first.forget(ids=["bob"])
    with pytest.raises(InputError, match=f"process {os.getpid()} is editing it"):
        second.forget(ids=["cid"])
    first.close()
    with pytest.raises(InputError, match="memory: changed since it was opened; load it again"):
        second.forget(ids=["cid"])
    with pytest.raises(InputError, match="memory: closed; load it again to edit it"):
        first.undo()
    assert first.ask(FACTS[1].questions[0]).source != "memory" and not list(folder.parent.glob(".*"))
    with pytest.raises(InputError, match="this memory has no folder to edit"):
        Memory(first.model, first.tokenizer).undo()
    with load_memory(folder, gate=False) as ungated, pytest.raises(InputError, match="opened with its gate off"):
        ungated.undo()


def test_a_model_and_its_folder_are_a_memory(taught_folder: Path, tmp_path: Path):
    before = digests(taught_folder)
    loaded = load_memory(taught_folder)
    folder = Path(shutil.copytree(taught_folder, tmp_path / "copy"))
    with Memory(loaded.model, loaded.tokenizer, folder, edits=CONFIG) as memory:
        memory.add([NEW])
        assert memory.ask(NEW.questions[0]).memory == "amber"
        memory.undo()
    assert digests(folder) == before


def test_what_needs_no_model_is_refused_before_it_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("memlayers.inference.loading.load_adapter", load)
    same = replace(FACTS[0], id="x")
    cases: list[tuple[Callable[[Memory], Any], str]] = [
        (lambda memory: memory.undo(), "no edit to take back"),
        (lambda memory: memory.forget(ids=["bbo"]), r"'bbo' \(any more\); did you mean 'bob'\?"),
        (lambda memory: memory.forget(subject="ada"), "is about 'ada'; did you mean 'Ada'?"),
        (lambda memory: memory.forget(subject="Bobb"), "is about 'Bobb'; did you mean 'Bob'?"),
        (lambda memory: memory.forget(), "nothing to forget"),
        (lambda memory: memory.add([]), "nothing to add"),
        (lambda memory: memory.update([]), "nothing to update"),
        (lambda memory: memory.add([FACTS[0]]), "'ada' is stored already"),
        (lambda memory: memory.add([same]), "fact 'x' asks 'What is the code of Ada.', which fact 'ada' asks already"),
        (lambda memory: memory.update([replace(FACTS[0], questions=FACTS[1].questions)]), "fact 'bob' with 'blue'"),
    ]
    for case, line in cases:
        with load_memory(folder, lazy=True) as memory:
            assert list(memory.facts) == FACTS
            with pytest.raises(InputError, match=line) as told:
                case(memory)
            assert "\n" not in str(told.value)
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == folder)
    with pytest.raises(InputError, match="memory: a mount point, which cannot be replaced"):
        load_memory(folder, lazy=True).forget(ids=["bob"])
    assert not list(folder.parent.glob(".*"))


def test_a_report_says_which_facts(opened: Memory):
    green = replace(FACTS[1], answer="green", aliases=())
    assert opened.update([green]).facts == (green,)
    assert opened.forget(ids=["bob"]).facts == (green,)
    assert opened.add([NEW]).facts == (NEW,)
    undone = [opened.undo() for _ in range(3)]
    assert [(each.undone, each.facts) for each in undone] == [
        ("add", (NEW,)), ("forget", (green,)), ("update", (FACTS[1],))
    ]  # fmt: skip
