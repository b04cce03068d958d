"""Those who write facts: any OpenAI-compatible address, or a local backbone, behind one small protocol."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from memlayers.data.conversations import Message
from memlayers.utils.errors import InputError, WorkError, reason_of

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI
    from transformers import PreTrainedTokenizerBase

    from memlayers.inference.shared_prefix import SharedPrefix

KEY_VARIABLE: Final = "OPENAI_API_KEY"
"""The environment variable that holds the key of an address."""
MOST_TOKENS: Final = 4096
"""Of one answer."""
SECONDS: Final = 120.0
"""For one answer of an address."""

_TRIES_AGAIN: Final = 4  # after a time-out, 429, or a fault of the server; the client waits 0.5 s, 1 s, 2 s, ...
_MOST_NAMED: Final = 8  # models, in an error
_MOST_LOCAL_TOKENS: Final = 2048  # of one answer of a backbone: small ones repeat themselves without end
_LEAST_ROOM: Final = 256  # tokens for an answer of a backbone
_TOO_LONG: Final = re.compile(r"context.?(length|size|window)|maximum context|too (many|long)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a writer answered.

    Attributes:
        text: of the answer.
        prompt_tokens: read for it, as the writer counts them; 0 where it does not say.
        completion_tokens: written, likewise.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


class RequestTooLong(InputError):
    """The request does not fit into the writer's context."""


