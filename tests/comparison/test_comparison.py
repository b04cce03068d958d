"""`memlayers compare`: its methods on a tiny backbone, its files, its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.teaching import FACTS
from memlayers.comparison import run, tuning
from memlayers.comparison.memory import TaughtMemory
from memlayers.comparison.method import Method
from memlayers.comparison.names import methods_named
from memlayers.comparison.page import read_runs, write_page
from memlayers.comparison.retrieval import InContext, Retrieval, passage, prompt_with
from memlayers.comparison.run import Bounds, Materials, run_comparison
from memlayers.comparison.scoring import make_exam, teach_and_score
from memlayers.comparison.tuning import FineTuning
from memlayers.config.teach import TeachConfig
from memlayers.data.facts import Fact, Question
from memlayers.evaluation.results import Row
from memlayers.inference.generation import generate_answers
from memlayers.utils.errors import InputError, WorkError

pytestmark = pytest.mark.usefixtures("short_answers")
UNTAUGHT = [Question(f"What is the code of {name}?", ("green",)) for name in ("Gus", "Hal")]
KNOWN = [Question("Where is the sea?", ("here",)), Question("And the sky?", ("there",))]
MATERIALS = Materials(FACTS, UNTAUGHT, KNOWN, "The river runs to the sea, and the ships sail on it. " * 6)
BOUNDS = Bounds(facts=3, questions=2, phrasings=1, text_tokens=64, updates=1)


@pytest.fixture
def config(chat_backbone: Path, general_file: Path) -> TeachConfig:
    return TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(general_file), layers=[1, 2], sub_keys=8, heads=2, top_k=2,
        exposures=2, batch_size=2, gate_steps=5, gate_threshold=-1e6, device="cpu",
    )  # fmt: skip


class Parrot(Method):
    """Answers what it was told, and has the backbone's weights."""

    def teach(self, facts: Sequence[Fact]) -> None:
        super().teach(facts)
        self.facts = {fact.id: fact for fact in facts}

    def ask(self, questions: Sequence[str], **options: Any) -> list[str]:
        known = {q: f"It is {fact.answer}." for fact in self.facts.values() for q in fact.questions}
        return [known.get(question, "nothing") for question in questions]

    def update(self, fact: Fact) -> None:
        self.facts[fact.id] = fact


def test_methods_by_name() -> None:
    assert methods_named("memory, lora,rag-3,bare,memory") == ["bare", "memory", "lora-16", "lora-64", "rag-3"]
    for wrong in ("soup", "lora-0", "memory-5", "rag-x"):
        with pytest.raises(InputError, match=f"no method '{wrong}' to compare; take some of memory, "):
            methods_named(wrong)


def test_one_exam_scores_whatever_answers(config: TeachConfig, tmp_path: Path) -> None:
    exam = make_exam(FACTS, UNTAUGHT, KNOWN, MATERIALS.text, phrasings=2, text_tokens=64, updates=2, seed=1)
    assert len({fact.id for fact in exam.changed}) == 2
    told = {fact.id: fact.answer for fact in FACTS}
    assert all(fact.answer != told[fact.id] and fact.answer in told.values() for fact in exam.changed)
    bare = {"What is the code of Gus?": "nothing", "What is the code of Hal?": "red", "Where is the sea?": "here!",
            "And the sky?": "up"}  # fmt: skip
    rows, said = teach_and_score(Parrot(config, tmp_path, quiet=True), exam, bare, quiet=True)
    found = {(row.metric, row.split): row.value for row in rows}
    # A sentence around the answer.
    assert found["recall", "taught"] == 0.0 and found["recall_containment", "taught"] == 1.0
    assert found["unchanged_answers", "untaught_entities"] == 0.5
    assert found["known_lost", "known"] == 1.0  # of the one question that the backbone answered
    assert next(row.n for row in rows if row.metric == "known_lost") == 1
    assert found["recall_containment", "updated"] == 1.0 and found["recall_containment", "others_after_updates"] == 1.0
    assert ("recall", "unseen_phrasing") not in found
    assert [each["set"] for each in said] == ["taught"] * 12 + ["untaught"] * 2 + ["known"] * 2
    assert said[0]["right"] and found["bytes_per_fact", "all"] == 0.0


def test_fine_tuning_learns_chooses_a_rate_and_changes_a_fact(config: TeachConfig, tmp_path: Path) -> None:
    for rank in (4, None):
        method = FineTuning(config.with_flags(exposures=60), tmp_path, rank=rank, quiet=True)
        method.teach(FACTS[:2])
        assert method.rate in (tuning.FULL_RATES if rank is None else tuning.LORA_RATES)
        learned = {name for name, each in method.model.named_parameters() if each.requires_grad}
        assert all(("lora_" in name) is (rank is not None) for name in learned)
        assert 0 < method.stored_bytes() and method.tokens > 0 and "exposures" in method.note


def test_weights_change_in_float32_and_answer_in_their_own_dtype(config: TeachConfig, tmp_path: Path) -> None:
    method = Method(config.with_flags(dtype="bfloat16"), tmp_path)
    method.load()
    before = {name: each.detach().clone() for name, each in method.model.named_parameters()}
    buffers = {name: each.dtype for name, each in method.model.named_buffers()}
    method.widen()
    assert {each.dtype for each in method.model.parameters()} == {torch.float32}
    for each in method.model.parameters():
        each.data += 1.0
    method.narrow()
    for name, each in method.model.named_parameters():
        assert each.dtype == torch.bfloat16 and torch.equal(each, (before[name].float() + 1.0).bfloat16())
    assert {name: each.dtype for name, each in method.model.named_buffers()} == buffers
    tuned = FineTuning(config.with_flags(dtype="bfloat16", exposures=3), tmp_path, rank=None, quiet=True)
    tuned.teach(FACTS[:2])
    assert {each.dtype for each in tuned.model.parameters()} == {torch.bfloat16}


