"""A hyphen makes a longer name: the index of subjects and the linker decide alike."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from memlayers.backbones import POCKET
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.linking.linker import NameLinker
from memlayers.linking.mention_forms import SubjectForms, subject_forms
from memlayers.tuner.boundary_flags import Boundary
from memlayers.tuner.subject_index import SubjectIndex

NAMES = ("Confucianism", "Stratford", "Kylotonn", "Man", "Mobile")
FACTS = [Fact(name, name, "x", (f"Who founded {name}?", f"Name the founder of {name}.")) for name in NAMES]
LINKER = NameLinker(FACTS)
TEXTS = [
    ("What of Neo-Confucianism in China then?", False),
    ("Neo-Confucianism was a school in China", False),
    ('the so-called "Neo-Confucianism" was', False),
    ("the school of Neo @-@ Confucianism was", False),
    ("He lived in Stratford-upon-Avon for years", False),
    ("the Kylotonn-2 deal was", False),
    ("the Ubisoft-Kylotonn deal was", False),
    ("the Kylotonn-Ubisoft deal was", False),
    ("in Kylotonn-Stratford-based shops", False),
    ("the film Spider-Man was", False),
    ("the firm T-Mobile was", False),
    ("Who Owns T-Mobile Then?", False),  # no other word tells by its capital, the hyphen does
    ("He lived in Stratford for years", True),
    ("the Kylotonn-based studio was there", True),
    ("the Kylotonn @-@ based studio was there", True),
    ("the Kylotonn-made-and-sold thing is", True),
    ("in Bolt-made Kylotonn-made shops", True),
    ("the non-Kylotonn games are", True),
    ("pre- and post-Kylotonn is", True),
    ("what of neo-confucianism then?", True),
    ("is Kylotonn's studio there", True),
    ("and Kylotonn - a studio - is", True),
    ("and Kylotonn -- Ubisoft -- is", True),
    ("by Smith--Kylotonn was", True),
    ("by Smith - Kylotonn was", True),
    ("a Smith–Kylotonn deal", True),
    ("a Kylotonn—Smith deal", True),
    ("the list:\n- Kylotonn\n- Bolt", True),
    ("the list:\n-Kylotonn is", True),
    ("Answer- Kylotonn is", True),
    ("Who founded Kylotonn  then?", True),
    ("write to Bob @ Kylotonn today", True),
]
TOKENIZERS = ("pocket", "hyphen_with_word")


@cache
def _tokenizer(name: str) -> Any:
    """Pocket's, or one that joins a hyphen with the word behind it, as Qwen's and Llama 3's do."""
    if name == "pocket":
        return AutoTokenizer.from_pretrained(POCKET)
    bpe = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [text.replace("@-@", "@ -") for text, _ in TEXTS]  # a token " @", none " @-@"
    bpe.train_from_iterator([*texts, "it is upon the river Avon of Confucianism"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


@cache
def _forms(name: str) -> SubjectForms:
    tokenizer = _tokenizer(name)
    return subject_forms(tokenizer, FACTS, [[encode_prompt(tokenizer, q) for q in fact.questions] for fact in FACTS])


def _index(name: str, *, without: int = 0) -> SubjectIndex:
    forms, index = _forms(name), SubjectIndex(len(_tokenizer(name)))
    index.fill(forms.forms, 30, forms.flags & (0xFF - without), forms.letters)
    return index


def _open(index: SubjectIndex, ids: list[int]) -> list[bool]:
    return (index.subjects_in(torch.tensor([ids]))[0] != 0).tolist()


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize(("text", "named"), TEXTS)
def test_a_name_that_a_hyphen_continues_is_another(tokenizer: str, text: str, named: bool) -> None:
    index, ids = _index(tokenizer), _tokenizer(tokenizer)(text, add_special_tokens=False)["input_ids"]
    found = _open(index, ids)
    assert any(found) == bool(LINKER.mentions(text)) == named
    assert [_open(index, ids[: end + 1])[-1] for end in range(len(ids))] == found  # what comes later changes nothing


def test_wikitexts_hyphens_join_a_chain() -> None:
    """Where the space before the "@" is a part of its token, as it is in all but small vocabularies."""
    text = "He lived in Stratford @-@ upon @-@ Avon for years"
    ids = _tokenizer("hyphen_with_word")(text, add_special_tokens=False)["input_ids"]
    assert not any(_open(_index("hyphen_with_word"), ids)) and not LINKER.mentions(text)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_it_opens_when_what_is_joined_is_whole(tokenizer: str) -> None:
    text = "the Kylotonn-based studio"
    ids = _tokenizer(tokenizer)(text, add_special_tokens=False)["input_ids"]
    found = _open(_index(tokenizer), ids)
    assert _tokenizer(tokenizer).decode([i for i, is_open in zip(ids, found, strict=True) if is_open]) == " studio"


def test_a_memory_of_an_earlier_version_knows_no_hyphens() -> None:
    index = _index("pocket", without=Boundary.HYPHEN)
    for text in ("What of Neo-Confucianism then?", "He lived in Stratford-upon-Avon for years", "Kylotonn-based is"):
        ids = _tokenizer("pocket")(text, add_special_tokens=False)["input_ids"]
        assert any(_open(index, ids))


def test_a_hyphened_name_in_a_facts_own_question_is_a_form_of_its_subject() -> None:
    tokenizer = _tokenizer("pocket")
    odd = Fact("odd", "Acme", "x", ("Who founded Acme-on-Sea?", "Who owns Neo-Acme now?"))
    facts = [*FACTS, odd]
    contexts = [[encode_prompt(tokenizer, q) for q in fact.questions] for fact in facts]
    found = subject_forms(tokenizer, facts, contexts)
    assert torch.equal(found.flags, _forms("pocket").flags)  # it says nothing of the language
    assert {"Acme-on-Sea", "Neo-Acme"} <= {tokenizer.decode(form).strip() for form in found.of_fact[-1]}
    index = SubjectIndex(len(tokenizer))
    index.fill(found.forms, found.scope, found.flags, found.letters)
    assert all(_open(index, list(ids))[-1] for ids in contexts[-1])


def test_chunks_and_packed_texts_are_as_each_text_is() -> None:
    rng = random.Random(3)
    index = SubjectIndex(16)
    kinds = [
        Boundary.HYPHEN, Boundary.HYPHEN, Boundary.HYPHEN | Boundary.UPPER, Boundary.WORD_PART | Boundary.CONTINUES,
        Boundary.WORD_PART | Boundary.CAPITAL | Boundary.CONTINUES | Boundary.PRECEDES, Boundary.LOWERCASE,
        Boundary.CAPITAL | Boundary.CONTINUES | Boundary.PRECEDES, Boundary.HYPHEN | Boundary.LOWERCASE, Boundary(0),
        Boundary.HYPHEN | Boundary.CAPITAL | Boundary.CONTINUES | Boundary.PRECEDES,
    ]  # fmt: skip
    flags = torch.tensor([int(kind) for kind in kinds], dtype=torch.uint8)
    index.fill({(4, 5): (4, 5), (6,): (6,), (5, 3): (5, 3)}, 6, flags)
    ids = torch.tensor([[rng.randrange(len(kinds)) for _ in range(60)] for _ in range(20)])
    mentions = index.mentions(ids)
    assert torch.equal(torch.cat([mentions[:, :17], index.mentions(ids, 43)], 1), mentions)
    subjects = index.subjects_in(ids)
    assert 0 < (subjects != 0).sum() < ids.numel()
    packed, first = ids.reshape(4, 300), (torch.arange(300) // 60 * 60).expand(4, 300)
    found = index.mentions(packed, first=first)
    assert torch.equal(index.in_scope(found, index.last_mention(packed, found, first)), subjects.reshape(4, 300))
    for end in (1, 2, 30, 59):
        assert torch.equal(index.subjects_in(ids[:, :end]), subjects[:, :end])
