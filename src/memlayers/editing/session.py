"""A memory open for editing: its model, its facts, what each of them reads, and the edits that are not saved yet.

Addressing is fixed, so a fact can be found again: what its phrasings read is where it lies. An edit writes chosen rows
of the pool (slot_use.py, rows.py), enters the subjects' fingerprints or takes them out (subjects.py), measures the
facts that read most of what it moved before and after, teaches those again that it broke (guard.py), and is saved in
one step with its line in the journal (saving.py). An edit that would change another fact's answer is refused, and
leaves nothing behind (edit.py).
"""

from __future__ import annotations

import datetime
import hashlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import Tensor

from memlayers.backbones import context_length
from memlayers.data.encoding import Encoded, encode_example
from memlayers.data.facts import Fact
from memlayers.data.general_text import SHIPPED, GeneralText, read_general_text
from memlayers.editing.config import EditConfig
from memlayers.editing.edit import Edit, edit_under_way
from memlayers.editing.fact_book import FactBook, both_sides
from memlayers.editing.forget import forget
from memlayers.editing.journal import Change, Record, apply_changes, reversed_changes
from memlayers.editing.learn import learn
from memlayers.editing.report import EditReport
from memlayers.editing.rows import Kept
from memlayers.editing.saving import Pending, save_edits
from memlayers.editing.slot_use import SlotUse
from memlayers.editing.subjects import SubjectKeeper
from memlayers.inference.capture import slots_read
from memlayers.inference.folder import ADAPTER, SLOT_USE_FILE
from memlayers.inference.scoring import answered
from memlayers.linking.mention_forms import facts_words
from memlayers.tuner.handle import memory_handle
from memlayers.utils.errors import InputError
from memlayers.utils.progress import progress_bar

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
        self.subjects = SubjectKeeper(self.memory, tokenizer, self.encoded)
        self._max_length = context_length(model)
        self._examples: dict[tuple[str, str], Encoded] = {}
        self._use: SlotUse | None = None
        self._words: Counter[str] | None = None
        self._pending: list[Pending] = []

    # -- the edits ----------------------------------------------------------------------------------------------------

    def write(self, kind: str, changes: list[Change], *, autosave: bool, purge: bool = False) -> EditReport:
        """Makes one edit of these changes in the model, and saves it with `autosave`.

        Args:
            kind: "add", "update", "forget" or "repair".
            changes: at least one; all of them put facts in, or all take facts out.
            autosave: otherwise `save` saves it.
            purge: drop all undo data when it is saved.

        Raises:
            EditRefused: it would change another fact's answer, or does not take; the model is as it was.
        """
        self.prepare()
        old, new = both_sides(changes)
        facts = tuple(new or old)
        report = EditReport(self._next_number(), kind, tuple(fact.id for fact in facts), facts)
        with edit_under_way(self, report) as edit:
            if new:
                learn(edit, new)
            else:
                forget(edit, old)
            self._pending.append(self._finished(edit, changes, purge))
            self.book.apply(changes)
            began = time.perf_counter()
            if autosave:
                try:
                    self.save()
                except BaseException:
                    self.book.apply(reversed_changes(changes))
                    self._pending.pop()
                    raise
                report.saving = time.perf_counter() - began
        self._account(changes)
        return report

    def repair(self, *, autosave: bool) -> EditReport:
        """Teaches again what is not answered any more; see `Memory.repair`."""
        facts = self.book.facts
        examples = [self.encoded(fact) for fact in facts]
        asked = [one for phrasings in examples for one in phrasings]
        with progress_bar("Asking what is stored", len(asked), quiet=self.quiet) as advance:
            right = answered(self.model, self.tokenizer, asked, progress=advance)
        of_fact = right.split([len(phrasings) for phrasings in examples])
        lost = [place for place, each in enumerate(of_fact) if not bool(each.all())]
        if not lost:
            return EditReport(0, "repair", (), recalled=1.0, asked=len(asked))
        return self.write("repair", [Change(place, facts[place], facts[place]) for place in lost], autosave=autosave)

    def undo(self, record: Record, made: Sequence[Change]) -> EditReport:
        """Takes the last edit back; see `Memory.undo`.

        Args:
            record: its line in the journal.
            made: the changes that it made.
        """
        began = time.perf_counter()
        path = self.folder / record.undo_file
        try:
            tensors = load_file(path)
        except Exception as error:  # the safetensors parser raises its own
            raise InputError(f"{path}: damaged ({error}); edit {record.number} cannot be taken back") from error
        changes = reversed_changes(made)
        facts = tuple(fact for change in changes if (fact := change.after or change.before))
        number, slots = self._next_number(), len(tensors["rows"])
        report = EditReport(number, "undo", record.ids, facts, undone=record.kind, slots=slots)
        pool = self.memory.pool
        with edit_under_way(self, report) as edit:
            edit.keep(tensors["rows"])
            stored = {name: value.to(pool.parameter.device) for name, value in tensors.items()}
            Kept(stored["rows"], stored["values"], stored.get("scales")).put_back(pool)
            self.subjects.undo(stored)
            before = self.book.digests()
            line = Record(number, "undo", _now(), record.ids, slots, undoes=record.number, before=before)
            report.seconds = time.perf_counter() - began
            after = apply_changes(self.book.facts, changes)
            save_edits(self.book, self.memory, self._use, [line], after, {}, expected=record.before)
        self.book.apply(changes)
        if self._use is not None:
            self._account(changes)
        report.saving = time.perf_counter() - began - report.seconds
        return report

    def save(self) -> None:
        """Writes the edits made since the last saving into the folder, in one step."""
        if not self._pending:
            return
        first = self._pending[0]
        first.record = replace(first.record, before=self.book.digests())
        records = [each.record for each in self._pending]
        by_number = {each.record.number: each for each in self._pending}
        purge = any(each.purge for each in self._pending)
        save_edits(self.book, self.memory, self._use, records, self.book.facts, by_number, purge=purge)
        self._pending = []

    def _finished(self, edit: Edit, changes: list[Change], purge: bool) -> Pending:
        """The edit as it is to be saved; its report gets what the journal says too."""
        report = edit.report
        assert edit.kept is not None
        kept = edit.kept.changed(self.memory.pool)
        report.slots = len(kept.rows)
        report.seconds = time.perf_counter() - edit.began
        measured = ("steps", "recalled", "asked", "opened", "neighbours", "repaired", "changed")
        evidence = {name: getattr(report, name) for name in measured}
        evidence |= {"seconds": round(report.seconds, 3), "slots": self.config.slots, **report.evidence}
        record = Record(report.number, report.kind, _now(), report.ids, report.slots, evidence=evidence)
        return Pending(record, changes, kept, self.subjects.change(edit.subjects), purge)

    def _next_number(self) -> int:
        records = [each.record for each in self._pending] or self.book.records
        return records[-1].number + 1 if records else 1

    # -- what edits stand on ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Does now what the first edit would otherwise wait for: what every stored fact reads, and its words."""
        _ = self.use, self.words
        self.book.digests()

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
    def words(self) -> Counter[str]:
        """How many stored facts each word of their questions is in."""
        if self._words is None:
            self._words = facts_words(self.book.facts)
        return self._words

    def reads(self, facts: Sequence[Fact], phrasings: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """The distinct slots that each fact reads in its first phrasings (None: all), and how often: int64 [n] both."""
        examples = [self.encoded(fact, phrasings) for fact in facts]
        sequences = [one.input_ids for each in examples for one in each]
        owners = [number for number, each in enumerate(examples) for _ in each]
        return slots_read(self.model, ADAPTER, sequences, owners)

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

    def answered(self, examples: Sequence[Encoded]) -> list[bool]:
        """Whether greedy decoding writes each example's answer."""
        right: list[bool] = answered(self.model, self.tokenizer, examples).tolist()
        return right

    def _account(self, changes: Sequence[Change]) -> None:
        """After an edit: which words the stored facts have, and what they read."""
        old, new = both_sides(changes)
        for fact in old:
            self.words.subtract(facts_words([fact]))
            self.use.drop(fact.id)
        self._count_in(self.use, new)
        self.words.update(facts_words(new))

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
        return [rows for rows, _ in slots_read(self.model, ADAPTER, sequences, range(len(sequences)))]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
