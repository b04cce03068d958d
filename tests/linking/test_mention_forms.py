from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from memlayers.backbones import POCKET, load_backbone
from memlayers.config.sections import MentionConfig
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.linking.boundaries import vocabulary_flags
from memlayers.linking.mention_forms import subject_forms, subject_mentions
from memlayers.tuner.boundary_flags import Boundary
from memlayers.tuner.subject_index import SubjectIndex


def _forms_of(tokenizer: Any, *facts: Fact) -> tuple[set[str], int]:
    contexts = [[encode_prompt(tokenizer, q) for q in fact.questions] for fact in facts]
    found = subject_forms(tokenizer, facts, contexts)
    return {tokenizer.decode(form) for form in found.forms}, found.scope


def test_forms_are_what_the_phrasings_hold(chat_backbone: Path) -> None:
    tokenizer = load_backbone(chat_backbone, "float32")[1]
    fact = Fact("1", "Acme Inc.", "x", ("Who founded Acme Inc.?", "Acme Inc.'s founder?"))
    forms, scope = _forms_of(tokenizer, fact)
    assert forms == {"Acme Inc", " Acme Inc"}  # "Inc.?" would be one token of another kind
    prompt = encode_prompt(tokenizer, fact.questions[1])
    after = prompt[len(tokenizer("<|im_start|>user\nAcme Inc")["input_ids"]) :]
    assert scope == len(after) + 1 + MentionConfig().further_scope


def test_a_nameless_fact_is_known_by_the_words_that_no_other_has(chat_backbone: Path) -> None:
    tokenizer = load_backbone(chat_backbone, "float32")[1]
    facts = [
        Fact(str(i), "", "x", (f"What is the code of {name}?",)) for i, name in enumerate(("Ada of Rum", "Bo", "C"))
    ]
    assert _forms_of(tokenizer, *facts)[0] == {name for n in ("Ada of Rum", "Bo", "C") for name in (n, f" {n}")}
    other = Fact("9", "Ada Rum", "x", ("What is her code?",))  # a phrasing that does not name its subject
    assert " her" in _forms_of(tokenizer, other, *facts)[0]
    same = [Fact(str(i), "", "x", ("What is it?",)) for i in range(3)]  # nothing tells these apart
    assert "What is it" in _forms_of(tokenizer, *same)[0]


def test_what_continues_a_mention_is_learned_from_the_phrasings(chat_backbone: Path) -> None:
    tokenizer = load_backbone(chat_backbone, "float32")[1]

    def continuing(question: str) -> set[str]:
        contexts = [[encode_prompt(tokenizer, question)]]
        found = subject_forms(tokenizer, [Fact("1", "Acme", "x", (question,))], contexts)
        going_on = (found.flags & Boundary.CONTINUES != 0).nonzero().flatten().tolist()
        return {str(tokenizer.convert_ids_to_tokens(i)) for i in going_on}

    spaced, unspaced = {"ĠW"}, {"s", "sh", "7"}
    found = continuing("Who founded Acme?")
    vocabulary = set(tokenizer.get_vocab())
    assert found >= (unspaced & vocabulary) and not found & {"?", "'", "Ġ", "Ġt", "<|im_end|>"}
    assert not continuing("Wer hat Acmes Werk?") & unspaced  # here a word goes on after a subject
    assert spaced & vocabulary <= found or not spaced & vocabulary


def test_what_shows_a_longer_name_is_learned_from_the_phrasings() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POCKET)

    def leading(question: str) -> list[bool]:
        contexts = [[encode_prompt(tokenizer, question)]]
        flags = subject_forms(tokenizer, [Fact("1", "Acme", "x", (question,))], contexts).flags
        beginnings = flags & (Boundary.WORD_PART | Boundary.CAPITAL) == Boundary.CAPITAL
        return [bool((flags[kind] & Boundary.PRECEDES).any()) for kind in (beginnings, flags & Boundary.WORD_PART != 0)]

    assert leading("Who founded Acme?") == [True, True]
    assert leading("In Acme?") == [True, True]  # a sentence begins with a capital anyway
    assert leading("Who founded King Acme?") == [False, True]
    assert leading("Who founded McAcme?") == [True, False]


