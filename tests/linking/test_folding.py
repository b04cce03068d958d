"""Names are found whatever their case, accents, punctuation and tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from memlayers.backbones import POCKET
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact, folded
from memlayers.linking.boundaries import vocabulary_flags
from memlayers.linking.mention_forms import subject_forms
from memlayers.tuner.letters import LONGEST_FORM, Letters, letters_hash
from memlayers.tuner.subject_index import SubjectIndex

NAMES = ["Saint-Denis", "Oakmere", "José Müller", "Will", "Apollo 13", "Rough Church"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Saint-Denis", "saintdenis"),
        ("JOSÉ  Müller’s", "josemullers"),
        ("**Ｏak mere**", "oakmere"),
        ("Straße 7", "strasse7"),
        ("東京, Москва", "東京москва"),
        ("?!", ""),
    ],
)
def test_what_is_left_of_a_text(text: str, kept: str) -> None:
    assert folded(text) == kept


def _index() -> tuple[SubjectIndex, Any]:
    tokenizer: Any = AutoTokenizer.from_pretrained(POCKET)
    facts = [Fact(str(i), name, "x", (f"Who knows {name}?",)) for i, name in enumerate(NAMES)]
    contexts = [[encode_prompt(tokenizer, q) for q in fact.questions] for fact in facts]
    found = subject_forms(tokenizer, facts, contexts)
    index = SubjectIndex(len(tokenizer))
    index.fill(found.forms, found.scope, found.flags, found.letters)
    return index, tokenizer


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Who founded Saint-Denis?", "Saint-Denis"),
        ("who founded saint denis", "Saint-Denis"),
        ("WHO FOUNDED SAINT-DENIS?", "Saint-Denis"),
        ("Who founded “Saint Denis”?", "Saint-Denis"),
        ("Who founded **saint-denis**?", "Saint-Denis"),
        ("What is oakmere's capital?", "Oakmere"),
        ("where was jose muller born", "José Müller"),
        ("WHERE WAS JOSÉ MÜLLER BORN?", "José Müller"),
        ("who flew apollo 13?", "Apollo 13"),
        ("Who knows Will?", "Will"),
        ("WHO KNOWS WILL?", "Will"),
        ("Who will come?", None),  # a word of its own, in lower case
        ("Where are oakmeres?", None),  # the rest of a longer word
        ("who founded the bigoakmere?", None),
        ("Who founded Oakmere Road?", None),  # a longer name
        ("Who wrote apollo 1?", None),
    ],
)
def test_a_name_is_found_in_any_spelling_of_its_letters(text: str, named: str | None) -> None:
    index, tokenizer = _index()
    entity = index.subjects_in(torch.tensor([tokenizer(text + " a")["input_ids"]]))[0]
    expected = (
        {0} if named is None else {0, index.table.fingerprint(tokenizer(named, add_special_tokens=False)["input_ids"])}
    )
    assert set(entity.tolist()) == expected


def test_without_folding_tokens_are_compared() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    index = SubjectIndex(len(tokenizer))
    form = tuple(tokenizer(" Oakmere", add_special_tokens=False)["input_ids"])
    index.fill({form: form}, 30, vocabulary_flags(tokenizer))
    for text, named in (("Where is Oakmere now?", True), ("Where is oakmere now?", False)):
        assert bool(index.subjects_in(torch.tensor([tokenizer(text)["input_ids"]])).any()) == named


def test_the_hash_of_a_run_is_that_of_its_letters_however_it_is_cut() -> None:
    rng = random.Random(0)
    pieces = [bytes(rng.randrange(97, 100) for _ in range(rng.randint(0, 4))) for _ in range(40)]
    table = Letters.none(40)
    for number, piece in enumerate(pieces[:-1]):
        table.hashes[number], table.widths[number] = letters_hash(piece), len(piece)
    ids = torch.tensor([[rng.randrange(39) for _ in range(60)] for _ in range(3)])
    hashes, runs = table.runs(ids)
    for row in range(3):
        for end in range(60):
            for length in range(1, LONGEST_FORM + 1):
                start = end + 1 - length
                run = start >= 0 and bool(pieces[ids[row, start]]) and bool(pieces[ids[row, end]])
                assert bool(runs[row, end, length - 1]) == run
                if run:
                    text = b"".join(pieces[each] for each in ids[row, start : end + 1])
                    assert int(hashes[row, end, length - 1]) == letters_hash(text)
    for latest in (0, 1, 13):
        assert torch.equal(table.runs(ids, latest)[0], hashes[:, 60 - latest :])
    cut, whole = table.runs(ids[:, 20:], 5)[0], hashes[:, 55:]
    assert torch.equal(cut, whole)  # whatever lies before the context
