"""What fits: the memory that teaching needs, from a backbone's config alone. No torch, no weights; plain arithmetic.

Every figure is bytes counted from what the code keeps: `value_pool`, `row_state`, `kernels` and, for the backbone, what
autograd saves in transformers' decoder layers when no weight has a gradient (checked by counting saved tensors,
tests/performance/test_plan.py, and against a measured peak, benchmarks/performance/plan_step.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from memlayers.performance.backbone_size import BYTES, GIB, Backbone, default_layers
from memlayers.utils.errors import InputError

RESERVE: Final = int(0.6 * GIB)  # a CUDA context, and what its libraries keep
FRAGMENTATION: Final = 1.05
STAGING: Final = 8 * 8 * 2**20  # pieces of `pool.offload.STAGE_BYTES`: gradients, values, and rounding them
STATE_BLOCK: Final = 128  # as in `kernels.interface`, which imports torch
GENERAL_TOKENS: Final = 110_000  # of the shipped general text: 109,763 in pocket's tokenizer, 110,600 in Qwen2.5's
PASSAGE_TOKENS: Final = 75_000  # of these, of running text: 75,186 and 60,268
CALIBRATION_TOKENS: Final = 30_000  # as in `GateConfig`
FORWARD_TOKENS: Final = 4096  # as in `inference.capture.collect_features`
QUESTIONS, NEW_TOKENS = 128, 32  # as in `inference.generation.generate_answers`
CHUNK_BYTES: Final = 64 * 2**20  # as in `pool.row_state`


# -- one way to store and to optimize -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scheme:
    """How pool and optimizer state are kept; the names are flags of ``memlayers teach``."""

    pool_dtype: str
    optimizer: str = "row-adamw"
    optimizer_bits: int = 32
    optimizer_device: str = "device"
    half_rounding: str = "master"

    @property
    def name(self) -> str:
        """A short description."""
        if self.optimizer == "adamw":
            return f"{self.pool_dtype}, torch's AdamW"
        if self.optimizer_device == "host":
            return f"{self.pool_dtype}, host state"
        rounding = f" {self.half_rounding}" if self.pool_dtype == "bfloat16" else ""
        return f"{self.pool_dtype}{rounding}, {self.optimizer_bits}-bit state"

    @property
    def has_master(self) -> bool:
        """Whether a float32 copy of the touched rows is kept."""
        coarse = self.pool_dtype == "int8" or (self.pool_dtype != "float32" and self.half_rounding == "master")
        return coarse or self.optimizer_device == "host"

    def pool_bytes(self, slots: int, d: int) -> int:
        """The pool itself."""
        return slots * d * BYTES[self.pool_dtype] + (4 * slots if self.pool_dtype == "int8" else 0)

    def state_bytes(self, slots: int, d: int, touched: int) -> int:
        """The optimizer's state: of the rows touched, and what is kept of every slot."""
        if self.optimizer == "adamw":  # two moments; the dense gradient, and that of one layer being added to it
            return 4 * self.pool_bytes(slots, d)
        moments = 8 * d if self.optimizer_bits == 32 else 2 * d + 8 * -(-d // STATE_BLOCK)
        master = 4 * d if self.has_master else 0
        dense = self.optimizer_bits == 32 and self.optimizer_device == "device" and self.half_rounding == "master"
        return touched * (moments + master + 16) + slots * (4 + (8 if dense else 0))

    def allocated_rows(self, slots: int, d: int, touched: int) -> int:
        """Rows whose state is allocated: whole chunks (`row_state.RowFormat.chunk_rows`)."""
        chunk = min(1 << ((CHUNK_BYTES // (4 * d)).bit_length() - 1), slots)
        return min(-(-touched // chunk) * chunk, slots) if self.optimizer == "row-adamw" else touched

    def flags(self) -> list[str]:
        """As given to ``memlayers teach``."""
        given = ["--pool-dtype", self.pool_dtype, "--optimizer", self.optimizer]
        if self.optimizer == "row-adamw":
            if self.optimizer_bits != 32:
                given += ["--optimizer-bits", str(self.optimizer_bits)]
            if self.optimizer_device != "device":
                given += ["--optimizer-device", self.optimizer_device]
            if self.half_rounding != "master":
                given += ["--half-rounding", self.half_rounding]
        return given


SCHEMES: Final = (
    Scheme("float32", "adamw"),
    Scheme("float32"),
    Scheme("bfloat16"),
    Scheme("bfloat16", half_rounding="stochastic"),
    Scheme("bfloat16", half_rounding="stochastic", optimizer_bits=8),
    Scheme("bfloat16", optimizer_device="host"),
    Scheme("int8", optimizer_device="host"),
)
"""In order of preference after the first, which is for comparison: exact before lossy, the device before the host."""


# -- a plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """What a teaching step holds.

    Attributes:
        sub_keys: per half; the pool has sub_keys ** 2 slots.
        heads: lookups per token and layer.
        top_k: slots read per head.
        key_dim: width of a head's query.
        layers: numbers of the memory layers.
        batch: sequences.
        length: tokens of the longest.
        answer: positions at which some sequence has an answer token.
        dtype: of the backbone's activations.
        touched: rows that teaching will have touched at its end.
        contexts: tokens of the facts' contexts that calibration and the gates are shown.
        general: tokens of general text that they are shown.
        gated: gates are trained.
        subjects: one gate, for all layers, from a stored subject's name on.
        gpus: processes that share each step, with a device each.
        split: they hold the pool's columns between them; otherwise each holds the whole pool.

    Raises:
        InputError: a memory of this shape cannot be built.
    """

    sub_keys: int
    heads: int
    top_k: int
    key_dim: int
    layers: tuple[int, ...]
    batch: int
    length: int
    answer: int
    dtype: str
    touched: int
    contexts: int = 0
    general: int = CALIBRATION_TOKENS // 2
    gated: bool = True
    subjects: bool = True
    gpus: int = 1
    split: bool = False

    def __post_init__(self) -> None:
        if self.top_k > self.sub_keys:
            raise InputError(
                f"{self.slots} slots are too few for top-{self.top_k} reads: ask for {self.top_k**2} or more"
            )
        if self.key_dim % 2:
            raise InputError(f"key_dim is {self.key_dim}: it must be even, two halves of equal width")

    @property
    def slots(self) -> int:
        """Rows of the pool."""
        return self.sub_keys**2

    @property
    def own_batch(self) -> int:
        """Sequences of a step that one process reads."""
        return -(-self.batch // self.gpus)

    @property
    def tokens(self) -> int:
        """Of a step, padding included, that one process reads."""
        return self.own_batch * self.length

    def columns(self, d: int, optimizer_bits: int = 32) -> int:
        """Columns of the pool that a process holds, of d; see `pool.columns.Columns.width`."""
        unit = STATE_BLOCK if optimizer_bits == 8 else 1
        return -(-d // (self.gpus * unit)) * unit if self.split and self.gpus > 1 else d


def touched_rows(slots: int, facts: int, tokens_per_fact: int, layers: int, reads: int) -> int:
    """Rows that some token of some fact reads, if reads fall on the slots evenly (real ones repeat more)."""
    return round(slots * -math.expm1(-facts * tokens_per_fact * layers * reads / slots))


def addressing_bytes(backbone: Backbone, work: Work) -> int:
    """Queries, sub-keys and gates of all memory layers, float32."""
    d, half = backbone.hidden, work.key_dim // 2
    query = d * work.heads * work.key_dim + d
    keys = 2 * work.heads * work.sub_keys * half
    gate = 256 * (d + 2) + 2 * d
    return 4 * len(work.layers) * (query + keys + gate)


def log_bytes(backbone: Backbone, work: Work) -> int:
    """The read log of a step, all processes' together: indices and weights, what came back, and the inverted log."""
    everyones = work.gpus * work.tokens
    reads = len(work.layers) * everyones * work.heads * work.top_k
    back = len(work.layers) * everyones * work.columns(backbone.hidden) * BYTES[work.dtype]
    return reads * (4 + 4) + back + reads * 5 * 8


def traffic_bytes(backbone: Backbone, work: Work) -> int:
    """What a process sends to the others in a step.

    A pool that each holds whole: its read log, to each. One that is split: its reads, to each; of their tokens the sums
    of its columns; and of its own tokens' gradients the columns that they hold, each with a mark that it is not zero.
    """
    size, others = BYTES[work.dtype], work.gpus - 1
    reads = work.tokens * work.heads * work.top_k * (4 + 4) * others
    if not work.split:
        return len(work.layers) * (reads + work.tokens * backbone.hidden * size * others)
    columns = work.columns(backbone.hidden)
    return len(work.layers) * (reads + work.tokens * others * (columns + columns + 1) * size)


def lookup_bytes(work: Work) -> int:
    """The largest tensors of one lookup: the scores of all sub-keys."""
    return work.tokens * work.heads * 2 * work.sub_keys * 4


def activation_bytes(backbone: Backbone, work: Work) -> int:
    """What autograd saves from the first memory layer on, no weight having a gradient, and the head's tensors."""
    return saved_bytes(backbone, work) + head_bytes(backbone, work)


def saved_bytes(backbone: Backbone, work: Work) -> int:
    """What the layers above the first memory layer save for backward.

    Per token and layer: both norms' inputs in float32; the attention's query, key and value (repeated to all heads, as
    where sequences are padded), its output and log-sum-exp; of the MLP the gate before and after its activation, and
    the up projection. Per layer the padding mask. Of the first memory layer itself: nothing, since its MLP comes before
    the memory.
    """
    size = BYTES[work.dtype]
    attention = 4 * backbone.attention * size + 4 * backbone.heads
    per_token = 2 * (backbone.hidden * 4 + 4) + attention + 3 * backbone.inner * size
    mask = work.own_batch * work.length**2 * size
    return (work.tokens * per_token + mask) * (backbone.depth - 1 - work.layers[0]) + work.tokens * backbone.hidden * 4


def head_bytes(backbone: Backbone, work: Work) -> int:
    """Logits where some sequence has an answer, and of these a float32 copy, its log-softmax and its gradient."""
    return work.own_batch * work.answer * backbone.vocabulary * (BYTES[work.dtype] + 3 * 4)


# -- before and between the steps ---------------------------------------------------------------------------------


def preparation_bytes(backbone: Backbone, work: Work) -> int:
    """Host memory that calibration and gate training need at their peak, gone before the first step.

    `capture.collect_features` keeps every token's input of each layer that gets a gate, in the backbone's dtype: first
    the contexts', then general text's, whose pieces are all there while they are joined. Of all layers it adds up
    second moments, in float64. `calibrate.calibrate` then works
    on float64 matrices of d x d: two kinds' second moments, the covariance, and eigh's and qr's own. `train_gates`
    holds, beside all features, those of one layer split in two and nine tenths of them once more in float32. Where
    subjects are known, one gate is trained, on copied rows: of general text the running text's, of the contexts those
    behind the subject (counted here as if it came first). Otherwise each layer has one, and the float32 rows of the
    layer before are still there when the next one's are made.
    """
    size, d = BYTES[work.dtype], backbone.hidden
    kept = 0 if not work.gated else 1 if work.subjects else len(work.layers)
    moments = 2 * len(work.layers) * 8 * d * d
    features = (work.contexts + work.general) * d * size * kept + moments
    collecting = features + work.general * d * size * kept + FORWARD_TOKENS * d * (8 + size)
    calibrating = features + 8 * d * (FORWARD_TOKENS * 2 + 8 * d)
    if not work.gated:
        return max(collecting, calibrating)
    shown = work.contexts + (work.general * PASSAGE_TOKENS // GENERAL_TOKENS if work.subjects else work.general)
    copies = 2 if work.subjects else 1
    rows = shown * d * 9 // 10
    joined = rows * size if size < 4 else 0  # before it is float32
    at_once = 1 if work.subjects else min(2, len(work.layers))
    return max(collecting, calibrating, features + copies * shown * d * size + rows * 4 * at_once + joined)


def collecting_bytes(backbone: Backbone, work: Work) -> int:
    """What the device holds beside weights and pool while features are collected and gates tried out.

    A forward of the bare trunk over 4,096 tokens, or, per layer, the held-out tenth of the tokens: as it is, and two
    float32 copies on the way into the gate.
    """
    size, d = BYTES[work.dtype], backbone.hidden
    forward = FORWARD_TOKENS * (3 * d * size + max(3 * backbone.inner * size, 2 * 8 * d))
    held = max(work.contexts, work.general) // 10 * d * (size + 2 * 4) if work.gated else 0
    return max(forward, held)


def answer_bytes(backbone: Backbone, work: Work) -> int:
    """What the device holds beside weights, pool and state while recall is measured in free generation.

    128 questions at a time: the cache of keys and values, as the longest question begins and at its end; at the
    beginning the residual stream, an MLP's input and output, and either the MLP's inner products or one lookup's
    queries and scores.
    """
    size = BYTES[work.dtype]
    tokens = QUESTIONS * work.length
    cached = backbone.depth * 2 * (backbone.kv or backbone.attention) * size
    lookup = tokens * work.heads * (2 * work.sub_keys + work.key_dim) * 4
    inner = tokens * 3 * backbone.inner * size
    begin = tokens * (cached + 3 * backbone.hidden * size) + max(lookup, inner)
    return max(begin, QUESTIONS * (work.length + NEW_TOKENS) * cached)


def phases_on_cpu(backbone: Backbone, work: Work, scheme: Scheme) -> dict[str, int]:
    """What `memlayers teach` holds in each phase on a CPU, beyond its libraries; its peak is the largest."""
    resident = backbone.weight_bytes(work.dtype) + addressing_bytes(backbone, work)
    columns = work.columns(backbone.hidden, scheme.optimizer_bits)
    resident += scheme.pool_bytes(work.slots, columns)
    taught = resident + scheme.state_bytes(work.slots, columns, work.touched)
    return {
        "preparation": resident + preparation_bytes(backbone, work),
        "step": taught + log_bytes(backbone, work) + lookup_bytes(work) + activation_bytes(backbone, work),
        "answers": taught + answer_bytes(backbone, work),
    }


@dataclass(frozen=True, slots=True)
class Line:
    """One scheme beside one form of the backbone; bytes.

    Attributes:
        scheme: how pool and state are kept.
        weights_dtype: of the backbone.
        weights: the backbone's, with the memory's addressing.
        pool: on the device.
        state: of the optimizer.
        log: of a step, with the scores of a lookup and what is on its way to the host.
        activations: of a step.
        answers: while recall is measured, in place of log and activations.
        device: at its peak, with reserve and fragmentation.
        host: in host memory, of all processes: the features of calibration and gates, later the state if it lies there.
        fits_device: whether the device's limit holds.
        fits: whether both limits hold.
        traffic: what a process sends to the others in a step.
    """

    scheme: Scheme
    weights_dtype: str
    weights: int
    pool: int
    state: int
    log: int
    activations: int
    answers: int
    device: int
    host: int
    fits_device: bool
    fits: bool
    traffic: int = 0


def make_plan(backbone: Backbone, work: Work, *, vram: float, host: float) -> list[Line]:
    """Works out every scheme beside the backbone as it is and beside its 4-bit form.

    Args:
        backbone: see `read_backbone`.
        work: a step.
        vram: the device's memory, GiB.
        host: memory of the host that may be used, GiB.

    Returns:
        Schemes in order of preference, each beside the backbone in `work.dtype`, then all beside 4-bit.
    """
    # A split pool is not rounded stochastically (`pool.row_adamw`).
    schemes = [scheme for scheme in SCHEMES if not (work.split and scheme.half_rounding == "stochastic")]
    return [_line(backbone, work, scheme, dtype, vram, host) for dtype in (work.dtype, "4-bit") for scheme in schemes]


def _line(backbone: Backbone, work: Work, scheme: Scheme, dtype: str, vram: float, host: float) -> Line:
    weights = backbone.weight_bytes(dtype) + addressing_bytes(backbone, work)
    columns = work.columns(backbone.hidden, scheme.optimizer_bits)
    pool = scheme.pool_bytes(work.slots, columns)
    allocated = scheme.allocated_rows(work.slots, backbone.hidden, work.touched)
    state = scheme.state_bytes(work.slots, columns, allocated)
    log = log_bytes(backbone, work) + lookup_bytes(work)
    activations, answers = activation_bytes(backbone, work), answer_bytes(backbone, work)
    on_host = scheme.optimizer_device == "host"
    log += STAGING if on_host else 0
    teaching = max(log + activations, answers) + (0 if on_host else state)
    there = weights + pool + max(teaching, collecting_bytes(backbone, work))
    device = int(there * FRAGMENTATION) + RESERVE
    needed = work.gpus * max(preparation_bytes(backbone, work), state if on_host else 0)  # of one machine
    on_device, at_home = device <= vram * GIB, needed <= host * GIB
    return Line(
        scheme, dtype, weights, pool, state, log, activations, answers, device, needed, on_device,
        on_device and at_home, traffic_bytes(backbone, work),
    )  # fmt: skip


def recommended(lines: list[Line]) -> Line | None:
    """The first that fits, the comparison with torch's AdamW aside."""
    return next((line for line in lines if line.fits and line.scheme.optimizer != "adamw"), None)


def command(backbone: Backbone, work: Work, line: Line) -> str:
    """The ``memlayers teach`` command of a line."""
    dtype = work.dtype if line.weights_dtype == work.dtype else "auto"
    start = "memlayers" if work.gpus == 1 else f"torchrun --nproc-per-node {work.gpus} -m memlayers.cli"
    words = [f"{start} teach --backbone", backbone.name, "--dtype", dtype, "--sub-keys", str(work.sub_keys)]
    words += ["--heads", str(work.heads), "--top-k", str(work.top_k), "--key-dim", str(work.key_dim)]
    if work.layers != default_layers(backbone.depth):
        words += ["--layers", ",".join(map(str, work.layers))]
    words += ["--batch-size", str(work.batch)]
    words += ["--shard-pool", "columns"] if work.split else []
    return " ".join([*words, *line.scheme.flags(), "--facts facts.jsonl --out memory"])


HEADER: Final = ("pool, optimizer", "pool", "state", "step", "recall", "beside {dtype}", "beside 4-bit", "host")


def table_cells(lines: list[Line]) -> Iterator[list[str]]:
    """One row of cells per scheme, GiB: the device's peak beside both forms of the backbone, and whether it fits."""
    half = len(lines) // 2
    for line, small in zip(lines[:half], lines[half:], strict=True):
        sizes = [line.pool, line.state, line.log + line.activations, line.answers]
        totals = [f"{each.device / GIB:.1f} {_verdict(each)}" for each in (line, small)]
        yield [line.scheme.name, *(f"{size / GIB:.2f}" for size in sizes), *totals, f"{line.host / GIB:.1f}"]


def _verdict(line: Line) -> str:
    if line.fits:
        return "fits"
    return "no: host" if line.fits_device else "no"