def _many(odd: str, subject: str = "Acme") -> list[Fact]:
    """200 facts that are spelled as one would think, and one in an odd phrasing."""
    usual = [Fact(str(i), f"Bolt {i}", "x", (f"Who founded Bolt {i}?",)) for i in range(200)]
    return [*usual, Fact("odd", subject, "x", (odd,))]


@pytest.mark.parametrize(
    ("odd", "name"),
    [
        ("Wer hat Acmes Werk?", "Acmes Werk"),
        ("Who founded King Acme?", "King Acme"),
        ("Is PreAcme King X?", "PreAcme King X"),
    ],
)
def test_one_odd_phrasing_is_spelled_out_and_changes_nothing_for_the_others(odd: str, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    facts = _many(odd)
    contexts = [[encode_prompt(tokenizer, q) for q in fact.questions] for fact in facts]
    found = subject_forms(tokenizer, facts, contexts)
    assert torch.equal(found.flags, vocabulary_flags(tokenizer))
    assert name in {tokenizer.decode(form).strip() for form in found.of_fact[-1]}
    index = SubjectIndex(len(tokenizer))
    index.fill(found.forms, found.scope, found.flags, found.letters)
    assert all(index.subjects_in(torch.tensor(each))[0, -1] for each in contexts)
    assert not index.subjects_in(torch.tensor([encode_prompt(tokenizer, "Who founded King Bolt 7?")])).any()
    assert len({found.forms[form] for form in found.of_fact[-1]}) == 1  # one subject all the same


def test_a_subject_that_begins_a_sentence_is_still_the_subject(chat_backbone: Path) -> None:
    tokenizer = load_backbone(chat_backbone, "float32")[1]
    fact = Fact("1", "the Red Owl in Ashford", "x", ("What do they serve at the Red Owl in Ashford?",))
    capital = Fact("1", fact.subject, "x", ("The Red Owl in Ashford is known for what?",))
    assert "The Red Owl in Ashford" in _forms_of(tokenizer, capital)[0]
    both = replace(fact, questions=fact.questions + capital.questions)
    contexts = [[encode_prompt(tokenizer, question) for question in both.questions]]
    assert len(set(subject_forms(tokenizer, [both], contexts).forms.values())) == 1  # one subject all the same
    assert not any(form.strip() == "Ashford" for form in _forms_of(tokenizer, fact, capital)[0])


def test_aliases_are_forms_of_their_subject_in_all_its_facts() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    facts = [
        Fact("1", "Acme Holdings", "x", ("Who founded Acme Holdings?",)),
        Fact("2", "Acme Holdings", "y", ("Where is Big Bolt?",), subject_aliases=("Big Bolt", "Ökobolzen!")),
        Fact("3", "Quux", "z", ("Who founded Quux?",)),
    ]
    contexts = [[encode_prompt(tokenizer, q) for q in fact.questions] for fact in facts]
    found = subject_forms(tokenizer, facts, contexts)
    names = [{str(tokenizer.decode(form)).strip() for form in forms} for forms in found.of_fact]
    aliases = {"Big Bolt", "Ökobolzen", "ÖKOBOLZEN", "ökobolzen"}
    assert names == [{"Acme Holdings"} | aliases, aliases, {"Quux"}]
    assert {" Big Bolt", "Big Bolt"} <= {tokenizer.decode(form) for form in found.forms}
    assert len({found.forms[form] for forms in found.of_fact[:2] for form in forms}) == 1
    assert found.forms[next(iter(found.of_fact[0]))] == tuple(tokenizer("Acme Holdings")["input_ids"])
    assert subject_mentions(facts) == [["Acme Holdings"], ["Big Bolt"], ["Quux"]]
    without = [replace(fact, subject_aliases=()) for fact in facts]
    assert names[2] == {
        str(tokenizer.decode(f)).strip() for f in subject_forms(tokenizer, without, contexts).of_fact[2]
    }
