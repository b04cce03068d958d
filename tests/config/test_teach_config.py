from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from memlayers.config.options import option_of
from memlayers.config.sections import (
    AbstentionConfig,
    DataConfig,
    GateConfig,
    MemorySettings,
    MentionConfig,
    RelationConfig,
    ScheduleConfig,
)
from memlayers.config.teach import TeachConfig, config_from_record, flag_fields, read_teach_config
from memlayers.inference.folder import TEACHING_FILE
from memlayers.inference.record import CurvePoint, GateReport, Teaching, TeachReport, read_teaching, write_teaching
from memlayers.utils.errors import InputError

REPORT = TeachReport(
    steps=4,
    exposures=2.0,
    recall=0.5,
    skipped_steps=1,
    seconds=1.5,
    gates=[GateReport(4.0, 0.99, 0.01)],
    curve=[CurvePoint(1.0, 0.25, 7.5, 0.9), CurvePoint(2.0, 0.5, None, None)],
)


def test_every_field_is_explained() -> None:
    text = str(TeachConfig.__doc__)
    assert [name for name in asdict(TeachConfig()) if f"\n        {name}: " not in text] == []
    unexplained = [flag for flag, where in flag_fields().items() if len(option_of(where.field).help) < 10]
    assert unexplained == []
    sections = (MentionConfig, RelationConfig, AbstentionConfig, GateConfig, MemorySettings, DataConfig, ScheduleConfig)
    bare = [each.name for kind in sections for each in fields(kind) if option_of(each) is None]
    assert bare == ["mentions", "relation_check", "abstention"]  # sections of their own


def test_flags_are_the_inverse_of_with_flags() -> None:
    config = TeachConfig().with_flags(sub_keys=9, gate=False, optimizer_bits=8, layers=[3], seed=5, device="cpu")
    assert TeachConfig().with_flags(**config.flags()) == config
    with pytest.raises(InputError, match="unknown setting 'sub_key'; known settings: backbone"):
        TeachConfig().with_flags(sub_key=3)


def test_flat_settings_of_version_0_1_are_read() -> None:
    config = TeachConfig().with_flags(sub_keys=9, gate_steps=3)
    assert config_from_record(config.flags()) == config_from_record(asdict(config)) == config


@pytest.mark.parametrize(
    ("recipe", "gate", "gated"),
    [("addressed", None, True), ("dense", None, False), ("addressed", False, False), ("dense", True, True)],
)
def test_the_gate_follows_the_recipe_unless_told(recipe: str, gate: bool | None, gated: bool) -> None:
    assert TeachConfig().with_flags(recipe=recipe, gate=gate).gated is gated


@pytest.mark.parametrize(
    ("flags", "exposures", "further"),
    [
        ({}, 5, 6),
        ({"exposures": 8}, 8, 0),  # as told, no more
        ({"exposures": 8, "further": 2}, 8, 2),
        ({"recipe": "dense"}, 5, 0),
        ({"gate": False}, 5, 0),
        ({"further": 0}, 5, 0),
    ],
)
def test_exposures_and_further_rounds(flags: dict[str, Any], exposures: int, further: int) -> None:
    config = TeachConfig().with_flags(**flags)
    assert (config.exposures, config.further) == (exposures, further)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exposures": 0}, "exposures is 0: it must be at least 1"),
        ({"exposures": 2.5}, "exposures is 2.5: give a whole number"),
        ({"exposures": True}, "exposures is True: give a whole number"),
        ({"batch_size": 0}, "batch_size"),
        ({"accumulation": -1}, "accumulation"),
        ({"recall_sample": 0}, "recall_sample"),
        ({"gate_steps": 0}, "gate_steps"),
        ({"value_rate": 0.0}, "value_rate is 0.0: it must be positive"),
        ({"value_rate": float("nan")}, "value_rate"),
        ({"value_rate": "fast"}, "value_rate is 'fast': give a number"),
        ({"dense_rate": -1.0}, "dense_rate"),
        ({"clip": 0.0}, "clip is 0.0: it must be positive"),
        ({"clip": -1.0}, "clip"),
        ({"layers": "1,2"}, "layers is '1,2': give a list, each a whole number or nothing"),
        ({"layers": [1, "2"]}, "layers"),
        ({"layers": [True]}, "layers"),
        ({"gate": 1}, "gate is 1: give true or false or nothing"),
        ({"backbone": None}, "backbone is None: give a text"),
        ({"recipe": "sparse"}, "recipe is 'sparse': take one of addressed, dense"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd': take one of row-adamw, adamw"),
        ({"loss": "all"}, "loss"),
        ({"dtype": "int8"}, "dtype"),
        ({"pool_dtype": "auto"}, "pool_dtype"),
    ],
)
def test_values_that_make_no_sense_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as told:
        TeachConfig().with_flags(**values)
    assert message in str(told.value)


