"""The plan's sum for a teaching step against its measured peak: pocket on a CPU, two pool sizes, four schemes.

The step alone, in a bare loop; `plan_teach` holds the plan against a whole ``memlayers teach``.

Each case teaches in a process of its own: the libraries' own memory is measured there before the backbone is loaded,
and what comes on top until the end, at its peak, is held against the plan's sum (weights, addressing, pool, state of
the rows really touched, log, scores, activations; no reserve, no fragmentation). Once with glibc told to give every
block back at once, so that the process holds what is alive; and once as it comes, when it keeps freed blocks too.

Leaves ``benchmarks/results/plan.json``. Example: ``python -m benchmarks.performance.plan_step`` (2 minutes; Linux)
"""

from __future__ import annotations

import argparse
import gc
import json
from typing import Any

import torch
from peft import get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks import common
from benchmarks.performance.own_process import measured_twice, memory_bytes
from memlayers.backbones import POCKET, load_backbone
from memlayers.performance.backbone_size import read_backbone
from memlayers.performance.plan import SCHEMES, Scheme, Work, make_plan
from memlayers.pool.optimizers import make_optimizer
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner import MemoryConfig, memory_handle
from memlayers.utils.environment import environment

OUT = common.RESULTS / "plan.json"
BATCH, LENGTH, ANSWER, STEPS = 32, 24, 5, 6
NAMES = ("float32, torch's AdamW", "float32, 32-bit state", "bfloat16 stochastic, 8-bit state", "int8, host state")
CASES = [(sub_keys, scheme) for sub_keys in (384, 1024) for scheme in SCHEMES if scheme.name in NAMES]


def main() -> None:
    """Measure every case in a process of its own."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help=argparse.SUPPRESS)
    case = parser.parse_args().case
    if case is not None:
        print(json.dumps(measure(*CASES[case])))
        return
    rows = []
    for number in range(len(CASES)):
        row, default = measured_twice("benchmarks.performance.plan_step", number)
        row["measured_default_malloc_mb"] = default["measured_mb"]
        rows.append(row)
        print(
            f"{row['scheme']:36} {row['slots']:>9,} slots: predicted {row['predicted_mb']:.0f} MB, measured "
            f"{row['measured_mb']:.0f} MB, ratio {row['ratio']:.3f}; with default malloc "
            f"{row['measured_default_malloc_mb']:.0f} MB"
        )
    common.write_json(OUT, {"environment": environment("cpu"), "rows": rows})


def measure(sub_keys: int, scheme: Scheme) -> dict[str, Any]:
    """Teach pocket some steps of random tokens, every token reading the memory; megabytes are 10^6."""
    options: dict[str, Any] = {}
    if scheme.optimizer == "row-adamw":
        options = {"state_bits": scheme.optimizer_bits, "state_device": scheme.optimizer_device,
                   "rounding": scheme.half_rounding}  # fmt: skip
    dtype = getattr(torch, scheme.pool_dtype)
    small = ValuePool(64, 8, dtype)  # compiles the kernels, which is not the pool's cost
    small.initialise("zero", 0)
    warm = make_optimizer(scheme.optimizer, [{"params": [small.parameter]}], lr=0.1, **options)
    for _ in range(2):
        small(torch.zeros(4, 8, dtype=torch.int64), torch.ones(4, 8)).sum().backward()
        warm.step()
    # So do the libraries behind a backbone: one of another size, and the pocket's tokenizer.
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    tiny = AutoConfig.for_model("qwen2", hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                                num_attention_heads=2, num_key_value_heads=1, vocab_size=64)  # fmt: skip
    other: Any = get_peft_model(AutoModelForCausalLM.from_config(tiny), MemoryConfig(sub_keys=8, heads=1, layers=[0]))
    other(input_ids=torch.ones(2, 8, dtype=torch.int64), use_cache=False).logits.sum().backward()
    gc.collect()
    assert tokenizer
    libraries = memory_bytes("VmRSS")
    backbone, _ = load_backbone("pocket", "float32")
    pool_dtype: Any = scheme.pool_dtype
    config = MemoryConfig(sub_keys=sub_keys, heads=8, key_dim=64, pool_dtype=pool_dtype)
    model: Any = get_peft_model(backbone, config)
    pool = memory_handle(model, "default").pool
    optimizer = make_optimizer(scheme.optimizer, [{"params": [pool.parameter]}], lr=0.1, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        ids = torch.randint(5, 6000, (BATCH, LENGTH), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=ANSWER).logits
        cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1 - ANSWER :].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = memory_bytes("VmHWM") - libraries
    state = optimizer.state_dict()["state"][0]
    touched = len(state["rows"]) if "rows" in state else sub_keys**2
    work = Work(sub_keys, 8, 8, 64, (2, 4, 6), BATCH, LENGTH, ANSWER, "float32", touched)
    lines = make_plan(read_backbone("pocket"), work, vram=24, host=64)
    line = next(line for line in lines if line.scheme == scheme)
    predicted = line.weights + line.pool + line.state + line.log + line.activations
    return {
        "scheme": scheme.name, "slots": sub_keys**2, "rows_touched": touched, "predicted_mb": predicted / 1e6,
        "measured_mb": measured / 1e6, "ratio": predicted / measured, "libraries_mb": libraries / 1e6,
    }  # fmt: skip


if __name__ == "__main__":
    common.start(main)
