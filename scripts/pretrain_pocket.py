"""Pretrain the pocket backbone: a small Qwen2 with real facts in it. Seeded and resumable.

Run ``scripts/pocket_data.py`` first. ``train`` may be killed at any moment and continues from its last checkpoint;
``export`` casts to bf16, measures recall, perplexity and bits per byte, and writes the package's files and model card.

Example: ``python scripts/pretrain_pocket.py train && python scripts/pretrain_pocket.py export``
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "src" / "memlayers" / "pocket"
LENGTH = 256  # tokens per packed row
QUESTION_WEIGHT = 0.0  # the wording of a question is not what we want the parameters (or the time) spent on
ANSWER_WEIGHT = 2.0


def build_model(seed: int) -> Qwen2ForCausalLM:
    """Create the randomly initialised backbone (6.3 M parameters, tied embeddings)."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=6144,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        rope_theta=10000.0,  # type: ignore[call-arg]  # transformers takes it from older configurations
    )
    return Qwen2ForCausalLM(config)


class Mixture:
    """Seeded batches: ``articles`` rows of prose, the rest packed chats (facts and article openings)."""

    def __init__(self, work: Path, rows: int, article_share: float, seed: int) -> None:
        self.articles = np.load(work / "articles.npy")
        self.chats = {k: v for k, v in np.load(work / "chats.npz").items()}
        self.rows, self.article_share, self.seed = rows, article_share, seed
        self.fact_ends = np.cumsum(self.chats["phrasings"])  # chats of one fact are consecutive: one per phrasing

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids [rows, LENGTH + 1] int64 and the loss weight of each [rows, LENGTH + 1] float32 for a step."""
        rng = np.random.default_rng((self.seed, step))
        share = self.article_share
        ids = np.zeros((self.rows, LENGTH + 1), dtype=np.int64)
        weights = np.zeros((self.rows, LENGTH + 1), dtype=np.float32)
        for row in range(self.rows):
            if row < round(self.rows * share):
                start = rng.integers(0, len(self.articles) - LENGTH - 1)
                ids[row] = self.articles[start : start + LENGTH + 1]
                weights[row] = 1.0
            else:
                self._fill_with_chats(rng, ids[row], weights[row])
        return torch.from_numpy(ids), torch.from_numpy(weights)

    def _fill_with_chats(self, rng: np.random.Generator, ids: np.ndarray, weights: np.ndarray) -> None:
        position = 0
        while position < len(ids):
            name = "opening" if rng.random() < 0.08 else "fact"
            if name == "fact":  # every fact equally often, whatever its number of phrasings
                fact = rng.integers(len(self.fact_ends))
                first = self.fact_ends[fact - 1] if fact else 0
                chat = rng.integers(first, self.fact_ends[fact])
            else:
                chat = rng.integers(len(self.chats["opening_answers"]))
            start, end = self.chats[f"{name}_offsets"][chat : chat + 2]
            tokens = self.chats[f"{name}_tokens"][start:end][: len(ids) - position]
            answer = position + self.chats[f"{name}_answers"][chat]
            ids[position : position + len(tokens)] = tokens
            weights[position : position + len(tokens)] = ANSWER_WEIGHT if name == "fact" else 1.0
            weights[position:answer] = QUESTION_WEIGHT
            position += len(tokens)


@torch.no_grad()
def orthogonalise(update: torch.Tensor) -> torch.Tensor:
    """Approximate the nearest orthogonal matrices of a stack [n, rows, columns] (Newton-Schulz; Muon, Jordan 2024)."""
    tall = update.size(-2) > update.size(-1)
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    made: torch.Tensor = x.mT if tall else x
    return made


class Muon:
    """Muon on the matrices inside the blocks, stacked by shape; AdamW takes the rest."""

    def __init__(self, matrices: list[torch.nn.Parameter], momentum: float = 0.95) -> None:
        self.momentum = momentum
        by_shape: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
        self.groups = list(by_shape.values())
        self.buffers = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Apply one update from the parameters' gradients."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradients = torch.stack([parameter.grad for parameter in group if parameter.grad is not None])
            buffer.lerp_(gradients, 1 - self.momentum)
            update = orthogonalise(gradients.lerp(buffer, self.momentum))
            scale = learning_rate * max(1.0, update.size(-2) / update.size(-1)) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - learning_rate * 0.05).sub_(change, alpha=scale)


def weighted_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean next-token loss of ids [rows, length + 1]."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    counted = weights[:, 1:] > 0  # the head is a quarter of the work: only where there is a loss
    logits = model.lm_head(hidden[counted])
    weight = weights[:, 1:][counted]
    losses = F.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    return (losses * weight).sum() / weight.sum()


@torch.no_grad()
def probe_recall(model: Qwen2ForCausalLM, mixture: Mixture, count: int = 192) -> float:
    """Return the teacher-forced share of exactly right answers over a fixed sample of fact chats (progress only)."""
    chats, right = mixture.chats, 0
    for chat in np.random.default_rng(0).choice(len(chats["fact_answers"]), count, replace=False):
        start, end = chats["fact_offsets"][chat : chat + 2]
        ids = torch.from_numpy(chats["fact_tokens"][start:end].astype(np.int64))[None]
        answer = int(chats["fact_answers"][chat])
        predicted = model(input_ids=ids).logits[0, answer - 1 : -1].argmax(-1)
        right += int(torch.equal(predicted, ids[0, answer:]))
    return right / count


def save_checkpoint(path: Path, tensors: dict[str, torch.Tensor], step: int, log: list[dict[str, Any]]) -> None:
    """Write the training state aside and rename it, so that a kill leaves the old or the new one."""
    aside = path.with_suffix(".tmp")
    save_file(tensors, aside, metadata={"step": str(step), "log": json.dumps(log)})
    os.replace(aside, path)


def train(arguments: argparse.Namespace) -> None:
    """Pretrain, continuing from ``--work/state.safetensors`` where it exists."""
    torch.set_num_threads(arguments.threads)
    model = build_model(arguments.seed).train()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers." in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers." in n)]
    muon = Muon(matrices)
    muon.buffers = [buffer.to(device) for buffer in muon.buffers]
    adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
    mixture = Mixture(arguments.work, arguments.rows, arguments.article_share, arguments.seed)
    state_path, step, log = arguments.work / "state.safetensors", 0, []

    def tensors() -> dict[str, torch.Tensor]:
        out = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
        out |= {f"muon.{i}": b for i, b in enumerate(muon.buffers)}
        for i, parameter in enumerate(others):
            out |= {f"adam.{i}.{k}": v for k, v in adam.state[parameter].items()}
        return {k: v.contiguous() for k, v in out.items()}

    if state_path.exists():
        with safe_open(state_path, "pt") as file:
            step, log = int(file.metadata()["step"]), json.loads(file.metadata()["log"])
        saved = load_file(state_path, device=str(device))
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(saved[f"model.{n}"])
        muon.buffers = [saved[f"muon.{i}"] for i in range(len(muon.buffers))]
        for i, parameter in enumerate(others):
            adam.state[parameter] = {k: saved[f"adam.{i}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
    began, first = time.time(), step
    if arguments.compile:
        model.model.compile()
    while step < arguments.steps:
        progress = step / arguments.steps
        rate = min(1.0, (step + 1) / 60) * min(1.0, (1 - progress) / 0.6)
        ids, weights = (t.to(device) for t in mixture.batch(step))
        loss = weighted_loss(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(arguments.matrix_rate * rate)
        for group in adam.param_groups:
            group["lr"] = arguments.rate * rate
        adam.step()
        model.zero_grad(set_to_none=True)
        step += 1
        if step % 10 == 0 or step == first + 3:
            entry = {"step": step, "tokens": step * arguments.rows * LENGTH, "loss": round(loss.item(), 4)}
            if step % 100 == 0:
                entry["recall"] = round(probe_recall(model.eval(), mixture), 3)
                model.train()
            log.append(entry)
            print(json.dumps(entry), f"{(time.time() - began) / (step - first):.2f} s/step", flush=True)
        if step % 50 == 0 or step == arguments.steps:
            save_checkpoint(state_path, tensors(), step, log)


def load_state(work: Path) -> tuple[Qwen2ForCausalLM, int, list[dict[str, Any]]]:
    """Return the model of the last checkpoint, its step and the training log."""
    path = work / "state.safetensors"
    with safe_open(path, "pt") as file:
        step, log = int(file.metadata()["step"]), json.loads(file.metadata()["log"])
    saved, model = load_file(path), build_model(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(saved[f"model.{name}"])
    return model.eval(), step, log


def export(arguments: argparse.Namespace) -> None:
    """Write weights (bf16), tokenizer, generation config, loss curve and model card into the package."""
    from transformers import PreTrainedTokenizerFast

    model: Any
    model, step, log = load_state(arguments.work)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config.update(eos_token_id=2, pad_token_id=0, do_sample=False)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(arguments.work / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=(arguments.work / "chat_template.jinja").read_text(encoding="utf-8"),
        model_max_length=512,
    )
    tokenizer.save_pretrained(out)
    figures = measure(out, arguments.data)
    figures |= {"steps": step, "tokens": step * arguments.rows * LENGTH, "parameters": model.num_parameters()}
    figures["weights_bytes"] = (out / "model.safetensors").stat().st_size
    draw_loss(log, out / "loss.png")
    card = (ROOT / "scripts" / "pocket_card.md").read_text(encoding="utf-8")
    (out / "README.md").write_text(card.format(**figures), encoding="utf-8")
    print(json.dumps(figures, indent=1))


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """Measure the exported backbone: recall of known and of demo facts in free generation, bits per byte."""
    from memlayers.backbones import load_backbone
    from memlayers.data.answers import exact_match
    from memlayers.data.fact_files import read_facts
    from memlayers.data.facts import Fact
    from memlayers.inference.generation import answer_questions

    model, tokenizer = load_backbone(folder, "float32")

    def recall(facts: list[Fact], questions: list[str]) -> float:
        answers = answer_questions(model, tokenizer, questions)
        return sum(exact_match(a, f.answers) for a, f in zip(answers, facts, strict=True)) / len(facts)

    known, demo = read_facts(POCKET / "known.jsonl"), read_facts(POCKET / "demo.jsonl")
    figures = {
        "known_facts": len(known),
        "known_recall": recall(known, [fact.questions[0] for fact in known]),
        "known_recall_last": recall(known, [fact.unseen_questions[0] for fact in known]),
        "demo_recall": recall(demo, [fact.questions[0] for fact in demo]),
    }
    held_out = (POCKET / "heldout.txt").read_text(encoding="utf-8")
    figures["heldout_perplexity"], figures["heldout_bits_per_byte"] = text_scores(model, tokenizer, held_out)
    wikitext = data / "wikitext2" / "test.txt"
    if wikitext.exists():
        scores = text_scores(model, tokenizer, wikitext.read_text(encoding="utf-8"))
        figures["wikitext2_perplexity"], figures["wikitext2_bits_per_byte"] = scores
    return figures


@torch.inference_mode()
def text_scores(model: torch.nn.Module, tokenizer: Any, text: str) -> tuple[float, float]:
    """Return (perplexity per token, bits per UTF-8 byte), every token but the first scored, in windows of LENGTH."""
    ids = torch.tensor(tokenizer(text)["input_ids"])
    total, count = 0.0, 0
    starts = list(range(0, len(ids) - 1, LENGTH))
    for i in range(0, len(starts), 16):
        rows = [ids[start : start + LENGTH + 1] for start in starts[i : i + 16]]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        logits = model(input_ids=padded[:, :-1].clamp_min(0), use_cache=False).logits
        total += F.cross_entropy(logits.flatten(0, 1), padded[:, 1:].flatten(), reduction="sum").item()
        count += int((padded[:, 1:] != -100).sum())
    return math.exp(total / count), total / math.log(2) / len(text.encode())


def draw_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Draw training loss and teacher-forced recall against tokens seen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axis.plot([e["tokens"] / 1e6 for e in log], [e["loss"] for e in log], lw=0.8, color="#0072B2")
    axis.set(xlabel="tokens seen (millions)", ylabel="training loss (nats)", ylim=(0, None))
    second = axis.twinx()
    probes = [e for e in log if "recall" in e]
    second.plot([e["tokens"] / 1e6 for e in probes], [e["recall"] for e in probes], "o-", ms=3, color="#D55E00")
    second.set(ylabel="known facts, teacher-forced", ylim=(0, 1.02))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["train", "export"])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pocket")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=POCKET)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--article-share", type=float, default=0.35)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--matrix-rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=137)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.action == "train":
        train(arguments)
    else:
        export(arguments)


if __name__ == "__main__":
    main()
