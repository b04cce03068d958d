"""Why a memory does or does not recall: did the pool move, what is read and added, and where do the facts live?

`read_probes` tells what is read; the probes of the pool and of the answers are here. docs/diagnosis.md asks all of them
of the pocket backbone. Nothing of the memory is changed afterwards, to the bit.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.backbones import context_length
from memlayers.data.answers import exact_match
from memlayers.data.encoding import batches_by_length, encode_example
from memlayers.data.facts import Fact
from memlayers.data.general_text import GeneralText
from memlayers.editing.memory import Memory
from memlayers.evaluation.probes import Diagnosis, Histogram, Probe
from memlayers.evaluation.read_probes import fact_reads, general_reads, interval_of
from memlayers.evaluation.statistics import mean_interval
from memlayers.inference.generation import answer_questions
from memlayers.inference.scoring import answer_logits
from memlayers.kernels.storage import read_rows
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner import MemoryLayer, memory_handle
from memlayers.tuner.handle import MemoryHandle, without_memory
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_FACTS = 300
TEXT_TOKENS = 16_384
BATCH_TOKENS = 1024  # the logits of a large vocabulary, in float32, lie beside the backbone


def diagnose(
    memory: Memory,
    *,
    facts: Sequence[Fact] | None = None,
    text: GeneralText | None = None,
    most: int = MOST_FACTS,
    max_text_tokens: int = TEXT_TOKENS,
    seed: int = 137,
    quiet: bool = False,
) -> Diagnosis:
    """Asks a memory everything that tells why it does or does not recall; it is afterwards as it was before.

    Args:
        memory: from `load_memory`, `teach_facts` or `regate_memory`; addressed or dense.
        facts: what it was taught; None for those that it remembers.
        text: general text, for what it reads and gets; left out where there is none.
        most: number of facts that are probed, chosen by `seed`.
        max_text_tokens: so much of the text is read.
        seed: of the choice and of the intervals.
        quiet: no progress bars.

    Returns:
        The figures and the histograms, with the curve of the teaching where there is a record of it.

    Raises:
        InputError: no facts, a model without a memory, a question longer than the context.
    """
    general: list[list[int]] = []
    for ids in text.encode(memory.tokenizer, 256) if text else []:
        general.append(ids[: max_text_tokens - sum(map(len, general))])
        if sum(map(len, general)) >= max_text_tokens:
            break
    probes, histograms = probe_memory(
        memory, memory.facts if facts is None else facts, general=general, most=most, seed=seed, quiet=quiet
    )
    settings = {"memory": str(memory.folder), "most": most, "max_text_tokens": max_text_tokens, "seed": seed}
    return Diagnosis(environment(str(memory.model.device)), settings, probes, histograms, memory.report.curve)


def probe_memory(
    memory: Memory,
    facts: Sequence[Fact],
    *,
    general: Sequence[Sequence[int]] = (),
    most: int = MOST_FACTS,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[list[Probe], list[Histogram]]:
    """The figures and the histograms of `diagnose`.

    Args:
        memory: opened; addressed or dense.
        facts: what it was taught.
        general: token ids of general text, for what it reads and gets; left out where there is none.
        most: number of facts that are probed, chosen by `seed`.
        seed: of the choice and of the intervals.
        quiet: no progress bars.

    Raises:
        InputError: no facts, a model without a memory, a question longer than the context.
    """
    if not facts:
        raise InputError("no facts to diagnose with: give at least one")
    model, tokenizer = memory.model, memory.tokenizer
    handle = memory_handle(model)
    pool = handle.pool
    if pool.before_read is not None:  # a memory just taught: rows that lag behind are caught up first
        pool.before_read(None)
    facts = random.Random(seed).sample(list(facts), min(most, len(facts)))
    start = start_layers(handle)
    start_pool: Any = start[0].memlayers_pool[handle.adapter]
    probes, norms = _pool_probes(handle, start, start_pool)
    with progress_bar("Watching reads", 1 + 2 * bool(general), quiet=quiet) as advance:
        read, histogram = fact_reads(handle, tokenizer, facts, seed)
        advance(1)
        if general:
            read += general_reads(handle, general, seed)
            advance(2)
    probes += read
    conditions: dict[str, AbstractContextManager[Any]] = {
        "backbone": without_memory(model),
        "memory": nullcontext(),
        "pool zeroed": pool_replaced(pool, None),
    }
    if handle.config.trainable_addressing:
        conditions["projections alone"] = pool_replaced(pool, start_pool)
    with progress_bar("Asking", len(conditions), quiet=quiet) as advance:
        for name, condition in conditions.items():
            with condition:
                probes += _answer_probes(model, tokenizer, facts, name, seed)
            advance(1)
    return probes, [histogram, norms]


@contextmanager
def pool_replaced(pool: ValuePool, by: ValuePool | None) -> Iterator[None]:
    """A context in which the pool holds other values: those of a pool of its kind, or zeros. Its own come back, always.

    Needs room for a second pool.
    """
    kept = [tensor.clone() for tensor in _storage(pool)]
    try:
        with torch.no_grad():
            for number, tensor in enumerate(_storage(pool)):
                tensor.zero_() if by is None else tensor.copy_(_storage(by)[number])
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(_storage(pool), kept, strict=True):
                tensor.copy_(before)


def start_layers(memory: MemoryHandle) -> list[MemoryLayer]:
    """The memory layers as they were before anything was calibrated or taught, on the CPU: all of it is seeded."""
    layers = memory.layers
    config = copy.copy(memory.config)
    config.inference_mode, config.gate, config.subjects = False, False, False
    made: list[MemoryLayer] = []
    for number in config.layers or []:
        layer = MemoryLayer(nn.Identity(), layers[0].dim)
        layer.add_adapter(memory.adapter, config, number, made[0] if made else None)
        made.append(layer)
    return made


# -- the pool ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _pool_probes(
    memory: MemoryHandle, start: Sequence[MemoryLayer], start_pool: ValuePool
) -> tuple[list[Probe], Histogram]:
    """Did the pool move, and, in the dense recipe, what else did?"""
    pool = memory.pool
    now, before, change = [], [], []
    for rows in torch.arange(pool.slots).split(1 << 14):  # never two pools in float32
        one, other = read_rows(pool.table, rows.to(pool.table.values.device)).cpu(), read_rows(start_pool.table, rows)
        now.append(one.norm(dim=1))
        before.append(other.norm(dim=1))
        change.append((one - other).norm(dim=1))
    norms, starts, changes = torch.cat(now), torch.cat(before), torch.cat(change)
    moved = changes > 0
    kept = 0.0 if pool.protected is None else float(pool.protected.float().mean())
    probes = [
        Probe("moved_rows", "pool", float(moved.float().mean()), pool.slots),
        Probe("written_rows", "pool", float((norms > 0).float().mean()), pool.slots),
        Probe("protected_rows", "pool", kept, pool.slots),
    ]
    if moved.any():
        for split, each in (("now", norms), ("at the start", starts), ("of the change", changes)):
            probes.append(Probe.from_estimate("row_norm", split, interval_of(each[moved], 0)))
    layers = memory.layers
    config = memory.config
    if config.trainable_addressing:
        for number, own, first in zip(config.layers or [], layers, start, strict=True):
            for name, one, other in _beside_the_pool(own, first, memory.adapter):
                moved_by, size = float((one.cpu().float() - other).norm()), float(other.norm())
                value = moved_by / size if size else moved_by
                probes.append(Probe("projection_change", f"layer {number}, {name}", value, one.numel()))
    top = float(norms.max()) or 1.0
    counts = torch.histc(norms[moved], 20, 0, top).int().tolist() if moved.any() else [0] * 20
    edges = tuple(top * step / 20 for step in range(21))
    return probes, Histogram("norm of moved rows", edges, tuple(counts))


def _beside_the_pool(own: MemoryLayer, first: MemoryLayer, adapter: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What learns beside the pool in the dense recipe: name, as it is, as it was at the start."""
    yield "sub-keys", own.memlayers_sub_keys[adapter], first.memlayers_sub_keys[adapter]
    for home, names in (("memlayers_query", ("projection",)), ("memlayers_out", ("gate", "output"))):
        modules: list[Any] = [getattr(layer, home) for layer in (own, first)]
        if adapter in modules[0]:
            for name in names:
                label = {"projection": "query", "gate": "output gate"}.get(name, name)
                yield label, getattr(modules[0][adapter], name), getattr(modules[1][adapter], name)


