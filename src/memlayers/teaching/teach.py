"""Teaching: calibrate, gate, then write the facts into the value pool of a frozen backbone.

A loop of our own, thin, on accelerate rather than on transformers.Trainer, because three things here are the loop
itself: it stops when recall, measured in free generation, is full; its order of facts and phrasings is a function of
(seed, pass) alone, so that a run killed at any moment ends in the same bits; and its checkpoints are safetensors,
written aside and renamed, where Trainer's are pickles written in place (docs/LOG.md). A memory is a PEFT method all
the same: Trainer and plain loops train it too (tests/tuner/test_trainer.py).
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlayers.backbones import context_length, device_named, dtype_on, load_backbone
from memlayers.data.answers import exact_match
from memlayers.data.encoding import IGNORED_LABEL, Encoded, Loss, encode_example, pack, plain_text_ids
from memlayers.data.fact_files import facts_text
from memlayers.data.facts import Fact
from memlayers.data.general_text import load_general_text
from memlayers.gating.abstention import guessing_questions, settle_thresholds, settling_questions
from memlayers.gating.build import index_subjects, sampled_contexts
from memlayers.gating.relations import fit_relations, relation_entries
from memlayers.gating.reports import GateReport
from memlayers.gating.train import train_gates
from memlayers.inference.capture import LayerFeatures, collect_features, count_reads
from memlayers.inference.folder import FACTS_FILE, WEIGHTS_FILE
from memlayers.inference.generation import answer_questions
from memlayers.inference.scoring import answer_logits
from memlayers.linking.mention_forms import subject_runs
from memlayers.pool.optimizers import has_finite_gradient, make_optimizer
from memlayers.teaching.calibrate import calibrate
from memlayers.teaching.config import TeachConfig
from memlayers.teaching.protect import protect_slots
from memlayers.teaching.record import CurvePoint, Teaching, TeachReport, write_teaching
from memlayers.tuner import MemoryConfig, memory_layers
from memlayers.tuner.handle import memory_auxiliary_loss
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import atomic_directory, check_output_directory, file_digest
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER = "default"
BAD_STEPS_IN_A_ROW = 10
ENOUGH_RECALL, LATER_RATE = 0.98, 0.5  # with which no further round is taught; where such a round's rate begins
OPTIMIZER_STATE = "optimizer.safetensors"


@dataclass(slots=True)
class Taught:
    """A model with its new memory, ready to be asked."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    report: TeachReport


Watch = Callable[[Any, Any], tuple[float | None, float | None]]
"""Measured after each pass for the curve: (model, tokenizer) -> (perplexity, share of known facts answered)."""


