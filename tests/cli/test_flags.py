"""Every setting is a flag of `teach`; the recipes are settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import memlayers
from helpers.cli import Command, all_commands
from memlayers import TeachConfig
from memlayers.config.teach import flag_fields, read_teach_config

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("words", ["teach", "demo"])
def test_every_setting_is_a_flag_with_its_help(words: str):
    options = {option for parameter in all_commands()[words].params for option in parameter.opts}
    helps = {parameter.name: parameter.help for parameter in all_commands()[words].params}
    for flag in flag_fields():
        assert f"--{flag.replace('_', '-')}" in options
        assert len(helps[flag].split("[")[0]) > 5, f"{flag} has no help"


@pytest.fixture
def settings_given(monkeypatch: pytest.MonkeyPatch, facts: Path, command: Command) -> Callable[..., TeachConfig]:
    """`settings_given(*flags)` returns the configuration that `teach` would teach with."""
    from memlayers.teaching import teach

    seen: list[TeachConfig] = []

    def note(rows: Any, out: Any, config: TeachConfig, **_: Any) -> Any:
        seen.append(config)
        raise memlayers.WorkError("stopped here")

    monkeypatch.setattr(teach, "teach_facts", note)

    def run(*flags: object) -> TeachConfig:
        code, _, err = command("teach", "--facts", facts, "--out", "never", *flags)
        assert code == 1 and err == "memlayers: stopped here\n"
        return seen[-1]

    return run


def test_no_flags_are_the_defaults(settings_given: Callable[..., TeachConfig]):
    assert settings_given() == TeachConfig()


def test_every_flag_reaches_its_setting(settings_given: Callable[..., TeachConfig]):
    special = {
        "recipe": "dense", "optimizer": "adamw", "loss": "full", "dtype": "bfloat16", "pool_dtype": "float16",
        "layers": [3, 5], "optimizer_semantics": "lazy", "optimizer_bits": 8, "optimizer_device": "host",
        "half_rounding": "stochastic", "key_dim": 78,
    }  # fmt: skip
    defaults = TeachConfig().flags()
    assert len(defaults) == 42
    for flag, where in flag_fields().items():
        kind = str(where.field.type).split(" |")[0]
        value = special.get(flag, {"int": 77, "float": 0.625, "bool": False}.get(kind, "a/b"))
        name = f"--{flag.replace('_', '-')}"
        if kind == "bool":
            given: list[object] = [name.replace("--", "--no-")]
        else:
            given = [name, ",".join(map(str, value)) if isinstance(value, list) else value]
        config = settings_given(*given)
        assert config.flags() == {**defaults, flag: value}, name
        assert config == TeachConfig().with_flags(**{flag: value})


def test_a_flag_wins_over_the_yaml_file(settings_given: Callable[..., TeachConfig], tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "schedule:\n  exposures: 3\nseed: 4  # a comment\nmemory:\n  layers: [1, 2]\ngate:\n  enabled: false\n"
        "optimizer:\n  value_rate: 1e-2\n  clip: null\n"
    )
    config = settings_given("--config", path, "--seed", 5, "--layers", "7", "--gate")
    assert config == TeachConfig().with_flags(exposures=3, seed=5, layers=[7], gate=True, value_rate=0.01)
    assert settings_given("--config", path) == TeachConfig().with_flags(
        exposures=3, seed=4, layers=[1, 2], gate=False, value_rate=0.01
    )


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_recipe_can_be_read(path: Path):
    config = read_teach_config(path, {})
    assert config != TeachConfig() or config.backbone == "pocket"
    assert f"--config recipes/{path.name}" in path.read_text(encoding="utf-8")


def test_the_recipes_say_what_they_are_named_for():
    assert read_teach_config(RECIPES / "pocket.yaml", {}).backbone == "pocket"
    assert read_teach_config(RECIPES / "qwen2.5-0.5b.yaml", {}).backbone == "Qwen/Qwen2.5-0.5B-Instruct"
    large = read_teach_config(RECIPES / "qwen2.5-7b-24gb.yaml", {})
    memory = large.memory
    assert (large.machine.dtype, memory.layers, memory.sub_keys, memory.top_k) == ("bfloat16", [6, 14, 22], 224, 8)
    assert (large.schedule.batch_size, large.optimizer.name) == (4, "row-adamw")
    dense = read_teach_config(RECIPES / "reference-dense.yaml", {})
    memory, schedule = dense.memory, dense.schedule
    assert (memory.recipe, memory.layers, memory.shape.sub_keys, memory.shape.heads) == ("dense", [6, 14, 22], 224, 1)
    assert (dense.optimizer.dense_rate, schedule.loss, dense.gated, schedule.pack) == (1e-3, "answer", False, None)
