"""Everything that needs a GPU: tests, the user's way through, kernels against the card's bandwidth, 7B in 24 GB.

* ``tests``: the kernels' and the optimizer's tests, compiled, on the card.
* ``pocket``: `memlayers demo` on the card in bfloat16 (a GPU's default) and float32; its memory forgets a fact, takes
  that back, byte for byte, and is asked on the CPU; every way to store the pool and the optimizer's state teaches 60
  facts; the same seed teaches the same bytes twice.
* ``bench``: `memlayers bench` at 1,000,000 x 3584 bf16, 4 heads x top-32, and at 50,176 slots, with every peer
  installed.
* ``steps``: Qwen2.5-7B's shape with random weights (its config is shipped; nothing is downloaded), the process capped
  at 24 GiB: teaching steps at 501,264 slots (bf16 pool) and at 1,000,000 (int8 pool, state in host memory), reading 8
  slots a token and layer, with and without the memory: how long a step takes, how long the GPU works in it, and how
  often it is waited for.

Leaves ``benchmarks/results/gpu/*.json`` with device and versions. A part that fails is told; the others still run.

Example: ``python -m benchmarks.performance.gpu`` (about 6 minutes on an H100), or with the parts, ``... bench steps``
"""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import common
from memlayers.evaluation.results import read_results
from memlayers.inference.generation import answer_questions
from memlayers.performance.bench import run_bench
from memlayers.performance.figures import Bench, Shape, write_bench
from memlayers.performance.overhead import LARGE
from memlayers.performance.report import write_bench_report
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError, WorkError

RESULTS = common.RESULTS / "gpu"
CARD_BYTES = 24 * 2**30
SHOWN, PASSES, BATCHES, LENGTH, ANSWER = 9, 3, (4, 8, 16), 64, 8
POOLS: dict[str, dict[str, Any]] = {
    "500k, bf16 pool, stochastic": {"sub_keys": 708, "pool_dtype": "bfloat16", "optimizer": {"rounding": "stochastic"}},
    "1M, int8 pool, host state": {"sub_keys": 1000, "pool_dtype": "int8", "optimizer": {"state_device": "host"}},
}
STORAGE: dict[str, dict[str, Any]] = {
    "float32 pool, dense": {},
    "float32 pool, dense, again": {},
    "float32 pool, lazy": {"optimizer_semantics": "lazy"},
    "bfloat16 pool, float32 master": {"pool_dtype": "bfloat16"},
    "bfloat16 pool, stochastic, 8-bit state": {
        "pool_dtype": "bfloat16", "half_rounding": "stochastic", "optimizer_bits": 8,
    },
    "int8 pool, state on the host": {"pool_dtype": "int8", "optimizer_device": "host"},
    "torch's AdamW": {"optimizer": "adamw"},
    "dense recipe": {"recipe": "dense"},
}  # fmt: skip
STORED_FACTS = 60


def main() -> None:
    """Run the parts asked for, or all."""
    parts = {"tests": tests, "pocket": pocket, "bench": bench, "steps": steps}
    parser = common.argument_parser(__doc__)
    common.some_of(parser, parts, "part")
    given = parser.parse_args().names
    if not torch.cuda.is_available():
        raise InputError("no GPU here; run it where torch.cuda.is_available()")
    failed = []
    for name in given or parts:
        began = time.perf_counter()
        try:
            parts[name]()
        except Exception:  # one part's failure says nothing of the others
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    if failed:
        raise WorkError(f"failed: {', '.join(failed)}; see above")


def write(name: str, found: dict[str, Any]) -> None:
    """A part's figures, with the environment beside them."""
    common.write_json(RESULTS / f"{name}.json", {"environment": environment("cuda:0"), **found})


def tests() -> None:
    """The last lines of what pytest says."""
    kernels = [f"tests/kernels/test_{name}.py" for name in ("kernels", "compile")]
    pool = [f"tests/pool/test_{name}.py" for name in ("optimizers", "row_adamw", "row_state", "offload")]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "6", *kernels, *pool]
    done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:])
    write("tests", {"exit_code": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]})


