"""What every method is: it takes facts in, then answers, is changed, and says what it takes up.

All are scored by the same code (`comparison/scoring.py`); a method brings no scoring of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from memlayers.backbones import device_chosen, load_backbone
from memlayers.config.teach import TeachConfig
from memlayers.data.facts import Fact
from memlayers.inference.generation import answer_questions
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_EXPOSURES = 15
"""Of a fact, for the methods that are taught: three times a memory's, which teaches further what is not held."""


class Method:
    """The bare backbone, which takes no fact in; what it has in common with the others.

    Args:
        config: how a memory is taught; of it all methods take backbone, device, dtype, seed, exposures and general
            text.
        work: a folder of the method's own, not there yet; it is deleted afterwards.
        quiet: no progress bars.

    Attributes:
        model: a causal LM. It and the tokenizer are there from `teach` on.
        tokenizer: the backbone's.
        tokens: of the texts that went through the backbone while it was taught, padding left out.
        limit: the most tokens of an answer, the same for all methods; None, until it is set, for the default.
        note: one line for the reader, e.g. which learning rate was chosen.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, config: TeachConfig, work: Path, *, quiet: bool = False) -> None:
        self.config, self.work, self.quiet = config, work, quiet
        self.tokens = 0
        self.limit: int | None = None
        self.note = ""

    def teach(self, facts: Sequence[Fact]) -> None:
        """Takes the facts in.

        Raises:
            InputError: they do not suit the method, with the reason.
            WorkError: the work failed.
        """
        self.load()

    def ask(self, questions: Sequence[str], **options: Any) -> list[str]:
        """Answers questions; the options are those of `generate_answers`."""
        return answer_questions(self.model, self.tokenizer, questions, **{"max_new_tokens": self.limit, **options})

    def update(self, fact: Fact) -> None:
        """Gives a fact that was taken in, found by its id, another answer.

        Raises:
            InputError: the method has no way to.
            WorkError: it was tried and refused.
        """
        raise InputError("it takes no facts in")

    def inference_bytes(self) -> int:
        """What answering holds in memory: the model, and what else the method needs beside it."""
        return model_bytes(self.model)

    def stored_bytes(self) -> int:
        """What is to be kept, beside the backbone, of the facts."""
        return 0

    def load(self) -> None:
        """Loads the backbone afresh."""
        device = device_chosen(self.config.machine.device)
        self.model, self.tokenizer = load_backbone(self.config.backbone, self.config.machine.dtype, device)

    def widen(self) -> None:
        """Casts the weights to float32, to be changed: bfloat16 would round most changes away."""
        self._loaded = [(weight, weight.dtype) for weight in self.model.parameters()]
        for weight, _ in self._loaded:
            weight.data = weight.data.float()

    def narrow(self) -> None:
        """Casts them back: every method answers in the dtype that the backbone was loaded in."""
        for weight, dtype in self._loaded:
            weight.grad = None
            weight.data = weight.data.to(dtype)


def model_bytes(model: nn.Module) -> int:
    """Of a model's parameters and buffers, those it shares counted once."""
    tensors = {each.data_ptr(): each for each in (*model.parameters(), *model.buffers())}
    return sum(each.numel() * each.element_size() for each in tensors.values())
