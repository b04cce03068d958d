"""Answers one request, on the inference thread of its backbone: by the memory where it holds the answer, or on.

A question is asked as `Memory.ask` asks it: names are found in any spelling, the memory is asked what stands alone, and
its answer is given where it is sure enough. Otherwise, and where nothing stored is mentioned, the bare backbone
generates on the conversation with the request's own sampling settings; that nothing stored is mentioned shows from the
words alone, so such a request costs no forward pass more. All of it happens in one task of the thread, in which the
memory's version is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from memlayers.backbones import context_length
from memlayers.data.answers import contains_answer
from memlayers.data.conversations import Message
from memlayers.data.encoding import encode_prompt
from memlayers.inference.answering import UNKNOWN, MemoryAnswer, ask_memory, asked_of, backbone_is_sure
from memlayers.inference.generation import OpenTokens
from memlayers.serving.provenance import Provenance, of_memory, open_tokens
from memlayers.tuner.current import holding
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from memlayers.data.facts import Fact
    from memlayers.linking.standalone import Standalone
    from memlayers.serving.served import Served, Snapshot
    from memlayers.tuner.subject_index import SubjectIndex

_ASKING_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of whom.

    Attributes:
        served: the memory, or the bare backbone.
        bare: its bare backbone; `served` itself where that is bare.
        indexes: of the memories that are read, None for one without an index; they stay the same through all edits.
        messages: of a conversation; None for a text that is to be gone on with.
        abstain: say that it was not taught what neither side is sure of.
        seed: of sampling; None for none.
        sampling: held while tokens are drawn: all threads of a process draw from one generator of torch's.
        left: set where the client has left, and nobody waits for the answer.
    """

    served: Served
    bare: Served
    indexes: tuple[SubjectIndex | None, ...] = ()
    messages: tuple[Message, ...] | None = None
    abstain: bool = False
    seed: int | None = None
    sampling: Lock = field(default_factory=Lock)
    left: Event = field(default_factory=Event)


@dataclass(frozen=True, slots=True)
class Given:
    """An answer.

    Attributes:
        text: what is said.
        tokens: its token ids.
        streamed: whether the streamer has had it already, token by token.
        provenance: what it came from.
    """

    text: str
    tokens: list[int]
    streamed: bool
    provenance: Provenance


def conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...] | None:
    """The messages as a memory reads them; None where the last one asks nothing, as the result of a tool's call."""
    said = [{"role": str(each["role"]), "content": str(each["content"])} for each in messages]
    if not said or said[-1]["role"] != "user" or not said[-1]["content"].strip():
        return None
    return tuple(each for each in said if each["role"] in _ASKING_ROLES)


def answer(request: Request, inputs: Mapping[str, Any], config: GenerationConfig, streamer: Any = None) -> Given:
    """Answers a request; runs on the inference thread alone.

    Args:
        request: what is asked of whom.
        inputs: the whole prompt as tensors, for `generate`.
        config: how the backbone samples, and the most tokens of an answer.
        streamer: transformers' own, for tokens as they are generated.
    """
    served, state = request.served, request.served.state
    version = state.version
    if served.model is request.bare.model:
        return _by_backbone(
            request, inputs, config, streamer, Provenance("backbone", version, identical_to_backbone=True)
        )
    if request.messages is None:
        return _gone_on(request, state, inputs, config, streamer)
    found = _of_memory(request, state, inputs["input_ids"])
    if found is not None and found.taken:
        provenance = of_memory(found.answer, found.generated, served.tokenizer, version)
        return _said(request, found.answer.text, config, provenance)
    provenance = Provenance("backbone", version, identical_to_backbone=True)
    if found is not None:
        judged = found.answer
        provenance = replace(
            provenance, score=judged.score, threshold=judged.threshold, taken_for=tuple(judged.taken)
        )  # fmt: skip
    if request.abstain and not backbone_is_sure(served.model, served.tokenizer, request.messages):
        return _said(request, UNKNOWN, config, replace(provenance, source="unknown", identical_to_backbone=False))
    return _by_backbone(request, inputs, config, streamer, provenance)


def _of_memory(request: Request, state: Snapshot, prompt: Tensor) -> MemoryAnswer | None:
    """What the memory answers; None where it is not asked, since nothing it holds is mentioned."""
    served, messages = request.served, request.messages
    assert messages is not None
    asked = asked_of(messages, state.linker, state.links)
    if not any(each.subject for each in asked) and not _mentions(request, asked, prompt):
        return None
    try:
        return ask_memory(
            served.model, served.tokenizer, messages, asked, linker=state.linker, read=served.wordings
        )  # fmt: skip
    except InputError:  # with names as the facts spell them a question may outgrow the context
        return None


