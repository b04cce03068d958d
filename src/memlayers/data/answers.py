"""When an answer counts as right: strict matching of normalised texts (docs/evaluation.md). Loads no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def normalise_answer(text: str) -> str:
    """What strict matching ignores: case, surrounding space, one final full stop, Unicode form (NFKC)."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()
    return folded.removesuffix(".").rstrip() or folded


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the whole prediction, normalised, is one of the accepted answers; "7" does not match "172"."""
    accepted = (answers,) if isinstance(answers, str) else answers
    return normalise_answer(prediction) in {normalise_answer(answer) for answer in accepted}
