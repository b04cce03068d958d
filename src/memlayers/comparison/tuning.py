"""LoRA, and full fine-tuning: the loss is on the answers, as a memory's is, and so is the order of facts and wordings.

The learning rate is chosen first, from three: each teaches all facts for a few epochs, a wording of a tenth of them
held out, and the one that answers most of these wordings is taken; of several the one that finds them likelier.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from memlayers.backbones import context_length, quiet_wrapping
from memlayers.comparison.method import MOST_EXPOSURES, Method
from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import Encoded, encode_example, tokens_in
from memlayers.data.facts import Fact
from memlayers.inference.scoring import answer_confidences, answer_logits, answered
from memlayers.teaching.recall import measured_recall
from memlayers.teaching.schedule import Schedule
from memlayers.utils.errors import WorkError
from memlayers.utils.progress import progress_bar

LORA_RATES, FULL_RATES = (3e-4, 1e-3, 3e-3), (3e-5, 1e-4, 3e-4)
TRIAL_EPOCHS = 3
BATCH = 8  # of a memory's 32, 15 exposures of 100 facts would be 60 steps: fewer than LoRA needs (docs/comparison.md)
HELD_OUT = 0.1  # of the facts: one wording each, for the choice of the rate
UPDATE_STEPS = 30
CLIP = 1.0
WARMUP, LEAST_RATE = 0.1, 0.05  # of the steps; of the full rate, where its linear fall ends


def trainable_model(backbone: Any, rank: int | None, seed: int) -> Any:
    """A backbone with LoRA on every linear layer (alpha twice the rank), or one whose own weights learn.

    Args:
        backbone: frozen.
        rank: of LoRA; None for all weights.
        seed: of LoRA's beginning.
    """
    if rank is None:
        return backbone.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    with quiet_wrapping():
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(backbone, config)


class FineTuning(Method):
    """LoRA of some rank, or full fine-tuning.

    Args:
        config: as in `Method`.
        work: as in `Method`.
        rank: of LoRA; None tunes all weights.
        quiet: no progress bars.
    """

    def __init__(self, config: TeachConfig, work: Path, *, rank: int | None, quiet: bool = False) -> None:
        super().__init__(config, work, quiet=quiet)
        self.rank = rank

    def load(self) -> None:
        """Loads the backbone afresh, and has it learn."""
        super().load()
        if self.rank is None:
            self.widen()
        self.model = trainable_model(self.model, self.rank, self.config.seed)

    def teach(self, facts: Sequence[Fact]) -> None:
        """Chooses the rate, then teaches until measured recall is full or `MOST_EXPOSURES` are over."""
        self.load()
        examples = [self._encoded(fact) for fact in facts]
        self.rate = self._chosen_rate(examples)
        self.load()
        epochs = self._train(examples, self.rate, MOST_EXPOSURES, until_recalled=True)
        self.note = f"rate {self.rate:g}, {epochs} exposures"
        if self.rank is None:
            self.narrow()

    def update(self, fact: Fact) -> None:
        """Teaches the changed fact alone, all of its wordings at once, until each is answered.

        Raises:
            WorkError: it is not after `UPDATE_STEPS` steps.
        """
        examples = self._encoded(fact)
        if self.rank is None:
            self.widen()
        optimizer = self._optimizer(self.rate)
        for _ in range(UPDATE_STEPS):
            if bool(answered(self.model, self.tokenizer, examples).all()):
                break
            self._step(examples, optimizer)
        if self.rank is None:
            self.narrow()
        if not bool(answered(self.model, self.tokenizer, examples).all()):
            raise WorkError(f"not answered in every wording after {UPDATE_STEPS} steps")

    def stored_bytes(self) -> int:
        """The adapter's, or all weights."""
        return sum(each.numel() * each.element_size() for each in self._trained())

    def _chosen_rate(self, examples: Sequence[Sequence[Encoded]]) -> float:
        """The rate that does best on wordings held out; of a fact with one wording that one is both taught and held."""
        rng = random.Random(f"{self.config.seed}:held out")
        chosen = rng.sample(range(len(examples)), max(1, round(HELD_OUT * len(examples))))
        held = [examples[i][-1] for i in chosen]
        taught = [each[:-1] or each if i in chosen else each for i, each in enumerate(examples)]
        scores = {}
        for number, rate in enumerate(FULL_RATES if self.rank is None else LORA_RATES):
            if number:
                self.load()
            try:
                self._train(taught, rate, TRIAL_EPOCHS)
            except WorkError:  # a rate too high
                scores[rate] = (0.0, -math.inf)
                continue
            found = answer_confidences(self.model, self.tokenizer, held)
            likely = sum(math.log(max(chance, 1e-30)) for _, chance in found)
            scores[rate] = (sum(right for right, _ in found), likely)
        return max(scores, key=lambda rate: scores[rate])

    def _train(
        self, examples: Sequence[Sequence[Encoded]], rate: float, epochs: int, *, until_recalled: bool = False
    ) -> int:
        """Teaches for so many epochs, or until recall is full; how many it were.

        Raises:
            WorkError: the loss is not finite.
        """
        settings = self.config.schedule
        schedule = Schedule(examples, [], epochs, BATCH, None, self.config.seed)
        optimizer, step = self._optimizer(rate), 0
        label = f"{'LoRA' if self.rank else 'Fine-tuning'} at {rate:g}"
        with progress_bar(label, schedule.steps, quiet=self.quiet) as advance:
            for epoch in range(epochs):
                for batch in schedule.batches(epoch):
                    step += 1
                    left = max(LEAST_RATE, 1 - (step - 1) / schedule.steps)
                    share = min(left, step / max(1, WARMUP * schedule.steps))
                    optimizer.param_groups[0]["lr"] = rate * share
                    self._step(batch, optimizer)
                    advance(1)
                if not until_recalled:
                    continue
                rng = random.Random(f"{self.config.seed}:recall:{epoch}")
                recall, tokens = measured_recall(self.model, self.tokenizer, examples, settings, rng)
                self.tokens += tokens
                if recall >= settings.stop_at_recall:
                    return epoch + 1
        return epochs

    def _step(self, batch: Sequence[Encoded], optimizer: torch.optim.Optimizer) -> None:
        out = answer_logits(self.model, self.tokenizer, batch)
        loss = F.cross_entropy(out.logits, out.labels)
        if not bool(loss.isfinite()):
            raise WorkError(f"the loss is not finite at a rate of {optimizer.param_groups[0]['lr']:g}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained(), CLIP)
        optimizer.step()
        self.tokens += tokens_in([example.input_ids for example in batch])

    def _optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._trained(), lr=rate, weight_decay=0.0)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [each for each in self.model.parameters() if each.requires_grad]

    def _encoded(self, fact: Fact) -> list[Encoded]:
        longest, loss = context_length(self.model), self.config.schedule.loss
        return [encode_example(self.tokenizer, question, fact.answer, loss, longest) for question in fact.questions]
