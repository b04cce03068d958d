"""What tells a stored entity's question from others, and what the gate that was built on it does.

``scores``: candidate scores for the relevance gate, compared on one memory. Teaches the pocket backbone 300 of the 500
demo facts (once; the memory is kept in ``--work``), then scores prompts about stored entities (phrasings taught and
never taught) against prompts the memory has no answer to. The entities of every negative set are disjoint from the
taught ones and from those a score was trained or calibrated on; so are the phrasings of ``stored_unseen``. Writes
``benchmarks/results/gate/scores.json``: per score and set the AUROC, the share of each set let through where 98 % of
the stored prompts are, and whether the score needs the facts' subject strings.

``abstention``: a memory taught with the gate as it is now, asked all of these sets: how often the gate opens, what is
answered, fabricated and left unknown as the memory's threshold moves (``abstention.json``), and what general text that
names stored subjects keeps of its logits.

``thousand``: 1,000 EntityQuestions facts taught with the gate as it is now, against 1,000 others (``thousand.json``).

Example: ``python benchmarks/gate.py scores abstention thousand`` (about 20 minutes on one core)
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers import Fact, TeachConfig, load_memory, teach_facts
from memlayers.backbones import POCKET
from memlayers.data.answers import exact_match
from memlayers.data.encoding import encode_prompt, plain_text_ids
from memlayers.data.entity_questions import read_entity_questions
from memlayers.data.fact_files import read_facts
from memlayers.data.facts import Question
from memlayers.data.general_text import SHIPPED, read_general_text
from memlayers.demo import known_questions
from memlayers.editing.memory import Memory
from memlayers.evaluation.evaluate import score_model
from memlayers.evaluation.statistics import auroc
from memlayers.evaluation.text_scores import score_text
from memlayers.inference.capture import collect_features
from memlayers.inference.confidence import answer_thresholds
from memlayers.tuner import memory_handle, memory_layers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gate"
ENTITY_QUESTIONS = ROOT.parent / "shared" / "data" / "entityquestions"
TAUGHT, SEED = 300, 137
STORED = ("stored_taught", "stored_unseen")


def split_demo() -> tuple[list[Fact], list[Fact]]:
    """The demo's facts: those that are taught, and those whose entities are never taught."""
    facts = read_facts(POCKET / "demo.jsonl")
    taught = random.Random(SEED).sample(facts, TAUGHT)
    ids = {fact.id for fact in taught}
    return taught, [fact for fact in facts if fact.id not in ids]


def entity_questions(taken: set[str], number: int, seed: int = SEED) -> list[Fact]:
    """Real entities of the demo's relations that nothing else here names, with every phrasing of their relation."""
    found = read_entity_questions(ENTITY_QUESTIONS, without=taken)
    taken |= {fact.subject for fact in found}
    return random.Random(seed).sample(found, number)


def prompt_sets(taught: Sequence[Fact], untaught: Sequence[Fact], seed: int = SEED) -> dict[str, list[str]]:
    """The questions of each set; `prose` is left to the caller, since it is no question."""
    rng = random.Random(seed)
    known = read_facts(POCKET / "known.jsonl")
    rng.shuffle(known)
    taken = {fact.subject for fact in [*taught, *untaught, *known]}
    others = entity_questions(taken, 1000)
    sets = {
        "stored_taught": [q for fact in taught for q in rng.sample(fact.questions, 2)],
        "stored_unseen": [q for fact in taught for q in fact.unseen_questions],
        "untaught_demo": [q for f in untaught for q in (rng.choice(f.questions), *f.unseen_questions)],
        "untaught_eq": [rng.choice((*fact.questions, *fact.unseen_questions)) for fact in others],
        "known": [rng.choice((*fact.questions, *fact.unseen_questions)) for fact in known[:1000]],
        "known_calibration": [rng.choice(fact.questions) for fact in known[1000:]],
    }
    sets["recombined"] = _recombined(taught, taken, rng)
    sets["extended"] = [_renamed(f, f.subject, f"{f.subject} {rng.choice(taught).subject.split()[-1]}") for f in taught]
    sets["other_relation"] = _other_relation(taught, rng)
    return sets


def _renamed(fact: Fact, old: str, new: str) -> str:
    question = fact.unseen_questions[0]
    return question.replace(old, new)


def _recombined(taught: Sequence[Fact], taken: set[str], rng: random.Random) -> list[str]:
    """Fakes made of stored names: the first words of one subject and the last word of another."""
    questions = []
    for fact in taught:
        words = fact.subject.split()
        other = rng.choice([f for f in taught if f.relation == fact.relation and f is not fact]).subject.split()
        name = " ".join([*words[:-1], other[-1]]) if len(words) > 1 else f"{words[0]} {other[-1]}"
        if name not in taken and not any(f.subject in name for f in taught):
            questions.append(_renamed(fact, fact.subject, name))
    return questions


