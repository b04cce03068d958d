"""When an answer counts as right: strict match, containment, token F1 (docs/evaluation.md). Loads no torch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

# Figures stay whole: a sign before one, and what stands between two digits (676.50, 2024-05-01, 10:30), are part of it.
_WORD = re.compile(r"(?:(?<!\w)[-+](?=\d))?\w+(?:(?<=\d)[.,:/-](?=\d)\w+)*")
_ARTICLES = frozenset(("a", "an", "the"))


def normalise_answer(text: str) -> str:
    """What strict matching ignores: case, surrounding space, one final full stop, Unicode form (NFKC)."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()
    return folded.removesuffix(".").rstrip() or folded


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the whole prediction, normalised, is one of the accepted answers; "7" does not match "172"."""
    return normalise_answer(prediction) in {normalise_answer(answer) for answer in _several(answers)}


def contains_answer(prediction: str, answers: Sequence[str]) -> bool:
    """Whether an accepted answer's words stand in the prediction, one after the other; "7" is not in "172" or "7.5".

    Case, punctuation between words and an answer's leading article do not count. Words are what spaces and punctuation
    separate: where a script writes none between words, a sentence is one word. What matches strictly is contained.
    """
    accepted, said = _several(answers), _words(prediction)
    found = (_is_run(_without_leading_article(_words(answer)), said) for answer in accepted)
    return any(found) or exact_match(prediction, accepted)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """How far the prediction's words are an accepted answer's, 0 to 1: harmonic mean of precision and recall.

    Of the accepted answer that fits best; the order of the words does not count, nor do articles, as in SQuAD's score
    (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1).
    """
    said = _without_articles(_words(prediction))
    return max((_f1(said, _without_articles(_words(answer))) for answer in _several(answers)), default=0.0)


def _several(answers: Sequence[str]) -> Sequence[str]:
    return (answers,) if isinstance(answers, str) else answers


def _words(text: str) -> list[str]:
    return _WORD.findall(normalise_answer(text))


def _without_leading_article(words: list[str]) -> list[str]:
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words


def _without_articles(words: list[str]) -> list[str]:
    return [word for word in words if word not in _ARTICLES] or words


def _is_run(words: list[str], of: list[str]) -> bool:
    """Whether some words, at least one, follow each other in others."""
    return bool(words) and any(of[i : i + len(words)] == words for i in range(len(of) - len(words) + 1))


def _f1(said: list[str], wanted: list[str]) -> float:
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0
