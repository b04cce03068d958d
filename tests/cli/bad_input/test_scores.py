"""Bad input: what to score on."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.bad_input import Refused


@pytest.mark.parametrize("flag", ["--facts", "--known", "--qa", "--text"])
def test_a_missing_file_to_score_on(flag: str, refused: Refused, memory: Path, tmp_path: Path):
    line = refused("eval", memory, flag, tmp_path / "none.jsonl", "--out", tmp_path / "scores.json")
    assert line == f"{tmp_path / 'none.jsonl'}: no such file; check the path"


def test_nothing_to_score(refused: Refused, memory: Path, tmp_path: Path):
    line = refused("eval", memory, "--out", tmp_path / "scores.json")
    assert line == "nothing to score: give --facts, --known, --qa or --text"


def test_what_does_not_go_with_asked(refused: Refused, memory: Path, tmp_path: Path):
    out = ["--out", tmp_path / "scores.json"]
    line = refused("eval", memory, "--asked", "--phrasings", 2, *out)
    assert line.startswith("--asked asks for facts alone: leave out")
    line = refused("eval", memory, "--facts", tmp_path / "facts.jsonl", "--questions", 2, *out)
    assert line == "--questions belongs to --asked: give both, or --phrasings"


def test_a_text_too_short_to_score(refused: Refused, memory: Path, tmp_path: Path):
    (tmp_path / "short.txt").write_text("a")
    out = tmp_path / "scores.json"
    assert "less than two tokens" in refused("eval", memory, "--text", tmp_path / "short.txt", "--out", out, "--quiet")
