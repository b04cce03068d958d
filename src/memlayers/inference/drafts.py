"""Drafts: what a stored fact says is checked by one forward pass, in place of being generated token by token.

Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192) with the answer of the fact that a question most likely
asks for. Greedy decoding writes it exactly where each of its tokens is the likeliest after those before; then the
answer, its confidence and the tokens that read are those of `generate_answers`, but for rounding. Otherwise the answer
is generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from memlayers.backbones import context_length
from memlayers.data.encoding import IGNORED_LABEL, encode_example, end_token_id
from memlayers.data.facts import Fact
from memlayers.inference.generation import AnswerEnds, Generated, OpenTokens, answer_limit
from memlayers.inference.scoring import answer_logits
from memlayers.tuner.current import holding
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST = 64  # facts about one subject that are looked at, so that choosing stays cheaper than what it saves
_WORD = re.compile(r"[^\W_]+")


def fact_asked_for(question: str, facts: Sequence[Fact]) -> Fact | None:
    """Of some facts about one subject the one whose phrasings have most words in common with a question, or none."""
    if len(facts) < 2:
        return facts[0] if facts else None
    words = _words(question)

    def in_common(fact: Fact) -> float:
        phrasings = map(_words, fact.questions)
        return max((len(words & each) / len(words | each) for each in phrasings if each), default=0.0)

    return max(facts[:_MOST], key=in_common)


@torch.inference_mode()
def checked_draft(model: Any, tokenizer: PreTrainedTokenizerBase, question: str, draft: str) -> Generated | None:
    """What greedy decoding answers to a question, with its tokens, where that is the draft; None where it is not.

    Args:
        model: a causal LM in eval mode, with or without a memory.
        tokenizer: its tokenizer.
        question: as `generate_answers` takes it.
        draft: an answer.
    """
    ends = AnswerEnds(tokenizer, end_token_id(tokenizer))
    try:
        example = encode_example(tokenizer, question, draft, max_length=context_length(model))
    except InputError:  # no answer that could be taught, or too long for the context
        return None
    tokens = [label for label in example.labels if label != IGNORED_LABEL]
    if ends.length(tokens) < len(tokens) or len(tokens) > answer_limit(model):
        return None
    recorder = OpenTokens(1)
    with holding(recorder=recorder):
        out = answer_logits(model, tokenizer, [example])
    chances, likeliest = out.logits.log_softmax(-1).max(-1)
    if not torch.equal(likeliest, out.labels):
        return None
    text = ends.cut(str(tokenizer.decode(tokens, skip_special_tokens=True))).strip()
    first = len(example.input_ids) - len(tokens) - 1  # the prompt's last token, which predicts the answer's first
    is_open = tuple(recorder.open_at(first + place) for place in range(len(tokens)))
    whole, least = float(chances.sum().exp()), float(chances.min().exp())
    return Generated(text, whole, is_open[0], least, tuple(tokens), is_open)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
