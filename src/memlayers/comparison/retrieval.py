"""Facts in the prompt: those that BM25 finds for the question (bm25s), or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memlayers.backbones import context_length
from memlayers.comparison.method import Method
from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.inference.generation import answer_limit
from memlayers.inference.shared_prefix import SharedPrefix, shared_prefix
from memlayers.utils.errors import InputError, WorkError

CONTEXT_BATCH = 4  # questions: each has a key-value cache of all facts


def passage(fact: Fact) -> str:
    """A fact as it stands in a prompt: its first wording and the answer."""
    return f"{fact.questions[0]} {fact.answer}"


def prompt_with(tokenizer: Any, facts: Sequence[Fact], question: str) -> str:
    """A question with facts before it, for `encode_prompt`: questions with their answers, the last of them open.

    Where there is no chat template `encode_prompt` itself puts the first "Question:" and the last "Answer:" there.
    """
    if not facts:
        return question
    asked = "".join(f"{fact.questions[0]}\nAnswer: {fact.answer}\n\nQuestion: " for fact in facts) + question
    return asked if tokenizer.chat_template is None else f"Question: {asked}\nAnswer:"


class Retrieval(Method):
    """The facts that BM25 scores highest for a question stand before it; none that shares no word with it.

    Args:
        config: as in `Method`.
        work: as in `Method`.
        top: how many facts.
        quiet: no progress bars.
    """

    def __init__(self, config: TeachConfig, work: Path, *, top: int, quiet: bool = False) -> None:
        super().__init__(config, work, quiet=quiet)
        self.top = top

    def teach(self, facts: Sequence[Fact]) -> None:
        """Indexes them."""
        self.load()
        self.facts = {fact.id: fact for fact in facts}
        self._index()

    def ask(self, questions: Sequence[str], **options: Any) -> list[str]:
        """Answers each question from what is found for it."""
        prompts = [
            prompt_with(self.tokenizer, found, question)
            for found, question in zip(self.found(questions), questions, strict=True)
        ]
        return super().ask(prompts, **options)

    def found(self, questions: Sequence[str]) -> list[list[Fact]]:
        """Per question the best facts, the best of all last, next to the question."""
        facts = list(self.facts.values())
        words = self._bm25s.tokenize(list(questions), show_progress=False)
        places, scores = self._retriever.retrieve(words, k=min(self.top, len(facts)), show_progress=False)
        return [
            [facts[i] for i, score in zip(row, values, strict=True) if score > 0][::-1]
            for row, values in zip(places.tolist(), scores.tolist(), strict=True)
        ]

    def update(self, fact: Fact) -> None:
        """Puts the fact in place of its former self, and indexes all anew."""
        self.facts[fact.id] = fact
        self._index()

    def inference_bytes(self) -> int:
        """The backbone, the index and the passages."""
        return super().inference_bytes() + self.stored_bytes()

    def stored_bytes(self) -> int:
        """The index, its words, and the passages."""
        arrays = [each for each in self._retriever.scores.values() if isinstance(each, np.ndarray)]
        texts = [*self._retriever.vocab_dict, *map(passage, self.facts.values())]
        return sum(each.nbytes for each in arrays) + sum(len(text.encode()) for text in texts)

    def _index(self) -> None:
        try:
            import bm25s
        except ImportError:
            raise WorkError("bm25s is not installed, which finds the facts; pip install 'memlayers[compare]'") from None
        self._bm25s = bm25s
        self._retriever = bm25s.BM25()
        words = bm25s.tokenize([passage(fact) for fact in self.facts.values()], show_progress=False)
        self._retriever.index(words, show_progress=False)


class InContext(Method):
    """All facts stand before each question; the backbone reads them once, where its cache can be handed on."""

    def teach(self, facts: Sequence[Fact]) -> None:
        """Reads them.

        Raises:
            InputError: they do not fit the backbone's context.
        """
        self.load()
        self.facts = {fact.id: fact for fact in facts}
        self._read()

    def ask(self, questions: Sequence[str], **options: Any) -> list[str]:
        """Answers each question after all facts."""
        prompts = [self._prompt(question) for question in questions]
        return super().ask(prompts, **{"batch_size": CONTEXT_BATCH, "prefix": self._prefix, **options})

    def update(self, fact: Fact) -> None:
        """Puts the fact in place of its former self, and reads all anew."""
        self.facts[fact.id] = fact
        self._read()

    def inference_bytes(self) -> int:
        """The backbone, and the facts' keys and values."""
        held = self._prefix.bytes() if self._prefix is not None else 0
        return super().inference_bytes() + held + self.stored_bytes()

    def stored_bytes(self) -> int:
        """The facts' text."""
        return sum(len(passage(fact).encode()) for fact in self.facts.values())

    def _read(self) -> None:
        longest = max((fact.questions[0] for fact in self.facts.values()), key=len)
        prompts = [encode_prompt(self.tokenizer, self._prompt(question)) for question in (longest, "?")]
        room = answer_limit(self.model, self.tokenizer, list(self.facts.values()))
        needed, context = len(prompts[0]) + room, context_length(self.model)
        if needed > context:
            raise InputError(f"does not fit: {len(self.facts):,} facts and a question need {needed:,} tokens, the "
                             f"context holds {context:,}")  # fmt: skip
        self._prefix: SharedPrefix | None = shared_prefix(self.model, prompts)
        self.tokens += len(self._prefix.ids) if self._prefix is not None else 0
        self.note = "facts read once" if self._prefix is not None else "facts read with every question"

    def _prompt(self, question: str) -> str:
        return prompt_with(self.tokenizer, list(self.facts.values()), question)