def _other_relation(taught: Sequence[Fact], rng: random.Random) -> list[str]:
    """Stored entities, asked for something that was not taught of them."""
    questions = []
    for fact in taught:
        other = rng.choice([f for f in taught if f.relation != fact.relation])
        questions.append(rng.choice(other.questions).replace(other.subject, fact.subject))
    return questions


def subject_core(subject: str) -> str:
    """A subject without outer punctuation, which tokenizers join with what follows."""
    return re.sub(r"^\W+|\W+$", "", subject) or subject


class Features:
    """MLP inputs of the memory layers on the bare backbone, per prompt: [layers][prompts] of [tokens, d]."""

    def __init__(self, model: Any, sequences: Sequence[Sequence[int]]) -> None:
        self.ids = [list(ids) for ids in sequences]
        collected = collect_features(model, "default", sequences)
        self.layers: list[list[Tensor]] = []
        for layer in collected:
            order = torch.argsort(layer.sequence, stable=True)
            rows = layer.inputs.float()[order]
            self.layers.append(list(rows.split([len(ids) for ids in sequences])))


def subject_span(tokenizer: Any, ids: Sequence[int], subject: str) -> tuple[int, int]:
    """Start and end (exclusive) of the shortest run of tokens whose text holds the subject."""
    core = subject_core(subject)
    end = next(e for e in range(1, len(ids) + 1) if core in tokenizer.decode(ids[:e]))
    start = next(s for s in range(end - 1, -1, -1) if core in tokenizer.decode(ids[s:end]))
    return start, end


def read_scores(model: Any, features: Features) -> dict[str, list[float]]:
    """How strongly the slots that a prompt reads were written: sum_i w_i ||V_i|| per token, mean of the layers."""
    norms = memory_handle(model, "default").pool.weight.detach().float().norm(dim=1)
    rows: list[Tensor] = []
    written: list[Tensor] = []
    sizes = [len(ids) for ids in features.ids]
    for number, layer in enumerate(memory_layers(model, "default")):
        read = layer.read(torch.cat(features.layers[number]), "default")
        rows.append((read.weights * norms[read.indices]).sum(1) / layer.memlayers_config["default"].heads)
        written.append((read.weights * (norms[read.indices] > 0)).sum(1) / layer.memlayers_config["default"].heads)
    strength, share = torch.stack(rows).mean(0).split(sizes), torch.stack(written).mean(0).split(sizes)
    return {
        "read strength, last token": [float(s[-1]) for s in strength],
        "read strength, mean of tokens": [float(s.mean()) for s in strength],
        "read strength, max of tokens": [float(s.max()) for s in strength],
        "share of written slots, mean of tokens": [float(s.mean()) for s in share],
    }


def gate_scores(model: Any, features: Features) -> dict[str, list[float]]:
    """Today's per-layer gates: logit at the last prompt token, smallest of the layers, and the mean over tokens."""
    logits = torch.stack(
        [
            layer.gate_logits(torch.cat(features.layers[number]), "default")
            for number, layer in enumerate(memory_layers(model, "default"))
        ]
    )
    pieces = logits.split([len(ids) for ids in features.ids], dim=1)
    return {
        "today's gate, last token": [float(p[:, -1].min()) for p in pieces],
        "today's gate, mean of tokens": [float(p.mean()) for p in pieces],
    }


class Keys:
    """A key per stored fact: the mean of a transform of the state at its subject's last token, over phrasings."""

    def __init__(self, transform: Any, ends: Sequence[Tensor], facts: Sequence[int]) -> None:
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
) -> Any:
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
        return net((rows - mean) / std)

    return transform


def fingerprints(tokenizer: Any, facts: Sequence[Fact]) -> set[tuple[int, ...]]:
    """Token runs that spell the subjects, as the taught phrasings' prompts hold them."""
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


def opened_memory(folder: Path, facts: Sequence[Fact], **settings: Any) -> Memory:
    """The memory of a folder, taught first if it is not there."""
    if not (folder / "adapter_config.json").is_file():
        teach_facts(facts, folder, TeachConfig().with_flags(seed=SEED, **settings))
    return load_memory(folder)


