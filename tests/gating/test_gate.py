from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from memlayers.config.sections import AbstentionConfig, GateConfig
from memlayers.data.facts import Fact, Question
from memlayers.gating.abstention import guessing_questions, settle_thresholds
from memlayers.gating.train import train_gates
from memlayers.inference.answering import judge_answers
from memlayers.inference.capture import LayerFeatures, collect_features
from memlayers.inference.confidence import confidence_exceeded_by, prior_entry
from memlayers.inference.generation import Generated
from memlayers.inference.record import GateReport
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers, set_gate_enabled

Build = Callable[..., PreTrainedModel]


def _model(backbone: PreTrainedModel, layers: int = 1) -> Any:
    config = MemoryConfig(layers=list(range(layers)), sub_keys=8, heads=2, top_k=3, gate=True, gate_hidden=16)
    model = get_peft_model(backbone, config).eval()
    memory_handle(model, "default").pool.initialise("normal", 0)
    return model


def _toy(shift: float, seed: int, sequences: int = 60, tokens: int = 10) -> LayerFeatures:
    """Tokens around `shift` in one coordinate; the others are the same noise for every class."""
    rows = torch.randn(sequences * tokens, 32, generator=torch.Generator().manual_seed(seed))
    rows[:, 0] += shift
    return LayerFeatures(rows, torch.arange(sequences).repeat_interleave(tokens), 1.0)


def _gate(model: Any, layer: int = 0) -> Any:
    return memory_layers(model)[layer].memlayers_gate["default"]


def _index(model: Any) -> Any:
    return memory_layers(model)[0].memlayers_subjects["default"]


def _train(model: Any, *, threshold: float = 0.0, seed: int = 0, steps: int = 150, **options: Any) -> list[GateReport]:
    layers = len(memory_layers(model))
    positive, negative = [_toy(4.0, 1)] * layers, [_toy(-4.0, 2)] * layers
    config = GateConfig(threshold=threshold, steps=steps)
    return train_gates(memory_handle(model, "default"), positive, negative, config, seed=seed, **options)


def test_a_separable_split_is_learned(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), layers=2)
    reports = _train(model)
    assert len(reports) == 2
    for number, report in enumerate(reports):
        assert report.threshold == 0.0
        assert report.open_on_facts > 0.97 and report.open_on_general < 0.03
        gate = _gate(model, number)
        assert gate.is_open(_toy(4.0, 3).inputs).float().mean() > 0.97  # tokens of neither split
        assert gate.is_open(_toy(-4.0, 4).inputs).float().mean() < 0.03


def test_the_report_counts_what_was_held_out(tiny_backbone: Build) -> None:
    # Every tenth sequence of the facts looks like general text: only the held-out share can show it.
    facts = _toy(4.0, 1)
    facts.inputs[facts.sequence % 10 == 9, 0] -= 8.0
    model = _model(tiny_backbone())
    report = train_gates(
        memory_handle(model, "default"), [facts], [_toy(-4.0, 2)], GateConfig(threshold=0.0, steps=150)
    )[0]
    assert report.open_on_facts < 0.1


