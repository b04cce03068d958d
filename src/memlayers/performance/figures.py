"""The bench's typed figures, how they are timed, and their file. No torch at import."""

from __future__ import annotations

import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath, atomic_write_text, sections_text

if TYPE_CHECKING:
    import torch

SCHEMA: Final = "memlayers.bench/1"
GPU_CACHE_BYTES: Final = 2**28  # more than any GPU's last-level cache


@dataclass(frozen=True, slots=True)
class Shape:
    """What is measured.

    Attributes:
        slots: rows of the value pool.
        dim: width of a value.
        tokens: per step and memory layer.
        heads: lookups per token.
        top_k: slots read per head.
        layers: memory layers that share the pool.
        dtype: of the pool: "float32", "bfloat16" or "int8".
    """

    slots: int = 50_176
    dim: int = 3584
    tokens: int = 512
    heads: int = 1
    top_k: int = 8
    layers: int = 3
    dtype: str = "float32"

    @property
    def reads(self) -> int:
        """Slots read per token and layer."""
        return self.heads * self.top_k

    @property
    def sub_keys(self) -> int:
        """Sub-keys per half."""
        return math.isqrt(self.slots)


@dataclass(frozen=True, slots=True)
class Timing:
    """One figure of the bench.

    Attributes:
        stage: what is done, e.g. "forward".
        variant: "memlayers", or the name of the peer that does it.
        indices: "uniform", "zipf", "real", or "" where there are none.
        ms: median over the repetitions, milliseconds; for `Shape.layers` layers, a whole step.
        ms_low: 20th percentile.
        ms_high: 80th percentile.
        bytes: that the algorithm must move, by its own count of reads and writes; 0 where not counted.
        flops: arithmetic operations, by the same count; 0 where not counted.
        roof: name of the roof it is held against, "" for none.
        roof_share: GB/s over the roof's; above 1 where caches help.
        unique_ratio: distinct slots over reads.
        error: largest difference from the float64 reference over the largest magnitude; None where not compared.
        peak_bytes: memory the process (on a GPU: the allocator) needed on top while it ran; None where not measured.
        malloc: the allocator setting.
        shape: of the pool and its reads.
    """

    stage: str
    variant: str
    indices: str
    ms: float
    ms_low: float
    ms_high: float
    bytes: int
    flops: int
    roof: str
    roof_share: float | None
    unique_ratio: float | None
    error: float | None
    peak_bytes: int | None
    malloc: str
    shape: Shape

    @property
    def gb_per_s(self) -> float:
        """10^9 bytes per second."""
        return self.bytes / self.ms / 1e6


@dataclass(slots=True)
class Bench:
    """A whole run: where, and all its figures; `overhead` holds shares of the backbone's own work."""

    environment: dict[str, Any]
    roofs: dict[str, dict[str, float]]
    timings: list[Timing]
    overhead: dict[str, float]


class Clock:
    """Times calls on a device: on a GPU by its own events, each call with a cold cache."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)

    def __call__(self, call: Callable[[], Any], before: Callable[[], Any] | None = None) -> tuple[float, float, float]:
        """Median, 20th and 80th percentile in milliseconds; `before` runs untimed ahead of each call."""
        once = self._on_gpu if self.device.type == "cuda" else self._on_cpu
        taken = []
        for _ in range(self.repeats + 1):
            if before is not None:
                before()
            taken.append(once(call))
        taken = sorted(taken[1:])
        fifth = len(taken) // 5
        return statistics.median(taken), taken[fifth], taken[-1 - fifth]

    def _on_cpu(self, call: Callable[[], Any]) -> float:
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)

    def _on_gpu(self, call: Callable[[], Any]) -> float:
        """Overwriting the cache also keeps the GPU busy until the call is queued, so that launching is not timed."""
        import torch

        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.wait()
        torch.empty(GPU_CACHE_BYTES, dtype=torch.int8, device=self.device).zero_()
        with torch.cuda.device(self.device):
            began.record()
            call()
            ended.record()
        self.wait()
        return float(began.elapsed_time(ended))

    def peak(self, call: Callable[[], Any]) -> int | None:
        """Bytes that a call needs on top of what is there; None where the system does not tell."""
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            call()
            self.wait()
            return int(torch.cuda.max_memory_allocated(self.device) - before)
        reset = Path("/proc/self/clear_refs")
        if not reset.exists():
            return None
        reset.write_text("5", encoding="ascii")
        before = _status_kilobytes("VmRSS")
        call()
        return 1024 * (_status_kilobytes("VmHWM") - before)


def _status_kilobytes(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{name}:")[1].split()[0])


def bench_text(bench: Bench) -> str:
    """A run as JSON, one figure per line."""
    timings = [{**asdict(timing), "gb_per_s": timing.gb_per_s} for timing in bench.timings]
    sections = {"environment": bench.environment, "roofs": bench.roofs, "overhead": bench.overhead, "timings": timings}
    return sections_text(SCHEMA, sections)


def write_bench(path: StrPath, bench: Bench) -> None:
    """Writes a run's JSON, whole or not at all."""
    atomic_write_text(path, bench_text(bench))


def read_bench(path: StrPath) -> Bench:
    """Reads what `write_bench` wrote.

    Raises:
        InputError: it is not such a file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}")
        timings = []
        for row in data["timings"]:
            row.pop("gb_per_s")
            timings.append(Timing(**{**row, "shape": Shape(**row["shape"])}))
        return Bench(data["environment"], data["roofs"], timings, data["overhead"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of `memlayers bench` ({error}); run the bench again") from error
