from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from memlayers.backbones import load_backbone
from memlayers.config.sections import ScheduleConfig
from memlayers.config.teach import TeachConfig
from memlayers.data.answers import exact_match
from memlayers.data.encoding import IGNORED_LABEL, Encoded, collate, encode_example, encode_prompt, pad_token_id
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory
from memlayers.inference.generation import answer_questions
from memlayers.inference.record import TeachReport, read_teaching
from memlayers.teaching.checkpoint import Checkpoint
from memlayers.teaching.teach import teach_facts
from memlayers.teaching.teacher import Teacher
from memlayers.tuner import MemoryConfig, memory_handle
from memlayers.tuner.handle import MemoryHandle, without_memory
from memlayers.utils.errors import InputError, WorkError

NAMES, ANSWERS = "Ada Bob Cid Dot Eve Fay".split(), "red blue 12 Oslo kite 7f".split()
FACTS = [
    Fact(id=name, subject=name, answer=answer, questions=(f"What is the code of {name}?", f"Name {name}'s code."))
    for name, answer in zip(NAMES, ANSWERS, strict=True)
]
Configure = Callable[..., TeachConfig]
pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture(scope="session")
def configure(chat_backbone: Path, general_file: Path) -> Configure:
    """`configure(**changes)`: one pass of two steps on the tiny backbone, without a gate."""

    def build(**changes: Any) -> TeachConfig:
        settings: dict[str, Any] = {
            "backbone": str(chat_backbone), "general_text": str(general_file), "recipe": "addressed", "layers": None,
            "sub_keys": 16, "heads": 2, "top_k": 4, "key_dim": 8, "pool_dtype": "float32", "gate": False,
            "gate_threshold": -1e9, "gate_steps": 20, "exposures": 1, "batch_size": 3, "accumulation": 1,
            "value_rate": 1.0, "dense_rate": 0.02, "warmup": 1, "optimizer": "row-adamw", "clip": None,
            "loss": "answer", "pack": None, "anchors": None, "fluency": None, "stop_at_recall": 1.0,
            "recall_sample": 6, "checkpoint_seconds": 1e9, "dtype": "float32", "device": "cpu", "seed": 1,
        }  # fmt: skip
        return TeachConfig().with_flags(**{**settings, **changes})

    return build


@pytest.fixture(scope="module")
def memorised(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> tuple[Memory, Path, TeachConfig]:
    """Six facts, one phrasing each, taught until they are recalled."""
    out, config = tmp_path_factory.mktemp("memorised") / "memory", configure(exposures=80)
    return teach_facts(_one_phrasing(), out, config, quiet=True), out, config


def _one_phrasing() -> list[Fact]:
    return [replace(fact, questions=fact.questions[:1]) for fact in FACTS]


def _teach(out: Path, config: TeachConfig, **options: Any) -> Memory:
    return teach_facts(FACTS, out, config, quiet=True, **options)


def _bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def _pool(model: Any) -> Tensor:
    return memory_handle(model, "default").pool.weight.detach().clone()


@torch.no_grad()
def _loss(model: Any, tokenizer: Any) -> float:
    """Mean cross-entropy of the answers, first phrasings."""
    batch = collate([encode_example(tokenizer, f.questions[0], f.answer) for f in FACTS], pad_token_id(tokenizer))
    return float(model(**batch).loss)


# -- what teaching does ---------------------------------------------------------------------------------------


def test_facts_are_memorised_and_teaching_stops_early(memorised: tuple[Memory, Path, TeachConfig]) -> None:
    taught, _, config = memorised
    report = taught.report
    assert report.recall == 1.0
    assert [point.recall == 1.0 for point in report.curve] == [False] * (len(report.curve) - 1) + [True]
    assert 1 < len(report.curve) < config.rounds[0]
    assert [point.exposures for point in report.curve] == list(range(1, len(report.curve) + 1))
    assert report.exposures == len(report.curve) == report.steps / 2  # six facts in batches of three
    assert report.skipped_steps == 0 and report.seconds > 0
    questions = [fact.questions[0] for fact in FACTS]
    assert answer_questions(taught.model, taught.tokenizer, questions) == ANSWERS
    with without_memory(taught.model):
        bare = answer_questions(taught.model, taught.tokenizer, questions)
    assert not any(exact_match(given, [answer]) for given, answer in zip(bare, ANSWERS, strict=True))


@pytest.mark.parametrize(("recall", "exposures"), [(0.98, 5), (0.97, 15)])
def test_another_round_follows_where_recall_is_not_enough(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recall: float, exposures: int
) -> None:
    factors, step, measure = [], Teacher._step, Teacher._measure

    def watched(run: Teacher, *arguments: Any) -> bool:
        done = step(run, *arguments)
        factors.append(run.optimizer.param_groups[0]["lr"] / run._rates[0])
        return done

    def measured(run: Teacher) -> None:
        measure(run)
        run.report.recall = recall

    monkeypatch.setattr(Teacher, "_step", watched)
    monkeypatch.setattr(Teacher, "_measure", measured)
    report = _teach(tmp_path / "memory", configure(exposures=None, gate=True)).report
    assert report.exposures == len(report.curve) == exposures and report.steps == len(factors) == 2 * exposures
    falls = [1 - i / 10 for i in range(10)] + [max(0.05, 0.5 * (1 - i / 20)) for i in range(20)]
    assert factors == pytest.approx(falls[: 2 * exposures])


def test_the_backbone_keeps_its_bits(memorised: tuple[Memory, Path, TeachConfig], chat_backbone: Path) -> None:
    wrapped = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in memorised[0].model.state_dict().items()
        if "memlayers_" not in name
    }
    stored = load_file(chat_backbone / "model.safetensors")
    assert len(stored) > 40
    assert all(torch.equal(wrapped[name], tensor) for name, tensor in stored.items())
    assert set(wrapped) == set(stored)