def test_few_sequences_are_all_trained_on_and_reported(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    few = [_toy(4.0, 1, sequences=3)], [_toy(-4.0, 2, sequences=3)]
    report = train_gates(memory_handle(model, "default"), *few, GateConfig(threshold=0.0, steps=150))[0]
    assert report.open_on_facts > 0.97 and report.open_on_general < 0.03


@pytest.mark.parametrize("strange", [-0.5, 4.0])
def test_held_out_passages_raise_the_threshold(tiny_backbone: Build, strange: float) -> None:
    # Held-out passages (every tenth of the first 30 sequences) look somewhat, or wholly, like facts.
    general = _toy(-4.0, 2)
    odd = (general.sequence % 10 == 9) & (general.sequence < 30)
    general.inputs[odd, 0] = strange
    few = GateConfig(threshold=-2.0, steps=40)  # logits of a gate trained so little stay small
    model = _model(tiny_backbone())
    (report,) = train_gates(memory_handle(model, "default"), [_toy(4.0, 1)], [general], few, passages=30)
    largest = float(_gate(model)(general.inputs[odd]).max())
    assert report.threshold == pytest.approx(min(largest, -2.0 + few.most_raised))
    assert (report.threshold < -2.0 + few.most_raised) == (largest < -2.0 + few.most_raised)
    (chats,) = train_gates(memory_handle(_model(tiny_backbone()), "default"), [_toy(4.0, 1)], [general], few)
    assert chats.threshold == -2.0  # chats are no running text


def test_the_threshold_is_the_one_asked_for(tiny_backbone: Build) -> None:
    rows = torch.cat([_toy(4.0, 3).inputs, _toy(-4.0, 4).inputs, _toy(0.0, 5).inputs])
    decisions = []
    for threshold in (-1.0, 0.0, 2.5):
        model = _model(tiny_backbone())
        report = _train(model, threshold=threshold)[0]
        gate = _gate(model)
        assert report.threshold == float(gate.threshold) == threshold
        assert torch.equal(gate.is_open(rows), gate(rows) > threshold)
        decisions.append(int(gate.is_open(rows).sum()))
    assert decisions[0] > decisions[1] > decisions[2] > 0


def test_closed_gates_leave_the_logits_to_the_bit(tiny_backbone: Build, ids: Tensor) -> None:
    model = _model(tiny_backbone(), layers=2)
    _train(model, threshold=1e9)
    with torch.no_grad():
        gated = model(ids).logits
        set_gate_enabled(model, False)
        always_on = model(ids).logits
        with model.disable_adapter():
            bare = model(ids).logits
    assert torch.equal(gated, bare)
    assert not torch.equal(always_on, bare)


def test_training_is_a_function_of_the_seed(tiny_backbone: Build) -> None:
    rows = _toy(0.0, 5).inputs
    torch.manual_seed(1)
    first, again, other = (_model(tiny_backbone()) for _ in range(3))
    reports = [_train(first, seed=1), _train(again, seed=1)]
    _train(other, seed=2)
    assert reports[0] == reports[1]
    assert torch.equal(_gate(first)(rows), _gate(again)(rows))
    assert not torch.equal(_gate(first)(rows), _gate(other)(rows))


def test_nothing_of_the_gate_learns_afterwards(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), layers=2)
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    steps: list[int] = []
    _train(model, steps=3, progress=steps.append)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == before
    assert not any("memlayers_gate" in name for name in before)
    assert all(parameter.grad is None or not parameter.requires_grad for parameter in model.parameters())
    assert sum(steps) == 2 * 3
    assert bool(_gate(model, 0).trained) and bool(_gate(model, 1).trained)


def test_features_are_standardised_by_their_own_statistics(tiny_backbone: Build) -> None:
    # An outlier dimension a thousand times larger than the one that decides must not drown it.
    facts, general = _toy(2.5, 1), _toy(-2.5, 2)
    for kind in (facts, general):
        kind.inputs[:, 1] = kind.inputs[:, 1] * 1000 + 5000
    model = _model(tiny_backbone())
    report = train_gates(memory_handle(model, "default"), [facts], [general], GateConfig(threshold=0.0, steps=200))[0]
    assert report.open_on_facts > 0.9 and report.open_on_general < 0.1


def test_a_saved_gate_decides_the_same(tiny_backbone: Build, tmp_path: Path) -> None:
    tiny_backbone(initializer_range=0.2).save_pretrained(tmp_path / "backbone")
    model = _model(AutoModelForCausalLM.from_pretrained(tmp_path / "backbone"), layers=2)
    generator = torch.Generator().manual_seed(0)
    kinds = [
        [torch.randint(low, high, (9,), generator=generator).tolist() for _ in range(20)]
        for low, high in ((3, 34), (34, 64))
    ]
    facts, general = (collect_features(memory_handle(model, "default"), kind) for kind in kinds)
    train_gates(memory_handle(model, "default"), facts, general, GateConfig(threshold=0.5, steps=60))
    model.save_pretrained(tmp_path / "memory")
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
    loaded = PeftModel.from_pretrained(backbone, tmp_path / "memory")
    for number, seen in enumerate(facts):
        rows = torch.cat([seen.inputs, general[number].inputs])
        opened = _gate(model, number).is_open(rows)
        assert 0.2 < opened.float().mean() < 0.8
        assert torch.equal(_gate(loaded, number).is_open(rows), opened)
        assert float(_gate(loaded, number).threshold) == 0.5
    ids = torch.tensor(kinds[0] + kinds[1])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_memory_without_gates_cannot_train_them(tiny_backbone: Build) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(layers=[0], sub_keys=8, top_k=3))
    with pytest.raises(KeyError):
        _train(model, steps=1)