def memlayers(*arguments: str | Path) -> subprocess.Popen[str]:
    """Starts a command of the package, as a user does."""
    command = [sys.executable, "-m", "memlayers.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(command: subprocess.Popen[str]) -> None:
    """Waits for it, and raises if it failed."""
    said, _ = command.communicate()
    if command.returncode:
        raise RuntimeError(f"{command.args!r}: {said[-3000:]}")


def digest(folder: Path) -> str:
    """SHA-256 of a memory's weights."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def pocket() -> None:
    """The main job and everything that a memory is stored with, on the card."""
    from memlayers import TeachConfig, load_memory, teach_facts

    def recall(memory: Any, facts: Any) -> float:
        said = answer_questions(memory.model, memory.tokenizer, [fact.questions[0] for fact in facts])
        return sum(common.right(said, [fact.answers for fact in facts])) / len(facts)

    found: dict[str, Any] = {}
    facts = common.demo_facts()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        demos = {
            dtype: memlayers("demo", "--out", work / dtype, "--dtype", dtype, "--device", "cuda", "--quiet")
            for dtype in ("bfloat16", "float32")
        }
        for number, (kind, options) in enumerate(STORAGE.items()):
            config = TeachConfig().with_flags(device="cuda", dtype="float32", gate_steps=200, **options)
            taught = teach_facts(facts[:STORED_FACTS], work / str(number), config, quiet=True)
            found[kind] = {"recall": recall(taught, facts[:STORED_FACTS]), "sha256": digest(work / str(number))}
            print(kind, found[kind], flush=True)
            write("pocket", found)
        for dtype, demo in demos.items():
            finished(demo)
            found[f"demo, {dtype}"] = figures(work / dtype / "results.json")
            print(dtype, found[f"demo, {dtype}"], flush=True)
            write("pocket", found)
        memory = work / "float32" / "memory"
        before = digest(memory)
        finished(memlayers("forget", memory, "--subject", facts[0].subject, "--device", "cuda"))
        forgotten = digest(memory)
        finished(memlayers("undo", memory, "--device", "cuda"))
        found["forget"] = {"changed": forgotten != before, "undone to the byte": digest(memory) == before}
        on_cpu = load_memory(memory, device="cpu")
        found["demo, float32, asked on the CPU"] = {"recall": recall(on_cpu, facts)}
        print(found["forget"], found["demo, float32, asked on the CPU"], flush=True)
    write("pocket", found)


def figures(results: Path) -> dict[str, float]:
    """Each row's value."""
    return {f"{row.metric} {row.split}": row.value for row in read_results(results).rows}


def bench() -> None:
    """Two shapes; and the shares of the measured copying bandwidth."""
    shares = {}
    for name, shape in (
        ("bench-1m", Shape(slots=1_000_000, tokens=1024, heads=4, top_k=32, layers=1, dtype="bfloat16")),
        ("bench-50k", Shape(dtype="bfloat16")),
    ):
        small = name == "bench-50k"  # the peers' dense gradients and host copies take minutes at a million
        kinds = ("uniform", "zipf", "real") if small else ("uniform", "zipf")
        found = run_bench(shape, device="cuda", repeats=20, peers=small, overhead=small, indices=kinds, note=print)
        write_bench(RESULTS / f"{name}.json", found)
        write_bench_report(RESULTS / f"{name}.json", RESULTS / name)
        print((RESULTS / name / "bench.md").read_text(encoding="utf-8"), flush=True)
        shares[name] = shares_of_copying(found)
        print(json.dumps(shares[name], indent=1), flush=True)
        write("shares", shares)


def shares_of_copying(bench: Bench) -> dict[str, float]:
    """Bytes that memory must move at least, over time, over what a large copy moves.

    Less than the bench's own count: gradients of tokens are read again and again, but from the cache.
    """
    shares = {}
    for timing in bench.timings:
        if timing.bytes and timing.variant == "memlayers":
            shape, moved = timing.shape, timing.bytes
            if timing.stage.startswith(("fused step", "gradient norm")):
                again = shape.layers * shape.tokens * (shape.reads - 1) * shape.dim * 4
                moved -= again
            shares[f"{timing.stage}, {timing.indices}"] = moved / timing.ms / 1e6 / bench.roofs["default"]["sequential"]
    return shares


def steps() -> None:
    """Each pool's teaching steps; written row by row, so that a run cut off leaves what it had."""
    found: dict[str, Any] = {}
    for name, pool in POOLS.items():
        for key, row in teaching_steps(**pool):
            found[f"{name}, {key}"] = row
            print(name, key, json.dumps(row), flush=True)
            write("steps", found)
        gc.collect()
        torch.cuda.empty_cache()


def teaching_steps(sub_keys: int, pool_dtype: Any, optimizer: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Teach a random Qwen2.5-7B within 24 GiB: milliseconds with the memory, of the bare backbone, and the peak."""
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from memlayers.pool.row_adamw import RowAdamW
    from memlayers.tuner import MemoryConfig, memory_handle, memory_layers
    from memlayers.tuner.handle import without_memory

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_BYTES / total))
    settings = json.loads(LARGE.read_text(encoding="utf-8"))
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("cuda"):
        backbone = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False).eval()
    memory = MemoryConfig(layers=[6, 14, 22], sub_keys=sub_keys, heads=1, top_k=8, pool_dtype=pool_dtype)
    model: Any = get_peft_model(backbone, memory)
    pool = memory_handle(model, "default").pool
    nudge = torch.nn.Parameter(torch.zeros(config.hidden_size, device="cuda", dtype=torch.bfloat16))

    def loss(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=ANSWER + 1).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, -ANSWER:].flatten())

    def taught(ids: torch.Tensor) -> None:
        loss(ids).backward()
        rows.step()
        rows.zero_grad()

    def bare(ids: torch.Tensor) -> None:  # a nudge at the first memory layer: the same layers are differentiated
        handle = memory_layers(model)[0].base_layer.register_forward_hook(lambda layer, inputs, output: output + nudge)
        with without_memory(model):
            loss(ids).backward()
        handle.remove()

    for batch in BATCHES:
        rows = RowAdamW([pool.parameter], lr=1e-3, semantics="lazy", **optimizer)
        # The same sequences again and again, as teaching shows them.
        shown = torch.randint(1000, 100_000, (SHOWN, batch, LENGTH), generator=torch.Generator().manual_seed(0)).cuda()
        torch.cuda.reset_peak_memory_stats()
        try:
            taught(shown[0])  # kernels are compiled
            first = passes(taught, shown[1:], 1)
            with_memory = passes(taught, shown[1:], PASSES)
            peak = torch.cuda.max_memory_allocated()
            bare(shown[0])
            alone = passes(bare, shown[1:], PASSES)
            busy, busy_alone = (busy_ms(call, shown[1:]) for call in (taught, bare))
            waited, waited_alone = (waits(call, shown[1]) for call in (taught, bare))
        except torch.cuda.OutOfMemoryError as error:
            yield f"{batch} x {LENGTH} tokens", {"failed": str(error).splitlines()[0]}
            break
        yield f"{batch} x {LENGTH} tokens", {
            "slots": sub_keys**2, "tokens": batch * LENGTH, "step_ms": with_memory, "backbone_step_ms": alone,
            "overhead": with_memory / alone - 1, "first_pass_step_ms": first, "gpu_busy_ms": busy,
            "backbone_gpu_busy_ms": busy_alone, "gpu_busy_overhead": busy / busy_alone - 1, "peak_gib": peak / 2**30,
            "host_waits": waited, "backbone_host_waits": waited_alone,
            "cap_gib": 24, "rows_touched": len(rows.state_dict()["state"][0]["rows"]),
            "host_threads": torch.get_num_threads(),
        }  # fmt: skip
    torch.cuda.set_per_process_memory_fraction(1.0)


def passes(call: Callable[[torch.Tensor], None], shown: torch.Tensor, number: int) -> float:
    """Median milliseconds of a step, over so many passes."""
    taken = []
    for ids in (*shown,) * number:
        torch.cuda.synchronize()
        began = time.perf_counter()
        call(ids)
        torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - began))
    return median(taken)


def waits(call: Callable[[torch.Tensor], None], ids: torch.Tensor) -> int:
    """How often a step waits for the GPU, as torch tells."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        call(ids)
        torch.cuda.set_sync_debug_mode("default")
    return len(told)


def busy_ms(call: Callable[[torch.Tensor], None], shown: torch.Tensor) -> float:
    """Milliseconds a step in which the GPU runs a kernel or copies, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for ids in shown:
            call(ids)
        torch.cuda.synchronize()
    total: float = sum(each.self_device_time_total for each in profiler.key_averages())
    return total / 1e3 / len(shown)


if __name__ == "__main__":
    common.start(main)
