"""What a memory costs where nothing is said of what it holds: greedy generation with its gate closed throughout.

Pocket's shape, and the same ten times as wide; random weights. The memory is the demo's: 384 x 384 slots read by three
layers, and an index of subjects, none of which the text mentions. The bare backbone has the same weights, in the same
process; the two take turns, and the figure is the median of the turns' ratios.

Leaves ``benchmarks/results/closed_gate.json``. Example: ``python -m benchmarks.performance.closed_gate`` (4 minutes)
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import common
from memlayers.backbones import POCKET, quiet_wrapping
from memlayers.tuner import MemoryConfig, memory_handle
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

OUT = common.RESULTS / "closed_gate.json"
WIDTHS = {1: 64, 10: 24}
"""How many times as wide as pocket, and how many tokens are generated."""
PROMPT, SUBJECTS, SCOPE = 24, 500, 48


def build(times: int, seed: int) -> tuple[Any, Any]:
    """The bare backbone, and a copy that shares its weights and has a memory."""
    config = AutoConfig.from_pretrained(POCKET)
    config.hidden_size *= times
    config.intermediate_size *= times
    config.num_attention_heads *= times
    config.num_key_value_heads *= times
    torch.manual_seed(seed)
    backbone = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False).eval()
    with torch.device("meta"):
        copy = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    copy.load_state_dict(backbone.state_dict(), assign=True)
    copy.tie_weights()
    for name, module in backbone.named_modules():  # buffers that are not saved: rotary frequencies
        for buffer, value in module.named_buffers(recurse=False):
            setattr(copy.get_submodule(name), buffer, value)
    with quiet_wrapping():
        model: Any = get_peft_model(
            copy, MemoryConfig(sub_keys=384, heads=8, key_dim=64, gate=True, subjects=True, seed=seed)
        )
    memory = memory_handle(model.eval())
    assert memory.index is not None
    forms: dict[tuple[int, ...], tuple[int, ...]] = {
        (config.vocab_size - 1, number): (number,) for number in range(3, 3 + SUBJECTS)
    }
    memory.index.fill(forms, SCOPE)
    memory.gates[0].trained.fill_(1)
    return backbone, model


def seconds(model: Any, ids: Tensor, tokens: int) -> tuple[float, Tensor]:
    """For a generation of so many tokens, and what was generated."""
    start = time.perf_counter()
    with torch.inference_mode():
        said = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
    return time.perf_counter() - start, said


def main() -> None:
    """Measures, prints and writes."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default: 9)")
    parser.add_argument("--seed", type=int, default=137)
    arguments = parser.parse_args()
    cases = []
    for times, tokens in WIDTHS.items():
        backbone, model = build(times, arguments.seed)
        ids = torch.randint(3, 6000, (1, PROMPT), generator=torch.Generator().manual_seed(arguments.seed))
        ratios, bare_ms = [], []
        for turn in range(arguments.rounds + 1):  # the first is not counted
            pair = (backbone, model) if turn % 2 else (model, backbone)
            taken = {id(each): seconds(each, ids, tokens) for each in pair}
            (bare, said_bare), (own, said) = taken[id(backbone)], taken[id(model)]
            assert torch.equal(said, said_bare)  # the gate was closed
            if turn:
                ratios.append(own / bare)
                bare_ms.append(bare / tokens * 1e3)
        cases.append(
            {
                "times as wide": times, "tokens": tokens, "rounds": arguments.rounds,
                "backbone ms per token": round(statistics.median(bare_ms), 3),
                "ratio": round(statistics.median(ratios), 4),
                "ratio, least and most": [round(min(ratios), 4), round(max(ratios), 4)],
            }
        )  # fmt: skip
        print(json.dumps(cases[-1]))
    found = {"cases": cases, "seed": arguments.seed, "environment": environment("cpu")}
    atomic_write_text(OUT, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
