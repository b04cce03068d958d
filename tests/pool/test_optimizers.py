from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from memlayers.kernels.storage import read_rows
from memlayers.pool.optimizers import OPTIMIZERS, has_finite_gradient, make_optimizer
from memlayers.pool.row_adamw import RowAdamW
from memlayers.pool.value_pool import FactoredGradient, ValuePool
from memlayers.utils.errors import InputError

SETTINGS: dict[str, Any] = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-7}
SLOTS, DIM = 40, 7

Read = tuple[Tensor, Tensor, Tensor]  # indices, weights, and what the loss multiplies the read with


def _pool(dtype: torch.dtype = torch.float32, slots: int = SLOTS, dim: int = DIM, init: str = "normal") -> ValuePool:
    pool = ValuePool(slots, dim, dtype)
    pool.initialise(init, seed=0)
    return pool


def _reads(steps: int, dtype: torch.dtype = torch.float32, seed: int = 1, dim: int = DIM) -> list[Read]:
    """Random sparse steps: some rows are read in nearly every one, some once in a thousand."""
    generator = torch.Generator().manual_seed(seed)
    often = torch.logspace(-3, -0.2, SLOTS)
    reads = []
    for _ in range(steps):
        rows = (torch.rand(SLOTS, generator=generator) < often).nonzero().squeeze(-1)
        rows = rows if len(rows) else torch.tensor([SLOTS - 1])
        indices = rows[torch.randint(len(rows), (4, 3), generator=generator)]
        weights = torch.rand(4, 3, generator=generator, dtype=dtype)
        reads.append((indices, weights, torch.randn(4, dim, generator=generator, dtype=dtype)))
    return reads


def _backward(pool: ValuePool, read: Read) -> None:
    indices, weights, direction = read
    (pool(indices, weights) * direction).sum().backward()


def _run(optimizer: torch.optim.Optimizer, pool: ValuePool, reads: list[Read]) -> None:
    for read in reads:
        _backward(pool, read)
        optimizer.step()
        optimizer.zero_grad()


# -- torch's AdamW over the whole pool, to the last digit -----------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_dense_semantics_is_adamw_over_the_whole_pool(dtype: torch.dtype, tolerance: float, weight_decay: float):
    pool = _pool(dtype)
    whole = torch.nn.Parameter(pool.weight.detach().clone())
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": weight_decay}
    ours, theirs = RowAdamW([pool.parameter], semantics="dense", **settings), AdamW([whole], foreach=False, **settings)
    for step, (indices, weights, direction) in enumerate(_reads(2000, dtype)):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + step % 7) / 7  # a schedule
        (pool(indices, weights) * direction).sum().backward()
        (F.embedding_bag(indices, whole, per_sample_weights=weights, mode="sum") * direction).sum().backward()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        if step % 250 == 0:  # what the next read would see, without saving
            late = torch.arange(SLOTS)[:, None]
            seen = pool(late, torch.ones(SLOTS, 1, dtype=dtype)).detach()
            assert (seen - whole.detach()).abs().max().item() <= tolerance
    ours.flush()
    assert (pool.weight - whole).abs().max().item() <= tolerance


def test_dense_semantics_saves_what_would_be_read():
    pool, reads = _pool(), _reads(30)
    optimizer = RowAdamW([pool.parameter], semantics="dense", **SETTINGS)
    _run(optimizer, pool, reads)
    stored = pool.weight.detach().clone()
    saved = pool.state_dict()["weight"]
    read = pool(torch.arange(SLOTS)[:, None], torch.ones(SLOTS, 1)).detach()
    assert torch.equal(saved, read)
    assert not torch.equal(stored, saved)  # rows had been left behind


def test_an_optimizer_that_goes_leaves_its_pool_up_to_date():
    pool, reads = _pool(), _reads(30)
    optimizer = RowAdamW([pool.parameter], semantics="dense", **SETTINGS)
    _run(optimizer, pool, reads)
    stored, gone = pool.weight.detach().clone(), weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None  # the pool does not hold it
    assert not torch.equal(stored, pool.weight)
    left = pool.weight.detach().clone()
    assert torch.equal(pool.state_dict()["weight"], left)


def test_a_second_optimizer_takes_the_pool_over_up_to_date():
    pools, reads = [_pool(), _pool()], _reads(30)
    dense = [RowAdamW([pool.parameter], semantics="dense", **SETTINGS) for pool in pools]
    for pool, optimizer in zip(pools, dense, strict=True):
        _run(optimizer, pool, reads)
    dense[1].flush()
    _run(RowAdamW([pools[0].parameter], **SETTINGS), pools[0], reads[:1])
    others = [row for row in range(SLOTS) if row not in reads[0][0]]
    assert torch.equal(pools[0].weight[others], pools[1].weight[others])


