"""The fast backends against the plain-torch one. Triton's runs compiled where there is a GPU, else in its interpreter.

`python tests/kernels/test_kernels.py` only compiles Triton's kernels, for CUDA and for ROCm; no GPU is needed for that.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memlayers.kernels import reference, storage
from memlayers.kernels.interface import STATE_BLOCK, AdamW, LogEntry, RowState, Schedule, Table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@pytest.fixture(params=["numba_cpu", pytest.param("triton_gpu", marks=needs_triton)])
def backend(request: pytest.FixtureRequest) -> Any:
    """The module of a fast backend."""
    if request.param == "numba_cpu" and DEVICE != "cpu":
        pytest.skip("numba is for the CPU, and this machine's tensors are on a GPU")
    return importlib.import_module(f"memlayers.kernels.{request.param}")


WIDTHS = (5, 320, 1100)  # less than a block of 8-bit state, one tile, three tiles; none a multiple of a tile
SLOTS = 12
HOT = 3


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _integers(high: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def _table(d: int, dtype: torch.dtype, slots: int = SLOTS) -> Table:
    values = _random(slots, d, seed=1)
    if dtype != torch.int8:
        return Table(values.to(dtype))
    table = Table(torch.empty_like(values, dtype=dtype), torch.empty(slots, device=DEVICE))
    storage.write_rows(table, torch.arange(slots, device=DEVICE), values)
    return table


def _log(
    d: int, shapes: Sequence[tuple[int, int]] = ((4, 3), (1, 2), (0, 3), (3, 7)), dtype: Any = None
) -> list[LogEntry]:
    """Entries of several shapes, in which every token reads `HOT`, some twice, and one token's gradient is zero."""
    log = []
    for i, (n, r) in enumerate(shapes):
        indices = _integers(SLOTS - 3, n, r, seed=i, dtype=(torch.int32, torch.int64)[i % 2])
        indices[:, 0] = HOT
        gradient = _random(n, d + 8 * i, seed=10 + i).to(dtype or torch.float32)[:, :d]  # rows further apart than d
        if n > 2:
            gradient[1] = 0
        log.append(LogEntry(indices, _random(n, r, seed=20 + i), gradient))
    return log


