from __future__ import annotations

import sys
from pathlib import Path

import pytest

from memlayers.evaluation.report import compare_report, write_report
from memlayers.evaluation.results import Results, Row, write_results
from memlayers.inference.record import CurvePoint
from memlayers.utils.errors import InputError, WorkError

pytest.importorskip("matplotlib")


def _results(taught: float = 0.996, perplexity: float = 8.337, curve: bool = True) -> Results:
    rows = [
        Row("recall", "backbone", 0.034, 500, 0.02, 0.05),
        Row("recall", "taught", taught, 500, taught - 0.01, min(taught + 0.003, 1.0)),
        Row("recall", "unseen_phrasing", 0.952, 1000, 0.938, 0.964),
        Row("known_facts", "backbone", 0.94, 2000, 0.93, 0.95),
        Row("known_facts", "memory", 0.9353, 2000, 0.925, 0.945),
        Row("known_facts_containment", "backbone", 0.98, 2000, 0.97, 0.985),
        Row("known_facts_containment", "memory", 0.979, 2000, 0.97, 0.985),
        Row("unchanged_answers", "known", 0.995, 2000, 0.99, 0.998),
        Row("perplexity", "backbone", 8.309, 41222),
        Row("perplexity", "memory", perplexity, 41222),
        Row("identical_logits", "general_text", 0.9912, 41222, 0.99, 0.992),
        Row("teach_seconds", "all", 83.2, 1),
        Row("peak_memory_bytes", "all", 1_213_000_000, 1),
    ]
    if curve:
        rows.append(Row("exposures_per_fact", "all", 7.6, 500))
    return Results(
        environment={"device": "cpu", "commit": None},
        config={"recipe": "addressed"},
        rows=rows,
        curve=[CurvePoint(2, 0.31, 8.32, 0.94), CurvePoint(4, 0.74)] if curve else [],
        examples=[{"question": "a | b <x>\nc?", "memory": "Paris"}, {"question": "d?", "backbone": "Rome"}],
    )


def _write(path: Path, results: Results) -> Path:
    write_results(path, results)
    return path


def _is_png(path: Path) -> bool:
    data = path.read_bytes()
    return data.startswith(b"\x89PNG") and len(data) > 10_000


def test_report_is_drawn_from_the_file_alone(tmp_path: Path):
    path = _write(tmp_path / "results.json", _results())
    markdown, picture = write_report(path, tmp_path / "out")
    assert (markdown, picture) == (tmp_path / "out" / "report.md", tmp_path / "out" / "recall.png")
    assert _is_png(picture)
    text = markdown.read_text(encoding="utf-8")
    assert "](recall.png)" in text
    assert "| recall | taught | 99.6 % | 98.6 % to 99.9 % | 500 | higher |" in text
    assert "| perplexity | memory | 8.337 |  | 41,222 | lower |" in text
    assert "**99.6 %** after 7.60 exposures each; **95.2 %** on phrasings never taught; " in text
    assert "the backbone alone: 3.4 %." in text
    assert "Known facts kept: **99.5 %** of the backbone's (94.0 % before, 93.5 % after)." in text
    assert (
        "Known facts by containment: 98.0 % before, **97.9 %** after; "
        "**99.5 %** of the answers are the backbone's, word for word." in text
    )
    assert "| known_facts_containment | memory | 97.9 % | 97.0 % to 98.5 % | 2,000 | higher |" in text
    assert "Perplexity: 8.309 before, 8.337 after (**+0.34 %**)." in text
    assert "| question | memory | backbone |" in text
    assert "| a \\| b &lt;x> c? | Paris |  |" in text
    assert '"recipe": "addressed"' in text
    assert "commit" not in text  # not known, not shown


def test_the_same_results_give_the_same_bytes(tmp_path: Path):
    path = _write(tmp_path / "results.json", _results())
    first = [written.read_bytes() for written in write_report(path, tmp_path / "a")]
    second = [written.read_bytes() for written in write_report(path, tmp_path / "b")]
    assert first == second


@pytest.mark.parametrize(
    "results",
    [
        _results(curve=False),
        _results(perplexity=3.5e6),
        _results(taught=0.0),
        Results({}, {}, [Row("qa_exact_match", "memory", 0.5, 10)]),
        Results({}, {}),
        Results({}, {}, [], [CurvePoint(2, 0.5), CurvePoint(4, 0.75)]),
    ],
    ids=["no curve", "exploded", "nothing learned", "question file only", "empty", "curve only"],
)
def test_any_results_can_be_drawn(tmp_path: Path, results: Results, recwarn: pytest.WarningsRecorder):
    markdown, picture = write_report(_write(tmp_path / "results.json", results), tmp_path)
    assert _is_png(picture) and markdown.read_text(encoding="utf-8")
    assert not [str(warning.message) for warning in recwarn]


def test_compare(tmp_path: Path):
    runs = [
        ("addressed", _write(tmp_path / "a.json", _results())),
        ("cost | $", _write(tmp_path / "b.json", _results(taught=0.17, perplexity=33.1, curve=False))),
    ]
    markdown, picture = compare_report(runs, tmp_path / "out")
    assert _is_png(picture)
    text = markdown.read_text(encoding="utf-8")
    assert "| metric | split | addressed | cost \\| $ |" in text
    assert "| recall | taught | **99.6 %** [98.6 % to 99.9 %] | 17.0 % [16.0 % to 17.3 %] |" in text
    assert "| perplexity | memory | **8.337** | 33.10 |" in text
    assert "| perplexity | backbone | 8.309 | 8.309 |" in text  # nobody's merit
    assert "| exposures_per_fact | all | 7.60 |  |" in text


def test_compare_refuses_unclear_runs(tmp_path: Path):
    path = _write(tmp_path / "a.json", _results())
    for runs in ([], [("a", path), ("a", path)], [(str(i), path) for i in range(8)]):
        with pytest.raises(InputError, match="each with its own label"):
            compare_report(runs, tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        compare_report([("a", path), ("b", tmp_path / "nothing.json")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = _write(tmp_path / "results.json", _results())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(WorkError, match="pip install matplotlib"):
        write_report(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
