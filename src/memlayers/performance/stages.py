"""Times the machine's limits (roofs), and the memory's stages on given reads, one by one and as a whole step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.kernels import kernels_for, reference, storage
from memlayers.kernels.interface import AdamW, Inverted, LogEntry, RowState, Schedule, Table
from memlayers.performance.figures import Clock, Shape, Timing
from memlayers.performance.reads import Reads
from memlayers.pool.product_keys import product_key_top_k
from memlayers.pool.row_adamw import RowAdamW
from memlayers.pool.row_state import RowFormat
from memlayers.pool.value_pool import ValuePool

BETAS, EPS, RATE = (0.9, 0.99), 1e-8, 0.01


def measure_roofs(shape: Shape, clock: Clock) -> dict[str, float]:
    """What this machine moves, GB/s, by the simplest code there is; and what it multiplies, GFLOP/s.

    Returns:
        "sequential" (copying, read and write counted), "random rows" (reading rows of the shape's width at random,
        summed away), "update rows" (reading and writing such rows at random), "matmul" (GFLOP/s, float32; bfloat16 on
        a GPU).
    """
    device, width = clock.device, 4 * shape.dim
    source = torch.ones(max(shape.slots, 2**28 // width), shape.dim, device=device)
    size = source.numel() * 4
    target = torch.empty_like(source)
    ms, *_ = clock(lambda: target.copy_(source))
    roofs = {"sequential": 2 * size / ms / 1e6}
    rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[: 2**28 // width].to(device)
    bags = rows[: len(rows) // 8 * 8].view(-1, 8)
    ms, *_ = clock(lambda: F.embedding_bag(bags, source, mode="sum"))
    # Eight rows are read for one written.
    roofs["random rows"] = bags.numel() * width * 9 / 8 / ms / 1e6
    update = _row_updater(source, rows)
    ms, *_ = clock(update)
    roofs["update rows"] = 2 * len(rows) * width / ms / 1e6
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    a = torch.ones(2048, 2048, dtype=half, device=device)
    ms, *_ = clock(lambda: a @ a)
    roofs["matmul"] = 2 * 2048**3 / ms / 1e6
    return roofs


def _row_updater(table: Tensor, rows: Tensor) -> Callable[[], object]:
    """A call that adds 1 to some rows in place, each read once and written once."""
    if table.device.type != "cpu":
        ones = torch.ones(len(rows), 1, device=table.device).expand(len(rows), table.shape[1])
        return lambda: table.index_add_(0, rows, ones)
    from memlayers.kernels.numba_cpu import add_one_to_rows

    return lambda: add_one_to_rows(table, rows)


def make_pool(shape: Shape, device: torch.device) -> ValuePool:
    """A pool of some written value, the same in every slot."""
    with torch.device(device):
        pool = ValuePool(shape.slots, shape.dim, getattr(torch, shape.dtype))
    pool = pool.to(device)
    pool.initialise("zero", 0)
    if shape.dtype == "int8":
        pool.scales.data.fill_(0.01)
        pool.codes.fill_(3)
    else:
        pool.weight.data.fill_(0.03)
    return pool


@dataclass(frozen=True, slots=True)
class _Sheet:
    """Where one kind of reads' figures are entered."""

    shape: Shape
    kind: str
    reads: Reads
    clock: Clock
    roofs: dict[str, float]

    @property
    def everything(self) -> int:
        """Reads of a step, over all layers."""
        return self.shape.layers * self.shape.tokens * self.shape.reads

    @property
    def value_bytes(self) -> int:
        """Bytes of a stored element."""
        return torch.empty(0, dtype=getattr(torch, self.shape.dtype)).element_size()

    def enter(
        self, stage: str, call: Callable[[], object], *, moved: int = 0, flops: int = 0, roof: str = "",
        error: float | None = None, peak: bool = False, variant: str = "memlayers",
    ) -> Timing:  # fmt: skip
        """Times a call."""
        taken = self.clock(call)
        share = moved / taken[0] / 1e6 / self.roofs[roof] if roof else None
        return Timing(
            stage, variant, self.kind, *taken, moved, flops, roof, share, self.reads.unique_ratio, error,
            self.clock.peak(call) if peak else None, "default", self.shape,
        )  # fmt: skip


def memory_stages(shape: Shape, kind: str, reads: Reads, clock: Clock, roofs: dict[str, float]) -> Iterator[Timing]:
    """The memory's own stages one by one, then the whole step."""
    sheet = _Sheet(shape, kind, reads, clock, roofs)
    if kind == "uniform":
        yield from _top_k_stage(sheet)
    yield from _read_stages(sheet)
    yield from _write_stages(sheet)
    for semantics in ("dense", "lazy"):
        yield sheet.enter(f"teaching step, {semantics}", _teaching_step(sheet, semantics), peak=True)


def _top_k_stage(sheet: _Sheet) -> Iterator[Timing]:
    """The top-k of all layers, against torch.topk on both halves and on all their combinations."""
    shape = sheet.shape
    size = (shape.layers * shape.tokens, shape.heads, shape.sub_keys)
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(size, generator=generator).to(sheet.clock.device) for _ in range(2))

    def stock() -> tuple[Tensor, Tensor]:
        (best_a, index_a), (best_b, index_b) = a.topk(shape.top_k), b.topk(shape.top_k)
        sums = (best_a[..., :, None] + best_b[..., None, :]).flatten(-2)
        slots = (index_a[..., :, None] * shape.sub_keys + index_b[..., None, :]).flatten(-2)
        best, chosen = sums.topk(shape.top_k)
        return best, slots.gather(-1, chosen)

    def ours() -> tuple[Tensor, Tensor]:
        return product_key_top_k(a, b, shape.top_k)

    moved = 2 * a.numel() * 4
    error = _relative(ours()[0], stock()[0])
    yield sheet.enter("top-k", ours, moved=moved, roof="sequential", error=error)
    yield sheet.enter("top-k", stock, moved=moved, roof="sequential", variant="torch.topk, all combinations")


