"""Bad input: checkpoints to resume from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.bad_input import FACTS, Refused, write_rows
from memlayers import cli


@pytest.fixture
def interrupted(teaching: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The arguments of a run that was interrupted and left one checkpoint."""
    from memlayers.teaching import teach

    def stop(run: Any) -> None:
        if run.report.steps == 3:
            run._save_checkpoint()
            raise KeyboardInterrupt

    arguments = [*teaching, "--exposures", 4, "--stop-at-recall", 2]
    with monkeypatch.context() as patched:
        patched.setattr(teach.Teacher, "_checkpoint_when_due", lambda run, _: stop(run))
        patched.setattr(sys, "argv", ["memlayers", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 130
    assert [path.name for path in (tmp_path / "memory.teaching").iterdir()] == ["step-00000003-0002"]
    return [*arguments, "--resume"]


def test_a_good_checkpoint_is_resumed(interrupted: list[object], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["memlayers", *map(str, interrupted)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.jsonl", "general.txt", "memory"]


def test_an_interrupted_run_in_the_way(refused: Refused, interrupted: list[object], tmp_path: Path):
    line = refused(*interrupted[:-1])
    assert line.startswith(f"{tmp_path / 'memory.teaching'}: ") and "--resume" in line


def test_nothing_to_resume(refused: Refused, teaching: list[object], tmp_path: Path):
    line = refused(*teaching, "--resume")
    assert line == f"{tmp_path / 'memory.teaching'}: no interrupted run there; start without --resume"


def test_a_file_where_the_checkpoints_go(refused: Refused, teaching: list[object], tmp_path: Path):
    (tmp_path / "memory.teaching").write_text("mine")
    assert refused(*teaching).startswith(str(tmp_path / "memory.teaching"))
    assert refused(*teaching, "--resume").startswith(str(tmp_path / "memory.teaching"))


@pytest.mark.parametrize("change", [["--seed", 5], ["--value-rate", 0.5], ["--facts"]])
def test_a_checkpoint_of_another_run(change: list[object], refused: Refused, interrupted: list[object], tmp_path: Path):
    if change == ["--facts"]:
        change = ["--facts", write_rows(tmp_path / "other.jsonl", FACTS[:1])]
    assert "other settings or other facts" in refused(*interrupted, *change)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_truncated_checkpoint(name: str, refused: Refused, interrupted: list[object], tmp_path: Path):
    path = next((tmp_path / "memory.teaching").glob(f"*/{name}"))
    whole = path.read_bytes()
    for keep in (len(whole) - 1, int(0.9 * len(whole)), 30, 0, None):
        if keep is None:
            path.unlink()
        else:
            path.write_bytes(whole[:keep])
        line = refused(*interrupted)
        assert line.startswith(f"{path.parent}: damaged checkpoint (")
        assert f"delete {tmp_path / 'memory.teaching'}" in line


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_with_tensors_missing_or_of_another_shape(
    name: str, refused: Refused, interrupted: list[object], tmp_path: Path
):
    path = next((tmp_path / "memory.teaching").glob(f"*/{name}"))
    save_file({"0.exp_avg": torch.zeros(3, 2)}, path)
    assert "damaged checkpoint" in refused(*interrupted)


def test_a_checkpoint_whose_report_is_damaged(refused: Refused, interrupted: list[object], tmp_path: Path):
    path = next((tmp_path / "memory.teaching").glob("*/state.json"))
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "report": {"steps": 3}}))
    assert "damaged checkpoint" in refused(*interrupted)
