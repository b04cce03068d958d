"""`memlayers eval` and `memlayers report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.cli import Command
from memlayers.data.fact_files import read_questions, write_facts
from memlayers.data.facts import Fact
from memlayers.evaluation.asked import splits_in
from memlayers.evaluation.results import read_results
from memlayers.inference.generation import Generated

ROW = {"metric", "split", "value", "n", "ci_low", "ci_high", "higher_is_better"}


@pytest.fixture
def scores(command: Command, memory: Path, facts: Path, general: Path, tmp_path: Path) -> Path:
    """What `eval` writes about `memory`, with everything there is to score."""
    (tmp_path / "known.jsonl").write_text('{"question": "Where is Rome?", "answers": ["Italy", "in Italy"]}\n')
    out = tmp_path / "scores.json"
    code, said, err = command(
        "eval", memory, "--facts", facts, "--known", tmp_path / "known.jsonl", "--qa", tmp_path / "known.jsonl",
        "--text", general, "--out", out, "--report", tmp_path / "report", "--seed", 3, "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert code == 0 and "Traceback" not in err
    assert "recall" in said and "unseen_phrasing" in said
    return out


def test_eval_writes_the_rows_of_the_schema(scores: Path, memory: Path, facts: Path):
    read = json.loads(scores.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert set(read) == {"schema", "environment", "config", "rows", "curve", "examples"}
    assert read["schema"] == "memlayers.results/1"
    assert all(set(row) == ROW for row in read["rows"])
    rows = {(row["metric"], row["split"]): row for row in read["rows"]}
    assert len(rows) == len(read["rows"])
    assert set(rows) >= {
        ("recall", "backbone"), ("recall", "taught"), ("recall", "unseen_phrasing"),
        ("known_facts", "backbone"), ("known_facts", "memory"),
        ("qa_exact_match", "backbone"), ("qa_exact_match", "memory"),
        ("perplexity", "backbone"), ("perplexity", "memory"),
        ("identical_logits", "general_text"),
        ("exposures_per_fact", "all"), ("teach_seconds", "all"), ("peak_memory_bytes", "all"),
    }  # fmt: skip
    assert not rows["perplexity", "memory"]["higher_is_better"] and rows["recall", "taught"]["higher_is_better"]
    assert rows["recall", "taught"]["n"] == 2 and rows["peak_memory_bytes", "all"]["ci_low"] is None
    assert read["config"]["facts"] == str(facts) and read["config"]["memory"] == str(memory)
    assert {"commit", "torch", "transformers", "peft", "platform", "device", "date", "command"} <= set(
        read["environment"]
    )
    assert read["environment"]["command"].startswith("memlayers eval ")
    assert {"question", "answer", "backbone", "memory"} == set(read["examples"][0])
    assert read_results(scores).curve  # as teaching recorded it


def test_eval_scores_only_what_is_given(command: Command, memory: Path, general: Path, tmp_path: Path):
    out = tmp_path / "text.json"
    flags = ["--max-text-tokens", 8, "--device", "cpu", "--quiet"]
    assert command("eval", memory, "--text", general, "--out", out, *flags)[0] == 0
    rows = {(row.metric, row.split): row for row in read_results(out).rows}
    assert not {metric for metric, _ in rows} & {"recall", "known_facts", "qa_exact_match"}
    assert rows["identical_logits", "general_text"].n == 8


def test_known_facts_may_be_facts(command: Command, memory: Path, facts: Path, tmp_path: Path):
    out = tmp_path / "known.json"
    assert command("eval", memory, "--known", facts, "--out", out, "--device", "cpu", "--quiet")[0] == 0
    found = read_results(out).find("known_facts", "memory")
    assert found is not None and found.n == len(read_questions(facts)) == 4


@pytest.mark.usefixtures("short_answers")
def test_eval_asked_prints_a_line_for_each_split(command: Command, memory: Path, facts: Path, tmp_path: Path):
    never = tmp_path / "never.jsonl"
    write_facts(never, [Fact("c", "Cid", "Bern", ("Where was Cid born?",), "birth")])
    out, report = tmp_path / "scores.json", tmp_path / "report"
    flags = ["--asked", "--untaught", never, "--out", out, "--seed", 3, "--device", "cpu", "--quiet"]
    code, said, _ = command("eval", memory, "--facts", facts, "--report", report, *flags)
    assert code == 0
    results = read_results(out)
    splits = splits_in([results])
    assert {"as_spelled", "lower", "statement", "yes_no_false", "follow_up"} <= set(splits)
    lines = [line for line in said.splitlines() if line.split("│")[1:2] and line.split("│")[1].strip() in splits]
    assert [line.split("│")[1].strip() for line in lines] == splits
    recall, made_up = results.find("recall", "as_spelled"), results.find("fabricated", "as_spelled")
    assert recall is not None and recall.n == 2 and made_up is not None and made_up.n == 1
    assert results.config["untaught"] == str(never) and results.config["gate"] is True
    assert (report / "recall.png").read_bytes().startswith(b"\x89PNG")
    page = (report / "report.md").read_text()
    assert all(f"| {split} |" in page for split in splits) and "Ann is from where?" in page
    kept = tmp_path / "kept.json"
    flags[flags.index(out)] = kept
    assert command("eval", memory, *flags, "--questions", 1)[0] == 0  # the facts that the memory keeps
    assert {row.n for row in read_results(kept).rows} == {1}


def test_report_is_drawn_from_the_file_alone(command: Command, scores: Path, tmp_path: Path):
    again = tmp_path / "again"
    assert command("report", scores, "--out", again) == (0, f"the report is in {again}\n", "")
    assert (again / "report.md").read_bytes() == (tmp_path / "report" / "report.md").read_bytes()
    assert "unseen_phrasing" in (again / "report.md").read_text().replace("\\", "").replace(
        "unseen phrasing", "unseen_phrasing"
    )
    assert (again / "recall.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        (("one/results.json", "two/results.json"), ("one", "two")),
        (("same/gate.json", "same/no-gate.json"), ("gate", "no-gate")),
    ],
)
def test_several_results_are_set_side_by_side(
    places: tuple[str, ...], labels: tuple[str, ...], command: Command, scores: Path, tmp_path: Path
):
    paths = [tmp_path / place for place in places]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(scores.read_bytes())
    assert command("report", *paths, "--out", tmp_path / "both")[0] == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"compare.md", "compare.png"}
    head = (tmp_path / "both" / "compare.md").read_text()
    assert all(label in head for label in labels)


def test_known_keeps_what_the_backbone_answers_itself(
    command: Command, chat_backbone: Path, memory: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from memlayers.evaluation import known

    right = {question.question: question.answers[0] for question in read_questions(facts)}
    right[next(iter(right))] = "somewhere else"

    def generate(model: object, tokenizer: object, questions: list[str], **_: object) -> list[Generated]:
        return [Generated(f"It is {right.get(question, '?')}.", 1.0, False, 1.0) for question in questions]

    monkeypatch.setattr(known, "generate_answers", generate)
    more = tmp_path / "more.jsonl"
    more.write_text('{"question": "Where?", "answers": ["here"]}\n')
    out = tmp_path / "own" / "known.jsonl"
    files = ["--questions", facts, "--questions", more]
    asked = ["known", "--backbone", chat_backbone, *files, "--out", out, "--device", "cpu", "--quiet"]
    code, said, _ = command(*asked)
    assert code == 0 and "knows 3 of 5 questions" in said
    assert [each.question for each in read_questions(out)] == list(right)[1:]
    record = json.loads((tmp_path / "own" / "known.record.json").read_text())
    assert (record["known"], record["asked"], record["match"]) == (3, 5, "containment")
    scores = tmp_path / "scores.json"
    assert command("eval", memory, "--known", out, "--out", scores, "--device", "cpu", "--quiet")[0] == 0
    row = read_results(scores).find("unchanged_answers", "known")
    assert row is not None and row.n == 3
    before = {path: path.read_bytes() for path in out.parent.iterdir()}
    code, _, err = command(*asked, "--strict")  # nothing but whole answers
    assert code == 1 and "answered none of the questions rightly" in err and err.count("\n") == 1
    assert {path: path.read_bytes() for path in out.parent.iterdir()} == before
    assert command("known", "--backbone", chat_backbone, "--questions", tmp_path / "no.jsonl", "--out", out)[0] == 2