def test_whole_numbers_do_for_real_ones_and_none_where_it_may_be() -> None:
    config = TeachConfig().with_flags(value_rate=1, clip=2, layers=[0, 3], pack=None, device=None)
    assert (config.optimizer.value_rate, config.optimizer.clip, config.memory.layers) == (1, 2, [0, 3])


def test_yaml_and_flags_laid_over_it(tmp_path: Path) -> None:
    path = tmp_path / "teach.yaml"
    path.write_text(
        "schedule: {exposures: 7}\noptimizer: {value_rate: 0.25}\n"
        "memory:\n  layers: [0, 2]\n  recipe: dense\ngate:\n  enabled: false\n"
    )
    config = read_teach_config(path, {"exposures": 3, "value_rate": None, "gate": True})
    assert config == TeachConfig().with_flags(exposures=3, value_rate=0.25, layers=[0, 2], gate=True, recipe="dense")
    assert read_teach_config(None, {"seed": 5, "clip": None}) == TeachConfig().with_flags(seed=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exposure: 7\n", "unknown key 'exposure'; known keys: backbone, data, memory"),
        ("- 1\n- 2\n", "not a mapping"),
        ("exposures: [1\n", "not YAML"),
        ("exposures: 7\n", "unknown key 'exposures'; it belongs under 'schedule:'"),
        ("schedule: {exposures: '7'}\n", "exposures is '7': give a whole number"),
        ("schedule: {exposure: 7}\n", "unknown key 'schedule.exposure'; known keys: exposures, further, batch_size"),
        ("schedule: 7\n", "schedule is 7: indent its own keys below it"),
        ("memory: {recipe: sparse}\n", "take one of addressed, dense"),
        ("", "the file is empty"),
        ("1: 2\n", "unknown key 1"),
    ],
)
def test_a_bad_yaml_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "teach.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as told:
        read_teach_config(path, {})
    assert str(told.value).startswith(f"{path}: ") and message in str(told.value)
    assert "\n" not in str(told.value)


def test_a_bad_flag_does_not_blame_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^exposures is 0"):
        read_teach_config(None, {"exposures": 0})
    with pytest.raises(InputError, match="absent.yaml: no such file"):
        read_teach_config(tmp_path / "absent.yaml", {})


def test_the_record_round_trips(tmp_path: Path) -> None:
    written = Teaching(500, TeachConfig().with_flags(layers=[1, 2], clip=1.0), {"torch": "2"}, REPORT)
    write_teaching(tmp_path, written)
    assert read_teaching(tmp_path) == written
    assert read_teaching(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"exposures": 12', '"exposures": "12"'),
        lambda text: text.replace('"value_rate"', '"rate"'),
        lambda text: text.replace('"open_on_facts"', '"open"'),
        lambda text: text.replace('"curve": [', '"curve": [3, '),
    ],
    ids=["cut", "list", "empty", "type", "field", "gate", "curve"],
)
def test_a_damaged_record_is_named(tmp_path: Path, damage: Any) -> None:
    write_teaching(tmp_path, Teaching(500, TeachConfig().with_flags(exposures=12), {}, REPORT))
    path = tmp_path / TEACHING_FILE
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.raises(InputError, match="teaching.json: damaged record"):
        read_teaching(tmp_path)
