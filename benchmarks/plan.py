"""The plan's sum for a teaching step against its measured peak: pocket on a CPU, two pool sizes, four schemes.

The step alone, in a bare loop; `plan_teach.py` holds the plan against a whole ``memlayers teach``.

Each case teaches in a process of its own: the libraries' own memory is measured there before the backbone is loaded,
and what comes on top until the end, at its peak, is held against the plan's sum (weights, addressing, pool, state of
the rows really touched, log, scores, activations; no reserve, no fragmentation). Once with glibc told to give every
block back at once, so that the process holds what is alive; and once as it comes, when it keeps freed blocks too.

Leaves ``benchmarks/results/plan.json``. Example: ``python benchmarks/plan.py`` (2 minutes; Linux)
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from memlayers.performance.backbone_size import read_backbone
from memlayers.performance.plan import SCHEMES, Scheme, Work, make_plan
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

RESULTS = Path(__file__).resolve().parent / "results" / "plan.json"
BATCH, LENGTH, ANSWER, STEPS = 32, 24, 5, 6
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
NAMES = ("float32, torch's AdamW", "float32, 32-bit state", "bfloat16 stochastic, 8-bit state", "int8, host state")


def main() -> None:
    """Measure every case in a process of its own."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]), Scheme(**json.loads(sys.argv[2])))))
        return
    rows = []
    for sub_keys in (384, 1024):
        for scheme in (scheme for scheme in SCHEMES if scheme.name in NAMES):
            command = [sys.executable, __file__, str(sub_keys), json.dumps(dataclasses.asdict(scheme))]
            found = []
            for variables in (GIVE_BACK, {}):
                done = subprocess.run(
                    command, env={**os.environ, **variables}, check=True, stdout=subprocess.PIPE, text=True
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
            rows.append({**found[0], "measured_default_malloc_mb": found[1]["measured_mb"]})
            row = rows[-1]
            print(
                f"{row['scheme']:36} {row['slots']:>9,} slots: predicted {row['predicted_mb']:.0f} MB, measured "
                f"{row['measured_mb']:.0f} MB, ratio {row['ratio']:.3f}; with default malloc "
                f"{row['measured_default_malloc_mb']:.0f} MB"
            )
    head = json.dumps(environment("cpu"))
    lines = ",\n  ".join(map(json.dumps, rows))
    atomic_write_text(RESULTS, f'{{"environment": {head},\n"rows": [\n  {lines}\n]}}\n')


def measure(sub_keys: int, scheme: Scheme) -> dict[str, Any]:
    """Teach pocket some steps of random tokens, every token reading the memory; megabytes are 10^6."""
    import gc
    import resource

    import torch
    from peft import get_peft_model
    from torch.nn.functional import cross_entropy
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from memlayers.backbones import POCKET, load_backbone
    from memlayers.pool.optimizers import make_optimizer
    from memlayers.pool.value_pool import ValuePool
    from memlayers.tuner import MemoryConfig, memory_handle

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
    libraries = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    backbone, _ = load_backbone("pocket", "float32")
    model: Any = get_peft_model(
        backbone, MemoryConfig(sub_keys=sub_keys, heads=8, key_dim=64, pool_dtype=scheme.pool_dtype)
    )
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
    measured = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - libraries
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
    main()