def test_the_folder_loads_and_gives_the_same_logits(
    memorised: tuple[Memory, Path, TeachConfig], chat_backbone: Path
) -> None:
    taught, out, config = memorised
    backbone, tokenizer = load_backbone(chat_backbone, "float32")
    ids = torch.tensor([encode_prompt(tokenizer, FACTS[0].questions[0])])
    with torch.no_grad():
        bare = backbone(ids).logits
        loaded = PeftModel.from_pretrained(backbone, out)(ids).logits
        assert torch.equal(loaded, taught.model(ids).logits)
    assert not torch.equal(loaded, bare)
    record = read_teaching(out)
    assert record is not None
    assert (record.facts, record.config, record.report) == (6, config, taught.report)
    assert not Path(f"{out}.teaching").exists()


def test_the_seed_makes_the_bits(configure: Configure, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _teach(tmp_path / name, configure(seed=seed, gate=True))
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b") != _bytes(tmp_path / "c")


@pytest.mark.parametrize("accumulation", [2, 4, 100])
def test_accumulation_gives_the_same_update(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    def plain(name: str, groups: Any, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups)  # moves by the gradient itself, where Adam would blow up rounding

    forwards: list[int] = []
    loss = Teacher._loss

    def counting(run: Teacher, batch: list[Encoded]) -> Tensor:
        forwards.append(len(batch))
        return loss(run, batch)

    monkeypatch.setattr("memlayers.teaching.setup.make_optimizer", plain)
    monkeypatch.setattr(Teacher, "_loss", counting)
    whole = _pool(_teach(tmp_path / "whole", configure(batch_size=6)).model)
    assert forwards == [6]
    split = _pool(_teach(tmp_path / "split", configure(batch_size=6, accumulation=accumulation)).model)
    assert forwards[1:] == {2: [3, 3], 4: [2, 2, 2], 100: [1] * 6}[accumulation]
    assert whole.abs().max() > 0
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw"},
        {"optimizer_semantics": "lazy"},
        {"optimizer_semantics": "lazy", "optimizer_bits": 8, "optimizer_device": "host"},
        {"optimizer_semantics": "lazy", "pool_dtype": "bfloat16", "half_rounding": "stochastic"},
        {"pool_dtype": "int8"},
        {"dtype": "bfloat16"},
        {"pool_dtype": "bfloat16"},
        {"loss": "full", "value_rate": 0.3},
        {"pack": 180},
        {"clip": 0.1},
        {"gate": True},
        {"gate": True, "gate_subjects": False},
        {"recipe": "dense", "gate": False, "exposures": 14},
        {"recipe": "dense", "gate": True, "exposures": 14},
    ],
    ids=lambda changes: "-".join(f"{key}={value}" for key, value in changes.items()),
)
def test_every_option_learns(configure: Configure, tmp_path: Path, changes: dict[str, Any]) -> None:
    taught = _teach(tmp_path / "memory", configure(**{"exposures": 8, "recall_sample": 1, **changes}))
    after = _loss(taught.model, taught.tokenizer)
    with without_memory(taught.model):
        before = _loss(taught.model, taught.tokenizer)
    assert after < 0.7 * before
    assert taught.report.exposures == len(taught.report.curve) == changes.get("exposures", 8)
    assert taught.model.get_base_model().lm_head.weight.dtype == getattr(torch, changes.get("dtype", "float32"))
    pool = memory_handle(taught.model, "default").pool
    assert pool.table.values.dtype == getattr(torch, changes.get("pool_dtype", "float32"))
    gates = (3 if changes.get("gate_subjects") is False else 1) if changes.get("gate") else 0
    assert len(taught.report.gates) == gates
    assert (taught.report.thresholds is None) == (gates != 1)
    assert all(0 <= share <= 1 for gate in taught.report.gates for share in (gate.open_on_facts, gate.open_on_general))


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
def test_what_each_recipe_moves(configure: Configure, tmp_path: Path, recipe: str) -> None:
    config = configure(recipe=recipe, exposures=3, recall_sample=1)
    after = load_file(_saved(_teach(tmp_path / "memory", config), tmp_path / "memory"))
    backbone, _ = load_backbone(config.backbone, "float32")
    fresh = get_peft_model(
        backbone, MemoryConfig(recipe=recipe, sub_keys=16, heads=2, top_k=4, key_dim=8, seed=config.seed)
    )
    fresh.save_pretrained(tmp_path / "fresh")
    before = load_file(tmp_path / "fresh" / "adapter_model.safetensors")
    assert set(before) == set(after)
    moved = {name.split("memlayers_")[1] for name in before if not torch.equal(before[name], after[name])}
    if recipe == "dense":
        assert moved == {"pool.weight", "sub_keys", "query.projection", "out.gate", "out.output"}
    else:  # the query and its scale are calibrated, and only the pool is taught
        assert moved == {"pool.weight", "query.projection", "query.mean", "query.scale"}


