"""What tells a stored entity's question from others: candidate scores for the gate, compared on one memory.

Teaches the pocket backbone 300 of the 500 demo facts (once; the memory is kept in ``--work``), then scores prompts
about stored entities (phrasings taught and never taught) against prompts the memory has no answer to. The entities of
every negative set are disjoint from the taught ones and from those a score was trained or calibrated on; so are the
phrasings of ``stored_unseen``. Writes ``benchmarks/results/gate/scores.json``: per score and set the AUROC, the share
of each set let through where 98 % of the stored prompts are, and whether the score needs the facts' subject strings.

Example: ``python -m benchmarks.gating.candidate_scores`` (about 10 minutes on one core)
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import common
from benchmarks.common import SEED
from benchmarks.gating.prompts import RESULTS, STORED, TAUGHT, opened_memory, prompt_sets, split_demo
from memlayers import Fact
from memlayers.data.encoding import encode_prompt, plain_text_ids
from memlayers.data.general_text import SHIPPED, read_general_text
from memlayers.evaluation.statistics import auroc
from memlayers.inference.capture import collect_features
from memlayers.tuner import memory_handle

Transform = Callable[[Tensor], Tensor]


def subject_core(subject: str) -> str:
    """A subject without outer punctuation, which tokenizers join with what follows."""
    return re.sub(r"^\W+|\W+$", "", subject) or subject


class Features:
    """MLP inputs of the memory layers on the bare backbone, per prompt: [layers][prompts] of [tokens, d]."""

    def __init__(self, model: Any, sequences: Sequence[Sequence[int]]) -> None:
        self.ids = [list(ids) for ids in sequences]
        collected = collect_features(memory_handle(model, "default"), sequences)
        self.layers: list[list[Tensor]] = []
        for layer in collected:
            order = torch.argsort(layer.sequence, stable=True)
            rows = layer.inputs.float()[order]
            self.layers.append(list(rows.split([len(ids) for ids in sequences])))


def subject_span(tokenizer: Any, ids: Sequence[int], subject: str) -> tuple[int, int]:
    """Start and end (exclusive) of the shortest span of tokens whose text holds the subject."""
    core = subject_core(subject)
    end = next(e for e in range(1, len(ids) + 1) if core in tokenizer.decode(ids[:e]))
    start = next(s for s in range(end - 1, -1, -1) if core in tokenizer.decode(ids[s:end]))
    return start, end


def read_scores(model: Any, features: Features) -> dict[str, list[float]]:
    """How strongly the slots that a prompt reads were written: sum_i w_i ||V_i|| per token, mean of the layers."""
    memory = memory_handle(model, "default")
    norms, heads = memory.pool.weight.detach().float().norm(dim=1), memory.config.heads
    rows: list[Tensor] = []
    written: list[Tensor] = []
    sizes = [len(ids) for ids in features.ids]
    for number, layer in enumerate(memory.layers):
        read = layer.read(torch.cat(features.layers[number]), "default")
        rows.append((read.weights * norms[read.indices]).sum(1) / heads)
        written.append((read.weights * (norms[read.indices] > 0)).sum(1) / heads)
    strength, share = torch.stack(rows).mean(0).split(sizes), torch.stack(written).mean(0).split(sizes)
    return {
        "read strength, last token": [float(s[-1]) for s in strength],
        "read strength, mean of tokens": [float(s.mean()) for s in strength],
        "read strength, max of tokens": [float(s.max()) for s in strength],
        "share of written slots, mean of tokens": [float(s.mean()) for s in share],
    }


def gate_scores(model: Any, features: Features) -> dict[str, list[float]]:
    """The gates of a memory that has one a layer: the smallest logit at the last token, and the mean over tokens."""
    logits = torch.stack(
        [
            layer.gate_logits(torch.cat(features.layers[number]), "default")
            for number, layer in enumerate(memory_handle(model, "default").layers)
        ]
    )
    pieces = logits.split([len(ids) for ids in features.ids], dim=1)
    return {
        "gate of a layer, last token": [float(p[:, -1].min()) for p in pieces],
        "gate of a layer, mean of tokens": [float(p.mean()) for p in pieces],
    }


class Keys:
    """A key per stored fact: the mean of a transform of the state at its subject's last token, over phrasings."""

    def __init__(self, transform: Transform, ends: Sequence[Tensor], facts: Sequence[int]) -> None:
        self.transform = transform
        rows = F.normalize(transform(torch.stack(list(ends))), dim=1)
        number = max(facts) + 1
        keys = torch.zeros(number, rows.shape[1]).index_add(0, torch.tensor(facts), rows)
        self.keys = F.normalize(keys, dim=1)

    def score(self, prompts: Sequence[Tensor]) -> list[float]:
        """Largest cosine between any token of a prompt and any key."""
        best = []
        for rows in torch.cat(list(prompts)).split(4096):
            best.append((F.normalize(self.transform(rows), dim=1) @ self.keys.T).max(1).values)
        return [float(p.max()) for p in torch.cat(best).split([len(p) for p in prompts])]


