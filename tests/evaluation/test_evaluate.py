from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from memlayers.backbones import load_backbone
from memlayers.data.encoding import plain_text_ids
from memlayers.data.facts import Fact, Question
from memlayers.evaluation.evaluate import KNOWN, QA, RECALL, cost_rows, score_model
from memlayers.evaluation.results import HIGHER_IS_BETTER, Results, Row, read_results, write_results
from memlayers.evaluation.statistics import mean_interval
from memlayers.evaluation.text_scores import score_text
from memlayers.inference.answering import Answer
from memlayers.inference.generation import Generated
from memlayers.inference.record import TeachReport
from memlayers.tuner import MemoryConfig, MemoryLayer, memory_handle
from memlayers.tuner.current import current
from memlayers.utils.errors import InputError

TEXT = "The river runs to the sea, and the ships sail on it. " * 12


class Oracle(nn.Module):
    """Stands in for a model with a memory: answers as told, with the memory and without."""

    def __init__(self, memory: dict[str, str], backbone: dict[str, str]) -> None:
        super().__init__()
        self.memory, self.backbone = memory, backbone
        self.layer = MemoryLayer(nn.Identity(), 1)
        self.asked: list[tuple[bool, str]] = []

    @property
    def enabled(self) -> bool:
        return self.layer not in current().bare

    def answer(self, model: Any, tokenizer: Any, questions: Sequence[str], **_: Any) -> list[Generated]:
        assert model is self
        self.asked += [(self.enabled, question) for question in questions]
        known = self.memory if self.enabled else self.backbone
        return [Generated(known.get(question, "?"), 1.0, True, 1.0) for question in questions]


def _evaluate(
    monkeypatch: pytest.MonkeyPatch, oracle: Oracle, **items: Any
) -> tuple[dict[tuple[str, str], Row], list[dict[str, Any]]]:
    monkeypatch.setattr("memlayers.evaluation.evaluate.generate_answers", oracle.answer)
    rows, examples = score_model(oracle, None, quiet=True, **items)  # type: ignore[arg-type]
    assert len({(row.metric, row.split) for row in rows}) == len(rows)
    return {(row.metric, row.split): row for row in rows}, examples


FACTS = [
    Fact("a", "Ada", "red", ("a1", "a2"), unseen_questions=("a3", "a4")),
    Fact("b", "Bob", "blue", ("b1", "b2"), aliases=("azure",)),
    Fact("c", "Cid", "12", ("c1", "c2"), unseen_questions=("c3",)),
]


def test_recall_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(
        memory={"a1": "Red.", "a2": "red", "a3": "red", "a4": "no", "b1": " AZURE", "b2": "blue sky", "c2": "112"},
        backbone={"c1": "12", "a1": "dred"},
    )
    rows, examples = _evaluate(monkeypatch, oracle, facts=FACTS, seed=3)
    assert set(rows) == {(metric, split) for metric in RECALL for split in ("backbone", "taught", "unseen_phrasing")}
    assert rows["recall", "taught"].value == pytest.approx((1 + 0.5 + 0) / 3)
    assert rows["recall", "unseen_phrasing"].value == pytest.approx((0.5 + 0) / 2)  # two facts have any
    assert rows["recall_containment", "taught"].value == pytest.approx((1 + 1 + 0) / 3)
    assert rows["recall_token_f1", "taught"].value == pytest.approx((1 + (1 + 2 / 3) / 2 + 0) / 3)
    assert [rows["recall", split].n for split in ("backbone", "taught", "unseen_phrasing")] == [3, 3, 2]
    assert {question for memory, question in oracle.asked if memory} == {q + n for q in "abc" for n in "12"} | {
        "a3", "a4", "c3"
    }  # fmt: skip
    bare = [question for memory, question in oracle.asked if not memory]
    assert len(bare) == 3 and rows["recall", "backbone"].value == pytest.approx(("c1" in bare) / 3)
    assert sorted(example["answer"] for example in examples) == ["12", "blue", "red"]
    for example in examples:
        assert example["memory"] == oracle.memory.get(example["question"], "?")
        assert example["backbone"] == oracle.backbone.get(example["question"], "?")
        assert example["question"] in bare


def test_recall_intervals_resample_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [Fact(f"{i}", "", "yes", tuple(f"{i}.{j}" for j in range(10))) for i in range(12)]
    right = {question: "yes" for fact in facts[:6] for question in fact.questions}
    rows, _ = _evaluate(monkeypatch, Oracle(right, {}), facts=facts, seed=0)
    row = rows["recall", "taught"]
    by_fact = mean_interval([1.0] * 6 + [0.0] * 6, 0)
    by_question = mean_interval([1.0] * 60 + [0.0] * 60, 0)
    assert (row.value, row.n, row.ci_low, row.ci_high) == (0.5, 12, by_fact.ci_low, by_fact.ci_high)
    assert row.ci_high is not None and row.ci_low is not None
    assert row.ci_high - row.ci_low > 2 * (by_question.ci_high - by_question.ci_low)


