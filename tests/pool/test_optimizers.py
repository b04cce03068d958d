"""Both optimizers by name: what they do alike, and what a step of each allocates."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.pool import DIM, make_pool, make_reads
from memlayers.pool.optimizers import OPTIMIZERS, gradients_are_finite, make_optimizer
from memlayers.pool.value_pool import FactoredGradient, ValuePool
from memlayers.utils.errors import InputError

# -- the seam, and settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_name_makes_an_optimizer_that_descends(name: str):
    pool, read = make_pool(), make_reads(1)[0]
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
    slow, fast = make_pool(init="zero"), make_pool(init="zero")
    groups = [{"params": [slow.parameter], "lr": 0.001}, {"params": [fast.parameter]}]
    optimizer = make_optimizer(name, groups, lr=0.1)
    for pool in (slow, fast):
        pool(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert torch.allclose(slow.weight[0], torch.full((DIM,), -0.001), atol=1e-6)
    assert torch.allclose(fast.weight[0], torch.full((DIM,), -0.1), atol=1e-6)


def test_an_unknown_name_is_an_input_error():
    with pytest.raises(InputError, match="unknown optimizer 'sgd': take one of row-adamw, adamw"):
        make_optimizer("sgd", [{"params": [make_pool().parameter]}], lr=0.1)


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
    assert gradients_are_finite([parameter])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_told(bad: float):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, bad, 0.0])
    assert not gradients_are_finite([parameter])
    pool, (indices, weights, direction) = make_pool(), make_reads(1)[0]
    (pool(indices, weights) * direction).sum().backward()
    assert gradients_are_finite([pool.parameter])
    pool.zero_grad()
    direction[1, 2] = bad
    (pool(indices, weights) * direction).sum().backward()
    assert not gradients_are_finite([pool.parameter])
