"""The gate of a memory that exists already: made where it has none, or trained anew.

What was taught stays as it is, to the bit; only what decides when it is read is replaced. So it also serves the order
memory first, gate after; and with `GateConfig.soft` the v0.2 reference recipe's own gate, the baseline that the gate
made before teaching is compared with.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from memlayers.backbones import context_length
from memlayers.config.sections import GateConfig
from memlayers.data.encoding import encode_example, encode_prompt, sampled_texts
from memlayers.data.facts import Fact, Question, aliases_by_subject
from memlayers.data.general_text import GeneralText, load_general_text
from memlayers.editing.memory import Memory, load_memory
from memlayers.gating.build import GateMaterials, build_gate, settle_confidence
from memlayers.inference.capture import collect_features
from memlayers.inference.folder import ADAPTER, CONFIG_FILE, FACTS_FILE, TEACHING_FILE, WEIGHTS_FILE, stored_facts
from memlayers.inference.record import Teaching, TeachReport, write_teaching
from memlayers.linking.mention_forms import subject_forms
from memlayers.teaching.teacher import TEXT_TOKENS
from memlayers.tuner.handle import memory_handle
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError
from memlayers.utils.files import atomic_directory, check_output_directory
from memlayers.utils.progress import progress_bar

SOFT_STEPS, SOFT_BATCH, SOFT_RATE, SOFT_HIDDEN = 1200, 4096, 2e-3, 128
"""How the v0.2 reference recipe trains its gate, and its width."""


def regate_memory(
    folder: str | Path,
    facts: Sequence[Fact],
    config: GateConfig | None = None,
    *,
    general_text: str | None = None,
    seed: int = 137,
    negatives: Sequence[Question] = (),
    out: str | Path | None = None,
    backbone: str | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Memory:
    """Makes the gate of an existing memory, and saves the memory with it.

    Args:
        folder: the memory.
        facts: what it was taught. A subject that has no aliases in them keeps those that the memory knows.
        config: how; None for the defaults.
        general_text: as `DataConfig.general_text`.
        seed: of everything random.
        negatives: questions about what was never taught. Thresholds are settled on them too; a gate that knows no
            subjects learns from them (one that does is asked about stored subjects alone).
        out: a new folder; None replaces `folder`, which is whole at every moment.
        backbone: another place of the backbone.
        device: None chooses.
        quiet: no progress bars.

    Returns:
        The memory with its new gate; `Memory.teaching` says how the gate does.

    Raises:
        InputError: not a memory, no facts, a question longer than the context, a folder in the way.
    """
    config = config or GateConfig()
    if config.soft:
        config = dataclasses.replace(
            config, subjects=False, relations=False, steps=config.steps or SOFT_STEPS, batch_size=SOFT_BATCH,
            rate=SOFT_RATE, hidden=SOFT_HIDDEN,
        )  # fmt: skip
    if not facts:
        raise InputError("no facts: give those that the memory was taught")
    target = folder if out is None else out
    check_output_directory(target, replace=out is None)
    facts = _with_stored_aliases(facts, Path(folder))
    opened = load_memory(folder, backbone=backbone, device=device)
    model, tokenizer = opened.model, opened.tokenizer
    memory = memory_handle(model, ADAPTER)
    longest = context_length(model)
    encoded = [
        [encode_example(tokenizer, q, fact.answer, max_length=longest).input_ids for q in fact.questions]
        for fact in facts
    ]
    for question in negatives:
        encode_prompt(tokenizer, question.question, max_length=longest)
    text = load_general_text(general_text, model.get_base_model(), tokenizer, seed)
    if negatives and not config.subjects:
        chats = tuple((each.question, each.answers[0]) for each in negatives)
        text = GeneralText(text.passages, (*text.chats, *chats))
    subjects = subject_forms(tokenizer, facts, encoded, config.mentions) if config.subjects else None
    settings = copy.copy(memory.config)
    settings.gate, settings.gate_soft, settings.gate_hidden = True, config.soft, config.hidden
    settings.subjects, settings.relations = config.subjects, config.subjects and config.relations
    memory.make_gate(settings)
    contexts = sampled_texts([ids for each in encoded for ids in each], config.tokens // 2, seed)
    texts, passages = text.sample(tokenizer, min(longest, TEXT_TOKENS), config.tokens // 2, seed)
    with progress_bar("Reading", len(contexts) + len(texts), quiet=quiet) as advance:
        keep = 1 if config.subjects else None
        seen, general = (collect_features(memory, kind, keep=keep, progress=advance) for kind in (contexts, texts))
    materials = GateMaterials(contexts, (seen, general), passages, subjects)
    gates, relations = build_gate(memory, tokenizer, facts, materials, config, seed=seed, quiet=quiet)
    thresholds = None
    if config.subjects:  # which wordings teaching showed is not known here
        thresholds = settle_confidence(memory, tokenizer, facts, config, seed=seed, negatives=negatives, quiet=quiet)
    with atomic_directory(target, replace=out is None) as new:
        _copy_the_rest(Path(folder), new)
        memory.save(new)
        made = TeachReport(gates=gates, relations=relations, thresholds=thresholds)
        write_teaching(new, _recorded(opened.teaching, len(facts), str(memory.device), config, made))
    return Memory(model.eval(), tokenizer, target)


def _with_stored_aliases(facts: Sequence[Fact], folder: Path) -> list[Fact]:
    """The facts with the aliases that an edit gave their subject since, where they give it none themselves."""
    stored = aliases_by_subject(stored_facts(folder)) if (folder / FACTS_FILE).is_file() else {}
    own = aliases_by_subject(facts)
    return [
        fact
        if own.get(fact.subject)
        else dataclasses.replace(fact, subject_aliases=tuple(stored.get(fact.subject, ())))
        for fact in facts
    ]


def _copy_the_rest(folder: Path, new: Path) -> None:
    """What else lies in the memory's folder: a model card, say."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in (WEIGHTS_FILE, CONFIG_FILE, TEACHING_FILE):
            shutil.copyfile(path, new / path.name)


def _recorded(taught: Teaching | None, facts: int, device: str, config: GateConfig, made: TeachReport) -> Teaching:
    """The record of the teaching, as far as there is one, with the gate that is there now."""
    if taught is None:
        return Teaching(facts, None, environment(device), made)
    report = dataclasses.replace(taught.report, gates=made.gates, relations=made.relations, thresholds=made.thresholds)
    gated = dataclasses.replace(config, enabled=True)
    settings = None if taught.config is None else dataclasses.replace(taught.config, gate=gated)
    return dataclasses.replace(taught, config=settings, report=report)