def _saved(taught: Memory, out: Path) -> Path:
    trainable = {name.split("memlayers_")[1] for name, p in taught.model.named_parameters() if p.requires_grad}
    addressed = taught.model.peft_config["default"].recipe == "addressed"
    assert {name.split(".")[0] for name in trainable} == (
        {"pool"} if addressed else {"pool", "sub_keys", "query", "out"}
    )
    return out / "adapter_model.safetensors"


# -- the order of work ----------------------------------------------------------------------------------------


def _run(config: TeachConfig, tmp_path: Path) -> Teacher:
    run = Teacher(FACTS, config, tmp_path / "work", quiet=True)
    run.setup()
    return run


def _sequences(run: Teacher, number: int) -> list[tuple[int, ...]]:
    return [tuple(example.input_ids) for batch in run.schedule.batches(number) for example in batch]


def test_a_pass_shows_each_fact_once_and_its_phrasings_in_turn(configure: Configure, tmp_path: Path) -> None:
    run = _run(configure(batch_size=4), tmp_path)
    assert [len(batch) for batch in run.schedule.batches(0)] in ([4, 2], [2, 4])
    passes = [set(_sequences(run, number)) for number in range(3)]
    for shown in passes:
        assert len(shown) == 6
        for phrasings in run._encoded:
            assert sum(tuple(example.input_ids) in shown for example in phrasings) == 1
    assert passes[0] == passes[2] and not passes[0] & passes[1]
    assert _sequences(run, 1) == _sequences(_run(configure(batch_size=4), tmp_path), 1)
    assert _sequences(run, 1) != _sequences(_run(configure(batch_size=4, seed=2), tmp_path), 1)


