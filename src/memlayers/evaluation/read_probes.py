"""The probes of reading: which slots the facts' contexts and general text read, how alike two entities are there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.backbones import context_length
from memlayers.data.encoding import encode_example, encode_prompt
from memlayers.data.facts import Fact
from memlayers.evaluation.probes import Histogram, Probe, reads_histogram
from memlayers.evaluation.statistics import Estimate, mean_interval
from memlayers.evaluation.watch import Watched, watch
from memlayers.kernels.storage import read_rows
from memlayers.linking.token_spans import mention_span
from memlayers.tuner.handle import MemoryHandle, gates_off

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fact_reads(
    memory: MemoryHandle, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], seed: int
) -> tuple[list[Probe], Histogram]:
    """What the facts' own contexts read and get, in up to two taught phrasings each."""
    rng = random.Random(f"{seed}:contexts")
    some = [rng.sample(fact.questions, min(2, len(fact.questions))) for fact in facts]
    asked = [(n, question) for n, questions in enumerate(some) for question in questions]
    limit = context_length(memory.model)
    sequences, marks = [], {"entity": [0] * len(asked), "prompt's end": [0] * len(asked)}
    for place, (n, question) in enumerate(asked):
        sequences.append(encode_example(tokenizer, question, facts[n].answer, max_length=limit).input_ids)
        prompt = encode_prompt(tokenizer, question)
        marks["entity"][place] = last_token_of(tokenizer, prompt, facts[n].subject)
        marks["prompt's end"][place] = len(prompt) - 1
    found = watch(memory, sequences, {kind: tuple(positions) for kind, positions in marks.items()})
    probes = _reading_probes(memory, found, "", seed)
    owners = torch.tensor([n for n, _ in asked])
    pairs = torch.cat(found.pairs).unique() if found.pairs else torch.zeros(0, dtype=torch.int64)
    per_fact = (owners[pairs // found.slots] * found.slots + pairs % found.slots).unique() // found.slots
    each = torch.bincount(per_fact, minlength=len(facts))
    probes.append(Probe.from_estimate("reads_per_fact", "facts", interval_of(each, seed)))
    probes.append(Probe("slots_read", "facts", float((found.counts > 0).float().mean()), found.slots))
    first = {n: place for place, (n, _) in reversed(list(enumerate(asked)))}
    second = {n: place for place, (n, _) in enumerate(asked) if place != first[n]}
    subjects: dict[str, int] = {}
    for n, fact in enumerate(facts):
        subjects.setdefault(fact.subject or fact.id, n)
    numbers = memory.config.layers or []
    for kind, per_layer in found.at.items():
        for place_of_layer, number in enumerate(numbers):
            kept = per_layer[place_of_layer]
            rows = [kept[first[n]] for n in subjects.values()]
            means = found.inputs_sum[place_of_layer] / found.tokens
            split = f"layer {number}, {kind}"
            probes += _alike(split, "input", torch.stack([row[0] for row in rows]), means, seed)
            reading = [row for row in rows if row[1] is not None]
            if len(reading) > 1:
                queries = torch.stack([row[1] for row in reading if row[1] is not None])
                query_mean: Any = found.queries_sum[place_of_layer]
                probes += _alike(split, "query", queries, query_mean / found.reading[place_of_layer], seed)
                slots = torch.stack([row[2] for row in reading if row[2] is not None])
                overlap = jaccard(slots, slots)
                probes.append(Probe("distinct_slots", split, float(slots.unique().numel()), len(reading)))
                probes.append(Probe.from_estimate("jaccard", split, interval_of(_mean_to_others(overlap), seed)))
            both = [(kept[first[n]][2], kept[second[n]][2]) for n in subjects.values() if n in second]
            same = [(one, two) for one, two in both if one is not None and two is not None]
            if same:
                one, two = (torch.stack(list(side)) for side in zip(*same, strict=True))
                paired = interval_of(jaccard(one, two).diagonal(), seed)
                probes.append(Probe.from_estimate("jaccard", f"{split}, same entity in two phrasings", paired))
    return probes, reads_histogram(found.counts.tolist())


def general_reads(memory: MemoryHandle, sequences: Sequence[Sequence[int]], seed: int) -> list[Probe]:
    """What general text reads and gets, through the gate as it is and with every gate open."""
    through = watch(memory, sequences)
    numbers = memory.config.layers or []
    probes = [
        Probe("read_tokens", f"layer {number}, general text", reading / through.tokens, through.tokens)
        for number, reading in zip(numbers, through.reading, strict=True)
    ]
    with gates_off(memory.model):
        openly = watch(memory, sequences)
    return probes + _reading_probes(memory, openly, ", general text, no gate", seed)


def _reading_probes(memory: MemoryHandle, found: Watched, suffix: str, seed: int) -> list[Probe]:
    """Per layer: how many tokens read, how sharply, how much they get, and what kind of slots they meet."""
    pool = memory.pool
    written = torch.cat(
        [
            (read_rows(pool.table, rows.to(pool.table.values.device)) != 0).any(1).cpu()
            for rows in torch.arange(pool.slots).split(1 << 14)
        ]
    )
    probes = []
    numbers = memory.config.layers or []
    for place, number in enumerate(numbers):
        split, tokens = f"layer {number}{suffix}", found.reading[place]
        probes.append(Probe("read_tokens", split, tokens / found.tokens, found.tokens))
        if not tokens:
            continue
        entropies, weight = torch.cat(found.entropies[place]), found.weight[place]
        probes.append(Probe.from_estimate("output_ratio", split, interval_of(torch.cat(found.ratios[place]), seed)))
        probes.append(Probe.from_estimate("read_entropy", split, interval_of(entropies, seed)))
        probes.append(Probe("slots_per_read", split, float(entropies.exp2().mean()), tokens))
        share = weight / weight.sum()
        in_use = float((-(share * share.clamp_min(1e-300).log2()).sum()).exp2())
        probes.append(Probe("slots_in_use", split, in_use, tokens))
        probes.append(Probe("written_reads", split, float(share[written].sum()), tokens))
        if pool.protected is not None:
            probes.append(Probe("protected_reads", split, float(share[pool.protected.cpu()].sum()), tokens))
    return probes


def _alike(split: str, what: str, rows: Tensor, mean: Tensor, seed: int) -> list[Probe]:
    """Mean cosine between the rows, as they are and centred."""
    if len(rows) < 2:
        return []
    probes = []
    for kind, each in (("raw", rows.double()), ("centred", rows.double() - mean)):
        unit = F.normalize(each, dim=1)
        probes.append(
            Probe.from_estimate("cosine", f"{split}, {what}, {kind}", interval_of(_mean_to_others(unit @ unit.T), seed))
        )
    return probes


def _mean_to_others(matrix: Tensor) -> Tensor:
    """Per row its mean without the diagonal; the mean of these is that of all pairs."""
    return (matrix.sum(1) - matrix.diagonal()) / (len(matrix) - 1)


def jaccard(one: Tensor, two: Tensor) -> Tensor:
    """Shared over all slots, [n, m], for the slots of n and of m reads, [n, r] and [m, r]; a slot counts once."""
    names, placed = torch.cat([one, two]).unique(return_inverse=True)
    holds = torch.zeros(len(placed), len(names)).scatter_(1, placed, 1.0)
    a, b = holds[: len(one)], holds[len(one) :]
    shared = a @ b.T
    return shared / (a.sum(1)[:, None] + b.sum(1)[None] - shared)


def last_token_of(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], subject: str) -> int:
    """Position of the token that completes the subject; the prompt's last one where the prompt does not name it."""
    span = mention_span(tokenizer, prompt, subject) if subject else None
    return (len(prompt) if span is None else span[1]) - 1


def interval_of(values: Tensor, seed: int) -> Estimate:
    """The mean of a tensor and its 95 % interval, see `statistics.mean_interval`."""
    return mean_interval(values.double().numpy(), seed)
