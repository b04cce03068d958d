"""Known facts of a backbone: the questions that it answers by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from torch import nn

from memlayers.backbones import backbone_fingerprint, load_backbone
from memlayers.data.fact_files import public_questions, read_questions
from memlayers.data.facts import PUBLIC_FACTS, Question
from memlayers.evaluation import known
from memlayers.evaluation.known import known_record, known_text, questions_known
from memlayers.inference.generation import Generated, answer_questions
from memlayers.tuner import MemoryConfig, memory_handle
from memlayers.utils.errors import WorkError

QUESTIONS = [
    Question("France?", ("Paris",)),
    Question("Italy?", ("Rome", "Roma")),
    Question("Peru?", ("Lima",)),
    Question("France?", ("Paris",)),
    Question("Peru?", ("Quito",)),  # a question that is listed twice has the answers of both
]


@pytest.mark.parametrize(("strict", "kept"), [(False, ["France?", "Italy?", "Peru?"]), (True, ["Italy?", "Peru?"])])
def test_what_is_answered_rightly_is_known(strict: bool, kept: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"France?": "It is Paris.", "Italy?": "roma", "Peru?": "Quito"}
    asked: list[str] = []

    def generate(model: Any, tokenizer: Any, questions: list[str], **_: Any) -> list[Generated]:
        asked.extend(questions)
        return [Generated(said[question], 1.0, False, 1.0) for question in questions]

    monkeypatch.setattr(known, "generate_answers", generate)
    backbone: Any = nn.Identity()
    found = questions_known(backbone, None, QUESTIONS, strict=strict, quiet=True)  # type: ignore[arg-type]
    assert [each.question for each in found] == kept and asked == ["France?", "Italy?", "Peru?"]


def test_the_bare_backbone_is_asked(chat_backbone: Path) -> None:
    model, tokenizer = load_backbone(chat_backbone, "float32")
    questions = ["What is the code of Ada?", "Where does the river run?"]
    bare = answer_questions(model, tokenizer, questions)
    model = get_peft_model(model, MemoryConfig(sub_keys=8, heads=2, top_k=3)).eval()
    memory_handle(model, "default").pool.initialise("normal", 0)
    assert answer_questions(model, tokenizer, questions) != bare
    asked = [Question(question, (answer,)) for question, answer in zip(questions, bare, strict=True)]
    assert questions_known(model, tokenizer, asked, strict=True, quiet=True) == asked


def test_a_file_of_known_questions_is_read_again(chat_backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "known.jsonl").write_text(known_text(QUESTIONS[:3]), encoding="utf-8")
    assert read_questions(tmp_path / "known.jsonl") == QUESTIONS[:3]
    with pytest.raises(WorkError, match="answered none of the questions"):
        known_text([])
    model, _ = load_backbone(chat_backbone)
    record = json.loads(json.dumps(known_record(model, "tiny", asked=4, known=3, strict=False)))
    assert record["fingerprint"] == backbone_fingerprint(model) and record["match"] == "containment"
    assert (record["asked"], record["known"], record["decoding"]["max_new_tokens"]) == (4, 3, 32)


def test_the_shipped_questions_are_one_per_public_fact() -> None:
    shipped = public_questions()
    assert len(shipped) == len(PUBLIC_FACTS.read_text(encoding="utf-8").splitlines()) > 2000
    assert set(shipped) <= set(read_questions(PUBLIC_FACTS))
