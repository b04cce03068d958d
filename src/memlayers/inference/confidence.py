"""How much the backbone's own answers may be trusted: confidence calibrated by a prior of wrong answers.

Asked for what it never learned, a backbone answers all the same, now and then with much confidence, and then mostly
with an answer that it gives to many questions of the kind ("jazz", "San Francisco"). So an answer that was wrong before
needs more confidence than one that was not. Bayes' rule says how much: the odds that an answer is knowledge are the
odds of its confidence, divided by the number of facts to which it was a wrong answer (plus one). In spirit the
calibration by content-free inputs of Zhao et al. 2021 (arXiv:2102.09690), with real questions in their place.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memlayers.backbones import context_length
from memlayers.data.answers import normalise_answer
from memlayers.data.encoding import encode_prompt
from memlayers.inference.capture import prompt_states
from memlayers.tuner.handle import MemoryHandle, active_memories
from memlayers.tuner.relation_check import ACCEPTS_ALL, without_mention
from memlayers.tuner.subject_index import PRIOR_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST = 255  # that a count of one byte holds
_TAIL = 0.2  # share of the confidences that their tail is fitted to
_SUREST = 1 - 1e-7  # no confidence counts for more: float32 tells hardly any from 1


def prior_entry(answer: str) -> int:
    """An answer's entry in a prior of wrong answers, below `PRIOR_SIZE`: a hash of what strict matching compares."""
    digest = hashlib.blake2b(normalise_answer(answer).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % PRIOR_SIZE


def count_wrong_answers(answers: Iterable[Sequence[str]]) -> Tensor:
    """A prior of wrong answers: to how many facts each was given.

    Args:
        answers: per fact the wrong answers it got; the same one in several phrasings of one fact counts once.

    Returns:
        uint8 [PRIOR_SIZE]; 255 stands for more.
    """
    entries = [entry for given in answers for entry in {prior_entry(answer) for answer in given}]
    counts = torch.bincount(torch.tensor(entries, dtype=torch.int64), minlength=PRIOR_SIZE)
    return counts.clamp_max(_MOST).to(torch.uint8)


def calibrated_confidence(confidence: float, wrong: int) -> float:
    """The calibrated confidence of an answer, 0 to 1: its confidence where it was never wrong, less where it was.

    Args:
        confidence: the probability that the backbone gave to its least likely token (`Generated.least`), 0 to 1.
        wrong: to how many facts it was a wrong answer.
    """
    return confidence / (confidence + (1 - confidence) * (1 + wrong))


def confidence_exceeded_by(share: float, confidences: Sequence[float]) -> float:
    """The confidence that a share of such answers exceeds, also where that is less than one of them; 0 for no answers.

    The quantile itself would depend on the largest one or two. So the tail is fitted, as by peaks over a threshold
    (Pickands 1975): beyond the upper fifth the log-odds fall off exponentially, by their mean excess.

    Args:
        share: below a fifth.
        confidences: 0 to 1 each.
    """
    if not confidences:
        return 0.0
    odds = torch.tensor(confidences, dtype=torch.float64).clamp(1 - _SUREST, _SUREST).logit()
    top = odds.quantile(1 - _TAIL)
    beyond = odds[odds > top] - top
    further = float(beyond.mean()) * math.log(_TAIL / share) if len(beyond) else 0.0
    return float((top + further).sigmoid())


def answer_thresholds(model: Any) -> tuple[float, float]:
    """The thresholds of the active memory that has an index of subjects.

    Returns:
        The least confidence of the memory's answer, and the least calibrated confidence of the backbone's, from which
        each is given; 0 where not settled.
    """
    for memory in active_memories(model):
        if memory.index is not None:
            of_memory, of_backbone = memory.index.thresholds.tolist()
            return of_memory, of_backbone
    return 0.0, 0.0


class ReadWordings:
    """What the bare backbone made of the wordings that it read last, so that each is read once.

    One memory's own, and for one thread at a time. Edits change keys, and never what a wording reads like.

    Args:
        most: wordings kept; the one that was not asked for longest goes first.
    """

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._states: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def states(self, memory: MemoryHandle, wordings: Sequence[Sequence[int]], *, deep: bool) -> Tensor:
        """The states of wordings, token ids, as `prompt_states` has them, float32 [n, d]."""
        keys = [tuple(each) for each in wordings]
        unread = [key for key in dict.fromkeys(keys) if key not in self._states]
        found = {key: self._states[key] for key in keys if key in self._states}
        if unread:
            found |= zip(unread, prompt_states(memory, unread, deep=deep)[-1], strict=True)
        for key in dict.fromkeys(keys):
            self._states[key] = found[key]
            self._states.move_to_end(key)
        while len(self._states) > self._most:
            self._states.popitem(last=False)
        return torch.stack([found[key] for key in keys])


def relation_scores(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], read: ReadWordings | None = None
) -> tuple[list[float], float]:
    """How like the stored facts' questions each question is, for the active memory that has a relation check.

    Args:
        model: a PEFT model with a memory.
        tokenizer: the backbone's.
        questions: any number.
        read: of wordings that were read before; this memory's own.

    Returns:
        A score per question, and the score from which it asks for what was taught. A question that mentions no stored
        subject scores 1, and so does every question where the memory has no check.

    Raises:
        InputError: a question fills the backbone's context.
    """
    for memory in active_memories(model):
        check, index = memory.relations, memory.index
        if check is not None and index is not None and not check.accepts_all and questions:
            context = context_length(model)
            prompts = [encode_prompt(tokenizer, question, max_length=context) for question in questions]
            wordings = [without_mention(prompt, check.prints, index.table) for prompt in prompts]
            states = (read or ReadWordings()).states(memory, wordings, deep=bool(check.deep))
            return check.scores(prompts, states.to(check.centre.device), index.table).tolist(), float(check.threshold)
    return [1.0] * len(questions), ACCEPTS_ALL
