from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from memlayers.backbones import load_backbone
from memlayers.config.sections import RelationConfig
from memlayers.data.encoding import encode_example, encode_prompt
from memlayers.data.facts import Fact
from memlayers.evaluation.statistics import auroc
from memlayers.gating.relations import fit_relations, relation_entries, relation_examples, relations_of
from memlayers.inference.confidence import relation_scores
from memlayers.inference.record import RelationReport
from memlayers.linking.mention_forms import SubjectForms, subject_forms
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers
from memlayers.tuner.relation_check import ACCEPTS_ALL

ASKED = ("craft", "town", "river", "number")
FORMS = ("What is the {a} of {s}?", "{s} has which {a}?", "Name the {a} of {s}.", "The {a} of {s} is what?")


def _wordings(number: int, name: str) -> tuple[str, ...]:
    return tuple(form.format(a=ASKED[number % len(ASKED)], s=name) for form in FORMS)


def _facts(number: int = 16) -> list[Fact]:
    """Each asks one of four things."""
    names = [f"{'ABCDEFGH'[i % 8]}{'aeiou'[i % 5]}l{'knrst'[i // 5 % 5]}o" for i in range(number)]
    return [Fact(str(i), name, f"answer {i}", _wordings(i, name)) for i, name in enumerate(names)]


def _model(folder: Path, facts: list[Fact]) -> tuple[Any, Any, SubjectForms]:
    backbone, tokenizer = load_backbone(folder, "float32")
    contexts = [[encode_example(tokenizer, q, f.answer).input_ids for q in f.questions] for f in facts]
    subjects = subject_forms(tokenizer, facts, contexts)
    config = MemoryConfig(
        layers=[1, 2], sub_keys=8, heads=2, top_k=3, subjects=True,
        relations=True,
    )  # fmt: skip
    return get_peft_model(backbone, config).eval(), tokenizer, subjects


def _check(model: Any) -> Any:
    return memory_layers(model)[0].memlayers_relations["default"]


def test_facts_that_share_a_wording_or_a_label_ask_the_same() -> None:
    facts = [
        Fact("1", "Ada", "x", ("Who is Ada?", "Ada's job?")),
        Fact("2", "Bo", "x", ("Bo's job?", "What does Bo do?")),
        Fact("3", "Cy", "x", ("What does Cy do?",)),
        Fact("4", "Di", "x", ("Where is Di?",), relation="place"),
        Fact("5", "Ed", "x", ("The place of Ed?",), relation="place"),
        Fact("6", "Fy", "x", ("Where was Fy?",)),
    ]
    assert relations_of(facts) == [0, 0, 0, 1, 1, 2]
    assert relations_of([]) == []


def test_entries_are_the_runs_of_each_subject_and_what_was_taught_of_it(chat_backbone: Path) -> None:
    tokenizer = load_backbone(chat_backbone, "float32")[1]
    facts = [Fact("1", "Ada", "x", ("Ada's job?",)), Fact("2", "Ada", "y", ("Where is Ada?",))]
    contexts = [[encode_prompt(tokenizer, q) for q in f.questions] for f in facts]
    subjects = subject_forms(tokenizer, facts, contexts)
    found = relation_entries(facts, subjects)
    assert sorted(found) == sorted(
        {(subjects.letters.fingerprint(run), r) for r in (0, 1) for run in subjects.of_fact[r]}
    )
    assert len(found) == 2 < sum(map(len, subjects.of_fact))  # with and without a space before it: one name
    alike = [facts[0], Fact("2", "Bo", "y", ("Bo's job?",))]
    contexts = [[encode_prompt(tokenizer, q) for q in f.questions] for f in alike]
    assert relation_entries(alike, subject_forms(tokenizer, alike, contexts)) == []  # nothing to tell apart


def _fit(model: Any, tokenizer: Any, facts: list[Fact], subjects: Any, seed: int = 0) -> RelationReport:
    examples = relation_examples(facts, RelationConfig(), seed)
    memory = memory_handle(model, "default")
    assert memory.index is not None
    memory.index.fill(subjects.forms, subjects.scope, subjects.flags, subjects.letters)
    return fit_relations(memory, tokenizer, facts, subjects, examples)


def test_what_was_taught_of_a_subject_passes_and_other_questions_do_not(chat_backbone: Path) -> None:
    facts = _facts()
    model, tokenizer, subjects = _model(chat_backbone, facts)
    assert relation_scores(model, tokenizer, ["Anything?"]) == ([1.0], ACCEPTS_ALL)  # nothing is known yet
    report = _fit(model, tokenizer, facts, subjects)
    assert report.accepted_stored >= 0.97 and report.threshold > ACCEPTS_ALL
    assert 0.0 <= report.accepted_others <= report.accepted_stored
    own = [question for fact in facts for question in fact.questions]
    swapped = [question for i, fact in enumerate(facts) for question in _wordings(i + 1, fact.subject)]
    scores = [relation_scores(model, tokenizer, questions)[0] for questions in (own, swapped)]
    assert auroc(*scores) > 0.95
    assert relation_scores(model, tokenizer, ["What is the craft of Zyx?"])[0] == [1.0]  # names nobody


def test_a_subject_of_two_facts_may_be_asked_for_both(chat_backbone: Path) -> None:
    facts = _facts()
    both = Fact("99", facts[0].subject, "x", _wordings(1, facts[0].subject))
    model, tokenizer, subjects = _model(chat_backbone, [*facts, both])
    _fit(model, tokenizer, [*facts, both], subjects)
    scores = relation_scores(model, tokenizer, [*both.questions, *facts[0].questions])[0]
    assert min(scores) > 0.5
    assert max(relation_scores(model, tokenizer, _wordings(1, facts[4].subject))[0]) < 0.5


def test_a_threshold_needs_enough_questions(chat_backbone: Path) -> None:
    facts = _facts(4)
    assert 2 * 4 * len(facts) < RelationConfig().least_held_out  # questions, put to another subject each
    model, tokenizer, subjects = _model(chat_backbone, facts)
    assert _fit(model, tokenizer, facts, subjects).threshold == ACCEPTS_ALL
    assert relation_scores(model, tokenizer, ["Where?"])[0] == [1.0]


def test_a_saved_check_scores_the_same(chat_backbone: Path, tmp_path: Path) -> None:
    facts = _facts()
    model, tokenizer, subjects = _model(chat_backbone, facts)
    first = _fit(model, tokenizer, facts, subjects, seed=5)
    keys = _check(model).keys.clone()
    assert _fit(model, tokenizer, facts, subjects, seed=5) == first  # a function of the seed
    assert torch.equal(_check(model).keys, keys)
    model.save_pretrained(tmp_path / "memory")
    loaded = PeftModel.from_pretrained(load_backbone(chat_backbone, "float32")[0], str(tmp_path / "memory")).eval()
    assert loaded.peft_config["default"].relations and torch.equal(_check(loaded).keys, keys)
    questions = [fact.questions[0] for fact in facts]
    assert relation_scores(loaded, tokenizer, questions) == relation_scores(model, tokenizer, questions)
