"""A pool split by columns over 1, 2 and 4 processes (gloo): what each holds, what a step sends, against the plan.

512 tokens, read at 3 memory layers from a pool of 3584 columns (Qwen2.5-7B's width), 64 slots each; the tokens are
dealt to the processes, in 4 passes. Measured: bytes of the pool and of the optimizer's state; the process's peak over
what it holds without them (Linux); the bytes that the exchanges of a step are given for other processes; whether values
and norms are those of one process, to the bit. Predicted: `memlayers plan`'s sums.

The least that can be sent: of every token the sums of a process's columns to the process that asked, and back their
gradient; what is sent beyond are the reads, and a mark for each gradient.

Leaves ``benchmarks/results/scale/split_pool.json``.
Example: ``python -m benchmarks.performance.split_pool`` (2 minutes)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.performance.own_process import GIVE_BACK, forget_peak, memory_bytes
from memlayers.performance.backbone_size import read_backbone
from memlayers.performance.plan import Scheme, Work, log_bytes, traffic_bytes
from memlayers.pool.columns import Split
from memlayers.pool.row_adamw import RowAdamW
from memlayers.pool.value_pool import ValuePool
from memlayers.utils.environment import environment

OUT = common.RESULTS / "scale" / "split_pool.json"
PROCESSES = (1, 2, 4)
SUB_KEYS, DIM, TOKENS, READS, LAYERS, STEPS = 128, 3584, 512, 64, 3, 3
PASSES = 4  # of a step, whoever does them


def main() -> None:
    """Measure each number of processes by a launcher of its own."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().own:
        measure()
        return
    rows = []
    for size in PROCESSES:
        command = ["--nproc-per-node", str(size), "-m", "benchmarks.performance.split_pool", "--own"]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *command], cwd=common.ROOT, check=True, text=True,
            env={**os.environ, **GIVE_BACK, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        )  # fmt: skip
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]))
    digests = [row.pop("digest") for row in rows]
    for row, digest in zip(rows, digests, strict=True):
        row["same_bits"] = digest == digests[0]
    common.write_json(OUT, {
        "environment": environment("cpu"), "slots": SUB_KEYS**2, "dim": DIM, "tokens": TOKENS, "reads": READS,
        "layers": LAYERS, "rows": rows,
    })  # fmt: skip


def measure() -> None:
    """As one of the processes: steps of random reads; the first prints."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    columns = Split(init_device_mesh("cpu", (size,)), average=False).of(DIM)
    small = ValuePool(64, DIM, columns=columns)
    small.initialise("zero", 0)
    step(RowAdamW([small.parameter], lr=0.01), small, rank, size, 0)  # compiles the kernels
    forget_peak()
    before = memory_bytes("VmRSS")
    pool = ValuePool(SUB_KEYS**2, DIM, columns=columns)
    pool.initialise("zero", 0)
    optimizer = RowAdamW([pool.parameter], lr=0.01)
    sent, norms = watch(rank), []
    for number in range(STEPS):
        sent.clear()
        norms.append(step(optimizer, pool, rank, size, number))
    held = memory_bytes("VmHWM") - before
    optimizer.flush()
    touched = optimizer.state[pool.parameter]["touched"]
    state = sum(each.nbytes for chunk in touched.chunks for each in chunk if each is not None)
    work = Work(
        SUB_KEYS, 8, 8, 64, (6, 14, 22), TOKENS // 64, 64, 16, "float32", len(touched.rows), gpus=size, split=size > 1
    )
    backbone, scheme, own = read_backbone("qwen2.5-7b"), Scheme("float32"), work.columns(DIM)
    allocated = scheme.allocated_rows(work.slots, DIM, work.touched)
    predicted = scheme.pool_bytes(work.slots, own) + scheme.state_bytes(work.slots, own, allocated)
    predicted += log_bytes(backbone, work)
    everything = pool.table.values if columns is None else columns.whole(pool.table.values)
    if rank:
        return
    least = LAYERS * TOKENS // size * (size - 1) * (own + own) * 4
    read = LAYERS * TOKENS * READS * own * 4
    print(json.dumps({
        "processes": size, "pool_mb": round(pool.table.values.nbytes / 1e6, 1), "state_mb": round(state / 1e6, 1),
        "peak_mb": round(held / 1e6, 1), "predicted_mb": round(predicted / 1e6, 1),
        "sent_mb": round(sum(sent) / 1e6, 3), "predicted_sent_mb": round(traffic_bytes(backbone, work) / 1e6, 3),
        "least_sent_mb": round(least / 1e6, 3), "read_mb": round(read / 1e6, 1),
        "digest": [hashlib.sha256(everything.numpy().tobytes()).hexdigest(), norms],
    }))  # fmt: skip


def step(optimizer: RowAdamW, pool: ValuePool, rank: int, size: int, number: int) -> float:
    """One step, of which this process does its passes; the gradient's norm."""
    generator = torch.Generator().manual_seed(number)
    indices = torch.randint(pool.slots, (LAYERS, TOKENS, READS), generator=generator)
    weights = torch.rand(LAYERS, TOKENS, READS, generator=generator)
    wanted = torch.randn(LAYERS, TOKENS, DIM, generator=generator)
    each = TOKENS // PASSES
    for begin in range(rank * TOKENS // size, (rank + 1) * TOKENS // size, each):
        share = slice(begin, begin + each)
        losses = [
            (pool(indices[layer, share], weights[layer, share]) - wanted[layer, share]).square().sum()
            for layer in range(LAYERS)
        ]
        torch.stack(losses).sum().backward()
    norm = float(torch.nn.utils.clip_grad_norm_([pool.parameter], 1.0))
    optimizer.step()
    optimizer.zero_grad()
    return norm


def watch(rank: int) -> list[int]:
    """Counts, from now on, the bytes that exchanges are given for other processes."""
    sent: list[int] = []
    exchange = torch.distributed.all_to_all_single

    def counting(out: Tensor, rows: Tensor, received: list[int], to: list[int], group: Any) -> None:
        sent.append((sum(to) - to[rank]) * rows[0:1].nbytes)
        exchange(out, rows, received, to, group)

    torch.distributed.all_to_all_single = counting  # type: ignore[assignment]
    return sent


if __name__ == "__main__":
    common.start(main)
