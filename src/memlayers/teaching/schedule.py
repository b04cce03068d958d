"""The order of work: which sequences each step of teaching shows. A function of seed and epoch alone.

An epoch shows every fact once, in one of its wordings: one exposure.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from memlayers.data.encoding import Encoded, pack

Respelled: TypeAlias = Callable[[int, int, int], Encoded | None]
"""What is shown in place of a fact's wording in an epoch, by their numbers; None for the wording as it is."""


class Place(NamedTuple):
    """Where a step lies.

    Attributes:
        epoch: that is next or under way, from 0.
        done: steps of it that are over.
    """

    epoch: int
    done: int


class Schedule:
    """Which batches each epoch has.

    Args:
        examples: per fact its wordings, prompt and answer each.
        mixed: further sequences, which every epoch shows too.
        epochs: at most.
        batch_size: sequences per step.
        pack_to: tokens per packed sequence; None does not pack.
        seed: of the order.
        respelled: what is shown in place of a wording; None shows each as it is.

    Attributes:
        epoch_steps: steps of each epoch.
    """

    def __init__(
        self,
        examples: Sequence[Sequence[Encoded]],
        mixed: Sequence[Encoded],
        epochs: int,
        batch_size: int,
        pack_to: int | None,
        seed: int,
        respelled: Respelled | None = None,
    ) -> None:
        self._examples, self._mixed, self._respelled = examples, mixed, respelled
        self._batch_size, self._pack_to, self._seed = batch_size, pack_to, seed
        # Packed sequences come out as more in one order of the facts and as fewer in another.
        counted = [len(self.batches(epoch)) for epoch in range(epochs if pack_to else 1)]
        self.epoch_steps = counted if pack_to else counted * epochs

    @property
    def steps(self) -> int:
        """Of all epochs together."""
        return sum(self.epoch_steps)

    def place(self, step: int) -> Place:
        """The epoch that is next or under way after `step` steps."""
        epoch = bisect_right(list(accumulate(self.epoch_steps)), step)
        return Place(epoch, step - sum(self.epoch_steps[:epoch]))

    def exposures(self, step: int) -> float:
        """How often each fact was shown after `step` steps; a fraction within an epoch."""
        epoch, done = self.place(step)
        return epoch + (done / self.epoch_steps[epoch] if done else 0)

    def batches(self, epoch: int) -> list[list[Encoded]]:
        """The batches of an epoch: each fact once, its wordings in turn; sequences of like length together."""
        rng = random.Random(f"{self._seed}:{epoch}")
        examples = [self._shown(i, (epoch + i) % len(wordings), epoch) for i, wordings in enumerate(self._examples)]
        examples += self._mixed
        rng.shuffle(examples)
        if self._pack_to:
            examples = pack(examples, self._pack_to)
        size = self._batch_size
        batches = []
        for start in range(0, len(examples), 8 * size):  # like lengths within 8 batches: less padding, still mixed
            like = sorted(examples[start : start + 8 * size], key=lambda example: len(example.input_ids))
            batches += [like[i : i + size] for i in range(0, len(like), size)]
        rng.shuffle(batches)
        return batches

    def _shown(self, fact: int, wording: int, epoch: int) -> Encoded:
        """What an epoch shows of a fact; the first shows all wordings as they are."""
        other = self._respelled(fact, wording, epoch) if self._respelled is not None and epoch else None
        return self._examples[fact][wording] if other is None else other
