"""What a request's body must be before transformers' handlers see it: the fields that are read, and their kinds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from memlayers.serving.error_objects import ApiError

_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_MOST_SEED: Final = 2**63 - 1
# Of a generation config that `transformers chat` sends along; the rest is the server's to choose.
_GENERATION_FIELDS: Final = {
    "max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k",
    "do_sample": "do_sample", "min_p": "min_p", "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size", "stop_strings": "stop",
}  # fmt: skip


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
    )


def _whole(low: int, high: int = _MOST_SEED) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and len(texts) <= 16 and all(isinstance(each, str) and each for each in texts)


def _is_bias(value: Any) -> bool:
    within = _number(-100, 100)
    return isinstance(value, dict) and all(key.isdigit() and within(bias) for key, bias in value.items())


def _is_true_or_false(value: Any) -> bool:
    return isinstance(value, bool)


_FIELDS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "model": (lambda value: isinstance(value, str) and value != "", "the id of a model, as GET /v1/models lists them"),
    "stream": (_is_true_or_false, "true or false"),
    "abstain": (_is_true_or_false, "true or false"),
    "do_sample": (_is_true_or_false, "true or false"),
    "temperature": (_number(0, 2), "a number from 0 to 2"),
    "top_p": (lambda value: _number(0, 1)(value) and value > 0, "a number above 0, up to 1"),
    "min_p": (_number(0, 1), "a number from 0 to 1"),
    "top_k": (_whole(0, 2**31), "a whole number"),
    "repetition_penalty": (lambda value: _number(0, 10)(value) and value > 0, "a number above 0, up to 10"),
    "no_repeat_ngram_size": (_whole(0, 1024), "a whole number"),
    "frequency_penalty": (lambda value: _number(-1, 2)(value) and value > -1, "a number above -1, up to 2"),
    "max_tokens": (_whole(1), "a whole number from 1"),
    "max_completion_tokens": (_whole(1), "a whole number from 1"),
    "max_output_tokens": (_whole(1), "a whole number from 1"),
    "seed": (_whole(0), "a whole number from 0"),
    "n": (lambda value: value == 1 and not isinstance(value, bool), "1: one answer is given to a request"),
    "best_of": (lambda value: value == 1, "1: one answer is given to a request"),
    "stop": (_is_stop, "a text, or up to 16 of them"),
    "logit_bias": (_is_bias, "an object of token ids and numbers from -100 to 100"),
    "tools": (lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value), "a list"),
    "chat_template_kwargs": (lambda value: isinstance(value, dict), "an object"),
    "generation_config": (lambda value: isinstance(value, str), "JSON in a text"),
    "suffix": (lambda value: isinstance(value, str), "a text"),
    "instructions": (lambda value: isinstance(value, str), "a text"),
    "prompt": (lambda value: isinstance(value, str) and value != "", "a text that is not empty"),
}
_RESERVED: Final = frozenset(  # of apply_chat_template itself
    "conversation add_generation_prompt tools tokenize return_tensors return_dict chat_template documents "
    "continue_final_message padding truncation max_length return_assistant_tokens_mask tokenizer_kwargs "
    "load_audio_from_video messages".split()
)


def check_body(body: Mapping[str, Any], *required: str) -> dict[str, Any]:
    """A request's body without the fields that are null.

    Args:
        body: as it was sent.
        required: fields that must be there.

    Raises:
        ApiError: 400, with the field that is wrong.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name in required:
        if name not in given:
            raise ApiError(400, f"the field {name!r} is missing", param=name, code="missing_required_parameter")
    for name, value in given.items():
        if name in _FIELDS:
            holds, kind = _FIELDS[name]
            if not holds(value):
                raise ApiError(400, f"{name!r} must be {kind}", param=name, code="invalid_value")
    if reserved := _RESERVED & set(given.get("chat_template_kwargs", {})):
        message = f"chat_template_kwargs cannot set {sorted(reserved)[0]!r}"
        raise ApiError(400, message, param="chat_template_kwargs", code="invalid_value")
    return given


def check_messages(messages: Any, param: str = "messages") -> None:
    """Refuses what is not a conversation in words.

    Raises:
        ApiError: 400.
    """
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, f"{param!r} must be a list of messages, at least one", param=param, code="invalid_value")
    for place, message in enumerate(messages):
        where = f"{param}[{place}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            roles = ", ".join(_ROLES)
            raise ApiError(400, f"{where} must have a role of {roles}", param=where, code="invalid_value")
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if content is not None and not isinstance(content, (str, list)):
            raise ApiError(400, f"{where}: the content must be a text or a list", param=where, code="invalid_value")
        if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
            raise ApiError(400, f"{where}: a part of the content has no type", param=where, code="invalid_value")
        for part in parts:
            if part["type"] not in _TEXT_PARTS or not isinstance(part.get("text"), str):
                message_text = f"{where}: these models read text alone, no {part['type'][:40]!r}"
                raise ApiError(400, message_text, param=where, code="invalid_value")


def settings_of(config: str) -> dict[str, Any]:
    """The fields of a generation config that a request may choose, under the names they have in a request.

    Raises:
        ApiError: 400, it is no JSON object, or one of the fields is wrong.
    """
    try:
        read = json.loads(config)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise ApiError(400, "'generation_config' must be a JSON object in a text", param="generation_config")
    chosen = {name: read[own] for own, name in _GENERATION_FIELDS.items() if read.get(own) is not None}
    return check_body(chosen)
