"""What edits stand on: a memory's model, its facts, and what each of them reads. Addressing is fixed, so that stays."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from memlayers.backbones import context_length
from memlayers.data.encoding import Encoded, encode_example
from memlayers.data.facts import Fact
from memlayers.data.general_text import SHIPPED, GeneralText, read_general_text
from memlayers.editing.config import EditConfig
from memlayers.editing.fact_book import FactBook, both_sides
from memlayers.editing.journal import Change
from memlayers.editing.phrasings import FoldedPhrasings
from memlayers.editing.slot_use import SlotUse
from memlayers.editing.subjects import SubjectKeeper
from memlayers.inference.capture import slots_read
from memlayers.inference.folder import ADAPTER, SLOT_USE_FILE, WEIGHTS_FILE
from memlayers.inference.scoring import answered
from memlayers.linking.mention_forms import word_fact_counts
from memlayers.pool.weights_file import digest_of_table
from memlayers.pool.weights_layout import POOL_DIGEST
from memlayers.tuner.handle import memory_handle
from memlayers.utils.errors import InputError
from memlayers.utils.progress import progress_bar
from memlayers.utils.tensor_file import read_tensor_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_READ_TOGETHER = 256  # facts


class EditSession:
    """A memory under edit.

    Args:
        model: the PEFT model.
        tokenizer: the backbone's.
        book: the facts and the journal of its folder, which nobody else writes meanwhile.
        config: how edits write.
        quiet: no progress bars.

    Attributes:
        model: the PEFT model.
        tokenizer: the backbone's.
        memory: the handle on the memory in the model.
        book: the facts and the journal.
        config: how edits write.
        phrasings: of the stored facts, folded.
        subjects: keeps what the memory knows of its subjects in step with the facts.

    Raises:
        InputError: the memory's gate is off.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        book: FactBook,
        config: EditConfig,
        *,
        quiet: bool = True,
    ) -> None:
        self.folder, self.book, self.config, self.quiet = book.folder, book, config, quiet
        self.model, self.tokenizer = model.eval(), tokenizer
        self.memory = memory_handle(model, ADAPTER)
        if not all(layer.gate_enabled for layer in self.memory.layers):
            raise InputError(f"{self.folder}: opened with its gate off; load it with its gate to edit it")
        if self.memory.pool.columns is not None:
            raise InputError(f"{self.folder}: its pool is split over several processes; edit it in one")
        self.phrasings = FoldedPhrasings()
        self.subjects = SubjectKeeper(self.memory, tokenizer, self.encoded, self.phrasings)
        self._max_length = context_length(model)
        self._examples: dict[tuple[str, str], Encoded] = {}
        self._pool_digest: str | None = None
        self._use: SlotUse | None = None
        self._words: Counter[str] | None = None

    def prepare(self) -> None:
        """Does now what the first edit would otherwise wait for: what every stored fact reads, its words, digests."""
        _ = self.use, self.words, self.pool_digest
        self.book.digests()

    @property
    def pool_digest(self) -> str:
        """The pool's digest before the edits that are not saved; taken of the pool where the file does not say it."""
        if self._pool_digest is None:
            self._pool_digest = self._digest_in_file() or digest_of_table(self.memory.pool.table)
        return self._pool_digest

    @pool_digest.setter
    def pool_digest(self, saved: str) -> None:
        self._pool_digest = saved

    def digests(self) -> dict[str, str]:
        """Those of the files to which undoing an edit leads back: weights that peft wrote are laid out anew."""
        found = self.book.digests()
        if self._digest_in_file() is None:
            del found[WEIGHTS_FILE]
        return found

    def _digest_in_file(self) -> str | None:
        return read_tensor_file(self.folder / WEIGHTS_FILE).metadata.get(POOL_DIGEST)

    @property
    def use(self) -> SlotUse:
        """Which slots the stored facts read, and which general text does."""
        if self._use is None:
            facts, use = self.book.facts, SlotUse(self.memory.pool.slots)
            use.load(self.folder / SLOT_USE_FILE, {fact.id: self._read_text(fact) for fact in facts})
            unknown = [fact for fact in facts if fact.id not in use.rows]
            with progress_bar("Reading what is stored", len(unknown), quiet=self.quiet) as advance:
                for start in range(0, len(unknown), _READ_TOGETHER):
                    self._count_in(use, unknown[start : start + _READ_TOGETHER])
                    advance(len(unknown[start : start + _READ_TOGETHER]))
            if not use.passages and self.subjects.index is None:
                # With an index the gate is closed on other text, which then reads nothing.
                use.put_general(self._general_reads())
            self._use = use
        return self._use

    @property
    def known_use(self) -> SlotUse | None:
        """`use`, where it was looked at already."""
        return self._use

    @property
    def words(self) -> Counter[str]:
        """How many stored facts each word of their questions is in."""
        if self._words is None:
            self._words = word_fact_counts(self.book.facts)
        return self._words

    def reads(self, facts: Sequence[Fact], phrasings: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """The distinct slots that each fact reads in its first phrasings (None: all), and how often: int64 [n] both."""
        examples = [self.encoded(fact, phrasings) for fact in facts]
        sequences = [one.input_ids for each in examples for one in each]
        owners = [number for number, each in enumerate(examples) for _ in each]
        return slots_read(self.memory, sequences, owners)

    def encode(self, question: str, answer: str) -> Encoded:
        """A question and its answer, encoded once."""
        found = self._examples.get((question, answer))
        if found is None:
            found = encode_example(self.tokenizer, question, answer, "answer", self._max_length)
            self._examples[question, answer] = found
        return found

    def encoded(self, fact: Fact, phrasings: int | None = None) -> list[Encoded]:
        """A fact's first taught phrasings (None: all), each with its answer."""
        return [self.encode(question, fact.answer) for question in fact.questions[:phrasings]]

    def encoded_all(self, facts: Sequence[Fact], phrasings: int | None = None) -> list[Encoded]:
        """The first taught phrasings (None: all) of each of some facts."""
        return [one for fact in facts for one in self.encoded(fact, phrasings)]

    def answered(self, examples: Sequence[Encoded]) -> list[bool]:
        """Whether greedy decoding writes each example's answer."""
        right: list[bool] = answered(self.model, self.tokenizer, examples).tolist()
        return right

    def account(self, changes: Sequence[Change]) -> None:
        """After an edit: which words the stored facts have, and what they read."""
        old, new = both_sides([change for change in changes if not _reads_alike(change)])
        self.phrasings.forget(fact.id for fact in old)
        for fact in old:
            self.words.subtract(word_fact_counts([fact]))
            self.use.drop(fact.id)
        self._count_in(self.use, new)
        self.words.update(word_fact_counts(new))

    def _count_in(self, use: SlotUse, facts: Sequence[Fact]) -> None:
        for fact, (rows, _) in zip(facts, self.reads(facts, self.config.read_phrasings), strict=True):
            use.put(fact.id, rows, self._read_text(fact))

    def _read_text(self, fact: Fact) -> str:
        """A hash of what a fact's reads depend on."""
        text = repr((fact.questions[: self.config.read_phrasings], fact.answer))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _general_reads(self) -> list[Tensor]:
        """The distinct slots that each passage of some general text reads, as the memory's gates let it."""
        passages = read_general_text(SHIPPED).passages
        chosen = random.Random(0).sample(passages, min(self.config.general_passages, len(passages)))
        sequences = GeneralText(tuple(chosen)).encode(self.tokenizer, min(self._max_length, 256))
        return [rows for rows, _ in slots_read(self.memory, sequences, range(len(sequences)))]


def _reads_alike(change: Change) -> bool:
    """Whether a change leaves what is read of a fact: its wordings and its answer."""
    before, after = change.before, change.after
    if before is None or after is None:
        return False
    return (before.subject, before.questions, before.answer) == (after.subject, after.questions, after.answer)