@pytest.mark.parametrize("wrong", [{"state_bits": 8}, {"state_device": "host"}, {"rounding": "stochastic"}])
def test_dense_semantics_refuses_a_lossy_state(wrong: dict[str, Any]):
    with pytest.raises(InputError, match="to the last digit"):
        RowAdamW([_pool().parameter], semantics="dense", **wrong)


# -- lazy semantics -------------------------------------------------------------------------------------------------


def test_lazy_rows_move_as_adamw_moves_a_parameter_of_their_own():
    """Each row is its own AdamW over the steps in which it had a gradient."""
    pool, reads = _pool(torch.float64), _reads(60, torch.float64)
    start = pool.weight.detach().clone()
    optimizer = RowAdamW([pool.parameter], semantics="lazy", weight_decay=0.1, **SETTINGS)
    _run(optimizer, pool, reads)
    for row in (0, SLOTS // 2, SLOTS - 1):
        alone = torch.nn.Parameter(start[row].clone())
        theirs = AdamW([alone], foreach=False, weight_decay=0.1, **SETTINGS)
        for indices, weights, direction in reads:
            weight = (weights * (indices == row)).sum(-1)
            if (indices == row).any():
                alone.grad = weight @ direction
                theirs.step()
        assert (pool.weight[row] - alone).abs().max().item() <= 1e-13


def test_rows_without_gradient_do_not_move_and_have_no_state():
    pool = _pool(init="zero")
    optimizer = RowAdamW([pool.parameter], **SETTINGS)
    read = (torch.tensor([[1, 3], [5, 7]]), torch.ones(2, 2), torch.tensor([[1.0] * DIM, [0.0] * DIM]))
    _run(optimizer, pool, [read] * 3)
    assert pool.weight.any(-1).nonzero().flatten().tolist() == [1, 3]  # 5 and 7 were read by a token without gradient
    assert optimizer.state_dict()["state"][0]["rows"].tolist() == [1, 3]
    assert optimizer.state_dict()["state"][0]["exp_avg.0"].shape == (2, DIM)


def test_a_row_first_touched_late_takes_one_learning_rate():
    pool = _pool(init="zero")
    optimizer = RowAdamW([pool.parameter], lr=0.01, semantics="lazy")
    ones = torch.ones(1, DIM)
    _run(optimizer, pool, [(torch.tensor([[0]]), torch.ones(1, 1), ones)] * 500)
    _run(optimizer, pool, [(torch.tensor([[1]]), torch.ones(1, 1), ones)])
    assert torch.allclose(pool.weight[1], torch.full((DIM,), -0.01), rtol=1e-5)  # a global count: -0.032


# -- what else has a gradient, and every way a gradient comes about -------------------------------------------------


@pytest.mark.parametrize("state_device", ["device", "host"])
def test_other_parameters_get_torchs_adamw(state_device: str):
    ours, theirs = (torch.nn.Linear(4, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = {**SETTINGS, "weight_decay": 0.1}
    optimizers = (RowAdamW(ours.parameters(), state_device=state_device, **settings),
                  AdamW(theirs.parameters(), fused=True, **settings))  # fmt: skip
    for step in range(9):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("semantics", ["lazy", "dense"])
def test_accumulated_and_shared_reads_are_one_gradient(semantics: str):
    """Two micro-batches of two reads each (two layers on one pool) move the pool as their concatenation does."""
    first, second = (_pool(torch.float64) for _ in range(2))
    reads = _reads(24, torch.float64)
    one, other = (RowAdamW([pool.parameter], semantics=semantics, **SETTINGS) for pool in (first, second))
    for start in range(0, len(reads), 4):
        four = reads[start : start + 4]
        for pair in (four[:2], four[2:]):
            sum((first(i, w) * d).sum() for i, w, d in pair).backward()
        _backward(second, tuple(torch.cat(parts) for parts in zip(*four, strict=True)))  # type: ignore[arg-type]
        for optimizer in (one, other):
            optimizer.step()
            optimizer.zero_grad()
    assert (first.state_dict()["weight"] - second.state_dict()["weight"]).abs().max().item() <= 1e-12


@pytest.mark.parametrize("largest", [0.5, 1e9])
def test_clipping_by_global_norm_sees_the_pool(largest: float):
    pool = _pool()
    whole = torch.nn.Parameter(pool.weight.detach().clone())
    beside, twin = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    ours = RowAdamW([pool.parameter, beside], **SETTINGS)
    theirs = AdamW([whole, twin], foreach=False, weight_decay=0, **SETTINGS)
    (indices, weights, direction) = _reads(1)[0]
    ((pool(indices, weights) * direction).sum() + 2 * beside.sum()).backward()
    bag = F.embedding_bag(indices, whole, per_sample_weights=weights, mode="sum")
    ((bag * direction).sum() + 2 * twin.sum()).backward()
    norms = [torch.nn.utils.clip_grad_norm_(group, largest) for group in ([pool.parameter, beside], [whole, twin])]
    torch.testing.assert_close(norms[0], norms[1])
    ours.step()
    theirs.step()
    torch.testing.assert_close(pool.weight, whole)
    torch.testing.assert_close(beside, twin)


def test_a_gradient_made_dense_under_way_is_refused():
    pool = _pool()
    optimizer = RowAdamW([pool.parameter], **SETTINGS)
    _run(optimizer, pool, _reads(1))
    pool.parameter.grad = torch.ones_like(pool.parameter)
    with pytest.raises(InputError, match="needs its read log"):
        optimizer.step()


def test_a_closure_runs_with_gradients_on():
    pool, read = _pool(), _reads(1)[0]
    optimizer = RowAdamW([pool.parameter], **SETTINGS)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (pool(*read[:2]) - 1).square().sum()
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


# -- state formats --------------------------------------------------------------------------------------------------


def test_eight_bit_state_descends_nearly_as_well():
    """A quadratic bowl over 300 columns: the loss left after 150 steps."""
    left = {}
    for bits in (32, 8):
        pool = _pool(dim=300)
        optimizer = RowAdamW([pool.parameter], lr=0.02, state_bits=bits)
        indices, weights, goal = torch.arange(SLOTS)[:, None], torch.ones(SLOTS, 1), torch.full((SLOTS, 300), 0.5)
        start = (pool(indices, weights) - goal).square().mean().item()
        for _ in range(150):
            (pool(indices, weights) - goal).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        left[bits] = (pool(indices, weights) - goal).square().mean().item() / start
        if bits == 8:
            kept = optimizer.state_dict()["state"][0]
            assert (kept["exp_avg.0"].dtype, kept["exp_avg_sq.0"].dtype) == (torch.int8, torch.uint8)
    assert left[32] < 1e-3 and left[8] < 1e-2


@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_a_bfloat16_pool_learns_from_updates_below_its_resolution(rounding: str):
    pool = ValuePool(1, 64, torch.bfloat16)
    torch.nn.init.ones_(pool.weight)
    optimizer = RowAdamW([pool.parameter], lr=1e-4, semantics="lazy", rounding=rounding)
    for _ in range(100):
        pool(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert abs(pool.weight.float().mean().item() - 0.99) < 2e-3  # to nearest alone it would stay 1
    assert ("master.0" in optimizer.state_dict()["state"][0]) == (rounding == "master")


def test_an_int8_pool_follows_its_master():
    exact, coarse = _pool(init="zero"), _pool(torch.int8, init="zero")
    reads = _reads(40)
    for pool in (exact, coarse):
        _run(RowAdamW([pool.parameter], **SETTINGS), pool, reads)
    rows = torch.arange(SLOTS)
    values = read_rows(coarse.table, rows)
    step = values.abs().amax(-1, keepdim=True) / 127
    assert ((values - exact.weight).abs() <= 0.51 * step + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("bits", [32, 8])
def test_host_state_moves_the_pool_as_device_state_does(dtype: torch.dtype, bits: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("memlayers.pool.offload.STAGE_BYTES", 4 * DIM * 3)  # three rows a piece
    pools = [_pool(dtype) for _ in range(2)]
    for pool, place in zip(pools, ("device", "host"), strict=True):
        _run(
            RowAdamW([pool.parameter], semantics="lazy", state_bits=bits, state_device=place, **SETTINGS),
            pool,
            _reads(20),
        )
    assert torch.equal(read_rows(pools[0].table, torch.arange(SLOTS)), read_rows(pools[1].table, torch.arange(SLOTS)))


# -- saving and resuming --------------------------------------------------------------------------------------------

FORMATS: dict[str, dict[str, Any]] = {
    "lazy": {"semantics": "lazy"},
    "dense": {"semantics": "dense", "weight_decay": 0.05},
    "8 bits": {"state_bits": 8},
    "stochastic": {"rounding": "stochastic"},
    "host": {"state_device": "host"},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("small_chunks", [False, True])
def test_resuming_equals_an_uninterrupted_run(
    name: str, dtype: torch.dtype, small_chunks: bool, monkeypatch: pytest.MonkeyPatch
):
    if small_chunks:
        monkeypatch.setattr("memlayers.pool.row_state.CHUNK_BYTES", 4 * DIM * 8)  # eight rows a chunk
    reads = _reads(30)
    whole, first, second = (_pool(dtype) for _ in range(3))
    uninterrupted = RowAdamW([whole.parameter], **{**SETTINGS, **FORMATS[name]})
    _run(uninterrupted, whole, reads)

    optimizer = RowAdamW([first.parameter], **{**SETTINGS, **FORMATS[name]})
    _run(optimizer, first, reads[:13])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    saved = first.state_dict()
    file.seek(0)

    second.load_state_dict(saved)
    restored = RowAdamW([second.parameter], **{**SETTINGS, "lr": 1.0, **FORMATS[name]})
    restored.load_state_dict(torch.load(file, weights_only=True))
    again, before = restored.state_dict()["state"][0], optimizer.state_dict()["state"][0]
    assert again.keys() == before.keys()
    assert all(torch.equal(again[key], before[key]) and again[key].dtype == before[key].dtype for key in before)
    _run(restored, second, reads[13:])
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_a_loaded_state_is_a_copy():
    pool = _pool()
    optimizer = RowAdamW([pool.parameter], **SETTINGS)
    _run(optimizer, pool, _reads(3))
    saved = optimizer.state_dict()
    kept = saved["state"][0]["exp_avg.0"].clone()
    other = _pool()
    restored = RowAdamW([other.parameter], **SETTINGS)
    restored.load_state_dict(saved)
    _run(restored, other, _reads(3, seed=5))
    assert torch.equal(saved["state"][0]["exp_avg.0"], kept)


def test_the_state_has_a_step_tensor():
    pool = _pool()
    optimizer = RowAdamW([pool.parameter], **SETTINGS)
    _run(optimizer, pool, _reads(3))
    assert optimizer.state_dict()["state"][0]["step"].item() == 3


@pytest.mark.parametrize(
    ("saved_with", "loaded_with", "message"),
    [
        ({"state_bits": 8}, {}, "another state_bits"),
        ({}, {"state_device": "host"}, "another state_bits, rounding or state_device"),
        ({"semantics": "dense"}, {"semantics": "lazy"}, "semantics='lazy'"),
        ({"semantics": "lazy"}, {"semantics": "dense"}, "semantics='dense'"),
    ],
)
def test_another_format_is_refused(saved_with: dict[str, Any], loaded_with: dict[str, Any], message: str):
    pool = _pool()
    optimizer = RowAdamW([pool.parameter], **SETTINGS, **saved_with)
    _run(optimizer, pool, _reads(2))
    with pytest.raises(InputError, match=message):
        RowAdamW([_pool().parameter], **SETTINGS, **loaded_with).load_state_dict(optimizer.state_dict())


# -- the seam, and settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_name_makes_an_optimizer_that_descends(name: str):
    pool, read = _pool(), _reads(1)[0]
    optimizer = make_optimizer(name, [{"params": [pool.parameter]}], lr=0.05)
    assert optimizer.param_groups[0]["weight_decay"] == 0  # decay would shrink the values of facts already taught

    def loss() -> Tensor:
        out: Tensor = (pool(*read[:2]) - 1).square().sum()
        return out

    first = loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.5 * first


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_keeps_its_own_learning_rate(name: str):
    slow, fast = _pool(init="zero"), _pool(init="zero")
    groups = [{"params": [slow.parameter], "lr": 0.001}, {"params": [fast.parameter]}]
    optimizer = make_optimizer(name, groups, lr=0.1)
    for pool in (slow, fast):
        pool(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert torch.allclose(slow.weight[0], torch.full((DIM,), -0.001), atol=1e-6)
    assert torch.allclose(fast.weight[0], torch.full((DIM,), -0.1), atol=1e-6)


def test_an_unknown_name_is_an_input_error():
    with pytest.raises(InputError, match="unknown optimizer 'sgd': take one of row-adamw, adamw"):
        make_optimizer("sgd", [{"params": [_pool().parameter]}], lr=0.1)


@pytest.mark.parametrize(
    "setting",
    [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1.0}, {"weight_decay": -0.1}, {"semantics": "sparse"},
     {"state_bits": 16}, {"state_device": "cuda"}, {"rounding": "up"}],
)  # fmt: skip
def test_settings_out_of_range_are_input_errors(setting: dict[str, object]):
    with pytest.raises(InputError, match="at least 0|take "):
        RowAdamW([_pool().parameter], **{"lr": 0.1, **setting})  # type: ignore[arg-type]


# -- what a step allocates ------------------------------------------------------------------------------------------


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes that any one tensor made under it has."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, FactoredGradient) for kind in types):
            with self:  # what it does inside counts too
                return FactoredGradient.__torch_dispatch__(func, types, args, kwargs)
        result = func(*args, **(kwargs or {}))
        given = self._storages((args, kwargs))
        made = {place: size for place, size in self._storages(result).items() if place not in given}
        self.bytes = max(self.bytes, *made.values(), 0)
        return result

    @staticmethod
    def _storages(tree: Any) -> dict[int, int]:
        leaves = torch.utils._pytree.tree_leaves(tree)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, FactoredGradient)]
        return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}


@pytest.mark.parametrize(
    ("name", "options"),
    [("row-adamw", {"semantics": "lazy"}), ("row-adamw", {}), ("row-adamw", {"state_device": "host"}), ("adamw", {})],
)
def test_a_step_allocates_neither_the_pool_nor_its_touched_rows(name: str, options: dict[str, Any]):
    """512 tokens read 16 rows each of 20,000; torch's AdamW, for contrast, needs gradients of the pool's size."""
    pool = ValuePool(20_000, 256)
    pool.initialise("zero", 0)
    optimizer = make_optimizer(name, [{"params": [pool.parameter]}], lr=0.1, **options)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        indices = torch.randint(20_000, (512, 16), generator=generator)
        weights = torch.rand(512, 16, generator=generator)
        pool(indices, weights).square().sum().backward()
        torch.nn.utils.clip_grad_norm_([pool.parameter], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(12):  # until (nearly) every row has its place in the state
        step()
    gc.collect()
    with _Largest() as largest:
        step()
    touched_rows = 512 * 16 * 256 * 4 * 0.8  # about one row in five is read twice
    pool_bytes = 20_000 * 256 * 4
    if name == "adamw":
        assert largest.bytes >= pool_bytes
    elif options.get("state_device") == "host":  # staged in pieces; here one piece holds them all
        assert largest.bytes < pool_bytes
    else:
        assert largest.bytes < touched_rows / 8  # the largest: what the read returned, 512 rows


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak memory")
@pytest.mark.parametrize("name", ["row-adamw", "adamw"])
def test_the_process_needs_no_more_for_a_step_than_the_log(name: str, warm_python: Any):
    """The same, by the kernel's account, which misses nothing: in a process of its own, whose peak is reset."""
    code = f"""
from pathlib import Path
import torch
from memlayers.pool.optimizers import make_optimizer
from memlayers.pool.value_pool import ValuePool

torch.set_num_threads(1)
pool = ValuePool(40_000, 512)
pool.initialise("zero", 0)
optimizer = make_optimizer({name!r}, [{{"params": [pool.parameter]}}], lr=0.1)
generator = torch.Generator().manual_seed(0)

def step():
    indices = torch.randint(40_000, (512, 32), generator=generator)
    pool(indices, torch.rand(512, 32, generator=generator)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()

for _ in range(20):
    step()
kilobytes = lambda name: int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
step()
print(kilobytes("VmHWM") - before)
"""
    done = warm_python.run(code)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout) * 1024
    pool_bytes, touched_bytes = 40_000 * 512 * 4, 512 * 32 * 512 * 4 * 0.8
    assert grown >= 0.8 * pool_bytes if name == "adamw" else grown < touched_bytes / 3


# -- finite gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda p: None, lambda p: torch.ones_like(p)], ids=["none", "ones"])
def test_finite_gradients_are_told(make: Callable[[Tensor], Tensor | None]):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = make(parameter)
    assert has_finite_gradient(parameter)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_told(bad: float):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, bad, 0.0])
    assert not has_finite_gradient(parameter)
    pool, (indices, weights, direction) = _pool(), _reads(1)[0]
    (pool(indices, weights) * direction).sum().backward()
    assert has_finite_gradient(pool.parameter)
    pool.zero_grad()
    direction[1, 2] = bad
    (pool(indices, weights) * direction).sum().backward()
    assert not has_finite_gradient(pool.parameter)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"state_device": "host"}, {"semantics": "dense"}, {"state_bits": 8}], ids=str)
def test_a_pool_on_the_gpu_learns_as_one_on_the_cpu(options: dict[str, Any]):
    here, there = _pool(), _pool().cuda()
    for pool in (here, there):
        _run(RowAdamW([pool.parameter], **SETTINGS, **options), pool,
             [tuple(part.to(pool.parameter.device) for part in read) for read in _reads(20)])  # type: ignore[misc]  # fmt: skip
    torch.testing.assert_close(here.state_dict()["weight"], there.state_dict()["weight"].cpu(), rtol=1e-4, atol=1e-5)
