"""What is asked: a question, or a conversation whose last message asks it. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from memlayers.utils.errors import InputError

Message: TypeAlias = Mapping[str, str]
"""``{"role": "system", "user" or "assistant", "content": text}``."""

Asked: TypeAlias = str | Sequence[Message]
"""A question, or the messages of a conversation, of which the last one is the user's question."""

_ROLES = ("system", "user", "assistant")


def is_conversation(asked: Any) -> bool:
    """Whether these are the messages of one conversation, rather than a text or several questions."""
    return not isinstance(asked, str) and bool(asked) and isinstance(asked[0], Mapping)


def messages_of(asked: Asked) -> list[Message]:
    """The messages of what is asked; a question is one of the user's.

    Raises:
        InputError: a question is empty, or a message is none, or the last one is not the user's.
    """
    messages: list[Message] = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    for place, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise InputError(f"message {place} has no role of {', '.join(_ROLES)}: give each a role and its content")
        if not isinstance(message.get("content"), str):
            raise InputError(f"message {place} has no text: give its content as a string")
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise InputError("a question is empty: ask something")
    return messages


def question_of(asked: Asked) -> str:
    """The question itself: the last message of a conversation."""
    return asked if isinstance(asked, str) else asked[-1]["content"]
