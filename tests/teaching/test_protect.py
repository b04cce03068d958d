from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from typer.testing import CliRunner

from memlayers import Fact, InputError, MemoryConfig, TeachConfig, load_backbone, load_memory, teach_facts
from memlayers.cli import app
from memlayers.data.general_text import read_general_text
from memlayers.inference.capture import count_reads
from memlayers.inference.record import CurvePoint
from memlayers.teaching.protect import protect_slots
from memlayers.teaching.teacher import Teacher
from memlayers.tuner import memory_handle

FACTS = [
    Fact(id=name, subject=name, answer=answer, questions=(f"What is the code of {name}?",))
    for name, answer in zip("Ada Bob Cid Dot Eve Fay".split(), "red blue 12 Oslo kite 7f".split(), strict=True)
]


@pytest.fixture(scope="module")
def settings(chat_backbone: Path, general_file: Path) -> dict[str, Any]:
    return {
        "backbone": str(chat_backbone), "general_text": str(general_file), "sub_keys": 16, "heads": 2, "top_k": 4,
        "key_dim": 8, "gate": False, "exposures": 2, "batch_size": 3, "value_rate": 1.0, "warmup": 1,
        "recall_sample": 6, "dtype": "float32", "device": "cpu", "seed": 1,
        "protect": str(general_file), "protect_share": 0.25,
    }  # fmt: skip


def _rows(model: Any) -> torch.Tensor:
    """The pool's values, float32 [slots, dim]."""
    table = memory_handle(model, "default").pool.table
    rows = table.values.float()
    return rows if table.scales is None else rows * table.scales[:, None]


def _marks(model: Any) -> torch.Tensor:
    protected = memory_handle(model, "default").pool.protected
    assert protected is not None
    return protected


# -- which slots --------------------------------------------------------------------------------------------------


def test_the_most_read_slots_are_protected_and_never_an_unread_one(tiny_backbone: Any) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(sub_keys=4, protectable=True, top_k=4))
    reads = torch.tensor([0, 5, 1, 5, 9, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])
    assert protect_slots(memory_handle(model, "default"), reads, 0.2) == 3  # 3.2 of 16 slots
    assert _marks(model).nonzero().flatten().tolist() == [1, 3, 4]
    assert protect_slots(memory_handle(model, "default"), reads, 0.9) == 5
    assert _marks(model).nonzero().flatten().tolist() == [1, 2, 3, 4, 8]


def test_a_memory_without_room_is_refused(tiny_backbone: Any) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(sub_keys=8))
    with pytest.raises(InputError, match="protectable"):
        protect_slots(memory_handle(model, "default"), torch.ones(64, dtype=torch.int64), 0.5)
    assert not any("protected" in name for name in model.state_dict())
    with pytest.raises(InputError, match="pool_init zero"):
        MemoryConfig(recipe="dense", protectable=True)


# -- teaching -----------------------------------------------------------------------------------------------------

