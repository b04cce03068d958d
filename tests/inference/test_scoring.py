"""Given answers, scored by one forward pass: how near a model is to giving them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from memlayers.backbones import load_backbone
from memlayers.data.encoding import encode_example
from memlayers.inference.scoring import answer_logits, answer_standing, answered


def test_how_answers_stand_is_what_their_logits_say(chat_backbone: Path) -> None:
    backbone, tokenizer = load_backbone(chat_backbone, "float32")
    backbone.get_base_model = lambda: backbone  # as a PEFT model has it
    asked = [
        encode_example(tokenizer, f"What is the code of {name}?", answer)
        for name, answer in (("Ada", "red"), ("Bob", "12"), ("Cid", "kite"))
    ]
    ranks, chances, whole = [], [], []
    for example in asked:
        out = answer_logits(backbone, tokenizer, [example])
        logs = out.logits.log_softmax(-1)
        own = [float(row[label]) for row, label in zip(logs, out.labels, strict=True)]
        ranks.append(1 + int((logs[0] > own[0]).sum()))
        chances.append(math.exp(own[0]))
        whole.append(sum(own))
    found = answer_standing(backbone, tokenizer, asked)
    assert found["n"] == 3
    assert found["rank"] == sorted(ranks)[1]
    assert found["probability"] == pytest.approx(sum(chances) / 3, rel=1e-5)
    assert found["log_probability"] == pytest.approx(sum(whole) / 3, abs=1e-3)
    assert found["given"] == round(float(answered(backbone, tokenizer, asked).float().mean()), 4)
