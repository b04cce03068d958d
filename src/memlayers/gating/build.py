"""Makes a gate, before a value is written or for a memory that was taught: the one recipe of `teach` and `gate`.

Three parts decide when a memory may be read (docs/method.md): the index of subjects, at whose mentions it opens; a
small network that tells the facts' contexts from general text; and the relation check, which tells what was taught of a
subject from what was not. All three need the bare backbone alone. Thresholds of confidence are settled after teaching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlayers.config.sections import GateConfig
from memlayers.data.facts import Fact, Question
from memlayers.gating.abstention import (
    guessing_questions,
    held_confidences,
    settle_thresholds,
    settling_questions,
)
from memlayers.gating.relations import fit_relations, relation_entries, relation_examples
from memlayers.gating.train import STEPS, train_gates
from memlayers.inference.capture import LayerFeatures
from memlayers.inference.record import GateReport, RelationReport
from memlayers.linking.mention_forms import SubjectForms
from memlayers.tuner.handle import MemoryHandle
from memlayers.utils.progress import progress_bar
from memlayers.utils.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class GateMaterials:
    """What a gate is made from.

    Attributes:
        contexts: token ids of the facts' questions and answers (`encoding.sampled_texts`).
        features: what each memory layer saw of them, and of general text, on the bare backbone: two lists, with one
            entry per memory layer each.
        passages: number of the general text's sequences that are running text rather than chats; they come first.
        subjects: the surface forms of the facts' subjects; None where the gate shall not know them.
    """

    contexts: Sequence[Sequence[int]]
    features: tuple[Sequence[LayerFeatures], Sequence[LayerFeatures]]
    passages: int
    subjects: SubjectForms | None


def build_gate(
    memory: MemoryHandle,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    materials: GateMaterials,
    config: GateConfig,
    *,
    seed: int,
    quiet: bool = False,
) -> tuple[list[GateReport], RelationReport | None]:
    """Fills the index of subjects, fits the relation check, trains the gates.

    Args:
        memory: has the parts that `config` asks for (`MemoryConfig.gate`, `.subjects`, `.relations`).
        tokenizer: the backbone's.
        facts: all that the memory holds, or will hold.
        materials: see there; the gates may be trained on some of the facts alone.
        config: how.
        seed: of everything random.
        quiet: no progress bars.

    Returns:
        One report per gate, and that of the relation check, where all facts do not ask for the same thing.
    """
    relations = None
    if materials.subjects is not None:
        index = memory.index
        assert index is not None
        found = materials.subjects
        index.fill(found.forms, found.scope, found.flags, found.letters)
        if config.relations and relation_entries(facts, found):
            examples = relation_examples(facts, config.relation_check, seed)
            with progress_bar("Fitting the relation check", len(examples), quiet=quiet) as advance:
                relations = fit_relations(
                    memory, tokenizer, facts, materials.subjects, examples, config.relation_check, progress=advance
                )  # fmt: skip
    gates = 1 if materials.subjects is not None else len(memory.layers)
    with progress_bar("Training the gates", (config.steps or STEPS) * gates, quiet=quiet) as advance:
        reports = train_gates(
            memory, *materials.features, config, passages=materials.passages, sequences=materials.contexts,
            seed=seed, progress=advance,
        )  # fmt: skip
    return reports, relations


def settle_confidence(
    memory: MemoryHandle,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    config: GateConfig,
    *,
    sure: Sequence[float] | None = None,
    seed: int,
    negatives: Sequence[Question] = (),
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Settles, after teaching, from which confidence on an answer is worth giving (`settle_thresholds`).

    Args:
        memory: knows its subjects, and is taught.
        tokenizer: the backbone's.
        facts: what it was taught.
        config: its `abstention` says how.
        sure: how confident the memory is of stored answers, where that is known; None asks for some.
        seed: of the choice of questions.
        negatives: questions about what was never taught.
        quiet: no progress bar.
        ranks: the processes that share the work.

    Returns:
        The memory's threshold, and the backbone's.
    """
    asked = settling_questions(facts, config.abstention, seed) if sure is None else []
    guessing = guessing_questions(facts, config.abstention, seed)
    total = len(asked) + sum(map(len, guessing)) + 2 * len(negatives)
    with progress_bar("Settling thresholds", total, quiet=quiet) as advance:
        if sure is None:
            sure = held_confidences(memory, tokenizer, asked, progress=advance, ranks=ranks)
        return settle_thresholds(
            memory, tokenizer, sure, guessing, negatives, config.abstention, progress=advance, ranks=ranks
        )
