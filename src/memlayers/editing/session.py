"""A taught memory that can be edited: facts added, updated, forgotten, and every edit taken back bit for bit.

Addressing is fixed, so a fact can be found again: what its phrasings read is where it lies. An edit writes chosen rows
of the pool (slot_use.py, rows.py), enters the subjects' fingerprints or takes them out, measures the facts that read
most of what it moved before and after, mends those it broke, and is saved in one step with its line in the journal
(journal.py). An edit that would change another fact's answer is refused, and leaves nothing behind.
"""

from __future__ import annotations

import datetime
import hashlib
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlayers.backbones import context_length
from memlayers.data.answers import exact_match
from memlayers.data.encoding import Encoded, encode_example
from memlayers.data.facts import Fact
from memlayers.data.general_text import SHIPPED, GeneralText, read_general_text
from memlayers.editing.config import EditConfig
from memlayers.editing.edit import _Open, _Pending
from memlayers.editing.fact_book import FactBook, both_sides
from memlayers.editing.journal import (
    DIGESTED,
    Change,
    Record,
    apply_changes,
    carry_over,
    changes_text,
    digests,
    outdated_undo_files,
    reversed_changes,
    write_facts_and_journal,
)
from memlayers.editing.report import EditRefused, EditReport
from memlayers.editing.rows import Kept, RowWriter
from memlayers.editing.slot_use import SlotUse, choose_slots
from memlayers.editing.subjects import SubjectKeeper
from memlayers.inference.capture import slots_read
from memlayers.inference.folder import ADAPTER, CONFIG_FILE, SLOT_USE_FILE, WEIGHTS_FILE
from memlayers.inference.generation import generate_answers
from memlayers.inference.scoring import answer_logits, answered
from memlayers.linking.mention_forms import facts_words
from memlayers.tuner.handle import gates_off, memory_handle, without_memory
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import replaced_directory
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USE_PHRASINGS = 2  # of each stored fact, by which it is known what it reads
GENERAL_PASSAGES = 200  # whose reads count beside the stored facts'
MOST_NEIGHBOURS = 1024  # measured, however many facts an edit has
GENERATED = 64  # questions answered in free generation to see that an edit took
NEAR_BACKBONE = {True: 0.2, False: 0.6}  # nats per token from the bare backbone, where the gate stays open, or closes