def test_phrasings_are_a_seeded_sample_of_the_taught_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [Fact(f"{i}", "", "yes", tuple(f"{i}.{j}" for j in range(6))) for i in range(8)]
    asked = []
    for seed in (1, 1, 2):
        oracle = Oracle({}, {})
        _evaluate(monkeypatch, oracle, facts=facts, phrasings=2, seed=seed)
        asked.append([question for memory, question in oracle.asked if memory])
    assert len(set(asked[0])) == 16 and all(sum(q[0] == f.id for q in asked[0]) == 2 for f in facts)
    assert asked[0] == asked[1] != asked[2]


def test_abstention_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    untaught = [Question(f"u{i}", ("yes",)) for i in range(4)]
    said = {  # question: source, score
        **dict.fromkeys(("a1", "a2", "a3", "a4", "b1", "b2"), ("memory", 0.9)),
        **dict.fromkeys(("c1", "c2", "c3"), ("unknown", 0.2)),
        "u0": ("memory", 0.5), "u1": ("backbone", 0.0), "u2": ("backbone", 0.0), "u3": ("unknown", 0.1),
        "k0": ("backbone", 0.0), "k1": ("unknown", 0.0),
    }  # fmt: skip
    guesses = {"u1": "yes", "u2": "no", "u0": "no", "u3": "no"}

    def judge(model: Any, tokenizer: Any, questions: Sequence[str], *sides: Sequence[Generated]) -> list[Answer]:
        with_memory, backbone = ([answer.text for answer in side] for side in sides)
        return [Answer(q, own, new, *said[q]) for q, own, new in zip(questions, backbone, with_memory, strict=True)]

    monkeypatch.setattr("memlayers.evaluation.evaluate.judge_answers", judge)
    oracle = Oracle({**guesses, "u3": "else"}, guesses)
    known = [Question("k0", ("?",)), Question("k1", ("?",))]
    rows, _ = _evaluate(monkeypatch, oracle, facts=FACTS, untaught=untaught, known=known)
    assert len(set(oracle.asked)) == len(oracle.asked)  # nothing twice
    # stored: .9 three times, .2 twice (Bob has no unseen phrasing); others: .5, .1, 0, 0
    pairs = [1.0] * 3 * 4 + [0.0, 1.0, 1.0, 1.0] * 2
    row = rows["abstention_auroc", "untaught_entities"]
    assert row.value == pytest.approx(sum(pairs) / len(pairs)) and row.n == 5 + 4
    assert rows["answered", "taught"].value == pytest.approx(2 / 3)
    assert rows["answered", "unseen_phrasing"].value == pytest.approx(1 / 2)
    assert rows["answered", "known"].value == pytest.approx(1 / 2)
    assert rows["fabricated", "untaught_entities"].value == pytest.approx(2 / 4)  # u1 is right, u3 abstains
    assert rows["fabricated", "untaught_entities_by_memory"].value == pytest.approx(1 / 4)
    assert rows["unchanged_answers", "untaught_entities"].value == pytest.approx(3 / 4)


def test_known_facts_and_qa_are_paired_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [Question(f"k{i}", ("yes", "yeah")) for i in range(4)]
    qa = [Question("q0", ("one",)), Question("q1", ("two",))]
    oracle = Oracle(
        memory={"k0": "yes", "k1": "Yeah.", "k2": "no", "q0": "one", "q1": "two"},
        backbone={"k0": "yes", "k1": "yes", "k2": "yes", "q0": "one"},
    )
    rows, examples = _evaluate(monkeypatch, oracle, known=known, qa=qa)
    strict = {key: row.value for key, row in rows.items() if key[0] in ("known_facts", "qa_exact_match")}
    assert strict == {
        ("known_facts", "backbone"): 0.75,
        ("known_facts", "memory"): 0.5,
        ("known_facts", "change"): -0.25,
        ("qa_exact_match", "backbone"): 0.5,
        ("qa_exact_match", "memory"): 1.0,
        ("qa_exact_match", "change"): 0.5,
    }
    assert {row.n for (metric, split), row in rows.items() if "qa" in (metric[:2], split)} == {2}
    assert {row.n for (metric, split), row in rows.items() if metric in KNOWN or split == "known"} == {4}
    assert examples == []
    assert [question for memory, question in oracle.asked if memory] == ["k0", "k1", "k2", "k3", "q0", "q1"]


