"""The teaching step at 1,000,000 slots against 50,176: the same real reads, d = 256, spread over the larger pool.

What the demo's memory layers read of a pool of 50,176 slots is mapped to as many distinct slots of the larger one, so
both pools see the same reads, rows touched and gradients. The two are timed in turn, step by step, in one process.

Leaves ``benchmarks/results/pool_size.json``. Example: ``python -m benchmarks.performance.pool_size``
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from benchmarks import common
from memlayers.performance.figures import Shape
from memlayers.performance.reads import make_reads
from memlayers.performance.stages import BETAS, EPS, RATE, make_pool
from memlayers.pool.row_adamw import RowAdamW
from memlayers.utils.environment import environment

OUT = common.RESULTS / "pool_size.json"
SMALL = Shape(slots=50_176, dim=256, tokens=512, heads=8, top_k=8)
LARGE_SLOTS = 1_000_000
REPEATS = 41


def main() -> None:
    """Time both, for both semantics, and keep the ratio."""
    common.argument_parser(__doc__).parse_args()
    reads = make_reads(SMALL, "real", torch.device("cpu"), common.SEED)
    places = torch.randperm(LARGE_SLOTS, generator=torch.Generator().manual_seed(0))[: SMALL.slots]
    spread = [places[index] for index in reads.indices]
    rows = []
    for semantics in ("dense", "lazy"):
        steps = {}
        for slots, indices in ((SMALL.slots, reads.indices), (LARGE_SLOTS, spread)):
            pool = make_pool(Shape(**{**asdict(SMALL), "slots": slots}), torch.device("cpu"))
            optimizer = RowAdamW([pool.parameter], lr=RATE, betas=BETAS, eps=EPS, semantics=semantics)
            steps[slots] = (pool, optimizer, indices)
        taken: dict[int, list[float]] = {slots: [] for slots in steps}
        for _ in range(REPEATS):
            for slots, (pool, optimizer, indices) in steps.items():
                began = time.perf_counter()
                step(pool, optimizer, indices, reads)
                taken[slots].append(1e3 * (time.perf_counter() - began))
        small, large = (median(taken[slots][2:]) for slots in (SMALL.slots, LARGE_SLOTS))
        rows.append({"semantics": semantics, "ms_50k": small, "ms_1m": large, "ratio": large / small,
                     "unique_ratio": reads.unique_ratio})  # fmt: skip
        print(json.dumps(rows[-1]))
    common.write_json(OUT, {"environment": environment("cpu"), "shape": asdict(SMALL), "rows": rows})


def step(pool: Any, optimizer: Any, indices: list[torch.Tensor], reads: Any) -> None:
    """Forward of all layers, backward, optimizer."""
    outputs = [pool(index, weight) for index, weight in zip(indices, reads.weights, strict=True)]
    torch.autograd.backward(outputs, reads.gradients)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    common.start(main)
