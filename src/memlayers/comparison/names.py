"""The methods by name. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from memlayers.utils.errors import InputError

NUMBERED: Mapping[str, tuple[int, ...]] = MappingProxyType({"lora": (16, 64), "rag": (1, 5)})
"""What the name without a number stands for: LoRA of these ranks; retrieval of so many facts."""
BARE = "bare"
"""The backbone itself, which the others are held to."""
_PLAIN = ("memory", "dense", "full", "context", "memit", BARE)


def methods_named(text: str) -> list[str]:
    """The methods that some words name, with commas between, in their order and each once; the backbone is the first.

    Raises:
        InputError: there is no such method.
    """
    found = [BARE]
    for word in (word.strip() for word in text.split(",") if word.strip()):
        if word in NUMBERED:
            found += [f"{word}-{number}" for number in NUMBERED[word]]
        elif word in _PLAIN or re.fullmatch(rf"({'|'.join(NUMBERED)})-[1-9]\d{{0,3}}", word):
            found.append(word)
        else:
            known = ", ".join((*_PLAIN, *NUMBERED))
            raise InputError(f"no method {word!r} to compare; take some of {known}, or lora-RANK, rag-FACTS")
    return list(dict.fromkeys(found))