class Writer(Protocol):
    """Answers requests with JSON.

    Attributes:
        parallel: whether it can be asked several things at once.
    """

    parallel: bool

    @property
    def model(self) -> str:
        """The name of the model, part of the key under which its answers are kept."""

    def complete(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> Completion:
        """Answers a conversation.

        Args:
            messages: of the user and the writer in turn.
            schema: a JSON schema with a "title"; the answer follows it as far as the writer can be held to it.

        Raises:
            InputError: it refuses the request: no such model, a wrong key, too long (`RequestTooLong`).
            WorkError: it is not there, or gave no answer in time.
        """


def open_writer(name: str, model: str | None = None, *, device: str | None = None, seconds: float = SECONDS) -> Writer:
    """The writer of an address or a backbone; sends and loads nothing yet.

    Args:
        name: ``http://...`` or ``https://...``, or a backbone as `load_backbone` takes it.
        model: of an address; None takes the only one that it has.
        device: of a backbone.
        seconds: for one answer of an address.

    Raises:
        InputError: a model is named for a backbone, an address cannot be one, or the package openai is missing.
    """
    if "://" in name:
        return OpenAIWriter(name, model, seconds=seconds)
    if re.match(r"(localhost|[\d.]+):\d+", name):
        raise InputError(f"--writer {name}: give an address with its http:// or https://")
    if model is not None:
        raise InputError(f"--model {model}: the writer {name!r} is a backbone, not an address; leave --model out")
    return BackboneWriter(name, device)


class OpenAIWriter:
    """A model behind an OpenAI-compatible address (OpenAI, vLLM, llama.cpp, Ollama, ``transformers serve``, ...).

    The key is read from the environment variable OPENAI_API_KEY; an address that wants none gets a placeholder.

    Args:
        address: up to and including its ``/v1``, which is added where there is no path.
        model: None takes the only one that the address has.
        seconds: for one answer.
        tries_again: how often a request is sent again after a time-out, 429 or a fault of the server.
    """

    parallel = True

    def __init__(
        self, address: str, model: str | None = None, *, seconds: float = SECONDS, tries_again: int = _TRIES_AGAIN
    ) -> None:
        try:
            parts = urlsplit(address)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:
            wrong = True
        if wrong:
            raise InputError(f"--writer {address}: not an address; give one like http://localhost:8000/v1")
        self._address = address.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self._shown = re.sub(r"//[^/@]*@", "//", self._address)  # without a password
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(f"{KEY_VARIABLE}: holds characters that no key has; set it to the key alone")
        self._model, self._seconds = model, seconds
        self._client = self._connect(tries_again)
        self._refused: set[str] = set()  # options that this server does not take
        self._reached = False
        self._lock = threading.Lock()

    def _connect(self, tries_again: int) -> OpenAI:
        try:
            from openai import OpenAI
        except ImportError:
            raise InputError('--writer: the package openai is missing; pip install "memlayers[writer]"') from None
        return OpenAI(
            base_url=self._address, api_key=self._key or "none", timeout=self._seconds, max_retries=tries_again
        )

    @property
    def model(self) -> str:
        """The name of the model; where none was given, the only one that the address has."""
        with self._lock:
            if self._model is None:
                models = self._models()
                if len(models) != 1:
                    raise InputError(f"{self._shown}: name a model with --model; {_listed(models)}")
                self._model, self._reached = models[0], True
            return self._model

    def complete(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> Completion:
        """Answers a conversation; see `Writer`."""
        import openai

        model = self.model
        self._reach()
        said: Any = [dict(each) for each in messages]
        while True:
            options = {name: value for name, value in _options(schema).items() if name not in self._refused}
            try:
                made: Any = self._client.chat.completions.create(model=model, messages=said, **options)
                break
            except openai.APIStatusError as error:
                if not self._asks_for_less(error, options):
                    raise self._fault(error) from error
            except (openai.OpenAIError, ValueError) as error:
                raise self._fault(error) from error
        if not getattr(made, "choices", None):
            raise WorkError(f"{self._shown}: what it answers is no chat completion; check the address")
        usage = made.usage
        return Completion(
            text=(made.choices[0].message.content or "").encode("utf-8", "ignore").decode(),  # no half characters
            prompt_tokens=getattr(usage, "prompt_tokens", 0) or 0,
            completion_tokens=getattr(usage, "completion_tokens", 0) or 0,
        )

    def _reach(self) -> None:
        """Asks an address for its models, once and without patience, before it is asked for anything that takes long.

        Not every address lists its models: only that it is there, and takes the key, is seen here.
        """
        import openai

        with self._lock:
            if not self._reached:
                try:
                    self._models()
                except (InputError, WorkError) as error:
                    cause = error.__cause__
                    lists_none = isinstance(cause, openai.APIStatusError) and cause.status_code not in (401, 403)
                    if not lists_none and not isinstance(cause, openai.APITimeoutError):
                        raise
            self._reached = True

    def _models(self) -> list[str]:
        """The models that the address lists; of an address that lists none, an error."""
        import openai

        try:
            listed: Any = self._client.with_options(max_retries=0).models.list()
            return [each.id for each in listed.data or ()]
        except openai.NotFoundError as error:
            raise InputError(f"{self._shown}: lists no models; name one with --model, or check the address") from error
        except (openai.OpenAIError, ValueError, AttributeError) as error:
            raise self._fault(error) from error

    def _asks_for_less(self, error: APIStatusError, sent: Mapping[str, Any]) -> bool:
        """Whether the request is worth sending without an option that the server seems to refuse, which is noted."""
        if error.status_code not in (400, 422, 501):
            return False
        said = str(error.message)
        named = [name for name in sent if name in said] or (["max_tokens"] if _TOO_LONG.search(said) else [])
        refused = next((name for name in (*named, "response_format") if name in sent), None)
        if refused is None or (_TOO_LONG.search(said) and refused != "max_tokens"):
            return False
        self._refused.add(refused)
        return True

    def _fault(self, error: Exception) -> InputError | WorkError:
        """An error of the client in one line of ours, which never holds the key."""
        import openai

        said = reason_of(error)
        if self._key:
            said = said.replace(self._key, "***")
        if isinstance(error, openai.APITimeoutError):
            return WorkError(f"{self._shown}: no answer within {self._seconds:g} s; give it more with --timeout")
        if isinstance(error, openai.APIConnectionError):
            cause = reason_of(error.__cause__) if isinstance(error.__cause__, Exception) else said
            return WorkError(f"{self._shown}: cannot be reached ({cause}); check the address, and that its server runs")
        if not isinstance(error, openai.APIStatusError):
            return WorkError(f"{self._shown}: its answer cannot be read ({said}); check the address")
        status = error.status_code
        if status in (401, 403):  # what it says may repeat a part of the key
            what = f"refuses the key in {KEY_VARIABLE}" if self._key else "wants a key"
            return InputError(f"{self._shown}: {what} ({status}); set {KEY_VARIABLE} to one that it takes")
        if status == 404:
            return self._not_found()
        if status == 429:
            return WorkError(f"{self._shown}: takes no more requests for now (429: {said}); try again later")
        if status >= 500:
            return WorkError(f"{self._shown}: its server failed ({status}: {said}); try again later")
        if _TOO_LONG.search(said):
            return RequestTooLong(f"{self._shown}: a request is too long for its model ({said}); name another model")
        return InputError(f"{self._shown}: refuses the request ({status}: {said}); check the address and --model")

    def _not_found(self) -> InputError:
        try:
            models = self._models()
        except (InputError, WorkError):
            models = []
        if models and self._model not in models:
            return InputError(f"{self._shown}: has no model {self._model!r}; {_listed(models)}")
        return InputError(f"{self._shown}: not found (404); check the address, which often ends in /v1, and --model")


class BackboneWriter:
    """A local backbone, which writes greedily through its chat template; it is loaded when first asked.

    Args:
        name: as `load_backbone` takes it.
        device: chosen if not given.
        most_tokens: of one answer.
    """

    parallel = False

    def __init__(self, name: str, device: str | None = None, *, most_tokens: int = _MOST_LOCAL_TOKENS) -> None:
        self._name, self._device, self._most = name, device, most_tokens
        self._loaded: tuple[Any, PreTrainedTokenizerBase] | None = None
        self._before: list[int] = []  # the last prompt
        self._prefix: SharedPrefix | None = None  # what it has in common with this one: the instructions

    @property
    def model(self) -> str:
        """The name of the backbone."""
        return self._name

    def complete(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> Completion:
        """Answers a conversation; see `Writer`. The schema is known from the conversation alone."""
        from memlayers.backbones import context_length
        from memlayers.data.encoding import encode_prompt
        from memlayers.inference.generation import generate_answers
        from memlayers.inference.shared_prefix import shared_prefix

        model, tokenizer = self._loaded or self._load()
        prompt = encode_prompt(tokenizer, messages)
        context = context_length(model)
        if len(prompt) + _LEAST_ROOM > context:
            raise RequestTooLong(
                f"the backbone {self._name!r} reads {context:,} tokens, a request has {len(prompt):,}: it cannot write "
                "facts; name one with a longer context"
            )
        if self._prefix is None or not self._prefix.begins(prompt):
            self._prefix = shared_prefix(model, [self._before, prompt])
        self._before = prompt
        [made] = generate_answers(model, tokenizer, [messages], max_new_tokens=self._most, prefix=self._prefix)
        return Completion(made.text, len(prompt), len(tokenizer.encode(made.text, add_special_tokens=False)))

    def _load(self) -> tuple[Any, PreTrainedTokenizerBase]:
        from memlayers.backbones.loading import device_chosen, load_backbone

        self._loaded = load_backbone(self._name, device=device_chosen(self._device))
        return self._loaded


def _options(schema: Mapping[str, Any]) -> dict[str, Any]:
    named = {"name": schema["title"], "schema": schema, "strict": True}
    return {
        "temperature": 0,
        "max_tokens": MOST_TOKENS,
        "response_format": {"type": "json_schema", "json_schema": named},
    }


def _listed(models: Sequence[str]) -> str:
    if not models:
        return "it lists none"
    more = f" and {len(models) - _MOST_NAMED} more" if len(models) > _MOST_NAMED else ""
    return f"it has {', '.join(models[:_MOST_NAMED])}{more}"
