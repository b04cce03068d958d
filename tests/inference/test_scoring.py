"""Given answers, scored by one forward pass: how near a model is to giving them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from memlayers.backbones import load_backbone
from memlayers.data.encoding import collate, encode_example, pad_token_id
from memlayers.inference.generation import generate_answers
from memlayers.inference.scoring import answer_confidences, answer_logits, answer_standing, answered


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


def test_one_forward_agrees_with_generation_where_there_is_no_chat_template(chat_backbone: Path) -> None:
    backbone, tokenizer = load_backbone(chat_backbone, "float32")
    backbone.get_base_model = lambda: backbone
    tokenizer.chat_template = None
    facts = [("What is the code of Ada?", "red"), ("What is the code of Bob?", "12 kites")]
    examples = [encode_example(tokenizer, *fact) for fact in facts]
    batch = collate(examples, pad_token_id(tokenizer))
    optimizer = torch.optim.AdamW(backbone.requires_grad_(True).parameters(), lr=3e-3)
    for _ in range(40):  # whole answers, each up to its end token
        backbone(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    said = generate_answers(backbone, tokenizer, [question for question, _ in facts])
    assert [each.text for each in said] == [answer for _, answer in facts]
    scored = answer_confidences(backbone, tokenizer, examples)
    assert [right for right, _ in scored] == [True, True]
    assert [each.confidence for each in said] == pytest.approx([sure for _, sure in scored], rel=1e-3)
    assert not answered(backbone, tokenizer, [encode_example(tokenizer, facts[0][0], "red kites")])[0]
