"""The probes of an opened memory: did the pool move, what does it add, what is read, and where do the facts live?

The questions are those of the seed's investigation (design/recipe.md, last section), asked of any memory, addressed
or dense. Nothing of the memory is changed afterwards, to the bit.
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
from memlayers.data.encoding import batches_by_length, encode_example, encode_prompt, padded_batches
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory
from memlayers.evaluation.probes import Histogram, Probe, reads_histogram
from memlayers.evaluation.statistics import Estimate, mean_interval
from memlayers.inference.capture import SeenRead, watched_reads
from memlayers.inference.generation import answer_questions
from memlayers.inference.scoring import answer_logits
from memlayers.kernels.reference import read_rows
from memlayers.linking.token_spans import name_span
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner import MemoryLayer, active_part, memory_layers, value_pool
from memlayers.tuner.handle import gates_off, without_memory
from memlayers.utils.errors import InputError
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_FACTS = 300
BATCH_TOKENS = 1024  # the logits of a large vocabulary, in float32, lie beside the backbone


def diagnose_memory(
    memory: Memory,
    facts: Sequence[Fact],
    *,
    general: Sequence[Sequence[int]] = (),
    most: int = MOST_FACTS,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[list[Probe], list[Histogram]]:
    """Asks a memory everything that tells why it does or does not recall.

    Args:
        memory: opened; addressed or dense.
        facts: what it was taught.
        general: token ids of general text, for what it reads and gets; left out where there is none.
        most: so many of the facts are probed, seeded choice.
        seed: of the choice and of the intervals.
        quiet: no progress bars.

    Returns:
        The figures and the histograms, the memory as it was before.

    Raises:
        InputError: no facts, a model without a memory, a question longer than the context.
    """
    if not facts:
        raise InputError("no facts to diagnose with: give at least one")
    model, tokenizer = memory.model, memory.tokenizer
    adapter = _active(model)
    pool = value_pool(model, adapter)
    if pool.before_read is not None:  # a memory just taught: rows that lag behind are caught up first
        pool.before_read(None)
    facts = random.Random(seed).sample(list(facts), min(most, len(facts)))
    start = start_layers(model, adapter)
    start_pool: Any = start[0].memlayers_pool[adapter]
    probes, norms = _pool_probes(model, adapter, start, start_pool)
    with progress_bar("Watching reads", 1 + 2 * bool(general), quiet=quiet) as advance:
        read, histogram = _fact_probes(model, tokenizer, adapter, facts, seed)
        advance(1)
        if general:
            read += _general_probes(model, adapter, general, seed)
            advance(2)
    probes += read
    conditions: dict[str, AbstractContextManager[Any]] = {
        "backbone": without_memory(model),
        "memory": nullcontext(),
        "pool zeroed": pool_replaced(pool, None),
    }
    if memory_layers(model, adapter)[0].memlayers_config[adapter].trainable_addressing:
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


def start_layers(model: Any, adapter: str) -> list[MemoryLayer]:
    """The memory layers as they were before anything was calibrated or taught, on the CPU: all of it is seeded."""
    layers = memory_layers(model, adapter)
    config = copy.copy(layers[0].memlayers_config[adapter])
    config.inference_mode, config.gate, config.subjects = False, False, False
    made: list[MemoryLayer] = []
    for number in config.layers or []:
        layer = MemoryLayer(nn.Identity(), layers[0].dim)
        layer.add_adapter(adapter, config, number, made[0] if made else None)
        made.append(layer)
    return made


# -- the pool ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _pool_probes(
    model: Any, adapter: str, start: Sequence[MemoryLayer], start_pool: ValuePool
) -> tuple[list[Probe], Histogram]:
    """Did the pool move, and, in the dense recipe, what else did?"""
    pool = value_pool(model, adapter)
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
            probes.append(Probe.from_estimate("row_norm", split, _interval(each[moved], 0)))
    layers = memory_layers(model, adapter)
    config = layers[0].memlayers_config[adapter]
    if config.trainable_addressing:
        for number, own, first in zip(config.layers or [], layers, start, strict=True):
            for name, one, other in _beside_the_pool(own, first, adapter):
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


# -- reads ------------------------------------------------------------------------------------------------------------


class _Watched:
    """What the memory layers did on some sequences, added up batch by batch.

    Everything is a list with one entry per memory layer, except `pairs`: sequence * slots + slot of every read.
    `at` holds, per kind of marked token, the inputs, queries and slots there, row by row as the sequences come.
    """

    def __init__(self, layers: int, slots: int, dim: int) -> None:
        self.slots = slots
        self.tokens = 0
        self.reading = [0] * layers
        self.ratios: list[list[Tensor]] = [[] for _ in range(layers)]
        self.entropies: list[list[Tensor]] = [[] for _ in range(layers)]
        self.weight = [torch.zeros(slots, dtype=torch.float64) for _ in range(layers)]
        self.counts = torch.zeros(slots, dtype=torch.int64)
        self.inputs_sum = [torch.zeros(dim, dtype=torch.float64) for _ in range(layers)]
        self.queries_sum: list[Tensor | float] = [0.0] * layers
        self.pairs: list[Tensor] = []
        self.at: dict[str, list[dict[int, tuple[Tensor, Tensor | None, Tensor | None]]]] = {}


@torch.inference_mode()
def _watch(
    model: Any, adapter: str, sequences: Sequence[Sequence[int]], marks: dict[str, Sequence[int]] | None = None
) -> _Watched:
    """Runs the model, its memory as it is, over sequences.

    Args:
        model: with a memory.
        adapter: name of the memory.
        sequences: token ids.
        marks: per kind, one position in each sequence whose input, query and slots are kept.
    """
    layers = memory_layers(model, adapter)
    pool = value_pool(model, adapter)
    marks = marks or {}
    trunk = model.get_base_model().base_model
    device = next(model.parameters()).device
    found = _Watched(len(layers), pool.slots, layers[0].dim)
    found.at = {kind: [{} for _ in layers] for kind in marks}
    own: dict[int, Tensor] = {}
    whole: dict[int, tuple[Tensor, Tensor]] = {}
    queries: dict[int, Tensor] = {}

    def keep_own(number: int) -> Any:
        def keep(_: Any, arguments: Any, output: Any) -> None:
            own[number] = _first(output)

        return keep

    def keep_whole(number: int) -> Any:
        def keep(_: Any, arguments: Any, output: Any) -> None:
            whole[number] = arguments[0], _first(output)

        return keep

    def keep_query(number: int) -> Any:
        def keep(_: Any, arguments: Any, output: Tensor) -> None:
            queries[number] = output

        return keep

    hooks = []
    for number, layer in enumerate(layers):
        query: Any = layer.memlayers_query[adapter]
        hooks += [
            layer.base_layer.register_forward_hook(keep_own(number)),
            layer.register_forward_hook(keep_whole(number)),
            query.register_forward_hook(keep_query(number)),
        ]
    try:
        with watched_reads(model, adapter) as seen:
            for chosen, ids, mask in padded_batches(sequences, 2048):
                longest = ids.shape[1]
                trunk(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False)
                places = {
                    kind: {i: row * longest + positions[i] for row, i in enumerate(chosen)}
                    for kind, positions in marks.items()
                }
                found.tokens += int(mask.sum())
                by_layer = {read.layer: read for read in seen}
                for number, layer in enumerate(layers):
                    x, out = (tensor.reshape(-1, layer.dim).cpu() for tensor in whole[number])
                    base = own[number].reshape(-1, layer.dim).cpu()
                    found.inputs_sum[number] += x[mask.flatten()].double().sum(0)
                    for kind, rows in places.items():
                        for i, place in rows.items():
                            found.at[kind][number][i] = x[place].float(), None, None
                    if number in by_layer:
                        _add_read(
                            found, by_layer[number], queries[number].cpu(), x, out.float() - base.float(), base.float(),
                            mask.flatten(), torch.tensor(chosen).repeat_interleave(longest), places,
                        )  # fmt: skip
                seen.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _add_read(
    found: _Watched, read: SeenRead, queries: Tensor, x: Tensor, added: Tensor, base: Tensor, mask: Tensor,
    owners: Tensor, places: dict[str, dict[int, int]],
) -> None:  # fmt: skip
    """Adds one layer's read of one batch; the tensors hold a row per token of the batch, padding included."""
    number = read.layer
    tokens = torch.arange(len(mask)) if read.tokens is None else read.tokens.cpu()
    kept = mask[tokens]
    tokens = tokens[kept]
    indices, weights, queries = read.indices.cpu()[kept], read.weights.cpu()[kept], queries[kept].float()
    if not len(tokens):
        return
    found.reading[number] += len(tokens)
    found.ratios[number].append(added[tokens].norm(dim=1) / base[tokens].norm(dim=1).clamp_min(1e-12))
    share = weights / weights.sum(1, keepdim=True)
    found.entropies[number].append(-(share * share.clamp_min(1e-12).log2()).sum(1))
    found.weight[number] += torch.bincount(indices.flatten(), share.double().flatten(), found.slots)
    found.counts += torch.bincount(indices.flatten(), minlength=found.slots)
    found.queries_sum[number] = found.queries_sum[number] + queries.double().sum(0)
    found.pairs.append((owners[tokens][:, None] * found.slots + indices).unique())
    row_of = {token: row for row, token in enumerate(tokens.tolist())}
    for kind, rows in places.items():
        for i, place in rows.items():
            if place in row_of:
                row = row_of[place]
                found.at[kind][number][i] = x[place].float(), queries[row], indices[row]


