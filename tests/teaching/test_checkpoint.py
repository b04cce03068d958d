"""Resuming: a run that was killed anywhere ends in the same bits."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import time
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from helpers.teaching import FACTS, Configure, adapter_bytes, answer_loss, teach
from memlayers.config.teach import TeachConfig
from memlayers.data.facts import Source
from memlayers.inference.record import TeachReport
from memlayers.teaching.checkpoint import Checkpoint
from memlayers.teaching.teach import teach_facts
from memlayers.teaching.teacher import Teacher
from memlayers.tuner.handle import MemoryHandle
from memlayers.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("short_answers")


class Killed(BaseException):
    """Nobody handles it, as nobody handles SIGKILL."""


def _checkpoints(work: Path) -> list[Path]:
    return Checkpoint(work, {}).found()


def _without_seconds(report: TeachReport) -> TeachReport:
    return replace(report, seconds=0.0, stages={})


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
    ("of", "method", "call", "after", "checkpoints"),
    [
        (Teacher, "_measure", 2, False, "all"),  # the pass is over, not yet measured
        (Teacher, "_measure", 2, True, "all"),  # measured, not yet in a checkpoint
        (Teacher, "_measure", 2, True, "mid-pass"),
        (Teacher, "_measure", 4, True, "all"),  # all is done but the writing
        (Teacher, "_measure", 4, True, "mid-pass"),
        (Teacher, "step", 4, False, "all"),  # the first step of a pass
        (Teacher, "step", 4, False, "mid-pass"),
        (Teacher, "step", 5, True, "all"),
        (Checkpoint, "save", 5, False, "all"),
        (Checkpoint, "save", 3, True, "mid-pass"),
        (Checkpoint, "save", 3, True, "all"),  # just after a pass
        (MemoryHandle, "save", 3, True, "all"),  # inside a checkpoint, half written
        (MemoryHandle, "save", 1, True, "all"),  # inside the first one: there is nothing to go on from
    ],
)
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
            teach(tmp_path / "memory", _resumable(configure), watch=_watch)
    assert not (tmp_path / "memory").exists()
    if of is MemoryHandle and call == 1:
        assert not _checkpoints(tmp_path / "memory.teaching")
    (tmp_path / "memory.teaching").mkdir(exist_ok=True)
    taught = teach(tmp_path / "memory", _resumable(configure), watch=_watch, resume=True)
    assert (adapter_bytes(tmp_path / "memory"), _without_seconds(taught.report)) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_killed_while_it_teaches_further_ends_in_the_same_bits(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(exposures=2, further=2, gate=True, value_rate=1e-3, checkpoint_seconds=0.0)
    config = replace(config, schedule=replace(config.schedule, further_epochs=3))
    whole = teach(tmp_path / "whole", config)
    assert whole.report.checks == [6, 6, 6] and whole.report.steps == 4 + 2 * 6
    # After steps 5, 8 and 13: in the first and second epoch of the first round, and in the first of the second.
    for method, call, saved in (("step", 4, 3), ("step", 5, 4), ("step", 8, 6), ("_check", 3, 10), ("step", 13, 12)):
        with monkeypatch.context() as patch:
            _interrupt(patch, method, call, after=True)
            with pytest.raises(Killed):
                teach(tmp_path / "memory", config)
        assert _checkpoints(tmp_path / "memory.teaching")[-1].name.startswith(f"step-{saved:08d}-")
        resumed = teach(tmp_path / "memory", config, resume=True, replace=True)
        assert adapter_bytes(tmp_path / "memory") == adapter_bytes(tmp_path / "whole")
        assert _without_seconds(resumed.report) == _without_seconds(whole.report)
        shutil.rmtree(tmp_path / "memory")


def _watch(model: Any, tokenizer: Any) -> tuple[float, float]:
    return answer_loss(model, tokenizer), 1.0


@pytest.fixture(scope="module")
def uninterrupted(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, TeachReport]:
    out = tmp_path_factory.mktemp("uninterrupted") / "memory"
    report = teach(out, _resumable(configure), watch=_watch).report
    assert len(report.curve) == 4
    return adapter_bytes(out), _without_seconds(report)


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
    ("optimizer", "recipe", "kills"),
    [("row-adamw", "addressed", 2), ("adamw", "dense", 1)],
)
def test_sigkill_and_resume_gives_the_same_bytes(
    configure: Configure, tmp_path: Path, warm_python: Any, optimizer: str, recipe: str, kills: int
) -> None:
    config = configure(
        optimizer=optimizer, recipe=recipe, exposures=8, batch_size=2, checkpoint_seconds=0.0, recall_sample=2
    )
    whole = teach(tmp_path / "whole", config).report
    out, work = tmp_path / "memory", tmp_path / "memory.teaching"
    reached = ""
    for kill in range(kills):
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
    taught = teach(out, config, resume=True)
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")
    assert _without_seconds(taught.report) == _without_seconds(whole)
    assert not work.exists()


@pytest.fixture
def interrupted(configure: Configure, tmp_path: Path) -> Path:
    """The folder of a memory whose teaching was killed after a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        _interrupt(patch, "step", 3, after=True)
        with pytest.raises(Killed):
            teach(tmp_path / "memory", _resumable(configure, gate=False))
    assert len(_checkpoints(tmp_path / "memory.teaching")) == 1
    return tmp_path / "memory"


def test_an_interrupted_run_is_neither_overwritten_nor_mixed_up(configure: Configure, interrupted: Path) -> None:
    with pytest.raises(InputError, match=r"memory\.teaching: an interrupted run.*--resume"):
        teach(interrupted, _resumable(configure, gate=False))
    with pytest.raises(InputError, match=r"memory\.teaching: left by a run with other settings"):
        teach(interrupted, _resumable(configure, gate=False, value_rate=0.5), resume=True)
    with pytest.raises(InputError, match="other facts"):
        teach_facts(FACTS[:5], interrupted, _resumable(configure, gate=False), resume=True, quiet=True)
    assert len(_checkpoints(Path(f"{interrupted}.teaching"))) == 1
    assert not interrupted.exists()


def test_a_run_goes_on_whose_documents_have_moved(configure: Configure, interrupted: Path) -> None:
    moved = [replace(fact, sources=(Source("elsewhere/codes.csv", fact.answer, row=2),)) for fact in FACTS]
    taught = teach_facts(moved, interrupted, _resumable(configure, gate=False), resume=True, quiet=True)
    assert [fact.sources for fact in taught.facts] == [fact.sources for fact in moved]


def test_a_damaged_checkpoint_is_named(configure: Configure, interrupted: Path) -> None:
    """What may be missing of its files is tried on the command line (tests/cli/bad_input/test_checkpoints.py)."""
    path = _checkpoints(Path(f"{interrupted}.teaching"))[0] / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"step-00000002-0000: damaged checkpoint .*delete .*memory\.teaching") as told:
        teach(interrupted, _resumable(configure, gate=False), resume=True)
    assert "\n" not in str(told.value)
    assert not interrupted.exists()