class EditSession:
    """A memory under edit: its model, its facts, what each of them reads, and the edits that are not saved yet.

    Args:
        model: the PEFT model.
        tokenizer: the backbone's.
        book: the facts and the journal of its folder, which nobody else writes meanwhile.
        config: how edits write.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, book: FactBook, config: EditConfig) -> None:
        self.folder, self.config, self.book = book.folder, config, book
        self.model, self.tokenizer = model.eval(), tokenizer
        memory = memory_handle(model, ADAPTER)
        if not all(layer.gate_enabled for layer in memory.layers):
            raise InputError(f"{self.folder}: opened with its gate off; load it with its gate to edit it")
        self._pool = memory.pool
        self._max_length = context_length(self.model)
        self._examples: dict[tuple[str, str], Encoded] = {}
        self._subjects = SubjectKeeper(self.model, self.tokenizer, ADAPTER, self._encoded)
        self._use: SlotUse | None = None
        self._words: Counter[str] | None = None
        self._pending: list[_Pending] = []

    def repair(self, *, autosave: bool, quiet: bool) -> EditReport:
        """Teaches again what is not answered any more; see `Memory.repair`."""
        facts = self.book.facts
        examples = [self._encoded(fact) for fact in facts]
        asked = [one for phrasings in examples for one in phrasings]
        with progress_bar("Asking what is stored", len(asked), quiet=quiet) as advance:
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
        number = self._next_number()
        report = EditReport(number, "undo", record.ids, facts, undone=record.kind, slots=len(tensors["rows"]))
        with self._transaction(report) as edit:
            edit.kept = Kept.of(self._pool, tensors["rows"])
            device = self._pool.parameter.device
            stored = {name: value.to(device) for name, value in tensors.items()}
            Kept(stored["rows"], stored["values"], stored.get("scales")).put_back(self._pool)
            self._subjects.undo(stored)
            before = self.book.digests()
            undone = Record(
                report.number, "undo", _now(), record.ids, report.slots, undoes=record.number, before=before
            )
            report.seconds = time.perf_counter() - began
            self._save([undone], apply_changes(self.book.facts, changes), {}, expected=record.before)
        self.book.apply(changes)
        if self._use is not None:
            self._account(changes)
        report.saving = time.perf_counter() - began - report.seconds
        return report

    def save(self) -> None:
        """Writes the edits made since the last saving into the folder, in one step."""
        if not self._pending:
            return
        pending = self._pending
        first, last = pending[0], pending[-1]
        first.record = replace(first.record, before=self.book.digests())
        undo = {each.record.number: each for each in pending}
        self._save([each.record for each in pending], self.book.facts, undo, purge=any(each.purge for each in pending))
        assert last.record.number == self.book.records[-1].number
        self._pending = []

    def prepare(self) -> None:
        """Does now what the first edit would otherwise wait for: what every stored fact reads, and its questions."""
        if self._use is None:
            use = SlotUse(self._pool.slots)
            use.load(self.folder / SLOT_USE_FILE, {fact.id: _text_hash(fact) for fact in self.book.facts})
            unknown = [fact for fact in self.book.facts if fact.id not in use.rows]
            for start in range(0, len(unknown), 256):
                for fact, rows in self._rows_read(unknown[start : start + 256], USE_PHRASINGS):
                    use.put(fact.id, rows, _text_hash(fact))
            if not use.passages and self._subjects.index is None:
                # With an index the gate is closed on other text, which then reads nothing.
                use.put_general(self._general_reads())
            self._use = use
        if self._words is None:
            self._words = facts_words(self.book.facts)
        self.book.digests()

    # -- one edit -----------------------------------------------------------------------------------------------------

    def write(self, kind: str, changes: list[Change], *, autosave: bool, purge: bool = False) -> EditReport:
        """Makes one edit of these changes in the model, and saves it with `autosave`.

        Raises:
            EditRefused: it would change another fact's answer, or is not learned; the model is as it was.
        """
        self.prepare()
        old, new = both_sides(changes)
        ids = tuple(fact.id for fact in (new or old))
        report = EditReport(self._next_number(), kind, ids, tuple(new or old))
        with self._transaction(report) as edit:
            if new:
                self._learn(edit, old, new)
            else:
                self._unlearn(edit, old)
            assert edit.kept is not None
            kept = edit.kept.changed(self._pool)
            report.slots = len(kept.rows)
            report.seconds = time.perf_counter() - edit.began
            evidence = {
                name: getattr(report, name)
                for name in ("steps", "recalled", "asked", "opened", "neighbours", "repaired", "changed")
            }
            evidence |= {"seconds": round(report.seconds, 3), "slots": self.config.slots, **report.evidence}
            record = Record(report.number, kind, _now(), ids, report.slots, evidence=evidence)
            pending = _Pending(record, changes, kept, self._subjects.change(edit.index), purge)
            self.book.apply(changes)
            self._pending.append(pending)
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

    @contextmanager
    def _transaction(self, report: EditReport) -> Iterator[_Open]:
        """Puts the model back as it was, bit for bit, should the block fail."""
        edit = _Open(report, self._subjects.state())
        self._pool.parameter.requires_grad_(True)
        try:
            yield edit
        except BaseException:
            if edit.kept is not None:
                edit.kept.put_back(self._pool)
            self._subjects.restore(edit.index)
            raise
        finally:
            self._pool.parameter.requires_grad_(False)

    def _learn(self, edit: _Open, old: list[Fact], new: list[Fact]) -> None:
        """Writes the answers of `new`, which take the place of `old`, if there are any."""
        report = edit.report
        assert self._words is not None
        self._subjects.enter(new, self.book.facts, self._words)
        examples = [self._encoded(fact) for fact in new]
        rows = self._choose(edit, new)
        self._teach(edit, examples, rows, [])
        self._guard(edit, new, lambda more, broken: self._teach(edit, examples, more, broken), rows)
        rng = random.Random(f"{self.config.seed}:{report.number}")
        asked = [(question, fact) for fact in new for question in fact.questions]
        asked = rng.sample(asked, min(len(asked), GENERATED))
        given = generate_answers(self.model, self.tokenizer, [question for question, _ in asked])
        right = [exact_match(each.text, fact.answers) for each, (_, fact) in zip(given, asked, strict=True)]
        report.recalled, report.asked = sum(right) / len(right), len(right)
        report.opened = sum(each.opened for each in given) / len(given)
        if report.recalled < 0.5:
            why = "" if report.opened > 0.5 else f", as the gate opens for {report.opened:.0%} of them only"
            raise EditRefused(
                f"{self.folder}: the edit does not take: {report.recalled:.0%} of {report.asked} taught phrasings are "
                f"answered rightly{why}; nothing was changed",
                report,
            )

    def _teach(self, edit: _Open, examples: list[list[Encoded]], rows: Tensor, extra: list[Encoded]) -> None:
        """Adam on `rows` until all phrasings are answered rightly, and `extra` with them, or the limit is reached."""
        writer = RowWriter(self._pool, rows, self.config.rate)
        size = self.config.batch_size
        each = max(1, size // len(examples))
        rng = random.Random(f"{self.config.seed}:{edit.report.number}")
        everything = [one for phrasings in examples for one in phrasings]
        rehearse = self._rehearsal(edit, rows, rng)
        wrong: list[Encoded] = []
        for number in range(self.config.steps):
            shown = wrong or [
                phrasings[(number * each + i) % len(phrasings)]
                for phrasings in examples
                for i in range(min(each, len(phrasings)))
            ]
            if len(examples) > 1:
                rng.shuffle(shown)
            settled = True
            for start in range(0, len(shown), size):
                batch = [*shown[start : start + size], *(extra if len(extra) <= size else rng.sample(extra, size))]
                beside = rehearse()
                out = answer_logits(self.model, self.tokenizer, [*batch, *beside])
                losses = F.cross_entropy(out.logits, out.labels, reduction="none")
                own = losses.detach()[out.sequence < len(batch)]
                right = out.right(len(batch) + len(beside))[: len(batch)]
                if bool(right.all()) and float(own.mean()) <= self.config.enough:
                    continue
                loss = losses.mean()
                settled = False
                writer.step(loss)
                edit.report.steps += 1
            if settled and len(shown) == len(everything):
                return
            if settled:  # for what was shown; the phrasings that are answered wrongly come next, until none is
                wrong = [one for one, right in zip(everything, self._answered(everything), strict=True) if not right]
                if not wrong:
                    return

    def _rehearsal(self, edit: _Open, rows: Tensor, rng: random.Random) -> Callable[[], list[Encoded]]:
        """Draws stored facts, each in one of its phrasings: the more of these rows it reads, the likelier."""
        assert self._use is not None
        if not self.config.rehearsed:
            return list
        keys, read = self._use.reading(rows.cpu(), torch.ones(len(rows)), edit.report.ids)
        if not read.sum():
            return list
        chances = read.double().cumsum(0).tolist()
        by_id = {fact.id: fact for fact in self.book.facts}

        def draw() -> list[Encoded]:
            drawn = [by_id[key] for key in rng.choices(keys, cum_weights=chances, k=self.config.rehearsed)]
            return [self._encode(rng.choice(fact.questions), fact.answer) for fact in drawn]

        return draw

    def _unlearn(self, edit: _Open, old: list[Fact]) -> None:
        """Takes facts out: what is theirs alone is zero, shared rows say what the backbone says, the gate closes."""
        assert self._use is not None and self._words is not None
        report = edit.report
        examples = [self._encoded(fact) for fact in old]
        taught = [one for phrasings in examples for one in phrasings]
        unseen = [self._encode(q, fact.answer) for fact in old for q in fact.unseen_questions]
        kinds = {name: asked for name, asked in (("taught", taught), ("unseen", unseen)) if asked}
        targets = self._backbone_says(taught)
        evidence: dict[str, dict[str, Any]] = {name: {} for name in kinds}
        for name, asked in kinds.items():
            evidence[name]["before"] = self._standing(asked)
            evidence[name]["always_on_before"] = self._standing(asked, gate=False)
            with without_memory(self.model):
                evidence[name]["backbone"] = self._standing(asked)
        ids = [fact.id for fact in old]
        shared = {fact.subject for fact in self.book.facts if fact.id not in ids}
        rows = self._choose(edit, old)
        own = torch.cat([self._use.rows[each].long() for each in ids]).unique()
        alone = own[self._use.without(ids)[own] == 0]
        self._keep(edit, alone)
        self._clear(alone)
        near = NEAR_BACKBONE[any(fact.subject and fact.subject in shared for fact in old)]
        self._unteach(edit, taught, targets, rows, [], near)
        self._guard(edit, old, lambda more, broken: self._unteach(edit, taught, targets, more, broken, near), rows)
        self._subjects.remove(old, self.book.facts, self._words)
        for name, asked in kinds.items():
            evidence[name]["after"] = self._standing(asked)
            evidence[name]["always_on"] = self._standing(asked, gate=False)
        report.evidence = {**evidence, "slots_cleared": len(alone)}

    def _unteach(
        self, edit: _Open, asked: list[Encoded], targets: list[Tensor], rows: Tensor, extra: list[Encoded], near: float
    ) -> None:
        """Adam on `rows` until the backbone's own distribution is `near`, and `extra` is still answered."""
        writer = RowWriter(self._pool, rows, self.config.rate)
        size = self.config.batch_size
        for _ in range(self.config.steps):
            settled = True
            for start in range(0, len(asked), size):
                out = answer_logits(self.model, self.tokenizer, asked[start : start + size])
                wanted = torch.cat(targets[start : start + size])
                loss = F.kl_div(out.logits.log_softmax(-1), wanted, reduction="batchmean", log_target=True)
                done = float(loss.detach()) <= near and not bool(out.right(len(asked[start : start + size])).any())
                if extra:
                    beside = answer_logits(self.model, self.tokenizer, extra[:size])
                    done = done and bool(beside.right(len(extra[:size])).all())
                    loss = loss + F.cross_entropy(beside.logits, beside.labels)
                if done:
                    continue
                settled = False
                writer.step(loss)
                edit.report.steps += 1
            if settled:
                return

    def _guard(
        self, edit: _Open, facts: list[Fact], again: Callable[[Tensor, list[Encoded]], None], rows: Tensor
    ) -> None:
        """Measures the facts nearest to what moved; mends those whose answer changed, or refuses the edit."""
        assert self._use is not None and edit.kept is not None
        report = edit.report
        ids = [fact.id for fact in facts]
        moved = edit.kept.movement(self._pool)
        near = self._same_names(facts)
        number = min(self.config.neighbours * len(facts), MOST_NEIGHBOURS)
        near += [each for each in self._use.most_moved(edit.kept.rows.cpu(), moved.cpu(), number, ids + near)]
        near = near[: max(number, 1)] if number else []
        by_id = {fact.id: fact for fact in self.book.facts}
        rng = random.Random(f"{self.config.seed}:{report.number}:guard")
        asked = []
        for each in near:
            fact = by_id[each]
            questions = rng.sample(fact.questions, min(len(fact.questions), self.config.phrasings))
            asked += [(each, self._encode(question, fact.answer)) for question in questions]
        report.neighbours = len(near)
        broken: dict[str, None] = {}
        lost: list[tuple[str, Encoded]] = []
        for attempt in range(self.config.repairs + 1):
            lost = self._lost(edit, asked)
            if not lost:
                break
            broken |= dict.fromkeys(each for each, _ in lost)
            if attempt < self.config.repairs:
                others = [by_id[each] for each in broken]
                rows = torch.cat([rows, self._choose(edit, others)]).unique()
                self._keep(edit, rows)
                again(rows, [one for fact in others for one in self._encoded(fact)])
        report.changed = tuple(dict.fromkeys(each for each, _ in lost))
        report.repaired = tuple(each for each in broken if each not in report.changed)
        if report.changed and self.config.refuse:
            raise EditRefused(
                f"{self.folder}: refused, as it would change the answer of {len(report.changed)} of "
                f"{report.neighbours} stored facts beside it, {report.changed[0]!r} first; nothing was changed",
                report,
            )

    def _lost(self, edit: _Open, asked: list[tuple[str, Encoded]]) -> list[tuple[str, Encoded]]:
        """What is answered wrongly now and was answered rightly before the edit."""
        wrong = [pair for pair, right in zip(asked, self._answered([o for _, o in asked]), strict=True) if not right]
        if not wrong:
            return []
        assert edit.kept is not None
        now, index = Kept.of(self._pool, edit.kept.rows), self._subjects.state()
        edit.kept.put_back(self._pool)
        self._subjects.restore(edit.index)
        before = self._answered([one for _, one in wrong])
        now.put_back(self._pool)
        self._subjects.restore(index)
        return [pair for pair, right in zip(wrong, before, strict=True) if right]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _rows_read(self, facts: Sequence[Fact], phrasings: int | None) -> list[tuple[Fact, Tensor]]:
        """The distinct slots each fact reads."""
        return [(fact, rows) for fact, (rows, _) in zip(facts, self._reads(facts, phrasings), strict=True)]

    def _reads(self, facts: Sequence[Fact], phrasings: int | None) -> list[tuple[Tensor, Tensor]]:
        examples = [self._encoded(fact, phrasings) for fact in facts]
        sequences = [one.input_ids for each in examples for one in each]
        owners = [number for number, each in enumerate(examples) for _ in each]
        return slots_read(self.model, ADAPTER, sequences, owners)

    def _general_reads(self) -> list[Tensor]:
        """The distinct slots that each passage of some general text reads, as the memory's gates let it."""
        passages = read_general_text(SHIPPED).passages
        texts = GeneralText(tuple(random.Random(0).sample(passages, min(GENERAL_PASSAGES, len(passages)))))
        sequences = texts.encode(self.tokenizer, min(self._max_length, 256))
        return [rows for rows, _ in slots_read(self.model, ADAPTER, sequences, range(len(sequences)))]

    def _choose(self, edit: _Open, facts: Sequence[Fact]) -> Tensor:
        """The rows an edit of these facts may write, which are noted to be put back should it fail."""
        assert self._use is not None
        frequency = self._use.without([fact.id for fact in facts]) + self._use.general
        others = len(self.book.facts) + self._use.passages
        chosen = [
            choose_slots(rows, counts, frequency, others, self.config.slots, self.config.slot_count)
            for rows, counts in self._reads(facts, None)
        ]
        rows: Tensor = torch.cat(chosen).unique()
        self._keep(edit, rows)
        return rows

    def _keep(self, edit: _Open, rows: Tensor) -> None:
        kept = Kept.of(self._pool, rows)
        edit.kept = kept if edit.kept is None else edit.kept.joined(kept)

    @torch.no_grad()
    def _clear(self, rows: Tensor) -> None:
        table = self._pool.table
        table.values[rows.to(table.values.device)] = 0

    # -- answers ------------------------------------------------------------------------------------------------------

    def _encode(self, question: str, answer: str) -> Encoded:
        found = self._examples.get((question, answer))
        if found is None:
            found = encode_example(self.tokenizer, question, answer, "answer", self._max_length)
            self._examples[question, answer] = found
        return found

    def _encoded(self, fact: Fact, phrasings: int | None = None) -> list[Encoded]:
        return [self._encode(question, fact.answer) for question in fact.questions[:phrasings]]

    def _answered(self, examples: Sequence[Encoded]) -> list[bool]:
        right: list[bool] = answered(self.model, self.tokenizer, examples).tolist()
        return right

    @torch.no_grad()
    def _backbone_says(self, asked: list[Encoded]) -> list[Tensor]:
        """The bare backbone's log-probabilities where each answer is, [tokens, vocabulary] per sequence."""
        found: list[Tensor] = []
        with without_memory(self.model):
            for start in range(0, len(asked), self.config.batch_size):
                batch = asked[start : start + self.config.batch_size]
                out = answer_logits(self.model, self.tokenizer, batch)
                sizes = torch.bincount(out.sequence, minlength=len(batch)).tolist()
                found += out.logits.log_softmax(-1).split(sizes)
        return found

    @torch.no_grad()
    def _standing(self, asked: list[Encoded], *, gate: bool = True) -> dict[str, float]:
        """How an answer stands: given or not, its first token's rank and probability, its log-probability."""
        given, ranks, chances, whole = [], [], [], []
        with nullcontext() if gate else gates_off(self.model):
            for start in range(0, len(asked), 64):
                batch = asked[start : start + 64]
                out = answer_logits(self.model, self.tokenizer, batch)
                first = out.first()
                logits, labels = out.logits[first], out.labels[first]
                own = logits.gather(1, labels[:, None])
                ranks.append((logits > own).sum(1) + 1)
                chances.append(logits.softmax(-1).gather(1, labels[:, None])[:, 0])
                given.append(out.right(len(batch)))
                whole.append(out.log_probability(len(batch)))
        return {
            "n": len(asked),
            "given": round(float(torch.cat(given).float().mean()), 4),
            "rank": float(torch.cat(ranks).float().quantile(0.5)),
            "probability": float(torch.cat(chances).mean()),
            "log_probability": round(float(torch.cat(whole).mean()), 4),
        }

    # -- subjects -----------------------------------------------------------------------------------------------------

    def _same_names(self, facts: Sequence[Fact]) -> list[str]:
        """Ids of stored facts about the same subjects, then of those whose questions name one of them."""
        ids = {fact.id for fact in facts}
        names = {fact.subject for fact in facts if fact.subject}
        others = [fact for fact in self.book.facts if fact.id not in ids]
        same = [fact.id for fact in others if fact.subject in names]
        if names:
            pattern = re.compile("|".join(map(re.escape, sorted(names))))
            known = set(same)
            same += [f.id for f in others if f.id not in known and any(pattern.search(q) for q in f.questions)]
        return same

    # -- keeping account ----------------------------------------------------------------------------------------------

    def _account(self, changes: Sequence[Change]) -> None:
        """After an edit: which words the facts have, and what they read."""
        assert self._use is not None and self._words is not None
        for change in changes:
            if change.before is not None:
                self._words.subtract(facts_words([change.before]))
                self._use.drop(change.before.id)
        new = [change.after for change in changes if change.after is not None]
        for fact, rows in self._rows_read(new, USE_PHRASINGS):
            self._use.put(fact.id, rows, _text_hash(fact))
        self._words.update(facts_words(new))

    def _next_number(self) -> int:
        if self._pending:
            return self._pending[-1].record.number + 1
        return self.book.records[-1].number + 1 if self.book.records else 1

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save(
        self,
        records: list[Record],
        facts: Sequence[Fact],
        undo: dict[int, _Pending],
        *,
        purge: bool = False,
        expected: dict[str, str] | None = None,
    ) -> None:
        """Replaces the folder, in one step, by one with the model's weights, these facts, and more records.

        Raises:
            WorkError: the files are not what is `expected`; the folder is as it was.
        """
        history = [*self.book.records, *records]
        outdated = outdated_undo_files(history)
        with replaced_directory(self.folder) as new:
            carry_over(self.folder, new, [*DIGESTED, "journal.jsonl", *outdated] + (_undo_files(history) * purge))
            state = get_peft_model_state_dict(self.model, adapter_name=ADAPTER, save_embedding_layers=False)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
            save_file(tensors, new / WEIGHTS_FILE, metadata={"format": "pt"})
            shutil.copy2(self.folder / CONFIG_FILE, new / CONFIG_FILE)
            if self._use is not None:
                (new / SLOT_USE_FILE).unlink(missing_ok=True)  # a link to the old one
                self._use.save(new / SLOT_USE_FILE, {fact.id for fact in facts})
            write_facts_and_journal(new, facts, [])
            found = digests(new)
            if expected and found != expected:
                raise WorkError(f"{self.folder}: the edit cannot be taken back bit for bit here; nothing was changed")
            history[-1] = replace(history[-1], after=found)
            for number, pending in undo.items():
                record = next(record for record in history if record.number == number)
                if not purge and record.undo_file not in outdated:
                    self._write_undo(new / record.undo_file, record, pending)
            write_facts_and_journal(new, facts, history)
        self.book.saved(history, found)

    def _write_undo(self, path: Path, record: Record, pending: _Pending) -> None:
        kept = pending.kept
        tensors = {"rows": kept.rows, "values": kept.values}
        if kept.scales is not None:
            tensors["scales"] = kept.scales
        if pending.index is not None:
            before, after = pending.index
            tensors |= before.undo_tensors(after)
        path.parent.mkdir(exist_ok=True)
        words = {"record": record.line(), "changes": changes_text(pending.changes)}
        save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, path, metadata=words)


def _text_hash(fact: Fact) -> str:
    """Of what a fact's reads depend on."""
    return hashlib.blake2b(repr((fact.questions[:USE_PHRASINGS], fact.answer)).encode(), digest_size=8).hexdigest()


def _undo_files(records: Sequence[Record]) -> list[str]:
    return [record.undo_file for record in records]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
