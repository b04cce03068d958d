"""What an answer came from: the object ``memlayers`` in every response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from memlayers.data.facts import Fact
from memlayers.inference.generation import Generated
from memlayers.serving.as_json import sources_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memlayers.inference.answering import Answer

AnswerSource: TypeAlias = Literal["memory", "backbone", "unknown"]


@dataclass(frozen=True, slots=True)
class OpenToken:
    """A token of an answer for which the memory was read.

    Attributes:
        token: its characters.
        position: where they begin in the answer's text, in characters from 0.
    """

    token: str
    position: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """What one answer came from.

    Attributes:
        source: who gave it.
        version: of the memory that was read.
        facts: that say what is answered, where the memory gave it.
        score: 0 to 1, that the memory holds the answer; None where it was not judged.
        threshold: the score from which the memory's answer is given; None where it was not judged.
        open_tokens: of the answer.
        taken_for: words of the question and the subject that they were taken for, where that is spelled otherwise.
        identical_to_backbone: the memory was read for no token, of the question or the answer: the bare backbone says
            the same to the bit.
    """

    source: AnswerSource
    version: int
    facts: tuple[Fact, ...] = ()
    score: float | None = None
    threshold: float | None = None
    open_tokens: tuple[OpenToken, ...] = ()
    taken_for: tuple[tuple[str, str], ...] = ()
    identical_to_backbone: bool = False

    def as_json(self) -> dict[str, Any]:
        """As it stands in a response."""
        return {
            "source": self.source,
            "facts": [
                {"id": fact.id, "subject": fact.subject, "answer": fact.answer, "sources": sources_json(fact)}
                for fact in self.facts
            ],
            "score": None if self.score is None else round(self.score, 4),
            "threshold": None if self.threshold is None else round(self.threshold, 4),
            "open_tokens": [{"token": each.token, "position": each.position} for each in self.open_tokens],
            "version": self.version,
            "taken_for": [{"words": words, "subject": subject} for words, subject in self.taken_for],
            "identical_to_backbone": self.identical_to_backbone,
        }  # fmt: skip


def of_memory(
    answer: Answer, generated: Iterable[Generated], tokenizer: PreTrainedTokenizerBase, version: int
) -> Provenance:
    """Of an answer that the memory gave, put together of what was generated for each of the questions it was asked."""
    found: list[OpenToken] = []
    at = 0
    for asked, each in zip(answer.asked, generated, strict=True):
        says_it = each.text and asked.from_answer is None  # a subject is said where its answer was generated
        start = answer.text.find(each.text, at) if says_it else -1
        if start >= 0:  # "Yes" says what was generated in other words
            found += open_tokens(tokenizer, each.tokens, each.open, each.text, start)
            at = start + len(each.text)
    return Provenance(
        "memory", version, answer.facts, answer.score, answer.threshold, tuple(found), tuple(answer.taken)
    )  # fmt: skip


def open_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], is_open: Sequence[bool], text: str, start: int = 0
) -> list[OpenToken]:
    """Where the tokens for which the memory was read lie in a text.

    Args:
        tokenizer: the backbone's.
        tokens: that were generated, with the one that ended them.
        is_open: of each, whether the memory was read.
        text: what they say, perhaps without outer space.
        start: where that begins in the whole answer, in characters.
    """
    whole = str(tokenizer.decode(list(tokens), skip_special_tokens=True))
    skipped = max(whole.find(text), 0)
    found, before = [], 0
    for count, opened in enumerate(is_open, 1):
        read = str(tokenizer.decode(list(tokens[:count]), skip_special_tokens=True))
        behind = before if read.endswith("\ufffd") else len(read)  # some bytes of a character: its last token has it
        first, last = max(before - skipped, 0), min(behind - skipped, len(text))
        if opened and last > first:
            found.append(OpenToken(text[first:last], start + first))
        before = behind
    return found
