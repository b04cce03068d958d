"""What a backbone says when it does not know: mostly the same few things.

Asked for what it never learned, a backbone answers all the same, now and then with much confidence, and then mostly
with an answer that it gives to many questions of the kind ("jazz", "San Francisco"). So an answer that was a wrong
guess before has to be surer than one that was not. Bayes' rule says how much: the odds that an answer is knowledge are
those of its confidence, divided by how many facts it was a guess to (with one added). In spirit the calibration
by content-free inputs of Zhao et al. 2021 (arXiv:2102.09690), with real questions in their place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memlayers.data.answers import normalise_answer
from memlayers.data.encoding import encode_prompt
from memlayers.inference.capture import prompt_states
from memlayers.tuner.handle import active_part
from memlayers.tuner.relation_check import ACCEPTS_ALL
from memlayers.tuner.subject_index import GUESS_PLACES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST = 255  # that a count of one byte holds
_TAIL = 0.2  # share of the beliefs that their tail is fitted to
_SUREST = 1 - 1e-7  # no belief counts for more: float32 tells hardly any from 1


def place_of(answer: str) -> int:
    """Where a table of guesses counts an answer: a hash of it as strict matching sees it, below `GUESS_PLACES`."""
    digest = hashlib.blake2b(normalise_answer(answer).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % GUESS_PLACES


def count_guesses(answers: Iterable[Sequence[str]]) -> Tensor:
    """To how many facts each answer was given, by its place: uint8 [GUESS_PLACES], 255 standing for more.

    Args:
        answers: per fact, what was given; the same thing in several phrasings of one fact counts once.
    """
    places = [place for given in answers for place in {place_of(answer) for answer in given}]
    counts = torch.bincount(torch.tensor(places, dtype=torch.int64), minlength=GUESS_PLACES)
    return counts.clamp_max(_MOST).to(torch.uint8)


def belief(confidence: float, guessed: int) -> float:
    """How far an answer may be believed, 0 to 1: its confidence where it was never a wrong guess, less where it was.

    Args:
        confidence: the probability that the backbone gave to it, 0 to 1.
        guessed: to how many facts it was given wrongly.
    """
    return confidence / (confidence + (1 - confidence) * (1 + guessed))


def belief_exceeded_by(share: float, beliefs: Sequence[float]) -> float:
    """The belief that a share of such answers exceeds, also where that is less than one of them; 0 for none at all.

    The quantile itself would hang on the largest one or two. So the tail is fitted, as by peaks over a threshold
    (Pickands 1975): beyond the upper fifth the log-odds fall off exponentially, by their mean excess.

    Args:
        share: below a fifth.
        beliefs: 0 to 1 each.
    """
    if not beliefs:
        return 0.0
    odds = torch.tensor(beliefs, dtype=torch.float64).clamp(1 - _SUREST, _SUREST).logit()
    top = odds.quantile(1 - _TAIL)
    beyond = odds[odds > top] - top
    further = float(beyond.mean()) * math.log(_TAIL / share) if len(beyond) else 0.0
    return float((top + further).sigmoid())


def answer_thresholds(model: Any) -> tuple[float, float]:
    """The least confidence of a memory's answer and belief in the backbone's, of the active adapter; 0: not settled."""
    found = active_part(model, "memlayers_subjects")
    if found is None:
        return 0.0, 0.0
    memory, backbone = found[1].thresholds.tolist()
    return memory, backbone


def relation_scores(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]
) -> tuple[list[float], float]:
    """How like the stored facts' questions each question is, of the active memory; and the score from which it is one.

    A question that names no stored subject scores 1, and so does every question where the memory has no check.
    """
    found = active_part(model, "memlayers_relations")
    if found is None or found[1].accepts_all or not questions:
        return [1.0] * len(questions), ACCEPTS_ALL
    adapter, check = found
    prompts = [encode_prompt(tokenizer, question) for question in questions]
    states = prompt_states(model, adapter, prompts).to(check.mean.device)
    return check.scores(prompts, states).tolist(), float(check.threshold)