def _storage(pool: ValuePool) -> list[Tensor]:
    return [tensor for tensor in pool.table if tensor is not None]


# -- answers ----------------------------------------------------------------------------------------------------------


def _answer_probes(
    model: Any, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], condition: str, seed: int
) -> list[Probe]:
    """Rank and NLL of the gold answers, and recall in free generation, under one condition."""
    rng = random.Random(f"{seed}:asked")
    questions = [rng.choice(fact.questions) for fact in facts]
    ranks, first, whole = gold_answers(model, tokenizer, facts, questions)
    answers = answer_questions(model, tokenizer, questions)
    right = [exact_match(answer, fact.answers) for answer, fact in zip(answers, facts, strict=True)]
    probes = [
        Probe("first_token_rank", condition, float(ranks.float().median()), len(ranks)),
        Probe.from_estimate("first_token_first", condition, interval_of(ranks == 1, seed)),
        Probe.from_estimate("first_token_nll", condition, interval_of(first, seed)),
        Probe.from_estimate("answer_nll", condition, interval_of(whole, seed)),
        Probe.from_estimate("recall", condition, mean_interval(right, seed)),
    ]
    unseen = [fact for fact in facts if fact.unseen_questions]
    if condition == "memory" and unseen:
        answers = answer_questions(model, tokenizer, [rng.choice(fact.unseen_questions) for fact in unseen])
        right = [exact_match(answer, fact.answers) for answer, fact in zip(answers, unseen, strict=True)]
        probes.append(Probe.from_estimate("recall", "memory, phrasings never taught", mean_interval(right, seed)))
    return probes


@torch.inference_mode()
def gold_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], questions: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Per fact: rank of the answer's first token, its NLL, and the NLL of the whole answer with its end token."""
    limit = context_length(model)
    examples = [
        encode_example(tokenizer, question, fact.answer, max_length=limit)
        for question, fact in zip(questions, facts, strict=True)
    ]
    ranks = torch.zeros(len(facts), dtype=torch.int64)
    first, whole = torch.zeros(len(facts)), torch.zeros(len(facts))
    for chosen in batches_by_length([len(example.input_ids) for example in examples], BATCH_TOKENS):
        out = answer_logits(model, tokenizer, [examples[i] for i in chosen])
        starts = out.first()
        logits, gold = out.logits[starts], out.labels[starts]
        ranks[chosen] = 1 + (logits > logits.gather(1, gold[:, None])).sum(1).cpu()
        first[chosen] = F.cross_entropy(logits, gold, reduction="none").cpu()
        whole[chosen] = -out.log_probability().cpu()
    return ranks, first, whole
