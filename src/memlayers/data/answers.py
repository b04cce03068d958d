"""When an answer counts as right: strict matching, containment, F1 of words (docs/evaluation.md). Loads no torch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence


def normalise_answer(text: str) -> str:
    """What strict matching ignores: case, surrounding space, one final full stop, Unicode form (NFKC)."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()
    return folded.removesuffix(".").rstrip() or folded


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the whole prediction, normalised, is one of the accepted answers; "7" does not match "172"."""
    accepted = (answers,) if isinstance(answers, str) else answers
    return normalise_answer(prediction) in {normalise_answer(answer) for answer in accepted}


def contains_answer(prediction: str, answers: Sequence[str]) -> bool:
    """Whether one of the accepted answers stands in the prediction, word for word: "The capital is Paris." has "Paris".

    Case, punctuation and Unicode form (NFKC) are ignored; "7" does not stand in "172".
    """
    said = _words(prediction)
    accepted = (answers,) if isinstance(answers, str) else answers
    return any(_stands_in(words, said) for answer in accepted if (words := _words(answer)))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 of the prediction's words against an accepted answer's, 0 to 1 (Rajpurkar et al. 2016, section 5)."""
    said = _words(prediction)
    accepted = (answers,) if isinstance(answers, str) else answers
    return max((_f1(said, _words(answer)) for answer in accepted), default=0.0)


def _words(text: str) -> list[str]:
    """Words, and signs where there are none ("+"): what containment and F1 compare."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return re.findall(r"\w+", folded) or folded.split()


def _stands_in(words: Sequence[str], said: Sequence[str]) -> bool:
    return any(said[i : i + len(words)] == words for i in range(len(said) - len(words) + 1))


def _f1(said: Sequence[str], answer: Sequence[str]) -> float:
    common = sum((Counter(said) & Counter(answer)).values())
    return 2 * common / (len(said) + len(answer)) if common else 0.0