def _read_stages(sheet: _Sheet) -> Iterator[Timing]:
    """The forward, and its backward with respect to the weights."""
    shape, reads, device = sheet.shape, sheet.reads, sheet.clock.device
    kernels, table = kernels_for(device), make_pool(shape, device).table
    n = sheet.everything * shape.dim
    moved = n * sheet.value_bytes + shape.layers * shape.tokens * shape.dim * 4
    some = slice(0, min(32, shape.tokens))
    rows = storage.read_rows(table, reads.indices[0][some]).double()

    def forward() -> list[Tensor]:
        pairs = zip(reads.indices, reads.weights, strict=True)
        return [kernels.weighted_sum(table, index, weight, torch.float32) for index, weight in pairs]

    def weight_gradients() -> list[Tensor]:
        pairs = zip(reads.indices, reads.gradients, strict=True)
        return [kernels.weight_gradient(table, index, gradient) for index, gradient in pairs]

    exact = (reads.weights[0][some].double()[..., None] * rows).sum(-2)
    error = _relative(forward()[0][some], exact)
    yield sheet.enter("forward", forward, moved=moved, flops=2 * n, roof="random rows", error=error)
    exact = (reads.gradients[0][some].double()[:, None] * rows).sum(-1)
    error = _relative(weight_gradients()[0][some], exact)
    yield sheet.enter(
        "weight gradient (dense recipe)", weight_gradients, moved=moved, flops=2 * n, roof="random rows", error=error
    )


def _write_stages(sheet: _Sheet) -> Iterator[Timing]:
    """Inverting the log, its norm, and the fused steps."""
    shape, reads, device = sheet.shape, sheet.reads, sheet.clock.device
    kernels, table = kernels_for(device), make_pool(shape, device).table
    log = [LogEntry(*each) for each in zip(reads.indices, reads.weights, reads.gradients, strict=True)]
    inverted = kernels.invert(log)
    n, rows = sheet.everything * shape.dim, len(inverted.rows)
    yield sheet.enter("invert", lambda: kernels.invert(log))
    yield sheet.enter(
        "gradient norm (clipping)", lambda: kernels.square_norm(log, inverted),
        moved=4 * n, flops=2 * n, roof="random rows",
    )  # fmt: skip
    everything = torch.arange(rows, device=device)
    numbers = torch.full((rows,), 0.1, dtype=torch.float64, device=device)
    adamw = AdamW(numbers, 3 * numbers, 1.0, *BETAS, EPS)
    master = shape.dtype != "float32"
    value_bytes = 2 * sheet.value_bytes + 8 * master  # read and written, as the moments are
    for bits in (32, 8):
        state = RowFormat(rows, shape.dim, torch.float32, bits, master, device).empty_chunk(rows)
        yield sheet.enter(
            f"fused step, {bits}-bit state",
            partial(
                kernels.adamw_rows, table, state, everything, log, inverted, everything, adamw, 1.0, None
            ),
            moved=rows * shape.dim * (value_bytes + (16 if bits == 32 else 4)) + 4 * n,
            flops=2 * n + 12 * rows * shape.dim, roof="update rows",
            error=_step_error(table, log, inverted, adamw) if bits == 32 else None,
        )  # fmt: skip
    state = RowFormat(rows, shape.dim, torch.float32, 32, master, device).empty_chunk(rows)
    missed = Schedule(*(torch.full((3,), 0.5, dtype=torch.float64, device=device),) * 3, *BETAS, EPS)
    since = torch.ones_like(everything)
    yield sheet.enter(
        "catching up one missed step",
        partial(kernels.drift_rows, table, state, everything, inverted.rows, since, since + 5, missed, None),
        moved=rows * shape.dim * (value_bytes + 16), flops=12 * rows * shape.dim, roof="update rows",
    )  # fmt: skip


def _teaching_step(sheet: _Sheet, semantics: str) -> Callable[[], None]:
    """Forward of all layers, backward and optimizer, through autograd, as teaching does it."""
    reads, pool = sheet.reads, make_pool(sheet.shape, sheet.clock.device)
    optimizer = RowAdamW([pool.parameter], lr=RATE, betas=BETAS, eps=EPS, semantics=semantics)

    def step() -> None:
        outputs = [pool(index, weight) for index, weight in zip(reads.indices, reads.weights, strict=True)]
        torch.autograd.backward(outputs, reads.gradients)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).abs().max() / exact.double().abs().max().clamp_min(1e-30))


def _step_error(table: Table, log: Sequence[LogEntry], inverted: Inverted, adamw: AdamW) -> float:
    """One step of the first rows against the reference in float64, on copies."""
    number = torch.arange(min(64, len(inverted.rows)), device=inverted.rows.device)
    ours = Table(storage.read_rows(table, inverted.rows[number]).contiguous())
    exact = Table(ours.values.double())
    part = adamw._replace(step_size=adamw.step_size[number], root=adamw.root[number])
    wide_log = [entry._replace(weights=entry.weights.double(), gradient=entry.gradient.double()) for entry in log]
    alone = inverted._replace(rows=number)
    wide = alone._replace(weights=alone.weights.double())
    for kernels, values, entries, turned in (
        (kernels_for(number.device), ours, log, alone), (reference, exact, wide_log, wide),
    ):  # fmt: skip
        state = RowState(*(torch.zeros_like(values.values) for _ in range(2)))
        kernels.adamw_rows(values, state, number, entries, turned, number, part, 1.0, None)
    return _relative(ours.values, exact.values)