WAYS: list[dict[str, Any]] = [
    {"optimizer_semantics": "dense"},
    {"optimizer_semantics": "lazy"},
    {"optimizer": "adamw"},
    {"pool_dtype": "int8"},
    {"pool_dtype": "bfloat16", "half_rounding": "stochastic", "optimizer_bits": 8, "optimizer_device": "host"},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_protected_rows_stay_zero_whatever_writes(
    settings: dict[str, Any], tmp_path: Path, way: dict[str, Any]
) -> None:
    taught = teach_facts(FACTS, tmp_path / "memory", TeachConfig().with_flags(**{**settings, **way}), quiet=True)
    marks, rows = _marks(taught.model), _rows(taught.model)
    assert marks.sum() == 64
    assert not rows[marks].any() and rows[~marks].any()
    loaded = load_memory(tmp_path / "memory").model
    assert torch.equal(_marks(loaded), marks) and torch.equal(_rows(loaded), rows)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        unmasked = loaded(ids).logits
    assert torch.equal(loaded(ids).logits.detach(), unmasked)  # with a gradient the mask is laid on: the same bits


def test_protected_rows_would_have_been_written(settings: dict[str, Any], tmp_path: Path) -> None:
    free = teach_facts(FACTS, tmp_path / "free", TeachConfig().with_flags(**{**settings, "protect": None}), quiet=True)
    model, tokenizer = load_backbone(settings["backbone"], "float32")
    run = Teacher(FACTS, TeachConfig().with_flags(**settings), tmp_path / "work", quiet=True)
    run.setup()
    if not run.restore():
        run.calibrate()
        run.build_gate()
    assert _rows(free.model)[_marks(run.model)].any()
    texts = read_general_text(settings["protect"]).encode(tokenizer, 256)
    reads = count_reads(memory_handle(run.model, "default"), texts)
    assert reads[_marks(run.model)].min() >= reads[~_marks(run.model)].max()


def test_facts_are_recalled_beside_protected_rows(settings: dict[str, Any], tmp_path: Path) -> None:
    config = TeachConfig().with_flags(**{**settings, "exposures": 100, "protect_share": 0.1})
    taught = teach_facts(FACTS, tmp_path / "memory", config, quiet=True)
    assert taught.report.recall == 1.0
    assert not _rows(taught.model)[_marks(taught.model)].any()


def test_a_resumed_run_protects_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    config = TeachConfig().with_flags(**settings)
    teach_facts(FACTS, tmp_path / "whole", config, quiet=True)
    run = Teacher(FACTS, config, tmp_path / "killed.teaching", quiet=True)
    run.setup()
    if not run.restore():
        run.calibrate()
        run.build_gate()
    run.step(run.schedule.batches(0)[0], 1.0)
    run.report.steps = 1
    run._save_checkpoint()
    resumed = teach_facts(FACTS, tmp_path / "killed", config, resume=True, quiet=True)
    read = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert read[0] == read[1] and _marks(resumed.model).sum() == 64
    again = load_memory(tmp_path / "killed")
    losses = [point.loss for point in resumed.report.curve]
    assert len(losses) == 2 and all(loss is not None and loss > 0 for loss in losses)
    assert not _rows(again.model)[_marks(again.model)].any()


def test_the_curve_holds_the_loss_of_each_pass(settings: dict[str, Any], tmp_path: Path) -> None:
    config = TeachConfig().with_flags(
        **{**settings, "protect": None, "exposures": 3, "stop_at_recall": 2.0, "batch_size": 6}
    )
    taught = teach_facts(FACTS, tmp_path / "memory", config, quiet=True)
    losses = [point.loss or 0.0 for point in taught.report.curve]
    run = Teacher(FACTS, config, tmp_path / "work", quiet=True)
    run.setup()
    if not run.restore():
        run.calibrate()
        run.build_gate()
    (batch,) = run.schedule.batches(0)
    from memlayers.data.encoding import IGNORED_LABEL

    counted = sum(label != IGNORED_LABEL for example in batch for label in example.labels[1:])
    assert losses[0] == pytest.approx(float(run._loss(batch)[0]) / counted, rel=1e-5)
    assert losses[2] < losses[0]
    assert CurvePoint(1, 0.5).loss is None


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--protect", "nothing.txt"], "nothing.txt: no such file"),
        (["--protect", "shipped", "--protect-share", "1"], "protect_share is 1.0: it is a share of the slots"),
        (["--protect-share", "0"], "protect_share is 0.0: it is a share of the slots"),
        (["--protect", "shipped", "--recipe", "dense"], "protect needs addressing that stays as it is"),
    ],
)
def test_bad_input_is_one_line(settings: dict[str, Any], tmp_path: Path, flags: list[str], said: str) -> None:
    from memlayers.data.fact_files import write_facts

    write_facts(tmp_path / "facts.jsonl", FACTS)
    arguments = ["teach", "--backbone", settings["backbone"], "--facts", str(tmp_path / "facts.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "memory"), *flags])
    assert isinstance(result.exception, InputError) and said in str(result.exception)
    assert "\n" not in str(result.exception) and not (tmp_path / "memory").exists()