def _state(places: Tensor, table: Table, rows: Tensor, bits: int, master: bool) -> RowState:
    """Moments as they are after some steps, for more rows than `places` names."""
    c, d = int(places.max()) + 2, table.values.shape[1]
    blocks = -(-d // STATE_BLOCK)
    if bits == 8:
        codes = (torch.zeros(c, d, dtype=dtype, device=DEVICE) for dtype in (torch.int8, torch.uint8))
        state = RowState(*codes, *(torch.zeros(c, blocks, device=DEVICE) for _ in range(2)))
    else:
        state = RowState(*(torch.zeros(c, d, device=DEVICE) for _ in range(2)))
    everything = torch.arange(c, device=DEVICE)
    storage.encode_mean(state, everything, 0.1 * _random(c, d, seed=2))
    storage.encode_square(state, everything, 0.1 * _random(c, d, seed=3).square())
    if not master:
        return state
    state = state._replace(master=torch.zeros(c, d, device=DEVICE))
    assert state.master is not None
    state.master[places] = storage.read_rows(table, rows) + 1e-4 * _random(len(places), d, seed=4)
    return state


def _copy(tensors: Any) -> Any:
    return type(tensors)(*(each if each is None else each.clone() for each in tensors))


def _assert_same(ours: Table | RowState, theirs: Table | RowState) -> None:
    """float32 to a few bits; what is rounded after the sums may land on the neighbour."""
    for name, ours_part, theirs_part in zip(theirs._fields, ours, theirs, strict=True):
        if theirs_part is None:
            continue
        if theirs_part.dtype == torch.float32:
            # Moments cancel, and a small one is as exact as what it was summed from.
            torch.testing.assert_close(ours_part, theirs_part, rtol=1e-5, atol=2e-6, msg=lambda text, n=name: n + text)
            continue
        if theirs_part.is_floating_point():
            ours_part, theirs_part = (each.view(torch.int16) for each in (ours_part, theirs_part))
        apart = (ours_part.int() - theirs_part.int()).abs()
        assert apart.max() <= 1 and apart.float().mean() < 0.01, f"{name}: {apart.max()} {apart.float().mean()}"


FORMATS = [
    # table, bits of state, master, noise
    (torch.float32, 32, False, None),
    (torch.float32, 8, False, None),
    (torch.bfloat16, 32, True, None),
    (torch.bfloat16, 32, False, 2**31 + 5),
    (torch.bfloat16, 8, False, None),
    (torch.float16, 32, False, 7),
    (torch.int8, 32, True, None),
    (torch.int8, 8, True, None),
]


# -- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "m", "k"), [((2, 2), 20, 6), ((3,), 5, 5), ((), 6, 1), ((2,), 2, 4), ((0, 2), 4, 2)])
def test_top_k_is_exact_and_breaks_ties_as_the_exhaustive_search(
    backend: Any, shape: tuple[int, ...], m: int, k: int
) -> None:
    smooth = _random(*shape, m), _random(*shape, m, seed=1)
    tied = _integers(4, *shape, m).float() - 2, _integers(3, *shape, m, seed=1).float() - 2
    for a, b in (smooth, tied, (-tied[0], -0.0 * tied[1]), tuple(each.bfloat16() for each in smooth)):
        scores, slots = backend.product_key_top_k(a, b, k)
        best, where = reference.product_key_top_k_exhaustive(a, b, k)
        assert scores.dtype == a.dtype and torch.equal(scores, best) and torch.equal(slots, where)


def test_top_k_of_permuted_scores_and_at_a_real_size(backend: Any) -> None:
    a, b = _random(2, 300, 1).permute(2, 0, 1), _random(1, 300, 2, seed=1).permute(0, 2, 1)
    ours, theirs = backend.product_key_top_k(a, b, 32), reference.product_key_top_k_exhaustive(a, b, 32)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_top_k_takes_masked_slots_once(backend: Any) -> None:
    a = torch.tensor([[1.0, -torch.inf, -torch.inf, -torch.inf]], device=DEVICE)
    _, slots = backend.product_key_top_k(a, torch.zeros_like(a), 4)
    assert slots.tolist() == [[0, 1, 2, 3]]
    _, slots = backend.product_key_top_k(a, a, 4)
    assert len(set(slots[0].tolist())) == 4


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_weighted_sum(backend: Any, d: int, dtype: torch.dtype) -> None:
    table = _table(d, dtype)
    for n, r in ((3, 9), (1, 1), (0, 4)):
        indices, weights = _integers(SLOTS, n, r, dtype=torch.int32), _random(n, r)
        ours = backend.weighted_sum(table, indices, weights, torch.float32)
        theirs = reference.weighted_sum(table, indices, weights, torch.float32)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    narrow = backend.weighted_sum(table, indices.long(), weights, torch.bfloat16)
    torch.testing.assert_close(narrow, reference.weighted_sum(table, indices, weights, torch.bfloat16))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_rounding_of_the_output_is_torchs(backend: Any) -> None:
    """Ties, powers of two from below, infinity and NaN, through one row of weight 1."""
    bits = [0x3F808000, 0x3F818000, 0x3FFFFFFF, 0x7F7FFFFF, 0x7F800000, 0x7FFFFFFF, 0xFFC00000, 0x00010000, 0x807FFFFF]
    values = torch.tensor(bits).to(torch.int32).view(torch.float32).to(DEVICE)[None]
    indices, weights = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    for dtype in (torch.bfloat16, torch.float16):
        ours = backend.weighted_sum(Table(values), indices, weights, dtype)
        torch.testing.assert_close(ours, values.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_weight_gradient(backend: Any, d: int, dtype: torch.dtype) -> None:
    table = _table(d, dtype)
    for n, r in ((3, 9), (1, 1), (0, 4)):
        indices, gradient = _integers(SLOTS, n, r, dtype=torch.int32), _random(n, d).bfloat16()
        ours = backend.weight_gradient(table, indices, gradient)
        torch.testing.assert_close(ours, reference.weight_gradient(table, indices, gradient), rtol=1e-5, atol=1e-4)


def test_float64_goes_to_the_reference(backend: Any) -> None:
    values, weights = _random(SLOTS, 5).double(), _random(2, 3).double()
    indices = _integers(SLOTS, 2, 3)
    ours = backend.weighted_sum(Table(values), indices, weights, torch.float64)
    assert torch.equal(ours, reference.weighted_sum(Table(values), indices, weights, torch.float64))
    scores = _random(2, 6).double()
    assert backend.product_key_top_k(scores, scores, 3)[0].dtype == torch.float64


# -- the log ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_is_inverted_and_reduced(backend: Any, d: int, dtype: torch.dtype) -> None:
    log = _log(d, dtype=dtype)
    ours, theirs = backend.invert(log), reference.invert(log)
    for name, ours_part, theirs_part in zip(theirs._fields[:4], ours[:4], theirs[:4], strict=True):
        assert ours_part.dtype == theirs_part.dtype and torch.equal(ours_part, theirs_part), name
    assert 1 not in ours.tokens.tolist()  # its gradient is zero
    picked = torch.arange(len(theirs.rows), device=DEVICE).flip(0)
    sums = reference.row_gradients(log, theirs, picked)
    for inverted in (ours, theirs):  # with what the backend prepared, and without
        torch.testing.assert_close(backend.row_gradients(log, inverted, picked), sums, rtol=1e-5, atol=1e-5)
    norm = backend.square_norm(log, theirs)
    assert norm.dtype == torch.float64 and norm.dim() == 0
    torch.testing.assert_close(norm, reference.square_norm(log, theirs), rtol=1e-5, atol=0)


def test_logs_of_odd_dtypes_and_strides(backend: Any) -> None:
    entries = _log(320)
    entries[1] = entries[1]._replace(gradient=entries[1].gradient.bfloat16())
    entries[3] = entries[3]._replace(gradient=_random(320, 3, seed=9).T)
    entries.append(LogEntry(entries[0].indices, entries[0].weights, _random(1, 320).expand(4, 320)))
    inverted = reference.invert(entries)
    for ours_part, theirs_part in zip(backend.invert(entries)[:4], inverted[:4], strict=True):
        assert torch.equal(ours_part, theirs_part)
    picked = torch.arange(len(inverted.rows), device=DEVICE)
    log = [entry._replace(gradient=entry.gradient.float().contiguous()) for entry in entries]
    sums = reference.row_gradients(log, inverted, picked)
    torch.testing.assert_close(backend.row_gradients(entries, inverted, picked), sums, rtol=1e-5, atol=1e-5)


def test_logs_without_a_gradient(backend: Any) -> None:
    silent = [entry._replace(gradient=torch.zeros_like(entry.gradient)) for entry in _log(320)]
    for log in ([], _log(320, ((0, 3),)), silent):
        inverted = backend.invert(log)
        assert [len(each) for each in inverted[:4]] == [0, 1, 0, 0]
        assert inverted.offsets.tolist() == [0] and backend.square_norm(log, inverted) == 0
        assert backend.row_gradients(log, inverted, inverted.rows).shape == (0, 320 if log else 0)


def test_a_gradient_that_is_nothing_but_nan_counts(backend: Any) -> None:
    (entry,) = _log(5, ((1, 2),))
    assert len(backend.invert([entry._replace(gradient=torch.full_like(entry.gradient, torch.nan))]).tokens) == 2


# -- the step ---------------------------------------------------------------------------------------------------


def _step(kernels: Any, d: int, form: tuple[Any, ...], split: int = 0) -> tuple[Table, RowState]:
    """One step of all rows but one, in two calls if `split`."""
    dtype, bits, master, noise = form
    log = _log(d, dtype=torch.bfloat16)
    inverted = reference.invert(log)
    table, picked = _table(d, dtype), torch.arange(1, len(inverted.rows), device=DEVICE).flip(0)
    places = 2 * picked + 1
    places[[0, 1]] = places[[1, 0]]
    state = _state(places, table, inverted.rows[picked], bits, master)
    if dtype == torch.bfloat16 and d == 5:
        table.values[inverted.rows[2]] = 0
    step_size = torch.linspace(0.01, 0.02, len(picked), dtype=torch.float64, device=DEVICE)
    root = torch.linspace(0.1, 0.9, len(picked), dtype=torch.float64, device=DEVICE)
    for part in (slice(0, split), slice(split, None)) if split else (slice(None),):
        adamw = AdamW(step_size[part], root[part], 1 - 0.01 * 0.1, 0.9, 0.999, 1e-8)
        kernels.adamw_rows(table, state, places[part], log, inverted, picked[part], adamw, 0.7, noise)
    return table, state


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("form", FORMATS)
def test_adamw(backend: Any, d: int, form: tuple[Any, ...]) -> None:
    for ours, theirs in zip(_step(backend, d, form), _step(reference, d, form), strict=True):
        _assert_same(ours, theirs)


@pytest.mark.parametrize("form", [FORMATS[0], FORMATS[3], FORMATS[7]])
def test_adamw_gives_the_same_bits_again_and_in_pieces(backend: Any, form: tuple[Any, ...]) -> None:
    first, again, pieces = _step(backend, 320, form), _step(backend, 320, form), _step(backend, 320, form, 3)
    for ours, same, parts in zip(first, again, pieces, strict=True):
        for one, two, three in zip(ours, same, parts, strict=True):
            assert one is None or (torch.equal(one, two) and torch.equal(one, three))


def test_stochastic_rounding_has_the_references_bits(backend: Any) -> None:
    """A step of size zero with weight decay: no sums, so every bit is determined."""
    tables = []
    for kernels, noise in ((backend, 11), (reference, 11), (backend, 12), (backend, None)):
        log, table = _log(320), _table(320, torch.bfloat16)
        inverted = reference.invert(log)
        picked = torch.arange(len(inverted.rows), device=DEVICE)
        zero = torch.zeros(len(picked), dtype=torch.float64, device=DEVICE)
        state = _state(picked, table, inverted.rows, 32, False)
        adamw = AdamW(zero, zero + 1, 0.9999, 0.9, 0.999, 1e-8)
        kernels.adamw_rows(table, state, picked, log, inverted, picked, adamw, 1.0, noise)
        tables.append(table.values)
    ours, theirs, other, nearest = tables
    assert torch.equal(ours, theirs) and not torch.equal(ours, other) and not torch.equal(ours, nearest)


def test_scales_of_nothing_and_of_nan(backend: Any) -> None:
    table = Table(torch.zeros(2, 5, dtype=torch.int8, device=DEVICE), torch.zeros(2, device=DEVICE))
    gradient = torch.tensor([[1e-30, 0.0, 0.0, 0.0, 0.0]], device=DEVICE)
    one = torch.ones(1, 1, device=DEVICE)
    log = [LogEntry(torch.ones(1, 1, dtype=torch.int32, device=DEVICE), one, gradient)]
    state = _state(torch.zeros(1, dtype=torch.int64, device=DEVICE), table, torch.ones(1, dtype=torch.int64), 8, True)
    state = RowState(*(torch.zeros_like(each) for each in state if each is not None))
    where, number = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.ones(1, dtype=torch.float64, device=DEVICE)
    adamw = AdamW(number, number, 1.0, 0.9, 0.999, 1e-8)
    backend.adamw_rows(table, state, where, log, reference.invert(log), where, adamw, 0.0, None)
    assert all(not each.float().any() for each in (*table, *state) if each is not None)
    log = [log[0]._replace(gradient=gradient * torch.nan)]  # nor may a scale hide what went wrong
    backend.adamw_rows(table, state, where, log, reference.invert(log), where, adamw, 1.0, None)
    ones = torch.ones(1, dtype=torch.int64, device=DEVICE)
    assert not storage.read_rows(table, ones).isfinite().any()
    assert not storage.decode_mean(state, where).isfinite().any()
    assert not storage.decode_square(state, where).isfinite().any()


# -- missed steps -----------------------------------------------------------------------------------------------


def _drift(kernels: Any, d: int, form: tuple[Any, ...], with_state: bool = True) -> tuple[Table, RowState]:
    dtype, bits, master, noise = form
    table, rows = _table(d, dtype), torch.tensor([7, 0, HOT, 11], device=DEVICE)
    places = torch.tensor([4, 1, 0, 6], device=DEVICE)
    state = _state(places, table, rows, bits, master)
    since, until = (torch.tensor(each, device=DEVICE) for each in ([0, 2, 3, 5], [9, 4, 1, 6]))
    rates = torch.linspace(0.01, 0.03, 7, dtype=torch.float64, device=DEVICE)
    steps = torch.arange(7, dtype=torch.float64, device=DEVICE)
    step_size, root = rates / (1 - 0.9**steps), (1 - 0.999**steps).sqrt()
    schedule = Schedule(step_size, root, 1 - rates * 0.5, 0.9, 0.999, 1e-8)
    kernels.drift_rows(table, state if with_state else None, places, rows, since, until, schedule, noise)
    return table, state


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("form", FORMATS)
def test_drift(backend: Any, d: int, form: tuple[Any, ...]) -> None:
    for ours, theirs in zip(_drift(backend, d, form), _drift(reference, d, form), strict=True):
        _assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_drift_without_state_only_decays(backend: Any, dtype: torch.dtype) -> None:
    """To the last bit: nothing is summed."""
    form = (dtype, 32, False, 5)
    for d in (5, 1100):
        for ours, theirs in zip(_drift(backend, d, form, False), _drift(reference, d, form, False), strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True) if pair[1] is not None)


def test_a_row_that_missed_nothing_stays_as_it_is(backend: Any) -> None:
    table, rows = _table(320, torch.int8), torch.tensor([2, 5], device=DEVICE)
    state = _state(rows, table, rows, 8, True)
    before = _copy(table), _copy(state)
    schedule = Schedule(
        *(torch.full((5,), 0.9, dtype=torch.float64, device=DEVICE) for _ in range(3)), 0.9, 0.999, 1e-8
    )
    since = torch.full((2,), 4, device=DEVICE)
    backend.drift_rows(table, state, rows, rows, since, since + 9, schedule, None)
    for now, then in zip((*table, *state), (*before[0], *before[1]), strict=True):
        assert torch.equal(now, then)


# -- compiled ---------------------------------------------------------------------------------------------------


TARGETS = (("cuda", 80, 32), ("hip", "gfx1100", 32))


@needs_triton
def test_every_kernel_compiles_for_cuda_and_rocm(tmp_path: Path) -> None:
    """What the interpreter does not check. The calls are real, only the launch is left out."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    from memlayers.kernels.triton_gpu import loops, top_k

    kernels = {name for module in (loops, top_k) for name in dir(module) if name.endswith("_kernel")}
    assert len(kernels) == 9
    assert {(backend, name) for backend, *_ in TARGETS for name in kernels} == {
        tuple(line.split()) for line in done.stdout.splitlines()
    }


def _compile() -> None:
    """Compiles for devices that are not there, and prints the names of the kernels."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from memlayers.kernels import triton_gpu

    class Absent:
        def __init__(self, number: int) -> None:
            self.number = number

        def get_current_target(self) -> Any:
            return GPUTarget(*TARGETS[self.number])

        def get_current_device(self) -> int:
            return self.number

        def get_current_stream(self, device: int) -> int:
            return 0

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        print(driver.active.get_current_target().backend, kernel.__name__)
        return launch(kernel, *arguments, grid=grid, warmup=True, **constants)

    launch, JITFunction.run = JITFunction.run, compile_only
    for number in range(len(TARGETS)):
        driver.set_active(Absent(number))
        for d, form in ((3584, FORMATS[7]), (3584, FORMATS[3]), (5, FORMATS[1])):
            table, indices = _table(d, form[0]), _integers(SLOTS, 2, 8, dtype=torch.int32)
            triton_gpu.weighted_sum(table, indices, _random(2, 8), torch.bfloat16)
            _step(triton_gpu, d, form)
            _drift(triton_gpu, d, form)
        _drift(triton_gpu, 320, FORMATS[3], with_state=False)
        triton_gpu.weight_gradient(table, indices, _random(2, d).bfloat16())
        log = _log(320)
        triton_gpu.invert(log)
        triton_gpu.row_gradients(log, reference.invert(log), torch.arange(2))
        triton_gpu.square_norm(log, reference.invert(log))
        triton_gpu.product_key_top_k(_random(2, 512), _random(2, 512), 8)


if __name__ == "__main__":
    _compile()