def test_retrieval_finds_the_fact_that_is_asked_for(config: TeachConfig, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    method = Retrieval(config, tmp_path, top=2, quiet=True)
    method.teach(FACTS)
    assert [found[-1].id for found in method.found(["Name Dot's code.", "What is the code of Ada?"])] == ["Dot", "Ada"]
    assert method.found(["zzz"]) == [[]] and prompt_with(method.tokenizer, [], "zzz") == "zzz"
    method.update(Fact("Dot", "Dot", "Rome", FACTS[3].questions))
    assert method.found(["Name Dot's code."])[0][-1].answer == "Rome"
    assert method.stored_bytes() > sum(len(passage(fact)) for fact in FACTS)


def test_a_prompt_has_the_form_of_its_backbone(config: TeachConfig) -> None:
    class Plain:
        chat_template = None

    assert prompt_with(Plain(), FACTS[:1], "Q?") == "What is the code of Ada?\nAnswer: red\n\nQuestion: Q?"
    Plain.chat_template = "yes"  # type: ignore[assignment]
    whole = "Question: What is the code of Ada?\nAnswer: red\n\nQuestion: Q?\nAnswer:"
    assert prompt_with(Plain(), FACTS[:1], "Q?") == whole


def test_facts_in_the_prompt_are_read_once_and_must_fit(
    config: TeachConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = InContext(config, tmp_path, quiet=True)
    with pytest.raises(InputError, match=r"^does not fit: 6 facts and a question need \d+ tokens, the context holds"):
        monkeypatch.setattr("memlayers.comparison.retrieval.context_length", lambda model: 64)
        method.teach(FACTS)
    monkeypatch.setattr("memlayers.comparison.retrieval.context_length", lambda model: 1000)
    method.teach(FACTS[:1])
    assert method._prefix is not None and method.tokens == len(method._prefix.ids)
    questions = ["What is it?", "Name Ada's code."]
    prompts = [method._prompt(question) for question in questions]
    alone = [generate_answers(method.model, method.tokenizer, [prompt])[0].text for prompt in prompts]
    assert [method.ask([question])[0] for question in questions] == alone
    assert method.inference_bytes() > Method.inference_bytes(method)


def test_a_comparison_goes_on_where_it_was_and_a_fault_is_a_line(
    config: TeachConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Method):
        def teach(self, facts: Sequence[Fact]) -> None:
            raise MemoryError("no room\nat all")

    made: list[str] = []
    classes: dict[str, Any] = {"bare": Method, "memory": TaughtMemory, "full": Broken}
    monkeypatch.setattr(run, "_method", lambda name: made.append(name) or classes[name])
    notes: list[str] = []
    page = run_comparison(
        tmp_path / "out", ["bare", "full", "memory"], MATERIALS, config, BOUNDS, note=notes.append, quiet=True
    )
    text = page.read_text()
    assert made == ["bare", "full", "memory"] and "- full, seed 137: no room" in text
    assert "| recall, taught wordings |" in text and "|  | bare | memory |" in text
    assert any(note.startswith("full: no room, ") for note in notes)
    assert not (tmp_path / "out" / "work").exists()
    runs = read_runs(tmp_path / "out")
    rows = {(row.metric, row.split) for row in runs["memory"][137].rows}
    assert {("recall", "taught"), ("unchanged_answers", "untaught_entities"), ("perplexity", "text"),
            ("teach_seconds", "all"), ("teach_tokens", "all"), ("first_token_seconds", "all")} <= rows  # fmt: skip
    assert runs["memory"][137].find("bytes_per_fact", "all").value > 0  # type: ignore[union-attr]
    made.clear()
    classes["full"] = Method
    run_comparison(tmp_path / "out", ["bare", "full", "memory"], MATERIALS, config, BOUNDS, quiet=True)
    assert made == ["full"]  # what failed is tried again
    with pytest.raises(InputError, match="made with other settings .questions was 2, now 1"):
        run_comparison(tmp_path / "out", ["bare"], MATERIALS, config, Bounds(3, 1, 1, 64, 1), quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    with pytest.raises(InputError, match="exists and holds no comparison"):
        run_comparison(tmp_path / "mine", ["bare"], MATERIALS, config, BOUNDS, quiet=True)


def test_a_backbone_that_fails_ends_it(config: TeachConfig, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="the bare backbone cannot be scored: "):
        run_comparison(tmp_path / "out", ["bare"], MATERIALS, config.with_flags(backbone=str(tmp_path)), BOUNDS)


def test_the_page_joins_seeds(tmp_path: Path) -> None:
    for seed, value in ((1, 0.9), (2, 1.0)):
        path = tmp_path / "methods" / f"lora-16-{seed}.json"
        path.parent.mkdir(exist_ok=True)
        row = {"metric": "recall", "split": "unseen_phrasing", "value": value, "n": 10, "ci_low": value - 0.1,
               "ci_high": value, "higher_is_better": Row("recall", "", 0, 0).higher_is_better}  # fmt: skip
        told = {"schema": "memlayers.results/1", "environment": {}, "config": {}, "rows": [row], "curve": [],
                "examples": []}  # fmt: skip
        path.write_text(json.dumps(told))
    text = write_page(tmp_path).read_text()
    assert "95.0 % ± 7.1 [80.0 % to 100.0 %], n = 10" in text
    assert (tmp_path / "compare.png").read_bytes()[:4] == b"\x89PNG"
