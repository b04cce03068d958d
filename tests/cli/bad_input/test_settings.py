"""Bad input: a YAML file, flags."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers.bad_input import Refused
from memlayers import cli


def test_the_arguments_that_these_tests_spoil_are_good(teaching: list[object], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["memlayers", *map(str, teaching)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.jsonl", "general.txt", "memory"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exposure: 3\n", "unknown key 'exposure'; known keys: backbone, "),
        ("exposures: 3\n", "unknown key 'exposures'; it belongs under 'schedule:'"),
        ("schedule:\n  exposures: many\n", "exposures is 'many': give a whole number"),
        ("schedule:\n  exposures: 2.5\n", "exposures is 2.5: give a whole number"),
        ("gate:\n  enabled: 1\n", "gate is 1: give true or false"),
        ("memory:\n  layers: 1,2\n", "layers is '1,2': give a list"),
        ("memory:\n  layers: [1, x]\n", "layers is [1, 'x']: give a list"),
        ("optimizer:\n  value_rate: fast\n", "value_rate is 'fast': give a number"),
        ("- exposures\n", "not a mapping"),
        ("words\n", "not a mapping"),
        ("", "is empty"),
        ("# nothing but a comment\n", "not a mapping"),
        ("exposures: [\n", "not YAML"),
        ("exposures: 3\n\tbatch_size: 4\n", "not YAML"),
        ("memory:\n  recipe: foo\n", "recipe is 'foo': take one of addressed, dense"),
    ],
)
def test_a_bad_yaml_file(text: str, said: str, refused: Refused, teaching: list[object], tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    line = refused(*teaching, "--config", path)
    assert line.startswith(f"{path}: ") and said in line


def test_a_bad_flag_over_a_good_yaml_file_does_not_blame_the_file(
    refused: Refused, teaching: list[object], tmp_path: Path
):
    path = tmp_path / "settings.yaml"
    path.write_text("memory:\n  heads: 2\n")
    assert refused(*teaching, "--config", path, "--recipe", "foo").startswith("recipe is 'foo'")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--exposures", 0], "exposures is 0: it must be at least 1"),
        (["--batch-size", -1], "batch_size is -1"),
        (["--sub-keys", 0], "sub_keys is 0"),
        (["--heads", 0], "heads is 0"),
        (["--top-k", 0], "top_k is 0"),
        (["--top-k", 9], "top_k 9 exceeds the 8 sub_keys"),
        (["--key-dim", 3], "key_dim is 3"),
        (["--recipe", "dense", "--heads", 64], "64 heads are too many"),
        (["--value-rate", 0], "value_rate is 0"),
        (["--value-rate", "nan"], "value_rate is nan"),
        (["--value-rate", "inf"], "value_rate is inf"),
        (["--clip", 0], "clip is 0"),
        (["--pack", 0], "pack is 0"),
        (["--pack", 5], "does not fit a pack of 5"),
        (["--warmup", -1], "warmup is -1"),
        (["--seed", -1], "seed is -1"),
        (["--stop-at-recall", "nan"], "stop_at_recall is nan"),
        (["--checkpoint-seconds", -1], "checkpoint_seconds is -1"),
        (["--recipe", "foo"], "recipe is 'foo': take one of addressed, dense"),
        (["--optimizer", "sgd"], "optimizer is 'sgd'"),
        (["--loss", "all"], "loss is 'all'"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--pool-dtype", "int4"], "pool_dtype is 'int4'"),
        (["--layers", "2,x"], "--layers 2,x: give numbers"),
        (["--layers", "2,"], "--layers 2,: give numbers"),
        (["--layers", "1,4"], "layer 4 is out of range: this backbone has the layers 0 to 3"),
        (["--layers", "1,1"], "layers is [1, 1]"),
        (["--layers", "-1,2"], "layers is [-1, 2]"),
        (["--device", "gpu"], "device 'gpu'"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
    ],
)
def test_a_bad_flag(flags: list[object], said: str, refused: Refused, teaching: list[object]):
    assert said in refused(*teaching, *flags)


def test_a_gate_that_opens_for_nothing(refused: Refused, teaching: list[object]):
    line = refused(*teaching, "--gate", "--gate-steps", 1, "--gate-threshold", 100, code=1)
    assert "--gate-threshold" in line


def test_values_that_run_away(refused: Refused, teaching: list[object]):
    line = refused(*teaching, "--exposures", 40, "--value-rate", 1e38, "--stop-at-recall", 2, code=1)
    assert "not finite" in line and "--value-rate" in line
