"""Everything that needs a GPU, in one run: tests, kernels against the card's bandwidth, a 7B teaching step in 24 GB.

1. The kernels' and the optimizer's tests, compiled, on the card.
2. ``memlayers bench`` at 1,000,000 x 3584 bf16, 4 heads x top-32, and at 50,176 slots, with every peer installed.
3. Qwen2.5-7B's shape with random weights (its config is shipped; nothing is downloaded), the process capped at 24 GiB:
   teaching steps at 501,264 slots (bf16 pool) and at 1,000,000 (int8 pool, state in host memory), reading 8 slots a
   token and layer, with and without the memory.

Leaves ``benchmarks/results/gpu/{bench-1m,bench-50k,steps}.json`` with device and versions.

Example: ``python benchmarks/gpu.py`` (about 10 minutes on an H100)
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from memlayers.bench.figures import Shape, read_bench, write_bench
from memlayers.bench.overhead import LARGE
from memlayers.bench.report import write_bench_report
from memlayers.bench.run import run_bench
from memlayers.files import atomic_write_text
from memlayers.results import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
CARD_BYTES = 24 * 2**30
STEPS, BATCH, LENGTH, ANSWER = 8, 4, 64, 8
POOLS: dict[str, dict[str, Any]] = {
    "500k, bf16 pool, stochastic": {"sub_keys": 708, "pool_dtype": "bfloat16", "optimizer": {"rounding": "stochastic"}},
    "1M, int8 pool, host state": {"sub_keys": 1000, "pool_dtype": "int8", "optimizer": {"state_device": "host"}},
}


def main() -> None:
    """Run all three parts; a part that fails is written down as failed, and the others still run."""
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: no GPU here; run it where torch.cuda.is_available()", file=sys.stderr)
        sys.exit(2)
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {"environment": environment(f"cuda {torch.cuda.get_device_name()}")}
    tests = [sys.executable, "-m", "pytest", "-q", "tests/test_kernels.py", "tests/test_optimizer.py"]
    rows["tests"] = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True, check=False).stdout[-2000:]
    print(rows["tests"])
    for name, shape in (
        ("bench-1m", Shape(slots=1_000_000, tokens=1024, heads=4, top_k=32, layers=1, dtype="bfloat16")),
        ("bench-50k", Shape(dtype="bfloat16")),
    ):
        bench = run_bench(shape, device="cuda", repeats=20, overhead=name == "bench-50k", note=print)
        write_bench(RESULTS / f"{name}.json", bench)
        write_bench_report(RESULTS / f"{name}.json", RESULTS / name)
        print((RESULTS / name / "bench.md").read_text(encoding="utf-8"))
    rows["shares_of_copy_bandwidth"] = {
        f"{timing.stage}, {timing.indices}": timing.gb_per_s / bench.roofs["default"]["sequential"]
        for bench in [read_bench(RESULTS / "bench-1m.json")]
        for timing in bench.timings
        if timing.bytes and timing.variant == "memlayers"
    }
    for name, pool in POOLS.items():
        try:
            rows[name] = teaching_steps(**pool)
        except torch.cuda.OutOfMemoryError as error:
            rows[name] = {"failed": str(error).splitlines()[0]}
        print(name, json.dumps(rows[name]))
        gc.collect()
        torch.cuda.empty_cache()
    atomic_write_text(RESULTS / "steps.json", json.dumps(rows, indent=1) + "\n")


def teaching_steps(sub_keys: int, pool_dtype: str, optimizer: dict[str, Any]) -> dict[str, Any]:
    """Teach a random Qwen2.5-7B within 24 GiB: milliseconds with the memory, of the bare backbone, and the peak."""
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from memlayers.generate import without_memory
    from memlayers.optimizer import RowAdamW
    from memlayers.tuner import MemoryConfig, memory_layers, value_pool

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_BYTES / total))
    torch.cuda.reset_peak_memory_stats()
    settings = json.loads(LARGE.read_text(encoding="utf-8"))
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("cuda"):
        backbone = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False).eval()
    memory = MemoryConfig(layers=[6, 14, 22], sub_keys=sub_keys, heads=1, top_k=8, pool_dtype=pool_dtype)
    model: Any = get_peft_model(backbone, memory)
    pool = value_pool(model, "default")
    steps = RowAdamW([pool.parameter], lr=1e-3, semantics="lazy", **optimizer)
    nudge = torch.nn.Parameter(torch.zeros(config.hidden_size, device="cuda", dtype=torch.bfloat16))
    generator = torch.Generator().manual_seed(0)

    def loss() -> torch.Tensor:
        ids = torch.randint(1000, 100_000, (BATCH, LENGTH), generator=generator).cuda()
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=ANSWER + 1).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, -ANSWER:].flatten())

    def timed(call: Any) -> float:
        taken = []
        for _ in range(STEPS):
            torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            torch.cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - began))
        return median(taken[2:])

    def taught() -> None:
        loss().backward()
        steps.step()
        steps.zero_grad()

    def bare() -> None:  # a nudge at the first memory layer, so that the same layers are differentiated
        handle = memory_layers(model)[0].base_layer.register_forward_hook(lambda layer, inputs, output: output + nudge)
        with without_memory(model):
            loss().backward()
        handle.remove()

    with_memory = timed(taught)
    peak = torch.cuda.max_memory_allocated()
    alone = timed(bare)
    torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "slots": sub_keys**2, "tokens": BATCH * LENGTH, "step_ms": with_memory, "backbone_step_ms": alone,
        "overhead": with_memory / alone - 1, "peak_gib": peak / 2**30, "cap_gib": 24,
        "rows_touched": len(steps.state_dict()["state"][0]["rows"]),
    }  # fmt: skip


if __name__ == "__main__":
    main()
