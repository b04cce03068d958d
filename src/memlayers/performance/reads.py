"""One step's reads for the bench: uniform, Zipf, or what the memory really reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memlayers.performance.figures import Shape


@dataclass(frozen=True, slots=True)
class Reads:
    """One step's reads: per layer, indices int64 [tokens, reads], weights and what comes back, [tokens, dim]."""

    indices: list[Tensor]
    weights: list[Tensor]
    gradients: list[Tensor]

    @property
    def unique_ratio(self) -> float:
        """Distinct slots over reads."""
        together = torch.cat([each.flatten() for each in self.indices])
        return len(together.unique()) / len(together)


def make_reads(shape: Shape, kind: str, device: torch.device, seed: int) -> Reads:
    """Makes reads.

    Args:
        shape: how many.
        kind: "uniform"; "zipf", the slot of rank r read in proportion to 1 / r; or "real", what the memory layers of
            the pocket backbone read when it is taught demo facts, calibrated for a pool of this size.
        device: where to put them.
        seed: of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (shape.layers, shape.tokens, shape.reads)
    if kind == "real":
        drawn = real_indices(shape, seed)
    elif kind == "zipf":
        share = 1 / torch.arange(1, shape.slots + 1, dtype=torch.float64)
        ranks = torch.searchsorted(share.cumsum(0) / share.sum(), torch.rand(size, generator=generator).double())
        drawn = torch.randperm(shape.slots, generator=generator)[ranks.clamp_max(shape.slots - 1)]
    else:
        drawn = torch.randint(shape.slots, size, generator=generator)
    weights = torch.rand(size, generator=generator).softmax(-1)
    gradients = torch.randn(shape.layers, shape.tokens, shape.dim, generator=generator)
    return Reads(*(list(each.to(device)) for each in (drawn, weights, gradients)))


def real_indices(shape: Shape, seed: int) -> Tensor:
    """What the pocket backbone's memory layers read, int64 [layers, tokens, reads], of a pool of this size.

    Addressing is calibrated as `teach` does it, on a sample of the demo facts and of the general text; layers beyond
    the pocket's three repeat them.
    """
    from peft import get_peft_model

    from memlayers.backbones import POCKET, load_backbone
    from memlayers.data.encoding import encode_example
    from memlayers.data.fact_files import read_facts
    from memlayers.data.general_text import load_general_text
    from memlayers.inference.capture import collect_features
    from memlayers.teaching.calibrate import calibrate
    from memlayers.tuner import MemoryConfig, memory_handle, memory_layers

    backbone, tokenizer = load_backbone("pocket", "float32")
    config = MemoryConfig(sub_keys=shape.sub_keys, heads=shape.heads, top_k=shape.top_k, key_dim=64, seed=seed)
    model = get_peft_model(backbone, config)
    facts = read_facts(POCKET / "demo.jsonl")[:300]
    prompts = [encode_example(tokenizer, fact.questions[0], fact.answer).input_ids for fact in facts]
    texts = load_general_text(None, backbone, tokenizer, seed).encode(tokenizer, 256)[:200]
    features = [collect_features(memory_handle(model, "default"), sequences) for sequences in (prompts, texts)]
    calibrate(memory_handle(model, "default"), features)
    found = []
    for layer, seen in zip(memory_layers(model, "default"), features[0], strict=True):
        tokens = seen.inputs[torch.arange(shape.tokens) % len(seen.inputs)]
        found.append(torch.cat([layer.read(part, "default").indices for part in tokens.split(2048)]))
    return torch.stack([found[number % len(found)] for number in range(shape.layers)])
