"""What a teaching run is made of: the memory's configuration, the sequences mixed in, the optimizer."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from memlayers.backbones import lasting_name
from memlayers.config.sections import DataConfig, MemorySettings
from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import Encoded, encode_example, plain_text_ids
from memlayers.data.fact_files import read_questions
from memlayers.data.general_text import read_general_text
from memlayers.pool.optimizers import make_optimizer
from memlayers.tuner.config import MemoryConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BETAS = (0.9, 0.99)
"""Adam's."""


def memory_config(config: TeachConfig, *, subjects: bool) -> MemoryConfig:
    """How the memory of a run is built.

    Args:
        config: of the run.
        subjects: whether its gate knows subjects.
    """
    settings = {each.name: getattr(config.memory, each.name) for each in fields(MemorySettings)}
    if not subjects or config.memory.recipe == "dense":
        settings["subject_weight"] = 0.0  # also for a gate that may come later: what is taught now has none
    return MemoryConfig(
        **{**settings, "protectable": config.data.protect is not None},
        gate=config.gated,
        gate_hidden=config.gate.hidden,
        subjects=subjects,
        relations=subjects and config.gate.relations,
        seed=config.seed,
        backbone=lasting_name(config.backbone),
    )


def mixed_examples(data: DataConfig, tokenizer: PreTrainedTokenizerBase, longest: int) -> list[Encoded]:
    """Anchors and fluency text that every epoch shows beside the facts (the v0.2 reference recipe's corpus).

    Args:
        data: names the files, if any.
        tokenizer: the backbone's.
        longest: tokens of a sequence, at most.
    """
    examples: list[Encoded] = []
    if data.anchors:
        for anchor in read_questions(data.anchors):
            examples.append(encode_example(tokenizer, anchor.question, anchor.answers[0], "answer", longest))
    if data.fluency:
        for passage in read_general_text(data.fluency).passages:
            ids = plain_text_ids(tokenizer, passage)[:longest]
            examples.append(Encoded(ids, list(ids)))
    return examples


def optimizer_for(model: Any, config: TeachConfig) -> torch.optim.Optimizer:
    """The optimizer of a run.

    The pool's rate is in units of the MLP output's RMS where addressing is calibrated; everything else that learns has
    `dense_rate`.
    """
    settings = config.optimizer
    options: dict[str, Any] = {}
    if settings.name == "row-adamw":
        options = {
            "semantics": settings.semantics,
            "state_bits": settings.bits,
            "state_device": settings.device,
            "rounding": settings.rounding,
        }
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    pool = [p for name, p in trainable if "memlayers_pool" in name]
    rest = [p for name, p in trainable if "memlayers_pool" not in name]
    rate = settings.value_rate if config.memory.recipe == "addressed" else settings.dense_rate
    groups = [{"params": pool, "lr": rate}, {"params": rest, "lr": settings.dense_rate}]
    groups = [group for group in groups if group["params"]]
    return make_optimizer(settings.name, groups, lr=settings.value_rate, betas=BETAS, **options)