def teach_facts(
    facts: Sequence[Fact],
    out: str | Path,
    config: TeachConfig | None = None,
    *,
    resume: bool = False,
    replace: bool = False,
    gate_facts: Sequence[Fact] | None = None,
    watch: Watch | None = None,
    quiet: bool = False,
) -> Taught:
    """Teaches facts to a frozen backbone and saves the memory as an adapter folder.

    Calibrates addressing and trains the gate on the bare backbone, then writes values until recall, measured in free
    generation, is full or the passes of `config.exposures` are over; where that is None and recall is not enough,
    another round follows. Unfinished work lives in ``OUT.teaching`` beside `out`; `out` itself appears in one piece
    at the end.

    Args:
        facts: at least one.
        out: folder of the adapter.
        config: how; None for the defaults.
        resume: continue an interrupted run of the same configuration and facts.
        replace: an existing `out` may be replaced.
        gate_facts: those of the facts that the gate's network and the thresholds are made from; None for all. All are
            taught, and indexed by their subjects: how a gate does on kinds of facts that it never saw.
        watch: measures more for the curve after each pass.
        quiet: no progress bars.

    Returns:
        The model with its memory, the tokenizer, and the report.

    Raises:
        InputError: no facts, a question longer than the context, a folder in the way, another run's checkpoint.
        WorkError: the loss is not finite for many steps in a row.
    """
    config = config or TeachConfig()
    if not facts:
        raise InputError("no facts to teach: give at least one")
    check_output_directory(out, replace=replace)
    if Path(out).is_dir() and any(Path(out).iterdir()) and not (Path(out) / "adapter_config.json").is_file():
        raise InputError(f"{out}: not a memory, so it is not replaced; give another folder or remove this one")
    work = Path(f"{Path(out)}.teaching")
    if work.exists() and not resume:
        raise InputError(f"{work}: an interrupted run is there; continue it with --resume, or delete the folder")
    if resume and not work.is_dir():
        raise InputError(f"{work}: no interrupted run there; start without --resume")
    run = _Run(facts, config, work, gate_facts=gate_facts, watch=watch, quiet=quiet)
    kept = facts_text(Path(out) / FACTS_FILE, facts) if config.keep_facts else None
    run.prepare()
    run.teach()
    run.settle()
    with atomic_directory(out, replace=replace) as folder:
        run.save_adapter(folder)
        write_teaching(folder, Teaching(len(facts), config, environment(str(run.device)), run.report))
        if kept is not None:
            (folder / FACTS_FILE).write_text(kept, encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    return Taught(run.model, run.tokenizer, run.report)


class _Run:
    """One teaching run: its model, its order of work, and its checkpoints."""

    def __init__(
        self,
        facts: Sequence[Fact],
        config: TeachConfig,
        work: Path,
        *,
        gate_facts: Sequence[Fact] | None = None,
        watch: Watch | None = None,
        quiet: bool = False,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed
        from peft import get_peft_model

        self.facts, self.config, self.work, self.watch, self.quiet = facts, config, work, watch, quiet
        shown = {fact.id for fact in (facts if gate_facts is None else gate_facts)}
        self.gate_facts = [i for i, fact in enumerate(facts) if fact.id in shown]
        if not self.gate_facts:
            raise InputError("gate_facts holds none of the facts: give some of them, or None for all")
        self.report = TeachReport()
        self.began = time.perf_counter()
        self.device = device_named(config.device) if config.device else Accelerator().device
        # No mixed precision of accelerate's: a frozen backbone is simply loaded in the dtype it shall run in.
        self.accelerator = Accelerator(mixed_precision="no", cpu=self.device.type == "cpu")
        set_seed(config.seed)
        memory = MemoryConfig(
            recipe=config.recipe,
            layers=config.layers,
            sub_keys=config.shape.sub_keys,
            heads=config.shape.heads,
            top_k=config.top_k,
            key_dim=config.shape.key_dim,
            pool_dtype=config.pool_dtype,
            protectable=config.protect is not None,
            gate=config.gated,
            seed=config.seed,
            backbone=config.backbone,
        )
        backbone, self.tokenizer = load_backbone(config.backbone, dtype_on(self.device, config.dtype), self.device)
        self.max_length = context_length(backbone)
        loss: Loss = "full" if config.loss == "full" else "answer"
        self.encoded = [
            [encode_example(self.tokenizer, q, fact.answer, loss, self.max_length) for q in fact.questions]
            for fact in facts
        ]
        self.mixed = self._mixed_examples()
        self.general_source = load_general_text(config.general_text, backbone, self.tokenizer, config.seed)
        self.protected_source = (
            load_general_text(config.protect, backbone, self.tokenizer, config.seed) if config.protect else None
        )
        if config.gated and config.gate_subjects:
            contexts = [[example.input_ids for example in examples] for examples in self.encoded]
            self.subjects = subject_runs(self.tokenizer, facts, contexts)
            memory.subjects = True
            memory.subject_weight = config.subject_weight if config.recipe == "addressed" else 0.0
            memory.relations = config.gate_relations
        self.relations = memory.relations and bool(relation_entries(facts, self.subjects))
        self.model = get_peft_model(backbone, memory)
        self.optimizer = self._make_optimizer()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        # Packed sequences come out as more in one order of the facts and as fewer in another.
        exposures = sum(config.rounds)
        counted = [len(self._batches(number)) for number in range(exposures if config.pack else 1)]
        self.passes = counted if config.pack else counted * exposures  # steps of each
        self.saved_at = time.perf_counter()
        self.pass_loss, self.pass_counted = 0.0, 0  # of the pass under way: nats, and the tokens they are of

    # -- before teaching -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Continues from a checkpoint where there is one; otherwise calibrates addressing and trains the gates."""
        if self._restore():
            return
        if self.config.recipe != "addressed" and not self.config.gated:
            return
        prompts = self._contexts(range(len(self.facts)))
        texts = self.general_source.encode(self.tokenizer, min(self.max_length, 256))
        with progress_bar("Calibrating", len(prompts) + len(texts), quiet=self.quiet) as advance:
            features = [
                collect_features(self.model, ADAPTER, sequences, progress=advance) for sequences in (prompts, texts)
            ]
        if self.config.recipe == "addressed":
            calibrate(self.model, ADAPTER, features)
        if self.protected_source is not None:
            texts = self.protected_source.encode(self.tokenizer, min(self.max_length, 256))
            with progress_bar("Counting reads to protect", len(texts), quiet=self.quiet) as advance:
                reads = count_reads(self.model, ADAPTER, texts, progress=advance)
            protect_slots(self.model, ADAPTER, reads, self.config.protect_share)
        if self.config.gated:
            if self.config.gate_subjects:
                index_subjects(self.model, ADAPTER, self.subjects)
            if self.relations:
                self.report.relations = fit_relations(
                    self.model, self.tokenizer, ADAPTER, self.facts, self.subjects, seed=self.config.seed
                )
            if len(self.gate_facts) < len(self.facts):
                prompts = self._contexts(self.gate_facts)
                features[0] = collect_features(self.model, ADAPTER, prompts)
            self.report.gates = self._train_gates(features, prompts)
            if not any(gate.open_on_facts for gate in self.report.gates):
                raise WorkError(
                    "the gates cannot tell the facts' questions from general text on this backbone, so nothing would "
                    "be learned: lower --gate-threshold, or take --no-gate"
                )

    def _contexts(self, facts: Iterable[int]) -> list[list[int]]:
        """Some of these facts' questions and answers, as token ids."""
        return sampled_contexts([example.input_ids for i in facts for example in self.encoded[i]], self.config.seed)

    def _train_gates(self, features: list[list[LayerFeatures]], contexts: list[list[int]]) -> list[GateReport]:
        config = self.config
        total = config.gate_steps * (1 if config.gate_subjects else len(memory_layers(self.model, ADAPTER)))
        with progress_bar("Training the gates", total, quiet=self.quiet) as advance:
            return train_gates(
                self.model, ADAPTER, features[0], features[1], passages=len(self.general_source.passages),
                sequences=contexts, threshold=config.gate_threshold, steps=config.gate_steps, seed=config.seed,
                progress=advance,
            )  # fmt: skip

    # -- teaching ---------------------------------------------------------------------------------------------------

    def teach(self) -> None:
        """Rounds of passes over the facts until measured recall is enough, or full within a round."""
        report = self.report
        while report.steps < sum(self.passes) and not self._recall_is_full():
            start, length = self._round()
            if report.steps == start > 0 and report.recall >= ENOUGH_RECALL:
                break
            self._teach_round(start, length)
        report.seconds += time.perf_counter() - self.began

    def _teach_round(self, start: int, length: int) -> None:
        """Passes over the facts until measured recall is full or `length` steps, counted from `start`, are over."""
        report = self.report
        bad_in_a_row = 0
        with progress_bar("Teaching further" if start else "Teaching", length, quiet=self.quiet) as advance:
            advance(report.steps - start)
            while report.steps < start + length and not self._recall_is_full():
                number, done = self._place()
                batches = self._batches(number)
                for batch in batches[done:]:
                    if self._step(batch, (LATER_RATE if start else 1.0) * (1 - (report.steps - start) / length)):
                        bad_in_a_row = 0
                    else:
                        report.skipped_steps += 1
                        bad_in_a_row += 1
                        if bad_in_a_row >= BAD_STEPS_IN_A_ROW:
                            raise WorkError(
                                f"the loss was not finite for {bad_in_a_row} steps in a row: lower --value-rate "
                                "(or --dense-rate), or take --dtype float32"
                            )
                    report.steps += 1
                    advance(1, note=self._note())
                    self._checkpoint_when_due(batch is batches[-1])
                report.exposures = float(number + 1)
                self._measure()
                advance(0, note=self._note())
                self._checkpoint_when_due(False)

    def _place(self) -> tuple[int, int]:
        """The pass that is next or under way, and how many steps of it are done."""
        ends = list(accumulate(self.passes))
        number = bisect_right(ends, self.report.steps)
        return number, self.report.steps - sum(self.passes[:number])

    def _round(self) -> tuple[int, int]:
        """The first step of the round that is next or under way, and its steps."""
        first, number = 0, self._place()[0]
        for exposures in self.config.rounds:
            if number < first + exposures:
                break
            first += exposures
        return sum(self.passes[:first]), sum(self.passes[first : first + exposures])

    def settle(self) -> None:
        """Settles from which confidence on an answer is worth giving, on wordings not yet shown where there are any."""
        if not (self.config.gated and self.config.gate_subjects):
            return
        began = time.perf_counter()
        passes = range(math.ceil(self.report.exposures))
        shown = [{(number + i) % len(self.facts[i].questions) for number in passes} for i in self.gate_facts]
        facts = [self.facts[i] for i in self.gate_facts]
        asked = settling_questions(facts, self.config.seed, shown)
        guessing = guessing_questions(facts, self.config.seed)
        with progress_bar("Settling thresholds", len(asked) + sum(map(len, guessing)), quiet=self.quiet) as advance:
            self.report.thresholds = settle_thresholds(
                self.model, self.tokenizer, ADAPTER, asked, guessing, progress=advance
            )
        self.report.seconds += time.perf_counter() - began

    def _step(self, batch: list[Encoded], share: float) -> bool:
        """One step at a share of the rates; False, and nothing changed, where the loss or a gradient is not finite."""
        factor = min(1.0, (self.report.steps + 1) / max(1, self.config.warmup)) * max(0.05, share)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        # Dropout and the like, if a backbone has any in eval mode, stay off: teaching sees what answering sees.
        self.model.eval()
        for layer in memory_layers(self.model):
            layer.training = True  # its own flag (for the load-balance loss), not its MLP block's dropout
        counted = sum(label != IGNORED_LABEL for example in batch for label in example.labels[1:])
        finite, total_loss = True, 0.0
        size = -(-len(batch) // self.config.accumulation)
        for start in range(0, len(batch), size):
            loss = self._loss(batch[start : start + size]) / counted
            value = float(loss.detach())
            finite = finite and math.isfinite(value)
            if not finite:
                break
            total_loss += value * counted
            if loss.requires_grad:  # not where the gates are closed for every token of the batch
                self.accelerator.backward(loss)
        if finite:
            trainable = [p for p in self.model.parameters() if p.grad is not None]
            if self.config.clip:
                torch.nn.utils.clip_grad_norm_(trainable, self.config.clip)
            finite = all(has_finite_gradient(parameter) for parameter in trainable)
        if finite:
            self.pass_loss, self.pass_counted = self.pass_loss + total_loss, self.pass_counted + counted
            self.optimizer.step()
        self.optimizer.zero_grad()
        return finite

    def _loss(self, batch: list[Encoded]) -> Tensor:
        """Sum of the cross-entropies, in nats, over the counted tokens of a batch."""
        out = answer_logits(self.model, self.tokenizer, batch)
        loss = F.cross_entropy(out.logits, out.labels, reduction="sum")
        return loss + memory_auxiliary_loss(self.model) * len(out.labels)

    def _measure(self) -> None:
        """Recall in free generation on taught phrasings, and what the caller watches.

        A sample of the facts is asked; if it is full, all of them are, each in a phrasing drawn anew for this pass.
        """
        paused = time.perf_counter()
        rng = random.Random(f"{self.config.seed}:recall:{len(self.report.curve)}")
        facts = rng.sample(list(self.facts), len(self.facts))
        sample, rest = facts[: self.config.recall_sample], facts[self.config.recall_sample :]
        each = max(1, self.config.recall_sample // len(facts))  # a few facts are asked in several phrasings
        right, asked = self._recalled(sample, each, rng)
        if rest and right >= self.config.stop_at_recall * asked:
            more, of = self._recalled(rest, each, rng)
            right, asked = right + more, asked + of
        self.report.recall = right / asked
        perplexity, known = self.watch(self.model, self.tokenizer) if self.watch else (None, None)
        loss = self.pass_loss / self.pass_counted if self.pass_counted else None
        self.report.curve.append(CurvePoint(self.report.exposures, self.report.recall, perplexity, known, loss))
        self.pass_loss, self.pass_counted = 0.0, 0
        self.began += time.perf_counter() - paused

    def _recalled(self, facts: Sequence[Fact], phrasings: int, rng: random.Random) -> tuple[int, int]:
        """How many questions are answered rightly, and of how many: each fact in so many of its taught phrasings."""
        asked = [(q, f.answers) for f in facts for q in rng.sample(f.questions, min(phrasings, len(f.questions)))]
        answers = answer_questions(self.model, self.tokenizer, [question for question, _ in asked])
        right = sum(exact_match(answer, accepted) for answer, (_, accepted) in zip(answers, asked, strict=True))
        return right, len(asked)

    def _recall_is_full(self) -> bool:
        return bool(self.report.curve) and self.report.recall >= self.config.stop_at_recall

    def _note(self) -> str:
        report = self.report
        skipped = f", {report.skipped_steps} skipped" if report.skipped_steps else ""
        number, done = self._place()
        exposures = number + (done / self.passes[number] if done else 0)
        return f"{exposures:.1f} exposures, recall {report.recall:.1%}{skipped}"

    # -- the order of work --------------------------------------------------------------------------------------------

    def _batches(self, number: int) -> list[list[Encoded]]:
        """The batches of pass `number`: each fact once, its phrasings in turn; sequences of like length together."""
        rng = random.Random(f"{self.config.seed}:{number}")
        examples = [phrasings[(number + i) % len(phrasings)] for i, phrasings in enumerate(self.encoded)]
        examples += self.mixed
        rng.shuffle(examples)
        if self.config.pack:
            examples = pack(examples, self.config.pack)
        size = self.config.batch_size
        batches = []
        for start in range(0, len(examples), 8 * size):  # like lengths within 8 batches: less padding, still mixed
            like = sorted(examples[start : start + 8 * size], key=lambda example: len(example.input_ids))
            batches += [like[i : i + size] for i in range(0, len(like), size)]
        rng.shuffle(batches)
        return batches

    def _mixed_examples(self) -> list[Encoded]:
        """The seed's mixed corpus: anchors and fluency text that every pass shows beside the facts."""
        from memlayers.data.fact_files import read_questions
        from memlayers.data.general_text import read_general_text

        examples: list[Encoded] = []
        if self.config.anchors:
            for anchor in read_questions(self.config.anchors):
                examples.append(
                    encode_example(self.tokenizer, anchor.question, anchor.answers[0], "answer", self.max_length)
                )
        if self.config.fluency:
            for passage in read_general_text(self.config.fluency).passages:
                ids = plain_text_ids(self.tokenizer, passage)[: self.max_length]
                examples.append(Encoded(ids, list(ids)))
        return examples

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        options: dict[str, Any] = {}
        if config.optimizer == "row-adamw":
            options = {
                "semantics": config.optimizer_semantics,
                "state_bits": config.optimizer_bits,
                "state_device": config.optimizer_device,
                "rounding": config.half_rounding,
            }
        return make_optimizer(
            config.optimizer, self._parameter_groups(), lr=config.value_rate, betas=(0.9, 0.99), **options
        )

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The pool, whose rate is in units of the MLP output's RMS where addressing is calibrated, and the rest."""
        trainable = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        pool = [p for name, p in trainable if "memlayers_pool" in name]
        rest = [p for name, p in trainable if "memlayers_pool" not in name]
        rate = self.config.value_rate if self.config.recipe == "addressed" else self.config.dense_rate
        groups = [{"params": pool, "lr": rate}, {"params": rest, "lr": self.config.dense_rate}]
        return [group for group in groups if group["params"]]

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapter folder (safetensors and JSON)."""
        self.model.save_pretrained(str(folder), selected_adapters=[ADAPTER])

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the configuration and the facts."""
        gate_facts = _digest([self.facts[i] for i in self.gate_facts])
        return {"config": asdict(self.config), "facts": _digest(self.facts), "gate_facts": gate_facts}

    def _checkpoint_when_due(self, pass_is_over: bool) -> None:
        # At the end of a pass the measurement is still to come; the checkpoint waits for it.
        if not pass_is_over and time.perf_counter() - self.saved_at >= self.config.checkpoint_seconds:
            self._save_checkpoint()
            self.saved_at = time.perf_counter()

    def _save_checkpoint(self) -> None:
        report = self.report
        name = f"step-{report.steps:08d}-{len(report.curve):04d}"
        with atomic_directory(self.work / name, replace=True) as folder:
            self.save_adapter(folder)
            state = self.optimizer.state_dict()
            tensors = {
                f"{index}.{key}": value.contiguous()
                for index, values in state["state"].items()
                for key, value in values.items()
                if isinstance(value, Tensor)
            }
            save_file(tensors, folder / OPTIMIZER_STATE)
            elapsed = report.seconds + time.perf_counter() - self.began
            record = {
                "identity": self._identity(),
                "report": {**asdict(report), "seconds": elapsed},
                "pass": [self.pass_loss, self.pass_counted],
                "digests": {name: file_digest(folder / name) for name in (WEIGHTS_FILE, OPTIMIZER_STATE)},
            }
            (folder / "state.json").write_text(json.dumps(record), encoding="utf-8")
        for other in _checkpoints(self.work):
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)

    def _restore(self) -> bool:
        """Loads the newest whole checkpoint, if there is one."""
        from peft.utils.save_and_load import set_peft_model_state_dict

        found = _checkpoints(self.work)
        if not found:
            return False
        folder = found[-1]
        try:
            record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            for file, digest in record["digests"].items():
                if file_digest(folder / file) != digest:
                    raise ValueError(f"{file} is not as it was written")
            adapter = load_file(folder / WEIGHTS_FILE, device=str(self.device))
            tensors = load_file(folder / OPTIMIZER_STATE, device="cpu")
            identity, report = record["identity"], TeachReport.from_dict(record["report"])
            loss, counted = record.get("pass", (0.0, 0))  # older checkpoints have none
        except Exception as error:  # the safetensors parser raises its own
            raise InputError(f"{folder}: damaged checkpoint ({error}); delete {self.work} and start again") from error
        if identity != json.loads(json.dumps(self._identity())):
            raise InputError(
                f"{self.work}: left by a run with other settings or other facts; "
                "resume with the same ones, or delete the folder"
            )
        set_peft_model_state_dict(self.model, adapter, adapter_name=ADAPTER)
        state = self.optimizer.state_dict()
        restored: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            restored.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": restored, "param_groups": state["param_groups"]})
        self.report, self.pass_loss, self.pass_counted = report, loss, counted
        return True


def _checkpoints(work: Path) -> list[Path]:
    return sorted(path for path in work.glob("step-????????-????") if path.is_dir())


def _digest(facts: Sequence[Fact]) -> str:
    import hashlib

    return hashlib.sha256(repr([asdict(fact) for fact in facts]).encode()).hexdigest()
