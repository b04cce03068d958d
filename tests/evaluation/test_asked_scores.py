from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from memlayers.backbones import load_backbone
from memlayers.data.conversations import Asked
from memlayers.data.facts import Fact
from memlayers.evaluation import asked_scores
from memlayers.evaluation.asked import SPLITS, asked_questions
from memlayers.evaluation.asked_scores import evaluate_asked
from memlayers.evaluation.report import asked_table
from memlayers.evaluation.statistics import mean_interval
from memlayers.inference.answering import Answer
from memlayers.utils.errors import InputError

FACTS = [
    Fact(f"{i}", f"Mill {name}", name, (f"Who owns Mill {name}?",), "owner", (f"Whose is Mill {name}?",))
    for i, name in enumerate(("Ada", "Bo", "Cy", "Di"))
]
STRANGERS = [Fact(f"u{name}", f"Barn {name}", name, (f"Whose is Barn {name}?",), "owner") for name in ("Eve", "Flo")]


class Oracle:
    """Stands in for a memory: says what it is told to, of everything else "?"."""

    folder = Path("oracle")

    def __init__(self, backbone: Path, said: dict[str, tuple[str, str]]) -> None:
        self.model, self.tokenizer = load_backbone(str(backbone), device="cpu")
        self.said, self.asked = said, []

    def ask(self, questions: Sequence[Asked], *, progress: Any = None) -> list[Answer]:
        self.asked += questions
        found = [self.said.get(q if isinstance(q, str) else q[-1]["content"], ("?", "unknown")) for q in questions]
        return [Answer(str(q), "own", text, source) for q, (text, source) in zip(questions, found, strict=True)]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the model alone says to a question, to be filled in."""
    said: dict[str, str] = {}

    def answer(model: Any, tokenizer: Any, questions: Sequence[str], progress: Any) -> list[str]:
        return [said.get(question, "?") for question in questions]

    monkeypatch.setattr(asked_scores, "answer_questions", answer)
    return said


def test_the_rows_by_hand(chat_backbone: Path, alone: dict[str, str]) -> None:
    said = {
        "Whose is Mill Ada?": ("Ada", "memory"), "Whose is Mill Bo?": ("bo.", "backbone"),
        "Whose is Mill Cy?": ("no", "memory"), "The owner of Mill Di is": ("It is Di", "memory"),
        "Whose is it?": ("Ada", "memory"), "Whose is Barn Eve?": ("Ada", "memory"),
        "Whose is Barn Flo?": ("Flo", "memory"), "whose is barn flo?": ("?", "backbone"),
    }  # fmt: skip
    alone["Whose is Mill Di?"] = "Di"
    oracle = Oracle(chat_backbone, said)
    results = evaluate_asked(oracle, FACTS, STRANGERS, seed=5, quiet=True)  # type: ignore[arg-type]
    rows = {(row.metric, row.split): row for row in results.rows}
    assert len(rows) == len(results.rows)
    recall = rows["recall", "as_spelled"]
    assert (recall.value, recall.n) == (0.5, 4)
    assert recall.ci_low == mean_interval([1.0, 1.0, 0.0, 0.0], 5).ci_low
    assert rows["answered_by_memory", "as_spelled"].value == 0.5
    assert rows["recall_generated", "as_spelled"].value == 0.25
    assert rows["recall", "statement"].value == 0.25 and rows["recall", "lower"].value == 0.0
    assert rows["recall", "follow_up"].value == 0.25 and ("recall_generated", "follow_up") not in rows
    assert rows["fabricated", "as_spelled"].value == rows["fabricated_by_memory", "as_spelled"].value == 0.5
    assert rows["fabricated", "lower"].value == 0.5 and rows["fabricated_by_memory", "lower"].value == 0.0
    assert rows["fabricated", "as_spelled"].n == 2
    assert [row.split for row in results.rows] == sorted((r.split for r in results.rows), key=SPLITS.index)
    conversations = [q for q in oracle.asked if not isinstance(q, str)]
    assert conversations and all(q[-1]["role"] == "user" for q in conversations)
    assert results.config == {"memory": "oracle", "asked": True, "questions": None, "seed": 5}
    wanted = {"split", "taught", "question", "answer", "backbone", "memory", "source", "right"}
    assert all(set(example) == wanted for example in results.examples)
    assert {example["split"] for example in results.examples} == {row.split for row in results.rows}
    assert {example["taught"] for example in results.examples} == {True, False}


def test_what_does_not_fit_the_context_is_not_asked(chat_backbone: Path, alone: dict[str, str]) -> None:
    assert "paragraph" in asked_questions(FACTS, 5)  # 192 tokens cannot hold it
    results = evaluate_asked(Oracle(chat_backbone, {}), FACTS, seed=5, quiet=True)  # type: ignore[arg-type]
    assert results.find("recall", "paragraph") is None and results.find("recall", "preamble") is not None


def test_a_limit_holds_for_each_split_and_asks_the_first(chat_backbone: Path, alone: dict[str, str]) -> None:
    oracle = Oracle(chat_backbone, {})
    results = evaluate_asked(oracle, FACTS, STRANGERS, seed=5, limit=1, quiet=True)  # type: ignore[arg-type]
    assert {row.n for row in results.rows} == {1}
    assert oracle.asked[0] == asked_questions(FACTS, 5)["as_spelled"][0].question


def test_nothing_to_ask(chat_backbone: Path) -> None:
    with pytest.raises(InputError, match="nothing to ask"):
        evaluate_asked(Oracle(chat_backbone, {}), [Fact("a", "", "x", ("q?",))])  # type: ignore[arg-type]


def test_the_table_is_drawn_over_seeds(chat_backbone: Path, alone: dict[str, str]) -> None:
    runs = [
        evaluate_asked(Oracle(chat_backbone, said), FACTS, limit=limit, seed=5, quiet=True)  # type: ignore[arg-type]
        for said, limit in (({}, None), ({f"Whose is {f.subject}?": (f.answer, "memory") for f in FACTS}, 2))
    ]
    head, lines = asked_table(runs)
    assert head[:2] == ["split", "recall"] and lines[0][0] == "as_spelled"
    cells = dict(zip(head, lines[0], strict=True))
    assert cells["recall"] == "50.0 % [0.0 % to 100.0 %]" and cells["n"] == "2-4"
    assert cells["made up"] == cells["n, never taught"] == ""
    (_, (first, *_)) = asked_table(runs[1:], intervals=False)
    assert first[:5] == ["as_spelled", "100.0 %", "0.0 %", "100.0 %", "2"]
