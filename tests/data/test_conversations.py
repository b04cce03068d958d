from __future__ import annotations

from typing import Any

import pytest

from memlayers.data.conversations import is_conversation, messages_of, question_of
from memlayers.utils.errors import InputError

TALK = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Who founded it?"}]  # fmt: skip


def test_a_question_is_a_conversation_of_one_message() -> None:
    assert messages_of("Who?") == [{"role": "user", "content": "Who?"}]
    assert messages_of(TALK) == TALK
    assert question_of("Who?") == "Who?" and question_of(TALK) == "Who founded it?"


def test_several_questions_are_no_conversation() -> None:
    assert is_conversation(TALK)
    assert not any(map(is_conversation, ("Who?", ["Who?", "Where?"], [TALK, TALK], [])))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("  ", "a question is empty"),
        ([], "a question is empty"),
        (TALK[:2], "a question is empty"),
        ([{"role": "user", "content": ""}], "a question is empty"),
        ([{"role": "king", "content": "Who?"}], "message 1 has no role"),
        ([{"content": "Who?"}], "message 1 has no role"),
        ([*TALK, "Who?"], "message 4 has no role"),
        ([{"role": "user", "content": None}], "message 1 has no text"),
    ],
)
def test_what_is_no_question_is_told(asked: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        messages_of(asked)
