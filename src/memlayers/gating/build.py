"""Makes a gate: index of subjects, relation check, trained gates. One recipe for `teach` and `gate`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from memlayers.linking.mention_forms import Subjects
from memlayers.tuner.handle import memory_handle

MOST_CONTEXTS = 2000  # of the facts, that calibration and the gates are shown


def index_subjects(model: Any, adapter: str, subjects: Subjects) -> None:
    """Fills the memory's index of subjects with what `subject_runs` found."""
    index = memory_handle(model, adapter).index
    assert index is not None
    index.fill(subjects.runs, subjects.reach, subjects.marks)


def sampled_contexts(contexts: Sequence[list[int]], seed: int) -> list[list[int]]:
    """At most `MOST_CONTEXTS` of the facts' contexts, token ids of questions and answers, in an order of their own."""
    return random.Random(seed).sample(contexts, min(len(contexts), MOST_CONTEXTS))
