"""The gate of a memory that exists already: made where it has none, or trained anew.

What was taught stays as it is, to the bit; only what decides when it is read is replaced. So it serves the seed's
order, memory first and gate after, and with `soft` the seed's own gate: the baseline that the gate made before teaching
is compared with.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memlayers.backbones import context_length
from memlayers.data.encoding import encode_example, encode_prompt
from memlayers.data.facts import Fact, Question
from memlayers.data.general_text import GeneralText, load_general_text
from memlayers.editing.memory import Memory, load_memory
from memlayers.gating.abstention import guessing_questions, settle_thresholds, settling_questions
from memlayers.gating.build import index_subjects, sampled_contexts
from memlayers.gating.config import GateConfig
from memlayers.gating.relations import fit_relations, relation_entries
from memlayers.gating.reports import GateReport, RelationReport
from memlayers.gating.train import train_gates
from memlayers.inference.capture import collect_features
from memlayers.inference.folder import TEACHING_FILE, WEIGHTS_FILE
from memlayers.linking.mention_forms import subject_runs
from memlayers.teaching.record import Teaching, read_teaching, write_teaching
from memlayers.teaching.teach import ADAPTER
from memlayers.tuner.handle import memory_handle
from memlayers.utils.errors import InputError
from memlayers.utils.files import atomic_directory, check_output_directory
from memlayers.utils.progress import progress_bar

SOFT = {"batch_size": 4096, "learning_rate": 2e-3}  # the seed's training of its gate, and its width
SOFT_STEPS = 1200
SOFT_HIDDEN = 128


@dataclass(frozen=True, slots=True)
class Gated:
    """A memory with its new gate.

    Attributes:
        memory: ready to be asked.
        gates: one report per gate.
        relations: of the check of what is asked, if there is one.
        thresholds: the least confidence of a memory's answer and of the backbone's, where settled.
    """

    memory: Memory
    gates: list[GateReport]
    relations: RelationReport | None
    thresholds: tuple[float, float] | None


def regate_memory(
    folder: str | Path,
    facts: Sequence[Fact],
    config: GateConfig | None = None,
    *,
    negatives: Sequence[Question] = (),
    out: str | Path | None = None,
    backbone: str | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Gated:
    """Makes the gate of an existing memory, and saves the memory with it.

    Args:
        folder: the memory.
        facts: what it was taught.
        config: how; None for the defaults.
        negatives: questions about what was never taught. Thresholds are settled on them too; a gate that knows no
            subjects learns from them (one that does is asked about stored subjects alone).
        out: a new folder; None replaces `folder`, which is whole at every moment.
        backbone: another place of the backbone.
        device: None chooses.
        quiet: no progress bars.

    Raises:
        InputError: not a memory, no facts, a question longer than the context, a folder in the way.
    """
    config = config or GateConfig()
    if not facts:
        raise InputError("no facts: give those that the memory was taught")
    target = folder if out is None else out
    check_output_directory(target, replace=out is None)
    opened = load_memory(folder, backbone=backbone, device=device)
    taught = read_teaching(folder)
    model, tokenizer = opened.model, opened.tokenizer
    longest = context_length(model)
    encoded = [
        [encode_example(tokenizer, q, fact.answer, max_length=longest).input_ids for q in fact.questions]
        for fact in facts
    ]
    for question in negatives:
        encode_prompt(tokenizer, question.question, max_length=longest)
    text = load_general_text(config.general_text, model.get_base_model(), tokenizer, config.seed)
    aware = config.gate_subjects and not config.soft
    if negatives and not aware:
        chats = tuple((each.question, each.answers[0]) for each in negatives)
        text = GeneralText(text.passages, (*text.chats, *chats))
    memory = memory_handle(model, ADAPTER)
    settled = copy.copy(memory.config)
    settled.gate, settled.gate_soft = True, config.soft
    settled.gate_hidden = SOFT_HIDDEN if config.soft else type(settled).gate_hidden
    settled.subjects, settled.relations = aware, aware and config.gate_relations
    if aware:
        subjects = subject_runs(tokenizer, facts, encoded)
    memory.make_gate(settled)

    contexts = sampled_contexts([ids for each in encoded for ids in each], config.seed)
    texts = text.encode(tokenizer, min(longest, 256))
    with progress_bar("Reading", len(contexts) + len(texts), quiet=quiet) as advance:
        features = [collect_features(model, ADAPTER, kind, progress=advance) for kind in (contexts, texts)]
    if aware:
        index_subjects(model, ADAPTER, subjects)
    relations = (
        fit_relations(model, tokenizer, ADAPTER, facts, subjects, seed=config.seed)
        if settled.relations and relation_entries(facts, subjects)
        else None
    )
    options: dict[str, Any] = {"steps": config.gate_steps}
    if config.soft:
        options = {**SOFT, "steps": min(SOFT_STEPS, config.gate_steps)}
    gates_to_train = 1 if aware else len(features[0])
    with progress_bar("Training the gates", options["steps"] * gates_to_train, quiet=quiet) as advance:
        gates = train_gates(
            model, ADAPTER, features[0], features[1], passages=len(text.passages), sequences=contexts,
            threshold=config.gate_threshold, seed=config.seed, progress=advance, **options,
        )  # fmt: skip
    thresholds = None
    if aware:
        asked = settling_questions(facts, config.seed)  # which wordings teaching showed is not known here
        guessing = guessing_questions(facts, config.seed)
        total = len(asked) + sum(map(len, guessing)) + 2 * len(negatives)
        with progress_bar("Settling thresholds", total, quiet=quiet) as advance:
            thresholds = settle_thresholds(model, tokenizer, ADAPTER, asked, guessing, negatives, progress=advance)
    with atomic_directory(target, replace=out is None) as new:
        _copy_the_rest(Path(folder), new)
        model.save_pretrained(str(new), selected_adapters=[ADAPTER])
        if taught is not None:
            write_teaching(new, _recorded(taught, config, gates, relations, thresholds))
    return Gated(Memory(model.eval(), tokenizer), gates, relations, thresholds)


def _copy_the_rest(folder: Path, new: Path) -> None:
    """What else lies in the memory's folder: a model card, say."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in (WEIGHTS_FILE, "adapter_config.json", TEACHING_FILE):
            shutil.copyfile(path, new / path.name)


def _recorded(
    taught: Teaching,
    config: GateConfig,
    gates: list[GateReport],
    relations: RelationReport | None,
    thresholds: tuple[float, float] | None,
) -> Teaching:
    """The record of the teaching, with the gate that is there now."""
    settings = replace(
        taught.config,
        gate=True,
        gate_subjects=config.gate_subjects and not config.soft,
        gate_relations=config.gate_relations,
        gate_threshold=config.gate_threshold,
        gate_steps=config.gate_steps,
    )
    report = replace(taught.report, gates=gates, relations=relations, thresholds=thresholds)
    return replace(taught, config=settings, report=report)