def _fact_probes(
    model: Any, tokenizer: PreTrainedTokenizerBase, adapter: str, facts: Sequence[Fact], seed: int
) -> tuple[list[Probe], Histogram]:
    """What the facts' own contexts read and get, in up to two taught phrasings each."""
    rng = random.Random(f"{seed}:contexts")
    some = [rng.sample(fact.questions, min(2, len(fact.questions))) for fact in facts]
    asked = [(n, question) for n, questions in enumerate(some) for question in questions]
    limit = context_length(model)
    sequences, marks = [], {"entity": [0] * len(asked), "prompt's end": [0] * len(asked)}
    for place, (n, question) in enumerate(asked):
        sequences.append(encode_example(tokenizer, question, facts[n].answer, max_length=limit).input_ids)
        prompt = encode_prompt(tokenizer, question)
        marks["entity"][place] = _last_token_of(tokenizer, prompt, facts[n].subject)
        marks["prompt's end"][place] = len(prompt) - 1
    found = _watch(model, adapter, sequences, {kind: tuple(positions) for kind, positions in marks.items()})
    probes = _reading_probes(model, adapter, found, "", seed)
    owners = torch.tensor([n for n, _ in asked])
    pairs = torch.cat(found.pairs).unique() if found.pairs else torch.zeros(0, dtype=torch.int64)
    per_fact = (owners[pairs // found.slots] * found.slots + pairs % found.slots).unique() // found.slots
    each = torch.bincount(per_fact, minlength=len(facts))
    probes.append(Probe.from_estimate("reads_per_fact", "facts", _interval(each, seed)))
    probes.append(Probe("slots_read", "facts", float((found.counts > 0).float().mean()), found.slots))
    first = {n: place for place, (n, _) in reversed(list(enumerate(asked)))}
    second = {n: place for place, (n, _) in enumerate(asked) if place != first[n]}
    subjects: dict[str, int] = {}
    for n, fact in enumerate(facts):
        subjects.setdefault(fact.subject or fact.id, n)
    numbers = memory_layers(model, adapter)[0].memlayers_config[adapter].layers or []
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
                overlap = _jaccard(slots, slots)
                probes.append(Probe("distinct_slots", split, float(slots.unique().numel()), len(reading)))
                probes.append(Probe.from_estimate("jaccard", split, _interval(_mean_to_others(overlap), seed)))
            both = [(kept[first[n]][2], kept[second[n]][2]) for n in subjects.values() if n in second]
            same = [(one, two) for one, two in both if one is not None and two is not None]
            if same:
                one, two = (torch.stack(list(side)) for side in zip(*same, strict=True))
                paired = _interval(_jaccard(one, two).diagonal(), seed)
                probes.append(Probe.from_estimate("jaccard", f"{split}, same entity in two phrasings", paired))
    return probes, reads_histogram(found.counts.tolist())


def _general_probes(model: Any, adapter: str, sequences: Sequence[Sequence[int]], seed: int) -> list[Probe]:
    """What general text reads and gets, through the gate as it is and with every gate open."""
    through = _watch(model, adapter, sequences)
    numbers = memory_layers(model, adapter)[0].memlayers_config[adapter].layers or []
    probes = [
        Probe("read_tokens", f"layer {number}, general text", reading / through.tokens, through.tokens)
        for number, reading in zip(numbers, through.reading, strict=True)
    ]
    with gates_off(model):
        openly = _watch(model, adapter, sequences)
    return probes + _reading_probes(model, adapter, openly, ", general text, no gate", seed)


def _reading_probes(model: Any, adapter: str, found: _Watched, suffix: str, seed: int) -> list[Probe]:
    """Per layer: how many tokens read, how sharply, how much they get, and what kind of slots they meet."""
    pool = value_pool(model, adapter)
    written = torch.cat(
        [
            (read_rows(pool.table, rows.to(pool.table.values.device)) != 0).any(1).cpu()
            for rows in torch.arange(pool.slots).split(1 << 14)
        ]
    )
    probes = []
    numbers = memory_layers(model, adapter)[0].memlayers_config[adapter].layers or []
    for place, number in enumerate(numbers):
        split, tokens = f"layer {number}{suffix}", found.reading[place]
        probes.append(Probe("read_tokens", split, tokens / found.tokens, found.tokens))
        if not tokens:
            continue
        entropies, weight = torch.cat(found.entropies[place]), found.weight[place]
        probes.append(Probe.from_estimate("output_ratio", split, _interval(torch.cat(found.ratios[place]), seed)))
        probes.append(Probe.from_estimate("read_entropy", split, _interval(entropies, seed)))
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
            Probe.from_estimate("cosine", f"{split}, {what}, {kind}", _interval(_mean_to_others(unit @ unit.T), seed))
        )
    return probes


def _mean_to_others(matrix: Tensor) -> Tensor:
    """Per row its mean without the diagonal; the mean of these is that of all pairs."""
    return (matrix.sum(1) - matrix.diagonal()) / (len(matrix) - 1)


def _jaccard(one: Tensor, two: Tensor) -> Tensor:
    """Shared over all slots, [n, m], for the slots of n and of m reads, [n, r] and [m, r]; a slot counts once."""
    names, placed = torch.cat([one, two]).unique(return_inverse=True)
    holds = torch.zeros(len(placed), len(names)).scatter_(1, placed, 1.0)
    a, b = holds[: len(one)], holds[len(one) :]
    shared = a @ b.T
    return shared / (a.sum(1)[:, None] + b.sum(1)[None] - shared)


def _last_token_of(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], subject: str) -> int:
    """Position of the token that completes the subject; the prompt's last one where the prompt does not name it."""
    span = name_span(tokenizer, prompt, subject) if subject else None
    return (len(prompt) if span is None else span[1]) - 1


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
        Probe.from_estimate("first_token_first", condition, _interval(ranks == 1, seed)),
        Probe.from_estimate("first_token_nll", condition, _interval(first, seed)),
        Probe.from_estimate("answer_nll", condition, _interval(whole, seed)),
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
        whole[chosen] = -out.log_probability(len(chosen)).cpu()
    return ranks, first, whole


# -- small things -----------------------------------------------------------------------------------------------------


def _interval(values: Tensor, seed: int) -> Estimate:
    return mean_interval(values.double().numpy(), seed)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _active(model: Any) -> str:
    """The name of the memory that is read.

    Raises:
        InputError: there is none.
    """
    found = active_part(model, "memlayers_config")
    if found is None:
        raise InputError("the model has no active memory: open one with load_memory")
    return found[0]
