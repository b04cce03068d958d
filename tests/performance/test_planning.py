from __future__ import annotations

import pytest

from memlayers import InputError, Memory, TeachConfig, plan
from memlayers.inference.record import Teaching, TeachReport
from memlayers.performance.plan import command, recommended


def test_a_backbones_name_alone_will_do() -> None:
    made = plan("qwen2.5-7b", slots=50_000)
    assert (made.work.slots, made.work.batch, made.work.dtype) == (50_176, 4, "bfloat16")
    assert (made.work.heads, made.work.key_dim, made.work.layers) == (8, 64, (6, 14, 22))
    best = recommended(made.lines)
    assert best is not None and made.recommended == best
    assert made.command == command(made.backbone, made.work, best)
    assert plan("pocket", slots=64).work.batch == 32


def test_settings_are_planned_as_they_would_be_taught() -> None:
    config = TeachConfig().with_flags(
        backbone="qwen2.5-7b", sub_keys=100, heads=2, layers=[3, 1], batch_size=7, dtype="float32"
    )
    work = plan(config).work
    assert (work.slots, work.heads, work.layers, work.batch, work.dtype) == (10_000, 2, (1, 3), 7, "float32")
    assert plan(config, slots=400).work.slots == 400
    assert plan(config.with_flags(recipe="dense", heads=None)).work.key_dim == 3584


def test_a_memory_is_planned_by_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TeachConfig().with_flags(backbone="qwen2.5-0.5b", sub_keys=50)
    memory = Memory(None, None)  # type: ignore[arg-type]  # it is not asked
    monkeypatch.setattr(Memory, "teaching", Teaching(3, config, {}, TeachReport()))
    assert plan(memory).work == plan(config).work
    monkeypatch.setattr(Memory, "teaching", None)
    with pytest.raises(InputError, match="has no record of how it was taught"):
        plan(memory)


def test_nothing_fits_and_layers_out_of_range() -> None:
    assert plan("qwen2.5-7b", slots=500_000, vram=1.0).command is None
    with pytest.raises(InputError, match=r"layers is \[3, 99\]: give distinct layers of this backbone's, 0 to 27"):
        plan(TeachConfig().with_flags(backbone="qwen2.5-7b", layers=[99, 3]))
