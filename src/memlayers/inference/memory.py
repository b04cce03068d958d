"""A taught memory, opened: the adapter folder that `memlayers teach` wrote, on the backbone it belongs to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayers.backbones import device_chosen, dtype_on, load_backbone
from memlayers.inference.confidence import answer_thresholds, belief, place_of, relation_scores
from memlayers.inference.folder import WEIGHTS_FILE, read_adapter_config
from memlayers.inference.generation import Generated, generate_answers
from memlayers.tuner import active_part, set_gate_enabled
from memlayers.tuner.handle import without_memory
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
UNKNOWN = "I was not taught that."


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to one question, with and without the memory, and which of the two is worth saying.

    Attributes:
        question: as it was asked.
        backbone: the bare backbone's answer.
        memory: the answer with the memory.
        source: "memory", "backbone", or "unknown" where neither is confident enough of its answer.
        score: 0 to 1, that the memory holds the answer: 0 where its gate stayed closed for the question, or where
            something else is asked than was taught of the subject; otherwise the probability that the model with the
            memory gave to its answer.
        threshold: the score from which the memory is taken at its word, settled in teaching.
    """

    question: str
    backbone: str
    memory: str
    source: str = "memory"
    score: float = 1.0
    threshold: float = 0.0

    @property
    def text(self) -> str:
        """What to say: the answer of the source, or `UNKNOWN`."""
        return {"memory": self.memory, "backbone": self.backbone}.get(self.source, UNKNOWN)


@dataclass(slots=True)
class Memory:
    """A backbone with a memory.

    Attributes:
        model: the PEFT model.
        tokenizer: the backbone's.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase

    def ask(self, questions: Sequence[str], *, batch_size: int = 128, progress: Any = None) -> list[Answer]:
        """Answers each question by greedy generation, with the memory and by the bare backbone.

        Args:
            questions: any number.
            batch_size: questions per batch.
            progress: called with the number of questions answered after each batch, with the memory and without.

        Raises:
            InputError: a question is empty, or fills the backbone's context.
        """
        if not all(question.strip() for question in questions):
            raise InputError("a question is empty: ask something")
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        memory = generate_answers(self.model, self.tokenizer, questions, **options)
        with without_memory(self.model):
            backbone = generate_answers(self.model, self.tokenizer, questions, **options)
        return self.judge(questions, memory, backbone)

    def judge(
        self, questions: Sequence[str], memory: Sequence[Generated], backbone: Sequence[Generated]
    ) -> list[Answer]:
        """Says of answers that were given already, one each of the memory's and of the bare backbone's, what they are.

        Raises:
            ValueError: not as many answers as questions.
        """
        held, believed = self._held(questions, memory), self._believed(backbone)
        thresholds = answer_thresholds(self.model)
        return [_answer(*each, *thresholds) for each in zip(questions, backbone, believed, memory, held, strict=True)]

    def _held(self, questions: Sequence[str], memory: Sequence[Generated]) -> list[bool]:
        """Whether the memory may hold an answer: it was read, and asked for what was taught of the subject."""
        opened = [i for i, answer in enumerate(memory) if answer.opened]
        scores, threshold = relation_scores(self.model, self.tokenizer, [questions[i] for i in opened])
        held = [False] * len(questions)
        for i, score in zip(opened, scores, strict=True):
            held[i] = score >= threshold
        return held

    def _believed(self, backbone: Sequence[Generated]) -> list[float]:
        """How far each of the bare backbone's answers may be believed, 0 to 1 (inference/confidence.py)."""
        found = active_part(self.model, "memlayers_subjects")
        if found is None:
            return [answer.confidence for answer in backbone]
        guesses = found[1].guesses.tolist()
        return [belief(answer.confidence, guesses[place_of(answer.text)]) for answer in backbone]


def _answer(
    question: str,
    backbone: Generated,
    believed: float,
    memory: Generated,
    held: bool,
    memory_threshold: float,
    backbone_threshold: float,
) -> Answer:
    score = memory.confidence if held else 0.0
    if held and score >= memory_threshold:
        source = "memory"
    else:
        source = "backbone" if believed >= backbone_threshold else "unknown"
    return Answer(question, backbone.text, memory.text, source, score, memory_threshold)


def load_memory(
    folder: str | Path,
    *,
    backbone: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    gate: bool = True,
) -> Memory:
    """Opens a memory folder.

    Args:
        folder: an adapter folder, as ``memlayers teach`` or ``save_pretrained`` wrote it.
        backbone: "pocket", a folder or a hub name; None for the one the memory was taught on.
        dtype: of the backbone; "auto" is float32 on a CPU, the checkpoint's own elsewhere.
        device: None chooses.
        gate: False reads the memory for every token.

    Raises:
        InputError: not a memory folder, a damaged one, or one made for another backbone.
    """
    from peft import PeftModel

    folder = Path(folder)
    config = read_adapter_config(folder)
    source = backbone or config.get("backbone") or config.get("base_model_name_or_path")
    if not source:
        raise InputError(f"{folder}: names no backbone; say which with --backbone")
    chosen = device_chosen(device)
    model, tokenizer = load_backbone(source, dtype_on(chosen, dtype), chosen)
    try:
        with warnings.catch_warnings():  # peft warns of missing tensors and goes on; below they are an error
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            memory = PeftModel.from_pretrained(model, str(folder))
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except Exception as error:  # torch's size mismatches, the safetensors parser's own errors
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"{folder}: damaged or incomplete memory ({reason}); teach it again or restore a copy"
        ) from error
    _require_whole(memory, folder)
    set_gate_enabled(memory, gate)
    return Memory(memory.eval(), tokenizer)


def _require_whole(memory: Any, folder: Path) -> None:
    """Refuses a memory of which the file holds only a part: the rest would stay at its random start."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    expected = get_peft_model_state_dict(memory, save_embedding_layers=False)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        missing = sorted(set(expected) - set(file.keys()))
    if missing:
        raise InputError(
            f"{folder}: incomplete memory, {WEIGHTS_FILE} lacks {len(missing)} of its {len(expected)} tensors, "
            f"{missing[0]} first; teach it again or restore a copy"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in expected.values()):
        raise InputError(f"{folder}: damaged memory, a value is not finite; teach it again or restore a copy")