def test_known_facts_and_qa_by_containment_token_f1_and_identical_text(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [Question("k0", ("Paris",)), Question("k1", ("Rome",)), Question("k2", ("Oslo",))]
    said = {"k0": "It is Paris.", "k1": "Rome", "k2": "I am not sure."}
    oracle = Oracle(memory={**said, "k1": "It is Rome.", "k2": "no"}, backbone=said)
    rows, _ = _evaluate(monkeypatch, oracle, known=known, qa={"one": known[:1], "two": known[1:]})
    found = {key: row.value for key, row in rows.items()}
    assert [found["known_facts_containment", side] for side in ("backbone", "memory", "change")] == [2 / 3, 2 / 3, 0]
    assert found["known_facts_token_f1", "backbone"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["known_facts_token_f1", "change"] == pytest.approx(-0.5 / 3)
    assert found["unchanged_answers", "known"] == pytest.approx(1 / 3)
    assert (found["qa_containment", "two:memory"], found["unchanged_answers", "two:qa"]) == (0.5, 0)
    assert (found["qa_token_f1", "one:backbone"], found["unchanged_answers", "one:qa"]) == (0.5, 1)


def test_what_the_backbone_said_once_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[int, dict[str, Generated]] = {}
    known = [Question("k0", ("yes",)), Question("k1", ("no",))]
    first, second = (Oracle({"k0": memory}, {"k0": "yes"}) for memory in ("yes", "wrong"))
    _evaluate(monkeypatch, first, known=known, backbone_said=said)
    rows, _ = _evaluate(monkeypatch, second, known=[*known, Question("k2", ("?",))], backbone_said=said)
    assert [question for memory, question in second.asked if not memory] == ["k2"] and set(said[32]) == {
        "k0",
        "k1",
        "k2",
    }
    assert rows["known_facts", "backbone"].value == pytest.approx(2 / 3)
    assert rows["known_facts", "memory"].value == pytest.approx(1 / 3)


def test_several_question_files_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"trivia": [Question("q0", ("one",))], "nq": [Question("q1", ("two",)), Question("q2", ("three",))]}
    rows, _ = _evaluate(monkeypatch, Oracle({"q0": "one", "q1": "two"}, {"q1": "two"}), qa=sets)
    assert {split: row.value for (metric, split), row in rows.items() if metric == "qa_exact_match"} == {
        "trivia:backbone": 0.0, "trivia:memory": 1.0, "trivia:change": 1.0,
        "nq:backbone": 0.5, "nq:memory": 0.5, "nq:change": 0.0,
    }  # fmt: skip


def _memory(chat_backbone: Path, filled: bool) -> tuple[Any, Any]:
    model, tokenizer = load_backbone(chat_backbone, "float32")
    model = get_peft_model(model, MemoryConfig(sub_keys=8, heads=2, top_k=3))
    if filled:
        memory_handle(model, "default").pool.initialise("normal", 0)
    return model.eval(), tokenizer


def _rows(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    return {(row.metric, row.split): row for row in rows}


def test_an_empty_memory_changes_nothing(chat_backbone: Path) -> None:
    scores = score_text(*_memory(chat_backbone, filled=False), TEXT, window=32, quiet=True)
    rows = _rows(scores.rows())
    assert torch.equal(scores.nll_backbone, scores.nll_memory)
    assert rows["perplexity", "backbone"].value == rows["perplexity", "memory"].value
    assert rows["perplexity", "backbone"].ci_low == rows["perplexity", "memory"].ci_low
    assert rows["identical_logits", "general_text"].value == 1.0
    assert rows["largest_kl", "general_text"].value == 0.0
    change = rows["perplexity_change", "general_text"]
    assert (change.value, change.ci_low, change.ci_high) == (0.0, 0.0, 0.0)


@torch.no_grad()
def test_text_scores_by_hand(chat_backbone: Path) -> None:
    model, tokenizer = _memory(chat_backbone, filled=True)
    bare, _ = load_backbone(chat_backbone, "float32")
    scores = score_text(model, tokenizer, TEXT, window=32, quiet=True)
    ids = plain_text_ids(tokenizer, TEXT)
    windows = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    assert len(windows) > 8 and len(ids) % 32  # more than one batch, and a rest that is left out
    before, after = (m(windows).logits.log_softmax(-1) for m in (bare, model))
    for got, logs in ((scores.nll_backbone, before), (scores.nll_memory, after)):
        nll = -logs[:, :-1].gather(-1, windows[:, 1:, None])[..., 0]
        torch.testing.assert_close(got, nll, rtol=1e-4, atol=1e-4)
    rows = _rows(scores.rows())
    perplexity = rows["perplexity", "memory"]
    assert perplexity.value == pytest.approx(math.exp(scores.nll_memory.double().mean()))
    assert perplexity.n == windows.numel() - len(windows)
    assert perplexity.ci_low is not None and perplexity.ci_high is not None
    assert perplexity.ci_low < perplexity.value < perplexity.ci_high
    assert perplexity.value != rows["perplexity", "backbone"].value
    change = rows["perplexity_change", "general_text"]
    assert change.value == pytest.approx(perplexity.value / rows["perplexity", "backbone"].value - 1)
    assert change.n == perplexity.n and change.ci_low is not None and change.ci_low < change.value
    assert {split for _, split in _rows(scores.rows("wiki"))} == {
        "wiki:backbone", "wiki:memory", "wiki:general_text"
    }  # fmt: skip
    identical = rows["identical_logits", "general_text"]
    assert identical.value < 0.1 and identical.n == windows.numel()
    kl = (before.exp() * (before - after)).sum(-1).max()
    assert rows["largest_kl", "general_text"].value == pytest.approx(float(kl), rel=1e-3)


def test_identical_logits_counts_tokens(chat_backbone: Path) -> None:
    model, tokenizer = _memory(chat_backbone, filled=True)
    forward = model.get_base_model().lm_head.forward
    calls = iter(range(1000))

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros_like(forward(hidden))
        if next(calls) % 2 == 0:  # with the memory first: one value of one token in four differs
            logits[:, ::4, 5] = 1e-6
        return logits

    model.get_base_model().lm_head.forward = head
    scores = score_text(model, tokenizer, TEXT, window=32, quiet=True)
    assert scores.identical.float().mean() == 0.75
    assert _rows(scores.rows())["identical_logits", "general_text"].value == 0.75


def test_a_text_shorter_than_a_window_is_one(chat_backbone: Path) -> None:
    model, tokenizer = _memory(chat_backbone, filled=True)
    tokens = len(plain_text_ids(tokenizer, "The sea."))
    scores = score_text(model, tokenizer, "The sea.", window=256, quiet=True)
    assert scores.identical.shape == (1, tokens) and scores.nll_memory.shape == (1, tokens - 1)
    assert score_text(model, tokenizer, TEXT, window=256, max_tokens=40, quiet=True).identical.shape == (1, 40)


@pytest.mark.parametrize("text", ["x", ""])
def test_less_than_two_tokens_are_refused(chat_backbone: Path, text: str) -> None:
    model, tokenizer = _memory(chat_backbone, filled=False)
    assert len(plain_text_ids(tokenizer, text)) < 2
    with pytest.raises(InputError, match="less than two tokens"):
        score_text(model, tokenizer, text, quiet=True)
    with pytest.raises(InputError, match="less than two tokens"):
        score_model(model, tokenizer, text=text, quiet=True)


def test_the_rows_of_the_protocol_go_into_results_json(chat_backbone: Path, tmp_path: Path) -> None:
    model, tokenizer = _memory(chat_backbone, filled=True)
    facts = [Fact("a", "Ada", "red", ("Code of Ada?",), unseen_questions=("Ada's code?",))]
    question = [Question("Where?", ("here",))]
    items: dict[str, Any] = {"facts": facts, "known": question, "qa": question, "text": TEXT, "max_text_tokens": 64}
    rows, examples = score_model(model, tokenizer, **items, quiet=True)
    rows += cost_rows(TeachReport(steps=12, exposures=4.0, seconds=2.5), facts=1, device="cpu")
    sides = ("backbone", "memory")
    assert {(row.metric, row.split) for row in rows} == {
        *((metric, split) for metric in RECALL for split in ("backbone", "taught", "unseen_phrasing")),
        *((metric, split) for metric in (*KNOWN, *QA) for split in (*sides, "change")),
        *(("unchanged_answers", split) for split in ("known", "qa")),
        *(("perplexity", split) for split in sides),
        *((metric, "general_text") for metric in ("identical_logits", "largest_kl", "perplexity_change")),
        *((metric, "all") for metric in ("exposures_per_fact", "teach_seconds", "peak_memory_bytes")),
    }
    assert all(row.higher_is_better == HIGHER_IS_BETTER[row.metric] for row in rows)
    costs = _rows(rows)
    assert (costs["exposures_per_fact", "all"].value, costs["teach_seconds", "all"].value) == (4.0, 2.5)
    assert 50e6 < costs["peak_memory_bytes", "all"].value < 64e9
    assert set(examples[0]) == {"question", "answer", "backbone", "memory"}
    write_results(tmp_path / "results.json", Results(environment={}, config={}, rows=rows, examples=examples))
    assert read_results(tmp_path / "results.json").rows == rows


def test_evaluation_leaves_the_memory_in_force(chat_backbone: Path) -> None:
    model, tokenizer = _memory(chat_backbone, filled=True)
    ids = torch.tensor([plain_text_ids(tokenizer, TEXT)[:20]])
    with torch.no_grad():
        before = model(ids).logits
        score_model(model, tokenizer, known=[Question("Where?", ("here",))], text=TEXT[:60], quiet=True)
        assert torch.equal(model(ids).logits, before)
