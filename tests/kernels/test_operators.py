"""The operators that torch.compile puts into a graph, and the check of the slots that are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.kernels import DEVICE, random_integers, random_table, random_tensor
from memlayers.kernels import kernels_for, operators
from memlayers.pool.product_keys import product_key_top_k
from memlayers.pool.value_pool import FactoredGradient, ValuePool
from memlayers.utils.errors import InputError

FORMATS = [torch.float32, torch.bfloat16, torch.int8]


def _pool(dtype: torch.dtype, protectable: bool = False) -> ValuePool:
    pool = ValuePool(64, 24, dtype, protectable)
    pool.initialise("normal", 0)
    return pool.to(DEVICE)


class _Memory(nn.Module):
    """A lookup, as a memory layer does it: 64 slots, 8 sub-keys a half, 2 heads, 3 slots each."""

    def __init__(self, dtype: torch.dtype, protectable: bool = False) -> None:
        super().__init__()
        self.pool = _pool(dtype, protectable)

    def forward(self, scores: Tensor) -> Tensor:
        best, slots = product_key_top_k(scores[0], scores[1], 3)
        read: Tensor = self.pool(slots.flatten(1), best.softmax(-1).flatten(1))
        return read.tanh()


def _scores(n: int) -> Tensor:
    return random_tensor(2, n, 2, 8, seed=n)


# -- torch.compile --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _forget_graphs() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("grad_enabled", [False, True])
def test_a_lookup_is_one_graph_with_the_same_bits(dtype: torch.dtype, grad_enabled: bool) -> None:
    """From the second size on the graph takes any number of tokens. Nothing learns here, whatever the grad mode."""
    memory = _Memory(dtype, protectable=True).requires_grad_(False)
    with torch.set_grad_enabled(grad_enabled):
        compiled = torch.compile(memory, fullgraph=True, backend="aot_eager")
        for n in (5, 9, 3, 0):
            assert torch.equal(compiled(_scores(n)), memory(_scores(n)))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_what_learns_breaks_the_graph_and_keeps_its_gradient(dtype: torch.dtype) -> None:
    gradients: list[tuple[Tensor, Tensor]] = []
    for compiles in (False, True):
        memory = _Memory(dtype, protectable=True)
        assert memory.pool.protected is not None
        memory.pool.protected[:20] = True
        scores = _scores(5).requires_grad_()
        read = torch.compile(memory, backend="aot_eager") if compiles else memory
        read(scores).square().sum().backward()
        gradient = memory.pool.parameter.grad
        assert isinstance(gradient, FactoredGradient) and scores.grad is not None
        gradients.append((gradient.norm_squared(), scores.grad))
        assert gradient.norm_squared() > 0 and scores.grad.any()
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rows_that_are_late_are_moved_before_a_compiled_read() -> None:
    memory, seen = _Memory(torch.float32), []
    memory.pool.before_read = seen.append
    with torch.no_grad():
        torch.compile(memory, backend="aot_eager")(_scores(5))
    assert len(seen) == 1


def test_a_compiled_lookup_can_be_exported() -> None:
    memory = _Memory(torch.bfloat16).eval()
    with torch.no_grad():
        program = torch.export.export(memory, (_scores(5),))
        assert torch.equal(program.module()(_scores(5)), memory(_scores(5)))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_the_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    table, indices, weights = random_table(8, dtype), random_integers(12, 4, 3), random_tensor(4, 3)
    checks = ("test_schema", "test_faketensor")
    for result in (torch.float32, torch.bfloat16):
        torch.library.opcheck(
            torch.ops.memlayers.weighted_sum.default, (*table, indices, weights, result), test_utils=checks
        )
        expected = kernels_for(indices.device).weighted_sum(table, indices, weights, result)
        assert torch.equal(operators.weighted_sum(table, indices, weights, result), expected)
    for scores in (random_tensor(2, 4, 2, 8), random_tensor(2, 4, 2, 8).bfloat16(), random_tensor(2, 4, 2, 8).double()):
        for k in (3, 11):  # more than there are sub-keys in a half
            torch.library.opcheck(torch.ops.memlayers.product_key_top_k.default, (*scores, k), test_utils=checks)
            ours = operators.product_key_top_k(*scores, k)
            theirs = kernels_for(scores.device).product_key_top_k(*scores, k)
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


# -- slots that are not there ---------------------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE != "cpu", reason="a failed check ends CUDA's work in this process")
@pytest.mark.parametrize("dtype", [*FORMATS, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("index", [64, -1, 2**32, -(2**40)])
@pytest.mark.parametrize("learns", [False, True])
def test_a_slot_that_is_not_there_is_an_input_error(dtype: torch.dtype, index: int, learns: bool) -> None:
    pool = _pool(dtype, protectable=True)
    indices = torch.tensor([[0, 63], [index, 5]])
    with torch.set_grad_enabled(learns), pytest.raises(InputError) as raised:
        pool(indices, torch.ones(2, 2))
    assert str(raised.value) == f"a value pool of 64 slots is read at indices from 0 to 63, not {index}"
    for whole in (torch.int32, torch.int64):
        assert pool(torch.tensor([[0, 63]], dtype=whole), torch.ones(1, 2)).isfinite().all()


@pytest.mark.skipif(DEVICE != "cpu", reason="as above")
def test_a_compiled_read_checks_its_slots_too() -> None:
    pool = _pool(torch.bfloat16).requires_grad_(False)
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    with pytest.raises(InputError, match="not 64"):
        compiled(torch.tensor([[64]]), torch.ones(1, 1))


def test_a_check_on_cuda_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The asynchronous check, on a CPU, where it fails at once."""
    monkeypatch.setattr(Tensor, "is_cuda", True)
    assert operators.checked(torch.tensor([[0, 7]]), 8).dtype == torch.int32
    for index in (8, -1):
        with pytest.raises(RuntimeError, match="a value pool of 8 slots is read at indices from 0 to 7"):
            operators.checked(torch.tensor([[0, index]]), 8)