def _subject_model(backbone: PreTrainedModel, runs: list[tuple[int, ...]], layers: int = 2) -> Any:
    config = MemoryConfig(
        layers=list(range(layers)), sub_keys=8, heads=2, top_k=3, gate=True, gate_hidden=16,
        subjects=True,
    )  # fmt: skip
    model = get_peft_model(backbone, config).eval()
    _index(model).fill({run: run for run in runs}, 9, torch.zeros(6, dtype=torch.uint8))
    return model


def test_a_memory_with_subjects_has_one_gate_trained_behind_the_subject(tiny_backbone: Build) -> None:
    model = _subject_model(tiny_backbone(), [(7, 8)])
    sequences = [[3, 7, 8, 4, 5]] * 40
    facts = _toy(4.0, 1, sequences=40, tokens=5)
    before = torch.arange(5).repeat(40) < 3
    facts.inputs[before, 0] = -4.0  # tokens up to the subject's last one look like general text: nobody asks
    general = _toy(-4.0, 2)
    general.inputs[general.sequence >= 30, 0] = 4.0  # chats look like facts: no matter
    (report,) = train_gates(
        memory_handle(model, "default"), [facts, facts], [general, general], GateConfig(threshold=0.0, steps=150),
        passages=30, sequences=sequences,
    )  # fmt: skip
    assert report.open_on_facts > 0.97 and report.open_on_general < 0.03
    assert "default" not in memory_layers(model)[1].memlayers_gate


def _said(*confidences: float, opened: bool = True, text: str = "right") -> list[Generated]:
    return [Generated(text, confidence, opened, confidence) for confidence in confidences]


def _generates(monkeypatch: pytest.MonkeyPatch, *generated: list[Generated]) -> None:
    """What is generated, one call after the other."""
    answers = iter(generated)
    monkeypatch.setattr("memlayers.gating.abstention.generate_answers", lambda *_, **__: next(answers))


