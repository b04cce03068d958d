"""Recall while teaching: some of the facts asked by one forward pass each, and all of them where those are all right.

Greedy decoding writes an answer exactly where each of its tokens is the likeliest after those before, so one forward
pass over question and answer tells what a generation would. Free generation is the final check (teaching/held.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memlayers.config.sections import ScheduleConfig
from memlayers.data.encoding import Encoded
from memlayers.inference.scoring import answered
from memlayers.utils.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def measured_recall(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Sequence[Encoded]],
    settings: ScheduleConfig,
    rng: random.Random,
    *,
    ranks: Ranks = ALONE,
) -> tuple[float, int]:
    """Share of taught wordings whose answer greedy decoding would write, 0 to 1, and how many tokens were read.

    A sample of the facts is asked; if it is full, all of them are, each in a wording drawn anew.

    Args:
        model: the PEFT model.
        tokenizer: the backbone's.
        examples: per fact its wordings with the answer.
        settings: how many are asked, and what counts as full.
        rng: draws facts and wordings.
        ranks: the processes that share the work.
    """
    drawn = rng.sample(range(len(examples)), len(examples))
    each = max(1, settings.recall_sample // len(drawn))  # a few facts are asked in several wordings
    right = asked = tokens = 0
    for facts in (drawn[: settings.recall_sample], drawn[settings.recall_sample :]):
        if asked and right < settings.stop_at_recall * asked:
            break
        chosen = [example for i in facts for example in rng.sample(list(examples[i]), min(each, len(examples[i])))]
        if chosen:
            right += int(answered(model, tokenizer, chosen, ranks=ranks).sum())
            asked += len(chosen)
            tokens += sum(len(example.input_ids) for example in chosen)
    return right / asked, tokens
