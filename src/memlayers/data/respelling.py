"""Questions in other spellings: as people type them, or with another name of the subject. Loads no torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

_WHOLE: Final[tuple[Callable[[str], str], ...]] = (str.lower, str.upper)
_NAME: Final[tuple[Callable[[str], str], ...]] = (
    str.lower,
    str.upper,
    lambda name: name.replace(" ", "-"),
    lambda name: f'"{name}"',
    lambda name: f"**{name}**",
)


def respelled(question: str, name: str, aliases: Sequence[str], rng: random.Random) -> str:
    """A question in another spelling: all of it, or its subject's name, or with an alias; each as often.

    Args:
        question: the question.
        name: of its subject, as it stands in the question; where it does not, only the whole is respelled.
        aliases: other names of the subject.
        rng: chooses.
    """
    ways = [[way(question) for way in _WHOLE]]
    if name and name in question:
        ways.append([question.replace(name, other) for other in (way(name) for way in _NAME)])
        ways.append([question.replace(name, alias) for alias in aliases])
    others = [[text for text in texts if text != question] for texts in ways]
    return rng.choice(rng.choice([texts for texts in others if texts] or [[question]]))