def train_projection(
    ends: Tensor, owners: Tensor, others: Tensor, rank: int = 64, steps: int = 600, hidden: int = 0
) -> Transform:
    """Contrastive: states of one entity in two phrasings agree, other entities and other tokens do not."""
    torch.manual_seed(SEED)
    mean, std = others.mean(0), others.std(0).clamp_min(1e-6)
    dim = ends.shape[1]
    if hidden:
        net: Any = torch.nn.Sequential(torch.nn.Linear(dim, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, rank))
    else:
        net = torch.nn.Linear(dim, rank, bias=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    by_owner: dict[int, list[int]] = {}
    for i, owner in enumerate(owners.tolist()):
        by_owner.setdefault(owner, []).append(i)
    pairs = [rows for rows in by_owner.values() if len(rows) > 1]
    rng = random.Random(SEED)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        chosen = rng.sample(pairs, min(256, len(pairs)))
        picks = torch.tensor([rng.sample(rows, 2) for rows in chosen])
        noise = others[torch.randint(len(others), (512,))]
        x = torch.cat([ends[picks[:, 0]], ends[picks[:, 1]], noise])
        z = F.normalize(net((x - mean) / std), dim=1)
        n = len(picks)
        logits = 20 * z[:n] @ z[n:].T
        loss = F.cross_entropy(logits, torch.arange(n))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def transform(rows: Tensor) -> Tensor:
        projected: Tensor = net((rows - mean) / std)
        return projected

    return transform


def fingerprints(tokenizer: Any, facts: Sequence[Fact]) -> set[tuple[int, ...]]:
    """The subjects' surface forms, as token ids, as the taught phrasings' prompts hold them."""
    found = set()
    for fact in facts:
        for question in fact.questions:
            ids = encode_prompt(tokenizer, question)
            start, end = subject_span(tokenizer, ids, fact.subject)
            found.add(tuple(ids[start:end]))
    return found


def fingerprint_scores(prints: set[tuple[int, ...]], sequences: Sequence[Sequence[int]]) -> list[float]:
    """1 where a stored subject's tokens occur in the prompt."""
    lengths = sorted({len(each) for each in prints})
    return [
        float(any(tuple(ids[i : i + n]) in prints for n in lengths for i in range(len(ids) - n + 1)))
        for ids in sequences
    ]


def compare(scores: dict[str, dict[str, list[float]]], strings: dict[str, bool]) -> list[dict[str, Any]]:
    """AUROC of the stored prompts (both kinds together, and apart) against each other set; shares let through."""
    rows = []
    for name, sets in scores.items():
        stored = [value for each in STORED for value in sets[each]]
        threshold = float(np.quantile(sets["stored_unseen"], 0.02))
        row: dict[str, Any] = {"score": name, "needs_subject_strings": strings[name], "auroc": {}, "passed": {}}
        for other, values in sets.items():
            if other in STORED:
                continue
            row["auroc"][other] = round(auroc(stored, values), 4)
            row["passed"][other] = round(float(np.mean(np.array(values) >= threshold)), 4)
        row["auroc_unseen_phrasing"] = round(auroc(sets["stored_unseen"], sets["untaught_demo"]), 4)
        rows.append(row)
    return rows


def compare_scores(work: Path) -> dict[str, Any]:
    """Compare candidate scores on a memory whose gates, one per layer, know no subjects."""
    taught, untaught = split_demo()
    memory = opened_memory(work / "gate-a-layer", taught, gate_subjects=False)
    model, tokenizer = memory.model, memory.tokenizer
    questions = prompt_sets(taught, untaught)
    prompts = {name: [encode_prompt(tokenizer, q) for q in asked] for name, asked in questions.items()}
    text = plain_text_ids(tokenizer, common.held_out_text())[: 64 * 500]
    prompts["prose"] = [text[i : i + 64] for i in range(0, len(text), 64)]
    features = {name: Features(model, ids) for name, ids in prompts.items()}

    # What keys and projections are made from: taught phrasings of the stored facts, and other entities' chats.
    first = 0
    key_ids, key_facts, key_ends = [], [], []
    for i, fact in enumerate(taught):
        for question in fact.questions:
            ids = encode_prompt(tokenizer, question)
            key_ids.append(ids)
            key_facts.append(i)
            key_ends.append(subject_span(tokenizer, ids, fact.subject)[1] - 1)
    seen = Features(model, key_ids)
    chats = read_general_text(SHIPPED).encode(tokenizer, 256)
    general = Features(model, chats)
    ends = [rows[e] for rows, e in zip(seen.layers[first], key_ends, strict=True)]
    other_rows = torch.cat(general.layers[first])
    calibration = torch.cat(features["known_calibration"].layers[first])

    scores: dict[str, dict[str, list[float]]] = {}
    strings: dict[str, bool] = {}

    def add(name: str, needs_strings: bool, values: dict[str, list[float]]) -> None:
        scores[name], strings[name] = values, needs_strings
        print(json.dumps(compare({name: values}, strings)[0]), flush=True)

    with torch.no_grad():
        for kind in (read_scores, gate_scores):
            by_set = {name: kind(model, each) for name, each in features.items()}
            for name in by_set["known"]:
                add(name, False, {each: values[name] for each, values in by_set.items()})

        query = memory_handle(model, "default").queries[first]
        keys = Keys(query, ends, key_facts)
        add("whitened state, nearest key", True, {n: keys.score(f.layers[first]) for n, f in features.items()})
        pooled = Keys(query, [rows.mean(0) for rows in seen.layers[first]], key_facts)
        means = {n: [rows.mean(0, keepdim=True) for rows in f.layers[first]] for n, f in features.items()}
        add("whitened state pooled over the prompt, nearest key", False, {n: pooled.score(m) for n, m in means.items()})
    for hidden in (0, 512):
        transform = train_projection(
            torch.stack(ends), torch.tensor(key_facts), torch.cat([other_rows, calibration]), hidden=hidden
        )
        with torch.no_grad():
            keys = Keys(transform, ends, key_facts)
            label = "learned projection (64)" if not hidden else "learned network (512, 64)"
            add(f"{label}, nearest key", True, {n: keys.score(f.layers[first]) for n, f in features.items()})
    prints = fingerprints(tokenizer, taught)
    add("fingerprint of the subject's tokens", True, {n: fingerprint_scores(prints, ids) for n, ids in prompts.items()})
    return {
        "command": "python -m benchmarks.gating.candidate_scores", "taught": TAUGHT, "seed": SEED,
        "n": {name: len(ids) for name, ids in prompts.items()}, "fingerprints": len(prints),
        "rows": compare(scores, strings),
    }  # fmt: skip


def main() -> None:
    """Teach where nothing is taught yet, compare and write."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--work", type=Path, default=common.WORK / "gate", help="where the taught memory is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    common.write_json(RESULTS / "scores.json", compare_scores(arguments.work))


if __name__ == "__main__":
    common.start(main)