def _mentions(request: Request, asked: Sequence[Standalone], prompt: Tensor) -> bool:
    """Whether the memory's gate may open for what is asked: it does for no text in which its index finds no name."""
    filled = [index for index in request.indexes if index is not None and index.reach]
    if len(filled) < len(request.indexes):
        return True
    if not any(_names_in(prompt, index) for index in filled):  # in the whole conversation
        return False
    tokenizer = request.served.tokenizer
    prompts = [torch.tensor([encode_prompt(tokenizer, each.text)]) for each in asked]
    return any(_names_in(each, index) for each in prompts for index in filled)


def _names_in(prompt: Tensor, index: SubjectIndex) -> bool:
    """Whether an index finds a name in token ids [1, t]."""
    return bool(index.mentions(prompt.to(index.fingerprints.device)).any())


def _gone_on(
    request: Request, state: Snapshot, inputs: Mapping[str, Any], config: GenerationConfig, streamer: Any
) -> Given:
    """A text that the model with its memory goes on with, as ``generate`` does."""
    served, recorder = request.served, OpenTokens(1)
    with holding(recorder=recorder):
        tokens = _generated(request, served, inputs, config, streamer)
    text = str(served.tokenizer.decode(tokens, skip_special_tokens=True))
    is_open = recorder.open(0)[: len(tokens)]
    found = tuple(open_tokens(served.tokenizer, tokens, is_open, text))
    prompt = str(served.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True))
    facts = _facts_in(prompt, text, state) if found else ()
    provenance = Provenance(
        "memory" if found else "backbone", state.version, facts, open_tokens=found,
        identical_to_backbone=not recorder.read_any,
    )  # fmt: skip
    return Given(text, tokens, streamer is not None, provenance)


def _facts_in(prompt: str, text: str, state: Snapshot) -> tuple[Fact, ...]:
    """The stored facts about what a prompt names whose answer stands in a text."""
    if state.linker is None:
        return ()
    subjects = dict.fromkeys(each for mention in state.linker.mentions(prompt) for each in mention.subjects)
    about = (fact for subject in subjects for fact in state.linker.facts_about(subject))
    return tuple(fact for fact in about if contains_answer(text, fact.answers))


def _by_backbone(
    request: Request, inputs: Mapping[str, Any], config: GenerationConfig, streamer: Any, provenance: Provenance
) -> Given:
    """What the bare backbone generates."""
    tokens = _generated(request, request.bare, inputs, config, streamer)
    text = "" if streamer is not None else str(request.bare.tokenizer.decode(tokens, skip_special_tokens=True))
    return Given(text, tokens, streamer is not None, provenance)


def _generated(
    request: Request, served: Served, inputs: Mapping[str, Any], config: GenerationConfig, streamer: Any
) -> list[int]:
    """The tokens that a model goes on with, until the client leaves."""
    ends = [_Left(request.left)] if streamer is None else []  # a streamer is told itself
    with request.sampling if config.do_sample else nullcontext():
        if request.seed is not None:
            torch.manual_seed(request.seed)
        sequences = served.model.generate(
            **inputs, generation_config=config, streamer=streamer, tokenizer=served.tokenizer,
            stopping_criteria=StoppingCriteriaList(ends),
        )  # fmt: skip
    tokens: list[int] = sequences[0, inputs["input_ids"].shape[-1] :].tolist()
    return tokens


class _Left(StoppingCriteria):
    """Ends an answer that nobody waits for."""

    def __init__(self, left: Event) -> None:
        self._left = left

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Any:
        return torch.full((len(input_ids),), self._left.is_set(), device=input_ids.device)


def _said(request: Request, text: str, config: GenerationConfig, provenance: Provenance) -> Given:
    """A text that is there already, up to the most tokens of an answer and to where the request has it stop."""
    tokenizer = request.served.tokenizer
    stops = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings or ()
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    cut = text[: min(ends)] if ends else text
    tokens: list[int] = tokenizer.encode(cut, add_special_tokens=False)
    if config.max_new_tokens is not None and len(tokens) > config.max_new_tokens:
        tokens = tokens[: config.max_new_tokens]
        cut = str(tokenizer.decode(tokens, skip_special_tokens=True))
    return Given(cut, tokens, False, provenance)


def check_room(served: Served, prompt_tokens: int, config: GenerationConfig) -> None:
    """Bounds an answer by the room that its prompt leaves in the context.

    Raises:
        InputError: it leaves none.
    """
    context = context_length(served.model)
    room = context - prompt_tokens
    if room < 1:
        raise InputError(f"the prompt has {prompt_tokens} tokens, and this model's context {context}: shorten it")
    config.max_new_tokens = min(config.max_new_tokens or room, room)