def abstention(work: Path) -> dict[str, Any]:
    """Ask a memory with the subject gate everything, and move the memory's threshold."""
    taught, untaught = split_demo()
    memory = opened_memory(work / "subjects", taught)
    questions = prompt_sets(taught, untaught)
    right = {q: f.answers for f in [*taught, *untaught] for q in (*f.questions, *f.unseen_questions)}
    right |= {q: f.answers for f in read_facts(POCKET / "known.jsonl") for q in (*f.questions, *f.unseen_questions)}
    given = {name: memory.ask(asked) for name, asked in questions.items()}
    stored = [answer.score for name in STORED for answer in given[name]]
    shipped, backbone = answer_thresholds(memory.model)
    sets = {}
    for name, answers in given.items():
        sets[name] = {
            "n": len(answers),
            "opened": _share(answer.score > 0 for answer in answers),
            "same_answer_as_backbone": _share(answer.memory == answer.backbone for answer in answers),
            "source": {s: _share(answer.source == s for answer in answers) for s in ("memory", "backbone", "unknown")},
            "auroc_stored_against_it": round(auroc(stored, [answer.score for answer in answers]), 4),
        }
        if any(answer.question in right for answer in answers):
            said = [(answer.text, right.get(answer.question, ())) for answer in answers]
            sets[name]["right"] = _share(exact_match(text, accepted) for text, accepted in said)
    curve = []
    for threshold in sorted({0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, round(shipped, 3)}):
        point: dict[str, Any] = {"threshold": threshold}
        for name, answers in given.items():
            point[name] = _share(answer.score >= threshold and answer.score > 0 for answer in answers)
        point["stored"] = round((point["stored_taught"] + point["stored_unseen"]) / 2, 4)
        curve.append(point)
    return {
        "command": "python benchmarks/gate.py abstention", "taught": TAUGHT, "seed": SEED,
        "thresholds": {"memory": shipped, "backbone": backbone},
        "sets": sets, "taken_from_memory_at_threshold": curve, "text_that_names_subjects": naming_text(memory, taught),
    }  # fmt: skip


def naming_text(memory: Memory, taught: Sequence[Fact]) -> list[dict[str, Any]]:
    """Held-out articles, each window beginning with a sentence's start that names a stored subject."""
    passages = (POCKET / "heldout.txt").read_text(encoding="utf-8").split("\n\n")[:100]
    rng = random.Random(SEED)
    layer = memory_layers(memory.model)[0]
    gate: Any = layer.memlayers_gate["default"]
    rows = []
    for label, trained in (("subjects and trained gate", 1), ("subjects alone", 0)):
        gate.trained.fill_(trained)
        same, before, after = [], [], []
        rng = random.Random(SEED)
        for passage in passages:
            text = f"{rng.choice(taught).subject} is mentioned here. {passage}"
            scores = score_text(memory.model, memory.tokenizer, text, window=256, max_tokens=256, quiet=True)
            same.append(float(scores.identical.float().mean()))
            before.append(float(scores.nll_backbone.mean()))
            after.append(float(scores.nll_memory.mean()))
        perplexities = [round(float(np.exp(np.mean(nll))), 3) for nll in (before, after)]
        rows.append(
            {"gate": label, "n": len(same), "identical_logits": round(float(np.mean(same)), 4),
             "perplexity_backbone": perplexities[0], "perplexity_memory": perplexities[1]}
        )  # fmt: skip
    gate.trained.fill_(1)
    return rows


def thousand(work: Path) -> dict[str, Any]:
    """1,000 EntityQuestions facts taught, 1,000 others asked: the rows of `score_model`."""
    taken = {fact.subject for name in ("demo", "known") for fact in read_facts(POCKET / f"{name}.jsonl")}
    facts = entity_questions(taken, 2000)
    rng = random.Random(SEED)
    facts, others = facts[:1000], facts[1000:]
    untaught = [Question(rng.choice((*f.questions, *f.unseen_questions)), f.answers) for f in others]
    memory = opened_memory(work / "thousand", facts)
    rows, _ = score_model(
        memory.model, memory.tokenizer, facts=facts, untaught=untaught, phrasings=2,
        known=rng.sample(known_questions(), 1000), text=(POCKET / "heldout.txt").read_text(encoding="utf-8"),
        max_text_tokens=16_384, seed=SEED, quiet=True,
    )  # fmt: skip
    return {"command": "python benchmarks/gate.py thousand", "seed": SEED, "rows": [asdict(row) for row in rows]}


def _share(flags: Any) -> float:
    return round(float(np.mean(list(flags))), 4)


def main() -> None:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("scores", "abstention", "thousand"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gate", help="where the taught memories are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        result = {"scores": compare_scores, "abstention": abstention, "thousand": thousand}[part](arguments.work)
        (RESULTS / f"{part}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare_scores(work: Path) -> dict[str, Any]:
    """Compare candidate scores on a memory whose gates, one per layer, know no subjects."""
    taught, untaught = split_demo()
    memory = opened_memory(work / "today", taught, gate_subjects=False)
    model, tokenizer = memory.model, memory.tokenizer
    questions = prompt_sets(taught, untaught)
    prompts = {name: [encode_prompt(tokenizer, q) for q in asked] for name, asked in questions.items()}
    text = plain_text_ids(tokenizer, (POCKET / "heldout.txt").read_text(encoding="utf-8"))[: 64 * 500]
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

        query: Any = memory_layers(model, "default")[first].memlayers_query["default"]
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
        "command": "python benchmarks/gate.py scores", "taught": TAUGHT, "seed": SEED,
        "n": {name: len(ids) for name, ids in prompts.items()}, "fingerprints": len(prints),
        "rows": compare(scores, strings),
    }  # fmt: skip


if __name__ == "__main__":
    main()