def test_thresholds_keep_the_stored_and_leave_out_wrong_guesses(
    tiny_backbone: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _subject_model(tiny_backbone(), [(7, 8)])
    hundred = [0.5 + i / 200 for i in range(100)]
    wrong = [Generated(f"wrong {i}", confidence, True, confidence) for i, confidence in enumerate(hundred[:-1])]
    _generates(monkeypatch, [*wrong, *_said(1.0)])
    stored = [Question(str(i), ("right",)) for i in range(100)]
    memory, backbone = settle_thresholds(memory_handle(model, "default"), None, hundred, [[each] for each in stored])  # type: ignore[arg-type]
    assert memory == pytest.approx(hundred[0] / AbstentionConfig().margin, abs=0.01)
    assert 0.97 < backbone < 1.0  # what it knows is no wrong guess
    assert backbone == pytest.approx(confidence_exceeded_by(AbstentionConfig().mistaken, hundred[:-1]))
    index: Any = memory_layers(model)[0].memlayers_subjects["default"]
    assert index.thresholds.tolist() == [memory, backbone]
    assert index.guesses.sum() == 99 and not index.guesses[prior_entry("right")]


def test_an_answer_is_less_believed_the_more_often_it_was_a_wrong_guess(
    tiny_backbone: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _subject_model(tiny_backbone(), [(7, 8)])
    guessed = [*_said(*[0.9] * 10, text="Jazz."), *_said(0.8, 0.7, text="Fado"), *_said(0.99)]
    _generates(monkeypatch, guessed)
    asked = [[Question(str(i), ("right",)) for i in range(1 + (each == 10))] for each in range(12)]
    backbone = settle_thresholds(memory_handle(model, "default"), None, [0.9], asked)[1]  # type: ignore[arg-type]
    # The ten are believed as 0.9 : 10 * 0.1, nine others beside each, so the odd guess (of one fact) says what is sure.
    assert 0.98 < backbone < 0.99
    given = [Generated(text, 0.99, False, 0.99) for text in ("jazz", "Fado", "Morna")]
    closed = [Generated("", 0.0, False, 0.0)] * 3
    judged = judge_answers(model, None, ["?"] * 3, closed, given)  # type: ignore[arg-type]
    assert [answer.source for answer in judged] == ["unknown", "unknown", "backbone"]


def test_the_backbone_is_asked_about_all_facts_evenly() -> None:
    facts = [Fact(str(i), f"s{i}", f"a{i}", tuple(f"{i} {j}" for j in range(3))) for i in range(300)]
    asked = guessing_questions(facts, AbstentionConfig(), 0)
    assert len({each.question for fact in asked for each in fact}) == AbstentionConfig().guesses
    assert Counter(map(len, asked)) == {1: 300} and len({fact[0].answers for fact in asked}) == 300
    several = guessing_questions(facts[:150], AbstentionConfig(), 0)
    assert Counter(map(len, several)) == {2: 150}
    assert asked == guessing_questions(facts, AbstentionConfig(), 0) != guessing_questions(facts, AbstentionConfig(), 1)
    assert [len(fact) for fact in guessing_questions(facts[:5], AbstentionConfig(), 0)] == [3] * 5
    assert guessing_questions([], AbstentionConfig(), 0) == []
    many = [replace(fact, id=f"{i}-{fact.id}") for i in range(3) for fact in facts]
    assert len(guessing_questions(many, AbstentionConfig(), 0)) == AbstentionConfig().guesses


def test_neither_threshold_is_settled_below_the_least(tiny_backbone: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _subject_model(tiny_backbone(), [(7, 8)])
    least = pytest.approx((AbstentionConfig().least,) * 2)
    asked = [Question(str(i), ("right",)) for i in range(2)]
    for sure in ([], [1e-4, 2e-5]):  # nothing held, and answers that are held but not sure; the backbone knows all
        _generates(monkeypatch, _said(0.9, 0.9))
        assert settle_thresholds(memory_handle(model, "default"), None, sure, [asked]) == least  # type: ignore[arg-type]


def test_the_general_texts_chats_are_no_prose(tiny_backbone: Build) -> None:
    # Facts of one kind, chats of another, prose of a third: the gate opens on both kinds of question.
    model = _subject_model(tiny_backbone(), [(7, 8)])
    facts, general = _toy(4.0, 1, sequences=40, tokens=5), _toy(-4.0, 2)
    chats = general.sequence >= 30
    general.inputs[chats, 0], general.inputs[chats, 1] = 0.0, 6.0
    (report,) = train_gates(
        memory_handle(model, "default"), [facts, facts], [general, general], GateConfig(threshold=0.0, steps=200),
        passages=30, sequences=[[7, 8, 3, 4, 5]] * 40,
    )  # fmt: skip
    assert report.open_on_facts > 0.97 and report.open_on_general < 0.03
    assert _gate(model).is_open(general.inputs[chats]).float().mean() > 0.9


def test_negatives_raise_the_memorys_threshold_as_far_as_stored_answers_allow(
    tiny_backbone: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    hundred = [0.4 + i / 200 for i in range(100)]
    settled = []
    for others in ((), (0.3, 0.39), (0.3, 0.99)):  # none; below the stored; one as sure as they
        model = _subject_model(tiny_backbone(), [(7, 8)])
        guessed = _said(*[0.5] * (100 + len(others)), text="wrong")
        generated = [_said(*others), guessed] if others else [guessed]
        _generates(monkeypatch, *generated)
        stored = [Question(str(i), ("right",)) for i in range(100)]
        negatives = [Question(str(i), ("other",)) for i in others]
        found = settle_thresholds(memory_handle(model, "default"), None, hundred, [stored], negatives)  # type: ignore[arg-type]
        settled.append(found[0])
    assert settled[0] < 0.3 < 0.39 < settled[1] < 0.41
    assert 0.3 < settled[2] < 0.41  # one wrong answer is not worth the stored ones