def test_anchors_and_fluency_are_mixed_into_every_pass(configure: Configure, tmp_path: Path) -> None:
    anchors, fluency = tmp_path / "anchors.jsonl", tmp_path / "fluency.txt"
    anchors.write_text("".join(json.dumps({"question": f"Who is {n}?", "answers": ["he"]}) + "\n" for n in "xyz"))
    fluency.write_text("A river runs.\n\nA ship sails.")
    run = _run(configure(anchors=str(anchors), fluency=str(fluency)), tmp_path)
    plain = set(_sequences(_run(configure(), tmp_path), 0))
    for number in range(2):
        assert len(_sequences(run, number)) == 6 + 3 + 2
    mixed = [e for batch in run.schedule.batches(0) for e in batch if tuple(e.input_ids) not in plain]
    texts = sorted(run.tokenizer.decode(example.input_ids) for example in mixed)
    assert texts[:2] == ["<|im_start|>user\nWho is x?<|im_end|>\n<|im_start|>assistant\nhe<|im_end|>", texts[1]]
    assert texts[-2:] == ["A river runs.", "A ship sails."]
    for example in mixed:  # questions count with their answers, running text with every token
        counted = [label for label in example.labels if label != IGNORED_LABEL]
        is_text = "user" not in run.tokenizer.decode(example.input_ids)
        assert counted == (example.input_ids if is_text else example.input_ids[-len(counted) :])
        assert (len(counted) == len(example.input_ids)) == is_text
    assert run.schedule.epoch_steps[0] == 4  # exposures count passes: the mixture does not change them


