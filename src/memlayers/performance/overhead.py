"""The memory's share of the frozen backbone's own work: measured on pocket, computed for a 7B model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memlayers.performance.figures import Clock, Shape
from memlayers.performance.reads import make_reads
from memlayers.performance.stages import BETAS, EPS, RATE, make_pool, measure_roofs
from memlayers.pool.product_keys import product_key_top_k
from memlayers.pool.row_adamw import RowAdamW

BATCH, LENGTH = 32, 24  # what a step of the demo holds
LARGE = Path(__file__).parent / "backbone_configs" / "qwen2.5-7b.json"


def measure_overhead(device: str, repeats: int, seed: int) -> dict[str, float]:
    """Shares of the backbone's own time that the memory adds.

    The backbone's own teaching step is a forward, and a backward down to its first memory layer. Measured on pocket
    with the demo's memory, every token reading it (a gate lowers the share). Computed for Qwen2.5-7B's shape
    from rates of this machine: two operations per weight and token at the measured matmul rate, its weights once per
    generated token at the sequential rate, and the memory's own stages as measured at d = 3584.

    Returns:
        "pocket_step", "pocket_token", and "7b_step_n8", "7b_step_n32", "7b_token_n8": memory's time over the
        backbone's; and the milliseconds they are made of.
    """
    clock = Clock(torch.device(device), repeats)
    return {**_pocket(clock, seed), **_large(clock, seed)}


def _pocket(clock: Clock, seed: int) -> dict[str, float]:
    from peft import get_peft_model

    from memlayers.backbones import load_backbone
    from memlayers.tuner import MemoryConfig, memory_handle, memory_layers
    from memlayers.tuner.handle import without_memory

    backbone, _ = load_backbone("pocket", "float32", clock.device)
    config = MemoryConfig(sub_keys=384, heads=8, key_dim=64, seed=seed)
    model: Any = get_peft_model(backbone, config)
    layers = memory_layers(model)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 2000, (BATCH, LENGTH), generator=generator).to(clock.device)
    labels = ids.clone()
    labels[:, :-4] = -100  # answers of four tokens
    pool = memory_handle(model, "default").pool
    optimizer = RowAdamW([pool.parameter], lr=1e-3, betas=BETAS, eps=EPS)
    nudge = nn.Parameter(torch.zeros(layers[0].dim, device=clock.device))

    def loss() -> Tensor:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=5).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, -4:].flatten())

    def with_memory() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    def alone() -> None:
        handle = layers[0].base_layer.register_forward_hook(lambda module, inputs, output: output + nudge)
        with without_memory(model):
            loss().backward()
        handle.remove()
        nudge.grad = None

    taken = {"pocket_step_ms": clock(with_memory)[0], "pocket_backbone_step_ms": clock(alone)[0]}
    model.eval()

    def generate() -> None:
        model.generate(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=32,
                       min_new_tokens=32, do_sample=False, pad_token_id=0)  # fmt: skip

    def generate_alone() -> None:
        with without_memory(model):
            generate()

    taken["pocket_token_ms"] = clock(generate)[0] / 32
    taken["pocket_backbone_token_ms"] = clock(generate_alone)[0] / 32
    return {
        "pocket_step": taken["pocket_step_ms"] / taken["pocket_backbone_step_ms"] - 1,
        "pocket_token": taken["pocket_token_ms"] / taken["pocket_backbone_token_ms"] - 1,
        **taken,
    }


def _large(clock: Clock, seed: int) -> dict[str, float]:
    """Qwen2.5-7B's shape: 512 tokens a step, 50,176 slots, three memory layers; the first of them at layer 6 of 28."""
    config = json.loads(LARGE.read_text(encoding="utf-8"))
    d, inner, depth = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    layer = 2 * d * d + 2 * d * kv + 3 * d * inner
    weights = depth * layer + config["vocab_size"] * d
    shape = Shape()
    roofs = measure_roofs(shape, clock)
    backward = 1 - 6 / depth * (depth * layer) / weights  # activations only: no weight has a gradient
    half = 2 if clock.device.type == "cuda" else 4  # bytes of a weight
    found = {
        "7b_backbone_step_ms": 2 * weights * shape.tokens * (1 + backward) / roofs["matmul"] / 1e6,
        "7b_backbone_token_ms": weights * half / roofs["sequential"] / 1e6,
    }
    for reads in (8, 32):
        shape = Shape(heads=reads // 8)
        step, token = _memory_ms(shape, clock, seed)
        found[f"7b_step_n{reads}_ms"], found[f"7b_token_n{reads}_ms"] = step, token
        found[f"7b_step_n{reads}"] = step / found["7b_backbone_step_ms"]
        found[f"7b_token_n{reads}"] = token / found["7b_backbone_token_ms"]
    return found


def _memory_ms(shape: Shape, clock: Clock, seed: int) -> tuple[float, float]:
    """The memory's own milliseconds in a teaching step and for a generated token, from the query to the optimizer."""
    reads = make_reads(shape, "uniform", clock.device, seed)
    pool = make_pool(shape, clock.device)
    optimizer = RowAdamW([pool.parameter], lr=RATE, betas=BETAS, eps=EPS)
    key_dim = shape.dim // shape.heads
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(shape.dim, shape.heads * key_dim, generator=generator).to(clock.device)
    sub_keys = torch.randn(2, shape.heads, shape.sub_keys, key_dim // 2, generator=generator).to(clock.device)
    x = torch.randn(shape.tokens, shape.dim, generator=generator).to(clock.device)

    def choose(tokens: Tensor) -> Tensor:
        query = (tokens @ projection).view(len(tokens), shape.heads, 2, key_dim // 2)
        scores = torch.einsum("nhsk,shmk->snhm", query, sub_keys)
        return product_key_top_k(scores[0], scores[1], shape.top_k)[1]

    def step() -> None:
        outputs = []
        for index, weight in zip(reads.indices, reads.weights, strict=True):
            choose(x)
            outputs.append(pool(index, weight))
        torch.autograd.backward(outputs, reads.gradients)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def token() -> None:
        for index, weight in zip(reads.indices, reads.weights, strict=True):
            choose(x[:1])
            pool(index[:1], weight[:1])

    return clock(step)[0], clock(token)[0]
