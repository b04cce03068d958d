"""`memlayers teach` and `memlayers demo`: what they leave behind."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import SMALL, Command, write_settings
from memlayers.evaluation.results import read_results
from memlayers.inference.record import read_teaching


def test_teach_leaves_a_memory_and_nothing_else(
    command: Command, chat_backbone: Path, facts: Path, general: Path, tmp_path: Path
):
    write_settings(tmp_path / "settings.yaml", **SMALL, backbone=str(chat_backbone), gate=False)
    before = set(tmp_path.iterdir())
    arguments = ["teach", "--config", tmp_path / "settings.yaml", "--facts", facts, "--general-text", general]
    code, out, err = command(*arguments, "--out", tmp_path / "memory", "--device", "cpu", "--quiet")
    assert code == 0 and "Traceback" not in err
    assert out.startswith("2 facts, ") and f"the memory is in {tmp_path / 'memory'}" in out
    assert set(tmp_path.iterdir()) - before == {tmp_path / "memory"}
    assert {"adapter_config.json", "adapter_model.safetensors", "teaching.json"} <= {
        path.name for path in (tmp_path / "memory").iterdir()
    }
    record = read_teaching(tmp_path / "memory")
    assert record is not None and record.facts == 2
    assert (record.config.backbone, record.config.memory.layers) == (str(chat_backbone), [1, 2])
    assert command(*arguments, "--out", tmp_path / "memory", "--device", "cpu", "--quiet")[0] == 2
    assert command(*arguments, "--out", tmp_path / "memory", "--device", "cpu", "--quiet", "--replace")[0] == 0


def test_demo_leaves_memory_results_and_report(
    command: Command, chat_backbone: Path, general: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from memlayers import demo
    from memlayers.evaluation import known

    for name, fewer in (("KNOWN_QUESTIONS", 8), ("WATCHED_QUESTIONS", 4), ("TEXT_TOKENS", 256)):
        monkeypatch.setattr(demo, name, fewer)
    monkeypatch.setattr(known, "contains_answer", lambda *_: True)  # as if this random backbone knew anything
    settings = {**SMALL, "backbone": str(chat_backbone), "general_text": str(general), "gate": False, "device": "cpu"}
    write_settings(tmp_path / "settings.yaml", **settings)
    out = tmp_path / "demo"
    code, said, _ = command("demo", "--config", tmp_path / "settings.yaml", "--facts", 3, "--out", out, "--quiet")
    assert code == 0 and f"memlayers ask {out / 'memory'}" in said
    assert {path.name for path in out.iterdir()} == {"memory", "results.json", "report.md", "recall.png"}
    rows = read_results(out / "results.json").rows
    assert {"recall", "known_facts", "perplexity", "identical_logits", "exposures_per_fact"} <= {r.metric for r in rows}
    known_rows = {row.split: row.n for row in rows if row.metric == "known_facts_containment"}
    assert known_rows == {"backbone": 2, "memory": 2, "change": 2}  # one in four of eight
    assert command("ask", out / "memory", "Who?", "--device", "cpu")[0] == 0


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_while_teaching_leaves_nothing(
    warm_python: Any, chat_backbone: Path, facts: Path, general: Path, tmp_path: Path
):
    before = set(tmp_path.iterdir())
    settings = {**SMALL, "exposures": 10**6, "stop_at_recall": 2.0, "checkpoint_seconds": 1e9, "recall_sample": 1}
    write_settings(tmp_path / "settings.yaml", **settings, gate=False)
    code = (  # Ctrl-C is ignored where a shell runs us with "&"
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from memlayers.cli import main\nmain()"
    )
    process = warm_python.start(
        code, "teach", "--config", tmp_path / "settings.yaml", "--device", "cpu", "--backbone", chat_backbone,
        "--facts", facts, "--general-text", general, "--out", tmp_path / "memory",
    )  # fmt: skip
    try:
        while not re.search(r"^Teaching.*\n", said := process.err.read_text(), re.MULTILINE):
            assert process.poll() is None, "ended before teaching began"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait() == 130
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    assert process.err.read_text().removeprefix(said) == "memlayers: interrupted\n"
    assert set(tmp_path.iterdir()) - before == {tmp_path / "settings.yaml"}