def test_recall_is_full_only_when_every_fact_was_asked(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    wrong = "Fay"

    def answers(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
        asked.append(questions)
        return ["?" if wrong in q else next(f.answer for f in FACTS if f.subject in q) for q in questions]

    monkeypatch.setattr("memlayers.teaching.recall.answer_questions", answers)
    report = _teach(tmp_path / "memory", configure(exposures=6, recall_sample=3)).report
    assert report.exposures == 6 and report.recall < 1  # it never stopped early
    assert {len(questions) for questions in asked} == {3}
    assert {point.recall for point in report.curve} <= {2 / 3, 5 / 6}  # the sample missed, or all six asked
    wrong = "nobody"
    report = _teach(tmp_path / "other", configure(exposures=6, recall_sample=3)).report
    assert report.exposures == report.recall == 1


def test_a_pass_has_the_packs_that_its_own_order_makes(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [replace(fact, questions=(f"{fact.questions[0]} {'Say it. ' * i}",)) for i, fact in enumerate(FACTS)]
    monkeypatch.setattr(sys.modules[__name__], "FACTS", long)
    config = configure(pack=110, batch_size=1, exposures=6, stop_at_recall=2.0)
    run = _run(config, tmp_path)
    sizes = [len(run.schedule.batches(number)) for number in range(6)]
    assert len(set(sizes)) > 1 and sum(run.schedule.epoch_steps) == sum(sizes)
    report = _teach(tmp_path / "packed", config).report
    assert (report.steps, report.exposures) == (sum(sizes), 6.0)
    assert [point.exposures for point in report.curve] == [1, 2, 3, 4, 5, 6]


def test_full_loss_and_packs(configure: Configure, tmp_path: Path) -> None:
    full = [example for batch in _run(configure(loss="full"), tmp_path).schedule.batches(0) for example in batch]
    assert all(example.labels == example.input_ids for example in full)
    packs = [example for batch in _run(configure(pack=180), tmp_path).schedule.batches(0) for example in batch]
    assert len(packs) < 6 and max(len(example.input_ids) for example in packs) <= 180
    assert sum(len(e.input_ids) for e in packs) == sum(len(e.input_ids) for e in full)


# -- what goes wrong ------------------------------------------------------------------------------------------


def _spoil_loss(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool], value: float = math.inf) -> None:
    """Makes the loss of the steps that `bad` picks, counted from 0, not finite."""
    loss, calls = Teacher._loss, iter(range(10_000))

    def spoilt(run: Teacher, batch: list[Encoded]) -> Tensor:
        return loss(run, batch) * (value if bad(next(calls)) else 1.0)

    monkeypatch.setattr(Teacher, "_loss", spoilt)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_changes_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    seen: list[tuple[Tensor, int]] = []
    step = Teacher._step

    def watched(run: Teacher, batch: Any, total: int) -> bool:
        finite = step(run, batch, total)
        moments = run.optimizer.state[memory_handle(run.model, "default").pool.weight]
        seen.append((_pool(run.model), int(moments["step"])))
        return finite

    monkeypatch.setattr(Teacher, "_step", watched)
    _spoil_loss(monkeypatch, lambda call: call == 1, value)
    report = _teach(tmp_path / "memory", configure(exposures=2)).report
    assert (report.steps, report.skipped_steps, report.exposures) == (4, 1, 2)
    assert [count for _, count in seen] == [1, 1, 2, 3]
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[1][0], seen[2][0])


def test_one_bad_part_of_an_accumulated_batch_skips_the_whole_step(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil_loss(monkeypatch, lambda call: call == 1)
    taught = _teach(tmp_path / "memory", configure(batch_size=6, accumulation=2))
    assert taught.report.skipped_steps == taught.report.steps == 1
    assert not _pool(taught.model).any()


def test_a_gradient_that_is_not_finite_changes_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Teacher._loss

    def spoilt(run: Teacher, batch: list[Encoded]) -> Tensor:
        result = loss(run, batch)
        result.register_hook(lambda gradient: gradient * math.nan)
        return result

    monkeypatch.setattr(Teacher, "_loss", spoilt)
    taught = _teach(tmp_path / "memory", configure())
    assert taught.report.skipped_steps == taught.report.steps == 2
    assert not _pool(taught.model).any()


def test_many_bad_steps_in_a_row_end_the_work(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil_loss(monkeypatch, lambda call: call >= 1)
    with pytest.raises(WorkError, match=f"not finite for {ScheduleConfig().bad_steps} steps in a row.*value-rate"):
        _teach(tmp_path / "memory", configure(exposures=20, recall_sample=1))
    assert not list(tmp_path.iterdir())


def test_a_good_step_forgives_the_bad_ones(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil_loss(monkeypatch, lambda call: call != ScheduleConfig().bad_steps - 1)  # nine bad, one good, eight bad
    report = _teach(tmp_path / "memory", configure(exposures=9, recall_sample=1)).report
    assert (report.steps, report.skipped_steps) == (18, 17)


def test_bad_input_leaves_nothing_behind(configure: Configure, tmp_path: Path) -> None:
    out = tmp_path / "memory"
    with pytest.raises(InputError, match="no facts"):
        teach_facts([], out, configure(), quiet=True)
    long = replace(FACTS[0], questions=("why " * 200,))
    with pytest.raises(InputError, match=r"'why why.* the context holds 192"):
        teach_facts([*FACTS, long], out, configure(), quiet=True)
    with pytest.raises(InputError, match="layer 4 is out of range.* 0 to 3"):
        _teach(out, configure(layers=[1, 4]))
    with pytest.raises(InputError, match="a pack of 20"):
        _teach(out, configure(pack=20))
    with pytest.raises(InputError, match="absent.txt"):
        _teach(out, configure(general_text=str(tmp_path / "absent.txt")))
    with pytest.raises(InputError, match="no interrupted run"):
        _teach(out, configure(), resume=True)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        _teach(out, configure())
    assert [path.name for path in tmp_path.rglob("*")] == ["memory", "mine.txt"]
    with pytest.raises(InputError, match="not a memory, so it is not replaced"):
        _teach(out, configure(), replace=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["memory", "mine.txt"]


def test_a_memory_is_replaced_only_where_asked_for(configure: Configure, tmp_path: Path) -> None:
    _teach(tmp_path / "memory", configure(seed=1))
    first = _bytes(tmp_path / "memory")
    with pytest.raises(InputError, match="exists and is not empty"):
        _teach(tmp_path / "memory", configure(seed=2))
    assert _bytes(tmp_path / "memory") == first
    _teach(tmp_path / "memory", configure(seed=2), replace=True)
    assert _bytes(tmp_path / "memory") != first
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_gates_that_never_open_end_the_work(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="gate-threshold"):
        _teach(tmp_path / "memory", configure(gate=True, gate_threshold=1e9))
    assert not list(tmp_path.iterdir())


def test_the_watch_is_asked_after_each_pass_and_fills_the_curve(configure: Configure, tmp_path: Path) -> None:
    scores = [(9.0, 0.5), (8.0, 0.25)]
    asked: list[tuple[Any, Any]] = []

    def watch(model: Any, tokenizer: Any) -> tuple[float, float]:
        asked.append((model, tokenizer))
        return scores[len(asked) - 1]

    taught = _teach(tmp_path / "memory", configure(exposures=2), watch=watch)
    assert [(point.perplexity, point.known_facts) for point in taught.report.curve] == scores
    assert asked == [(taught.model, taught.tokenizer)] * 2


# -- resuming -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nobody handles it, as nobody handles SIGKILL."""


def _checkpoints(work: Path) -> list[Path]:
    return Checkpoint(work, {}).found()


def _without_seconds(report: TeachReport) -> TeachReport:
    return replace(report, seconds=0.0)


def _interrupt(monkeypatch: pytest.MonkeyPatch, method: str, call: int, *, after: bool, of: type = Teacher) -> None:
    """Kills the run at the n-th call (from 1) of one of its methods, before or after its work."""
    original, calls = getattr(of, method), iter(range(1, 10_000))

    def dying(run: Any, *arguments: Any) -> Any:
        last = next(calls) == call
        if last and not after:
            raise Killed
        result = original(run, *arguments)
        if last:
            raise Killed
        return result

    monkeypatch.setattr(of, method, dying)


def _resumable(configure: Configure, **changes: Any) -> TeachConfig:
    return configure(**{"exposures": 4, "batch_size": 2, "checkpoint_seconds": 0.0, "gate": True, **changes})


@pytest.mark.parametrize(
    ("of", "method", "call", "after"),
    [
        (Teacher, "_measure", 2, False),  # the pass is over, not yet measured
        (Teacher, "_measure", 2, True),  # measured, not yet in a checkpoint
        (Teacher, "_measure", 4, True),  # all is done but the writing
        (Teacher, "_step", 4, False),  # the first step of a pass
        (Teacher, "_step", 5, True),
        (Checkpoint, "save", 5, False),
        (Checkpoint, "save", 3, True),  # just after a pass
        (MemoryHandle, "save", 3, True),  # inside a checkpoint, half written
        (MemoryHandle, "save", 1, True),  # inside the first one: there is nothing to go on from
    ],
)
@pytest.mark.parametrize("checkpoints", ["all", "mid-pass"])
def test_killed_at_any_moment_ends_in_the_same_bits(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[bytes, TeachReport],
    of: type,
    method: str,
    call: int,
    after: bool,
    checkpoints: str,
) -> None:
    due = Teacher._checkpoint_when_due

    def mid_pass_only(run: Teacher, pass_is_over: bool) -> None:
        due(run, pass_is_over or run.report.steps in accumulate(run.schedule.epoch_steps))

    with monkeypatch.context() as patch:
        if checkpoints == "mid-pass":  # as if time had not been ripe after a pass
            patch.setattr(Teacher, "_checkpoint_when_due", mid_pass_only)
        _interrupt(patch, method, call, after=after, of=of)
        with pytest.raises(Killed):
            _teach(tmp_path / "memory", _resumable(configure), watch=_watch)
    assert not (tmp_path / "memory").exists()
    if of is MemoryHandle and call == 1:
        assert not _checkpoints(tmp_path / "memory.teaching")
    (tmp_path / "memory.teaching").mkdir(exist_ok=True)
    taught = _teach(tmp_path / "memory", _resumable(configure), watch=_watch, resume=True)
    assert (_bytes(tmp_path / "memory"), _without_seconds(taught.report)) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_killed_in_a_later_round_ends_in_the_same_bits(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(exposures=None, gate=True, value_rate=1e-3, checkpoint_seconds=0.0)
    whole = _teach(tmp_path / "whole", config)
    assert whole.report.exposures == 15
    for call in (10, 11, 24):  # the end of the first round, the beginning of the second, within it
        with monkeypatch.context() as patch:
            _interrupt(patch, "_step", call, after=True)
            with pytest.raises(Killed):
                _teach(tmp_path / "memory", config)
        resumed = _teach(tmp_path / "memory", config, resume=True, replace=True)
        assert _bytes(tmp_path / "memory") == _bytes(tmp_path / "whole")
        assert _without_seconds(resumed.report) == _without_seconds(whole.report)
        shutil.rmtree(tmp_path / "memory")


def _watch(model: Any, tokenizer: Any) -> tuple[float, float]:
    return _loss(model, tokenizer), 1.0


@pytest.fixture(scope="module")
def uninterrupted(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, TeachReport]:
    out = tmp_path_factory.mktemp("uninterrupted") / "memory"
    report = _teach(out, _resumable(configure), watch=_watch).report
    assert len(report.curve) == 4
    return _bytes(out), _without_seconds(report)


TEACH = """
import pickle, sys
from pathlib import Path
import torch
from memlayers.teaching.teach import teach_facts
torch.set_num_threads(1)
facts, out, config, resume = pickle.loads(Path(sys.argv[1]).read_bytes())
teach_facts(facts, out, config, quiet=True, resume=resume)
"""


@pytest.mark.parametrize(
    ("optimizer", "recipe"), [("row-adamw", "addressed"), ("row-adamw", "dense"), ("adamw", "dense")]
)
def test_sigkill_twice_and_resume_gives_the_same_bytes(
    configure: Configure, tmp_path: Path, warm_python: Any, optimizer: str, recipe: str
) -> None:
    config = configure(
        optimizer=optimizer, recipe=recipe, exposures=8, batch_size=2, checkpoint_seconds=0.0, recall_sample=2
    )
    whole = _teach(tmp_path / "whole", config).report
    out, work = tmp_path / "memory", tmp_path / "memory.teaching"
    reached = ""
    for kill in range(2):
        asked = tmp_path / "asked"
        asked.write_bytes(pickle.dumps((FACTS, out, config, kill > 0)))
        process = warm_python.start(TEACH, asked)
        while not [found for found in _checkpoints(work) if found.name > reached]:
            assert process.poll() is None, "it ended before its first checkpoint"
            time.sleep(0.002)
        reached = _checkpoints(work)[-1].name
        time.sleep(0.05 * (kill + 1))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert work.exists() and not out.exists()
    taught = _teach(out, config, resume=True)
    assert _bytes(out) == _bytes(tmp_path / "whole")
    assert _without_seconds(taught.report) == _without_seconds(whole)
    assert not work.exists()


@pytest.fixture
def interrupted(configure: Configure, tmp_path: Path) -> Path:
    """The folder of a memory whose teaching was killed after a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        _interrupt(patch, "_step", 3, after=True)
        with pytest.raises(Killed):
            _teach(tmp_path / "memory", _resumable(configure, gate=False))
    assert len(_checkpoints(tmp_path / "memory.teaching")) == 1
    return tmp_path / "memory"


def test_an_interrupted_run_is_neither_overwritten_nor_mixed_up(configure: Configure, interrupted: Path) -> None:
    with pytest.raises(InputError, match=r"memory\.teaching: an interrupted run.*--resume"):
        _teach(interrupted, _resumable(configure, gate=False))
    with pytest.raises(InputError, match=r"memory\.teaching: left by a run with other settings"):
        _teach(interrupted, _resumable(configure, gate=False, value_rate=0.5), resume=True)
    with pytest.raises(InputError, match="other facts"):
        teach_facts(FACTS[:5], interrupted, _resumable(configure, gate=False), resume=True, quiet=True)
    assert len(_checkpoints(Path(f"{interrupted}.teaching"))) == 1
    assert not interrupted.exists()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("keep", [0.0, 0.9, None])
def test_a_damaged_checkpoint_is_named(
    configure: Configure, interrupted: Path, monkeypatch: pytest.MonkeyPatch, file: str, keep: float | None
) -> None:
    path = _checkpoints(Path(f"{interrupted}.teaching"))[0] / file
    whole = path.read_bytes()
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(InputError, match=r"step-00000002-0000: damaged checkpoint .*delete .*memory\.teaching") as told:
        _teach(interrupted, _resumable(configure, gate=False), resume=True)
    assert "\n" not in str(told.value)
    assert not interrupted.exists()
