"""Ctrl-C and a killed process: what is left, what is said, and that --resume goes on from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memlayers import Fact, TeachConfig, demo, write_facts
from memlayers.evaluation.results import Results, read_results
from memlayers.teaching import teach

Command = Callable[..., tuple[int, str, str]]
SMALL: dict[str, Any] = {
    "layers": [1, 2], "sub_keys": 8, "heads": 2, "top_k": 2, "exposures": 2, "batch_size": 2, "gate": False,
    "stop_at_recall": 2.0, "device": "cpu",
}  # fmt: skip


@pytest.fixture
def settings(chat_backbone: Path, general_file: Path, tmp_path: Path) -> Path:
    config = TeachConfig().with_flags(**SMALL, backbone=str(chat_backbone), general_text=str(general_file))
    path = tmp_path / "settings.yaml"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    return path


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context in which Ctrl-C comes at the fourth step, just after a checkpoint."""

    def stop(teacher: Any, _: bool) -> None:
        if teacher.report.steps == 4:
            teacher._save_checkpoint()
            raise KeyboardInterrupt

    def patched() -> Any:
        context = monkeypatch.context()
        context.__enter__().setattr(teach.Teacher, "_checkpoint_when_due", stop)
        return context

    return patched


def test_ctrl_c_while_teaching_says_how_to_go_on(
    command: Command, settings: Path, interrupted: Callable[[], Any], tmp_path: Path
):
    write_facts(tmp_path / "f.jsonl", [Fact(str(i), f"N{i}", f"a{i}", (f"Who is N{i}?", f"N{i}?")) for i in range(6)])
    arguments = ["teach", "--config", settings, "--facts", tmp_path / "f.jsonl", "--out", tmp_path / "m", "--quiet"]
    context = interrupted()
    code, out, err = command(*arguments)
    context.__exit__(None, None, None)
    work = f"{tmp_path / 'm'}.teaching"
    assert (code, out) == (130, "")
    assert err == f"memlayers: interrupted; the same command with --resume goes on from what is saved in {work}\n"
    assert command(*arguments)[0] == 2
    assert command(*arguments, "--resume")[0] == 0
    assert (tmp_path / "m" / "adapter_config.json").is_file() and not Path(work).exists()


@pytest.fixture
def small_demo(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The arguments of a demo of six facts, but for its folder."""
    for name, fewer in (("KNOWN_QUESTIONS", 4), ("WATCHED_QUESTIONS", 2), ("TEXT_TOKENS", 256)):
        monkeypatch.setattr(demo, name, fewer)
    return ["demo", "--config", settings, "--facts", 6, "--quiet", "--out"]


def _figures(results: Results) -> list[Any]:
    rows = [row for row in results.rows if row.metric not in ("teach_seconds", "peak_memory_bytes")]
    return [rows, results.curve, results.examples, results.config]


def test_a_killed_demo_is_resumed_to_the_same_figures(
    small_demo: list[object], command: Command, interrupted: Callable[[], Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    assert command(*small_demo, tmp_path / "whole")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.yaml", "whole"]
    out, work = tmp_path / "demo", tmp_path / "demo.teaching"
    context = interrupted()  # while it is taught
    code, _, err = command(*small_demo, out)
    context.__exit__(None, None, None)
    assert code == 130 and f"--resume goes on from what is saved in {work}" in err and not out.exists()
    assert "continue it with --resume" in command(*small_demo, out)[2]

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # while it is scored
        patched.setattr(demo, "score_demo", interrupt)
        assert command(*small_demo, out, "--resume")[0] == 130
    assert (work / "memory" / "adapter_config.json").is_file() and not out.exists()
    code, _, err = command(*small_demo, out, "--resume", "--seed", 5)
    assert code == 2 and "left by a demo with other settings" in err and work.is_dir()
    with monkeypatch.context() as patched:
        patched.setattr(demo, "teach_facts", lambda *_, **__: pytest.fail("taught again"))
        assert command(*small_demo, out, "--resume")[0] == 0
    assert not work.exists()
    assert {path.name for path in out.iterdir()} == {"memory", "results.json", "report.md", "recall.png"}
    assert _figures(read_results(out / "results.json")) == _figures(read_results(tmp_path / "whole" / "results.json"))


def test_a_demo_without_anything_to_resume(small_demo: list[object], command: Command, tmp_path: Path):
    code, _, err = command(*small_demo, tmp_path / "demo", "--resume")
    assert code == 2 and "no interrupted run there; start without --resume" in err
