"""Teaching: calibrate, gate, then write the facts into the value pool of a frozen backbone.

A loop of our own, thin, on accelerate rather than on transformers.Trainer, because three things here are the loop
itself: it stops when recall is full, and teaches further what is not held; its order of facts and wordings is a
function of (seed, epoch) and of what was answered wrongly, so that a run killed at any moment ends in the same bits;
and its checkpoints are safetensors, written aside and renamed, where Trainer's are pickles written in place
(docs/LOG.md). Several processes of one job share each step (teaching/shared_step.py). A memory is a PEFT method all the
same: Trainer and plain loops train it too (tests/tuner/test_trainer.py).
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.backbones import context_length, device_named, load_backbone, quiet_wrapping
from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import IGNORED_LABEL, Encoded, encode_example, sampled_texts, tokens_in
from memlayers.data.facts import Fact, aliases_by_subject
from memlayers.data.general_text import GeneralText, load_general_text
from memlayers.data.respelling import respelled
from memlayers.gating.build import GateMaterials, build_gate, settle_confidence
from memlayers.inference.capture import LayerFeatures, collect_features, count_reads
from memlayers.inference.folder import ADAPTER
from memlayers.inference.record import CurvePoint, Teaching, TeachReport
from memlayers.inference.scoring import answer_logits
from memlayers.inference.shared_prefix import SharedPrefix, shared_prefix
from memlayers.kernels.interface import STATE_BLOCK
from memlayers.linking.mention_forms import SubjectForms, subject_forms
from memlayers.pool.optimizers import gradients_are_finite
from memlayers.teaching.calibrate import calibrate
from memlayers.teaching.checkpoint import Checkpoint, Progress, flat_names, run_identity
from memlayers.teaching.held import (
    SURE,
    Checked,
    Round,
    Wording,
    check_wordings,
    further_batches,
    generated_check,
    still_left,
)
from memlayers.teaching.learned_queries import learn_queries, share_subjects, wordings_to_learn_from
from memlayers.teaching.protect import protect_slots
from memlayers.teaching.recall import measured_recall
from memlayers.teaching.records import write_records
from memlayers.teaching.schedule import Schedule
from memlayers.teaching.setup import memory_config, mixed_examples, optimizer_for
from memlayers.teaching.shared_step import Passes, read_nothing, share_gradients, share_passes, take_gradients
from memlayers.teaching.stages import Stages
from memlayers.tuner.handle import MemoryHandle, memory_auxiliary_loss, memory_handle, splitting_pools
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import atomic_directory
from memlayers.utils.progress import progress_bar
from memlayers.utils.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_RATE = 0.05  # of the full rate, where the linear fall ends
LEAST_FURTHER = 0.1  # of the full rate, where a round over few facts that are not held begins
TEXT_TOKENS = 256  # of a general text's sequences, at most


Watch = Callable[[Any, Any], tuple[float | None, float | None]]
"""Measured after each epoch for the curve: (model, tokenizer) -> (perplexity, share of known facts answered)."""


class Teacher:
    """Teaches facts to a frozen backbone, stage by stage.

    The stages, in this order::

        setup()                         backbone, memory, optimizer, order of work
        restore()                       a checkpoint, if there is one: then the next two are done already
        calibrate()  build_gate()       on the bare backbone, before a value is written
        teach()                         values, until recall is full or the exposures are over
        hold()                          every fact asked in every taught wording; further, what is not held surely
        settle()                        thresholds of confidence
        save(out)                       the adapter's folder

    Args:
        facts: at least one.
        config: how.
        work: folder of the checkpoints; None keeps none.
        gate_facts: as in `teach_facts`.
        watch: as in `teach_facts`.
        quiet: no progress bars.
        ranks: the processes that teach together; every one of them goes through all stages.

    Attributes:
        model: the PEFT model. It, and the next three, are there from `setup` on.
        tokenizer: the backbone's.
        memory: the handle on the memory.
        schedule: the order of work.
        report: what was done so far.
    """  # fmt: skip

    model: Any
    tokenizer: PreTrainedTokenizerBase
    memory: MemoryHandle
    schedule: Schedule
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        facts: Sequence[Fact],
        config: TeachConfig,
        work: Path | None = None,
        *,
        gate_facts: Sequence[Fact] | None = None,
        watch: Watch | None = None,
        quiet: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.facts, self.config, self.watch, self.ranks = facts, config, watch, ranks
        self.quiet = quiet or not ranks.first
        self._split = config.machine.shard_pool == "columns" and ranks.size > 1
        self.passes = max(config.schedule.accumulation, ranks.size)  # that a step is split into
        if self._split:  # as many for each: they read the pool together
            self.passes = -(-self.passes // ranks.size) * ranks.size
        self._askers = ALONE if self._split else ranks  # to whom what is asked is dealt
        shown = {fact.id for fact in (facts if gate_facts is None else gate_facts)}
        self.gate_facts = [i for i, fact in enumerate(facts) if fact.id in shown]
        if not self.gate_facts:
            raise InputError("gate_facts holds none of the facts: give some of them, or None for all")
        self.report = TeachReport()
        self._stages = Stages()
        self._identity = run_identity(config, facts, [facts[i] for i in self.gate_facts], self.passes)
        self._checkpoint = None if work is None else Checkpoint(work, self._identity)
        self._saved_at = self._began = time.perf_counter()
        self._saved: tuple[int, int, int] | None = None  # steps, epochs and checks of the last checkpoint
        self._epoch_loss, self._epoch_tokens = 0.0, 0  # of the epoch under way: nats, and the tokens they are of
        self._step_sure: list[bool] = []  # of the last step: whether each sequence's answer was sure before it
        self._aliases = aliases_by_subject(facts)
        self._checked: Checked | None = None  # what the last check found; None where something was taught since
        self._round: Round | None = None  # of teaching further, while one is under way
        self._shown_further: set[Wording] = set()  # in such rounds
        self._bad_in_a_row = 0  # steps whose loss was not finite

    # -- stages -------------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Loads the backbone, puts an empty memory into it, and lays out the order of work.

        Raises:
            InputError: a question is longer than the backbone's context, a file or a backbone cannot be read; or the
                processes are to teach different things.
        """
        from accelerate import Accelerator
        from accelerate.utils import set_seed
        from peft import get_peft_model

        config = self.config
        self._began = time.perf_counter()
        of_facts = {name: value for name, value in self._identity.items() if name != "config"}
        self.ranks.agree({**of_facts, **flat_names(self._identity["config"])}, "teach the same")
        self.device = self._chosen_device()
        # No mixed precision of accelerate's: a frozen backbone is simply loaded in the dtype it shall run in.
        self._accelerator = Accelerator(mixed_precision="no", cpu=self.device.type == "cpu")
        set_seed(config.seed)
        with progress_bar("Loading the backbone", quiet=self.quiet):
            backbone, self.tokenizer = load_backbone(config.backbone, config.machine.dtype, self.device)
        self._longest = context_length(backbone)
        self._encoded = self._with_loss(config.schedule.loss)
        # What is asked, and taught further, counts the answer alone.
        self._asked = self._encoded if config.schedule.loss == "answer" else self._with_loss("answer")
        mixed = mixed_examples(config.data, self.tokenizer, self._longest)
        self._general = load_general_text(config.data.general_text, backbone, self.tokenizer, config.seed)
        self._protected: GeneralText | None = None
        if config.data.protect:
            self._protected = load_general_text(config.data.protect, backbone, self.tokenizer, config.seed)
        self._subjects: SubjectForms | None = None
        if config.gated and config.gate.subjects:
            contexts = [[example.input_ids for example in examples] for examples in self._encoded]
            self._subjects = subject_forms(self.tokenizer, self.facts, contexts, config.gate.mentions)
        with quiet_wrapping(), self._splitting():
            self.model = get_peft_model(backbone, memory_config(config, subjects=self._subjects is not None))
        self.memory = memory_handle(self.model, ADAPTER)
        self.optimizer = optimizer_for(self.model, config)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        pool = self.memory.pool.parameter
        self._beside = [p for group in self.optimizer.param_groups for p in group["params"] if p is not pool]
        self.schedule = Schedule(
            self._encoded, mixed, config.exposures, config.schedule.batch_size, config.schedule.pack, config.seed,
            self._respelled if config.schedule.respelled and self._subjects is not None else None,
        )  # fmt: skip
        self._saved_at = time.perf_counter()

    @contextmanager
    def _splitting(self) -> Iterator[None]:
        """Where processes share the pool by columns, a context in which it is built so."""
        if not self._split:
            yield
            return
        from torch.distributed.device_mesh import init_device_mesh

        if self.config.optimizer.rounding == "stochastic":
            raise InputError("--half-rounding stochastic is not for --shard-pool columns: take master")
        mesh = init_device_mesh(self.device.type, (self.ranks.size,))
        unit = STATE_BLOCK if self.config.optimizer.bits == 8 else 1
        with splitting_pools(mesh, unit=unit, average=False):
            yield

    def _chosen_device(self) -> torch.device:
        """The device that is asked for; of several processes each has its own of several."""
        from accelerate import Accelerator

        named = self.config.machine.device
        if named is None or (self.ranks.size > 1 and named == "cuda"):
            return torch.device(Accelerator().device)
        if self.ranks.size > 1 and ":" in named:
            raise InputError(f"device {named}: {self.ranks.size} processes cannot share it; give cuda or cpu")
        return device_named(named)

    def restore(self) -> bool:
        """Continues from the newest checkpoint; False where there is none.

        Raises:
            InputError: it is damaged, or of a run with other settings or other facts.
        """
        found = self._checkpoint.restore(self.memory, self.optimizer) if self._checkpoint else None
        self.ranks.agree({"checkpoint": None if found is None else found.report.steps}, "go on from the same place")
        if found is None:
            return False
        self.report, self._epoch_loss, self._epoch_tokens, self._checked, self._round, shown = found
        self._shown_further = set(shown)
        self._stages = Stages(self.report.stages)
        return True

    def calibrate(self) -> None:
        """Fixes addressing by what the memory layers see on the bare backbone, and protects slots where asked to."""
        self._features: tuple[list[LayerFeatures], list[LayerFeatures]] | None = None
        if self.config.memory.recipe != "addressed" and not self.config.gated:
            return
        contexts, texts = self._contexts(range(len(self.facts))), self._texts()
        keep = 0 if not self.config.gated else 1 if self._subjects is not None else None
        with (
            self._stages.stage("calibration", tokens_in(contexts) + tokens_in(texts)),
            progress_bar("Calibrating", len(contexts) + len(texts), quiet=self.quiet) as advance,
        ):
            facts, general = (
                collect_features(self.memory, sequences, keep=keep, progress=advance) for sequences in (contexts, texts)
            )
            if self.config.memory.recipe == "addressed":
                calibrate(self.memory, [facts, general])
        self._learn_queries()
        if self._protected is not None:
            texts = self._protected.encode(self.tokenizer, min(self._longest, TEXT_TOKENS))
            with progress_bar("Counting reads to protect", len(texts), quiet=self.quiet) as advance:
                reads = count_reads(self.memory, texts, progress=advance)
            protect_slots(self.memory, reads, self.config.data.protect_share)
        self._features = (facts, general) if self.config.gated else None  # large: only the gate is made from them

    def _learn_queries(self) -> None:
        """Learns queries further where subjects have several facts, which the subject alone does not tell apart."""
        config = self.config.queries
        if not (config.learned and self.memory.config.subject_weight and share_subjects(self.facts)):
            return
        chosen = wordings_to_learn_from(self.facts, config, self.config.seed)
        count = sum(len(wordings) for _, wordings in chosen)
        with (
            self._stages.stage("queries"),
            progress_bar("Learning queries", count, quiet=self.quiet) as advance,
        ):
            learn_queries(self.memory, self.tokenizer, chosen, config, seed=self.config.seed, progress=advance)

    def build_gate(self) -> None:
        """Makes the gate, where there shall be one, from what `calibrate` saw.

        Raises:
            WorkError: it opens for none of the facts.
        """
        if self.config.gated:
            self._make_gate()
        # All have worked out the same; on machines of different kinds the last bits could differ.
        self.ranks.broadcast(self.memory.tensors_beside_values())

    def _make_gate(self) -> None:
        assert self._features is not None
        contexts, (facts, general) = self._contexts(range(len(self.facts))), self._features
        if len(self.gate_facts) < len(self.facts):
            contexts = self._contexts(self.gate_facts)
            facts = collect_features(self.memory, contexts, keep=1 if self._subjects is not None else None)
        materials = GateMaterials(contexts, (facts, general), self._passages, self._subjects)
        self._features = None  # large, and not needed any more
        with self._stages.stage("gate"):
            self.report.gates, self.report.relations = build_gate(
                self.memory, self.tokenizer, self.facts, materials, self.config.gate, seed=self.config.seed,
                quiet=self.quiet,
            )  # fmt: skip
        if not any(gate.open_on_facts for gate in self.report.gates):
            raise WorkError(
                "the gates cannot tell the facts' questions from general text on this backbone, so nothing would "
                "be learned: lower --gate-threshold, or take --no-gate"
            )

    def teach(self) -> None:
        """Epochs until measured recall is full, or until the exposures are over.

        Raises:
            WorkError: the loss is not finite for many steps in a row.
        """
        report, steps = self.report, self.schedule.steps
        with progress_bar("Teaching", steps, quiet=self.quiet) as advance:
            advance(min(report.steps, steps))
            while not self._exposures_are_over and report.steps < steps and not self._recall_is_full():
                epoch, done = self.schedule.place(report.steps)
                batches = self.schedule.batches(epoch)
                for batch in batches[done:]:
                    self._step_or_fail(batch, 1 - report.steps / steps)
                    advance(1, note=self._note())
                    self._checkpoint_when_due(batch is batches[-1])
                report.exposures = float(epoch + 1)
                self._measure()
                advance(0, note=self._note())
                self._checkpoint_when_due(False)

    def hold(self) -> None:
        """Asks every fact in every taught wording; where some are not held, teaches further; then the final check.

        Raises:
            WorkError: the loss is not finite for many steps in a row.
        """
        report = self.report
        if self._round is not None:  # one that was interrupted
            self._teach_further(self._round)
        while (checked := self._check()).wrong and len(report.checks) <= self.config.further:
            self._save_checkpoint()
            self._teach_further(Round.after(checked))
        self._checkpoint_when_due(False)
        with self._stages.stage("final check"):
            report.recall, report.not_held = generated_check(
                self.model, self.tokenizer, self.facts, checked.wrong, self.config.schedule, self.config.seed,
                ranks=self._askers,
            )  # fmt: skip
        report.seconds += time.perf_counter() - self._began

    def settle(self) -> None:
        """Settles from which confidence on an answer is worth giving, on wordings never shown where there are any."""
        if self._subjects is None:
            return
        began, checked = time.perf_counter(), self._check()
        epochs = range(math.ceil(self.report.exposures))
        shown = [{(epoch + i) % len(fact.questions) for epoch in epochs} for i, fact in enumerate(self.facts)]
        for i, j in self._shown_further:
            shown[i].add(j)
        with self._stages.stage("settling"):
            self.report.thresholds = settle_confidence(
                self.memory, self.tokenizer, [self.facts[i] for i in self.gate_facts], self.config.gate,
                sure=[sure for i in self.gate_facts for sure in checked.held_confidences(i, shown[i])],
                seed=self.config.seed, quiet=self.quiet, ranks=self._askers,
            )  # fmt: skip
        self.report.seconds += time.perf_counter() - began

    def save(self, out: str | Path, *, replace: bool = False) -> None:
        """Writes the adapter's folder, in one piece: weights, configuration, tokenizer, record, model card, facts.

        Of several processes the first one writes it, and the others wait until it is there.

        Args:
            out: the folder.
            replace: an existing one may be replaced.
        """
        if self.ranks.first:
            self._write(out, replace=replace)
        elif self._split:
            self.memory.save(out)  # takes part
        self.ranks.meet()

    def _write(self, out: str | Path, *, replace: bool) -> None:
        with progress_bar("Saving", quiet=self.quiet), atomic_directory(out, replace=replace) as folder:
            self.memory.save(folder)
            self.tokenizer.save_pretrained(str(folder))
            self.report.stages = self._stages.found
            where = {**environment(str(self.device)), "processes": self.ranks.size}
            teaching = Teaching(len(self.facts), self.config, where, self.report)
            write_records(folder, Path(out), teaching, self.facts, self.memory.config)

    # -- what is not held ---------------------------------------------------------------------------------------------

    def _check(self) -> Checked:
        """The last check, or a new one where something was taught since."""
        if self._checked is None:
            with (
                self._stages.stage("check", sum(self._tokens(examples) for examples in self._asked)),
                progress_bar("Checking every wording", sum(map(len, self._asked)), quiet=self.quiet) as advance,
            ):
                self._checked = check_wordings(
                    self.model, self.tokenizer, self._asked, progress=advance, ranks=self._askers
                )
            self.report.checks.append(len(self._checked.wrong))
        return self._checked

    def _teach_further(self, now: Round) -> None:
        """A round over what is not held, and what is not held surely: each in these wordings, until it is sure.

        Args:
            now: the round, as far as it is.
        """
        settings, seed = self.config.schedule, f"{self.config.seed}:further:{len(self.report.checks)}"
        self._checked, last = None, settings.further_epochs
        if not now.epoch:
            self.optimizer = optimizer_for(self.model, self.config)  # old moments would move the rows of other facts
        subjects = [fact.subject for fact in self.facts]
        # Many wrong: they are hardly taught. Few: as little as possible of the others shall be overwritten.
        rate = min(settings.further_rate, max(LEAST_FURTHER, now.wrong / len(self.facts)))
        with progress_bar("Teaching further", last, quiet=self.quiet) as advance:
            advance(now.epoch)
            while now.left and now.epoch < last:
                sure: dict[Wording, bool] = {}
                batches = further_batches(self._asked, subjects, now.left, settings.batch_size, f"{seed}:{now.epoch}")
                for batch in batches:
                    self._step_or_fail([self._asked[i][j] for i, j in batch], rate * (1 - now.epoch / last))
                    sure.update(zip(batch, self._step_sure, strict=True))
                self._shown_further.update(sure)
                now = dataclasses.replace(now, left=still_left(now.left, sure), epoch=now.epoch + 1)
                advance(1, note=f"{len(now.left)} of {now.taught} facts left")
                self._round = now
                self._checkpoint_when_due(False)
        self._round = None

    # -- one step -----------------------------------------------------------------------------------------------------

    @cached_property
    def _prefix(self) -> SharedPrefix | None:
        """What all taught sequences begin with, read once; None where they are not read so."""
        if self.config.schedule.loss != "answer" or not self.config.gated:
            return None
        everything = [example.input_ids for examples in self._encoded for example in examples]
        return shared_prefix(self.model, everything)

    def _step_or_fail(self, batch: list[Encoded], share: float) -> None:
        """One step at a share of the rates.

        Raises:
            WorkError: the loss was not finite for many steps in a row.
        """
        settings, report = self.config.schedule, self.report
        with self._stages.stage("steps", self._tokens(batch)):
            stepped = self.step(batch, share)
        self._bad_in_a_row = 0 if stepped else self._bad_in_a_row + 1
        report.skipped_steps += not stepped
        report.steps += 1
        if self._bad_in_a_row >= settings.bad_steps:
            raise WorkError(
                f"the loss was not finite for {self._bad_in_a_row} steps in a row: lower --value-rate "
                "(or --dense-rate), or take --dtype float32"
            )

    def step(self, batch: list[Encoded], share: float) -> bool:
        """One step at a share of the rates; False, and nothing changed, where the loss or a gradient is not finite."""
        warmup = self.config.optimizer.warmup
        factor = min(1.0, (self.report.steps + 1) / max(1, warmup)) * max(LEAST_RATE, share)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        # Dropout and the like, if a backbone has any in eval mode, stay off: teaching sees what answering sees.
        self.model.eval()
        for layer in self.memory.layers:
            layer.training = True  # its own flag (for the load-balance loss), not its MLP block's dropout
        _ = self._prefix  # by every process, also one without a pass: those that split the pool read it together
        counted = sum(label != IGNORED_LABEL for example in batch for label in example.labels[1:])
        size = -(-len(batch) // self.passes)
        own: list[tuple[Tensor, Tensor]] = []  # of each pass its loss, and whether each sequence's answer is sure
        beside: list[list[Tensor | None]] = []
        for start in self.ranks.run_of(self.passes):
            sequences = batch[start * size : (start + 1) * size]
            if self._split and not sequences:
                read_nothing(self.memory, self.model.dtype)
                continue
            if not sequences:
                break
            loss, sure = self._loss(sequences)
            loss = loss / counted
            own.append((loss.detach(), sure))
            if loss.requires_grad:  # the gates may be closed for every token of the batch
                self._accelerator.backward(loss)
            if self.ranks.size > 1:
                beside.append(take_gradients(self._beside))
        losses, self._step_sure = share_passes(self.ranks, self.memory.pool, Passes.of(own))
        finite = all(map(math.isfinite, losses))
        if finite:
            share_gradients(self.ranks, self._beside, beside)
            trainable = [p for p in self.model.parameters() if p.grad is not None]
            if self.config.optimizer.clip:
                torch.nn.utils.clip_grad_norm_(trainable, self.config.optimizer.clip)
            finite = gradients_are_finite(trainable)
        if finite:
            self._epoch_loss += sum(loss * counted for loss in losses)
            self._epoch_tokens += counted
            self.optimizer.step()
        else:
            self._step_sure = [False] * len(batch)
        self.optimizer.zero_grad()
        return finite

    def _loss(self, batch: list[Encoded]) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies, in nats, over the counted tokens; and whether each answer is sure, bool."""
        out = answer_logits(self.model, self.tokenizer, batch, self._prefix)
        each = F.cross_entropy(out.logits, out.labels, reduction="none")
        sure = out.summed(-each.detach()).exp() >= SURE
        return each.sum() + memory_auxiliary_loss(self.model) * len(out.labels), sure & out.right()

    # -- recall -------------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Recall on taught wordings, of all of them after the last exposure, and what the caller watches."""
        self._checked = None
        last = self.report.steps >= self.schedule.steps
        if last:  # everything is asked anyway: that is no part of the measurement
            self.report.recall = self._check().recall
        paused = time.perf_counter()
        if not last:
            rng = random.Random(f"{self.config.seed}:recall:{len(self.report.curve)}")
            with self._stages.stage("recall"):
                self.report.recall, tokens = measured_recall(
                    self.model, self.tokenizer, self._asked, self.config.schedule, rng, ranks=self._askers
                )
            self._stages.add("recall", 0.0, 0.0, tokens)
        watched = self.watch and (self.ranks.first or self._split)
        perplexity, known = self.watch(self.model, self.tokenizer) if self.watch and watched else (None, None)
        loss = self._epoch_loss / self._epoch_tokens if self._epoch_tokens else None
        self.report.curve.append(CurvePoint(self.report.exposures, self.report.recall, perplexity, known, loss))
        self._epoch_loss, self._epoch_tokens = 0.0, 0
        self._began += time.perf_counter() - paused

    @property
    def _exposures_are_over(self) -> bool:
        """Whether what is held was asked, and maybe taught further."""
        return self._checked is not None or self._round is not None

    def _recall_is_full(self) -> bool:
        return bool(self.report.curve) and self.report.recall >= self.config.schedule.stop_at_recall

    def _note(self) -> str:
        report = self.report
        skipped = f", {report.skipped_steps} skipped" if report.skipped_steps else ""
        return f"{self.schedule.exposures(report.steps):.1f} exposures, recall {report.recall:.1%}{skipped}"

    # -- what the stages are made of ----------------------------------------------------------------------------------

    def _with_loss(self, loss: Literal["answer", "full"]) -> list[list[Encoded]]:
        """Per fact its taught wordings with the answer."""
        return [
            [encode_example(self.tokenizer, q, fact.answer, loss, self._longest) for q in fact.questions]
            for fact in self.facts
        ]

    def _respelled(self, fact: int, wording: int, epoch: int) -> Encoded | None:
        """A fact's wording in another spelling, in a share of its exposures; None for the wording as it is."""
        rng = random.Random(f"{self.config.seed}:{epoch}:{fact}:respelled")
        if rng.random() >= self.config.schedule.respelled:
            return None
        shown = self.facts[fact]
        question = respelled(shown.questions[wording], shown.subject, self._aliases.get(shown.subject, ()), rng)
        return encode_example(self.tokenizer, question, shown.answer, self.config.schedule.loss, self._longest)

    def _contexts(self, facts: Iterable[int]) -> list[list[int]]:
        """Some of these facts' questions and answers, as token ids."""
        contexts = [example.input_ids for i in facts for example in self._encoded[i]]
        return sampled_texts(contexts, self.config.gate.tokens // 2, self.config.seed)

    def _texts(self) -> list[list[int]]:
        """Some of the general text, as token ids: its passages, so many of them as `_passages` says, then its chats."""
        texts, self._passages = self._general.sample(
            self.tokenizer, min(self._longest, TEXT_TOKENS), self.config.gate.tokens // 2, self.config.seed
        )
        return texts

    def _tokens(self, batch: Sequence[Encoded]) -> int:
        """Of a batch, what goes through the backbone."""
        skipped = len(self._prefix.ids) if self._prefix is not None else 0
        return sum(len(example.input_ids) - skipped for example in batch)

    def _checkpoint_when_due(self, epoch_is_over: bool) -> None:
        # At the end of an epoch the measurement is still to come; the checkpoint waits for it.
        if self._checkpoint is None or epoch_is_over:
            return
        due = time.perf_counter() - self._saved_at >= self.config.schedule.checkpoint_seconds
        if self._split:
            due = self.ranks.gather(due)[0]
        if due:
            self._save_checkpoint()
            self._saved_at = time.perf_counter()

    def _save_checkpoint(self) -> None:
        reached = self.report.steps, len(self.report.curve), len(self.report.checks)
        if self._checkpoint is None or reached == self._saved or not (self.ranks.first or self._split):
            return
        self._saved = reached
        elapsed = self.report.seconds + time.perf_counter() - self._began
        report = dataclasses.replace(self.report, seconds=elapsed, stages=self._stages.found)
        progress = Progress(
            report, self._epoch_loss, self._epoch_tokens, self._checked, self._round, self._shown_further
        )
        self._checkpoint.save(self.memory, self.optimizer, progress)
