"""What is done to a value pool's gradient, beside what is done to an ordinary parameter's."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.pool.factored_gradient import NO_DENSE_GRADIENT, NO_READ_LOG, FactoredGradient
from memlayers.pool.row_adamw import RowAdamW
from memlayers.pool.value_pool import ValuePool
from memlayers.utils.errors import InputError, WorkError

SLOTS, DIM = 9, 7
Story = Callable[[nn.Parameter, Callable[..., Tensor]], Any]


class _Plain(nn.Module):
    """The same reads of an ordinary parameter."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    @property
    def parameter(self) -> nn.Parameter:
        return self.weight

    def forward(self, indices: Tensor, weights: Tensor) -> Tensor:
        return F.embedding_bag(indices, self.weight, per_sample_weights=weights, mode="sum")


def _reader(module: Any) -> Callable[..., Tensor]:
    """`read(tokens=5, seed=0)`: a loss that reads."""

    def read(tokens: int = 5, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        indices = torch.randint(SLOTS, (tokens, 4), generator=generator)
        loss: Tensor = module(indices, torch.rand(tokens, 4, generator=generator)).square().sum()
        return loss

    return read


def _pool(dtype: torch.dtype = torch.float32) -> ValuePool:
    pool = ValuePool(SLOTS, DIM, dtype)
    pool.initialise("normal", seed=0)
    return pool


def _penalty(parameter: nn.Parameter) -> Tensor:
    loss: Tensor = (parameter**2).sum()
    return loss


def _after_a_read(change: Callable[[nn.Parameter], Any]) -> Story:
    def story(parameter: nn.Parameter, read: Callable[..., Tensor]) -> None:
        read().backward()
        change(parameter)
        read(seed=1).backward()

    return story


def _penalty_first(parameter: nn.Parameter, read: Callable[..., Tensor]) -> None:
    _penalty(parameter).backward()
    read().backward()


def _penalty_between(parameter: nn.Parameter, read: Callable[..., Tensor]) -> None:
    read().backward()
    _penalty(parameter).backward()
    read(seed=1).backward()


def _penalty_beside(parameter: nn.Parameter, read: Callable[..., Tensor]) -> None:
    (read() + _penalty(parameter)).backward()
    read(seed=1).backward()


def _several_empty(parameter: nn.Parameter, read: Callable[..., Tensor]) -> None:
    for tokens in (0, 5, 0, 3):
        read(tokens).backward()


def _only_empty(parameter: nn.Parameter, read: Callable[..., Tensor]) -> None:
    read(0).backward()


def _hooked(parameter: nn.Parameter, read: Callable[..., Tensor]) -> None:
    parameter.register_hook(lambda gradient: gradient * 0.5)
    kept: list[Tensor] = []
    parameter.register_hook(kept.append)  # autograd may not hand over what somebody holds
    read().backward()
    before = kept[0].to_dense().clone()
    read(seed=1).backward()
    assert torch.equal(kept[0].to_dense(), before)


def _write_through(view: Callable[[Tensor], Tensor]) -> Callable[[nn.Parameter], Any]:
    return lambda parameter: view(_gradient(parameter)).mul_(3.0)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _momentum(parameter: nn.Parameter) -> None:
    momentum = _gradient(parameter).clone()
    for _ in range(3):
        momentum.mul_(0.5).add_(_gradient(parameter))
    parameter.grad = momentum


CHANGES: dict[str, Callable[[nn.Parameter], Any]] = {
    "clip_value": lambda p: nn.utils.clip_grad_value_([p], 0.5),
    "clip_value_foreach": lambda p: nn.utils.clip_grad_value_([p], 0.5, foreach=True),
    "clip_norm": lambda p: nn.utils.clip_grad_norm_([p], 0.5),
    "clip_norm_foreach": lambda p: nn.utils.clip_grad_norm_([p], 0.5, foreach=True),
    "clip_norm_inf": lambda p: nn.utils.clip_grad_norm_([p], 0.5, norm_type=torch.inf),
    "clip_norm_1": lambda p: nn.utils.clip_grad_norm_([p], 0.5, norm_type=1, foreach=True),
    "nan_to_num": lambda p: _gradient(p).nan_to_num_(),
    "clamp": lambda p: _gradient(p).clamp_(-0.5, 0.5),
    "neg": lambda p: _gradient(p).neg_(),
    "add": lambda p: _gradient(p).add_(torch.ones(SLOTS, DIM)),
    "add_alpha": lambda p: _gradient(p).add_(_gradient(p).clone(), alpha=-0.5),
    "add_one": lambda p: _gradient(p).add_(1.0),
    "sub_itself": lambda p: _gradient(p).sub_(_gradient(p).clone()),
    "mask": lambda p: _gradient(p).mul_(torch.arange(float(SLOTS))[:, None]),
    "square": lambda p: _gradient(p).mul_(_gradient(p)),
    "scale": lambda p: _gradient(p).mul_(2).div_(torch.tensor(3.0)),
    "divide_by_zero": lambda p: _gradient(p).div_(0.0),
    "copy": lambda p: _gradient(p).copy_(torch.ones(SLOTS, DIM)),
    "copy_a_log": lambda p: _gradient(p).copy_(_gradient(p) * 2),
    "put": lambda p: _gradient(p).__setitem__(_gradient(p) > 0.5, 0.5),
    "row": lambda p: _gradient(p)[3].zero_(),
    "foreach_add": lambda p: torch._foreach_add_([_gradient(p), torch.ones(2)], 1.0),
    "foreach_div": lambda p: torch._foreach_div_([_gradient(p)], 2.0),
    "foreach_mul": lambda p: torch._foreach_mul_([_gradient(p)], [torch.tensor(2.0)]),
    "foreach_zero": lambda p: torch._foreach_zero_([_gradient(p), torch.ones(2)]),
    "out": lambda p: torch.add(_gradient(p), 1.0, out=_gradient(p)),
    "data": lambda p: _gradient(p).data.mul_(3.0),
    "detached": lambda p: _gradient(p).detach().add_(1.0).mul_(2.0),
    "view": _write_through(lambda gradient: gradient.view(-1)),
    "part_of_detached": _write_through(lambda gradient: gradient.detach()[2:5]),
    "transposed": _write_through(lambda gradient: gradient.T),
    "clone_is_apart": lambda p: _gradient(p).clone().mul_(3.0).add_(1.0),
    "assigned_clone": lambda p: setattr(p, "grad", _gradient(p).clone()),
    "momentum": _momentum,
    "zero": lambda p: _gradient(p).zero_(),
    "dense_then_zero": lambda p: _gradient(p).add_(1.0).zero_(),
    "only_looked_at": lambda p: (_gradient(p).abs().max().item(), torch.isnan(_gradient(p)).any(), _gradient(p) + 1),
}
STORIES: dict[str, Story] = {
    "penalty_first": _penalty_first,
    "penalty_between": _penalty_between,
    "penalty_beside": _penalty_beside,
    "several_empty": _several_empty,
    "only_empty": _only_empty,
    "hooked": _hooked,
    **{name: _after_a_read(change) for name, change in CHANGES.items()},
}
LOGS = {
    "several_empty", "only_empty", "hooked", "clip_norm", "clip_norm_foreach", "clip_norm_inf", "clip_norm_1", "scale",
    "copy_a_log", "foreach_mul", "foreach_zero", "data", "clone_is_apart", "assigned_clone", "zero", "dense_then_zero",
    "only_looked_at",
}  # fmt: skip
"""After these the gradient still is a log, and `RowAdamW` takes it."""


@pytest.mark.parametrize("name", STORIES)
def test_the_gradient_is_an_ordinary_parameters(name: str) -> None:
    pool = _pool()
    plain = _Plain(pool.weight)
    for module in (pool, plain):
        STORIES[name](module.parameter, _reader(module))
    ours, theirs = _gradient(pool.parameter), _gradient(plain.parameter)
    torch.testing.assert_close(ours.to_dense(), theirs, equal_nan=True)
    assert (isinstance(ours, FactoredGradient) and not ours.is_dense) == (name in LOGS)
    for module in (pool, plain):
        torch.optim.SGD([module.parameter], lr=0.1).step()
    torch.testing.assert_close(pool.weight, plain.weight, equal_nan=True)


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("read_before", [False, True])
def test_row_adamw_takes_the_log_or_says_that_there_is_none(name: str, read_before: bool) -> None:
    pool = _pool()
    plain, beside = _Plain(pool.weight), nn.Parameter(torch.ones(2))
    ours = RowAdamW([beside, pool.parameter], lr=0.03)
    theirs = torch.optim.AdamW([plain.parameter], lr=0.03, weight_decay=0.0)
    for module, optimizer in ((pool, ours), (plain, theirs)):
        if read_before:
            _reader(module)(seed=5).backward()
            optimizer.step()
            optimizer.zero_grad()
        STORIES[name](module.parameter, _reader(module))
    if name in LOGS:
        ours.step()
        theirs.step()
    else:
        beside.grad = torch.ones(2)
        with pytest.raises(InputError) as raised:
            ours.step()
        assert str(raised.value) == NO_READ_LOG
        assert beside.tolist() == [1, 1]  # nothing has moved
    torch.testing.assert_close(pool.state_dict()["weight"], plain.weight.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [
    "clip_value", "clip_norm_inf", "clip_norm_1", "nan_to_num", "clamp", "neg", "add_one", "square", "put", "view",
    "detached", "foreach_add", "foreach_div", "divide_by_zero", "only_looked_at",
])  # fmt: skip
def test_an_int8_pool_has_no_dense_gradient_and_says_so(name: str) -> None:
    pool = _pool(torch.int8)
    with pytest.raises(WorkError) as raised:
        STORIES[name](pool.parameter, _reader(pool))
    assert str(raised.value) == NO_DENSE_GRADIENT


def test_an_int8_pool_refuses_a_penalty_whatever_the_order() -> None:
    for story in (_penalty_first, _penalty_between, _penalty_beside):
        pool = _pool(torch.int8)
        with pytest.raises(WorkError, match="an int8 pool is taught by memlayers.RowAdamW only"):
            story(pool.parameter, _reader(pool))


def test_row_adamw_knows_a_pool_that_was_never_read() -> None:
    for pool in (_pool(), copy.deepcopy(_pool())):
        _reader(pool)()
        _penalty(pool.parameter).backward()
        with pytest.raises(InputError, match="take torch.optim.AdamW"):
            RowAdamW([pool.parameter], lr=0.1).step()
    pool = _pool()
    _penalty(pool.parameter).backward()
    with pytest.raises(InputError, match="take torch.optim.AdamW"):
        RowAdamW([pool.parameter], lr=0.1).step()


def test_a_parameter_is_saved_without_its_pool() -> None:
    file = io.BytesIO()
    torch.save(_pool().parameter, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), _pool().parameter)


# -- the gradient scaler ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    lambda p: torch.optim.AdamW(p, lr=0.1, fused=True), lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    lambda p: RowAdamW(p, lr=0.1, weight_decay=0.01),
], ids=["sgd", "adamw", "fused", "fused_sgd", "rows"])  # fmt: skip
@pytest.mark.parametrize("unscale", [False, True])
def test_the_gradient_scaler_skips_what_is_infinite_and_unscales_the_rest(make: Any, unscale: bool) -> None:
    pool = _pool()
    plain = _Plain(pool.weight)
    for module in (pool, plain):
        optimizer = make([module.parameter])
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for factor in (1.0, torch.inf, 1.0, torch.nan, 1.0):
            optimizer.zero_grad()
            scaler.scale(_reader(module)() * factor).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_([module.parameter], 1.0)
            scaler.step(optimizer)
            scaler.update()
    torch.testing.assert_close(pool.state_dict()["weight"], plain.weight.detach(), rtol=1e-4, atol=1e-6)


def test_infinite_weights_are_no_finite_gradient() -> None:
    pool = _pool()
    pool(torch.tensor([[1, 2]]), torch.tensor([[torch.nan, 1.0]])).sum().backward()
    gradient = pool.parameter.grad
    assert isinstance(gradient, FactoredGradient) and not gradient.is_finite()


# -- copies ---------------------------------------------------------------------------------------------------------


def test_a_second_derivative_is_refused() -> None:
    pool = _pool()
    weights = torch.ones(2, 3, requires_grad=True)
    loss = pool(torch.ones(2, 3, dtype=torch.int64), weights).sum()
    with pytest.raises(WorkError, match="no second derivative: do without create_graph=True"):
        torch.autograd.grad(loss, weights, create_graph=True)


@pytest.mark.parametrize(
    "change", [lambda gradient: gradient, lambda gradient: gradient.add_(1.0)], ids=["log", "dense"]
)
def test_a_gradient_is_copied_pickled_and_saved(change: Callable[[Tensor], Tensor]) -> None:
    pool = _pool()
    _reader(pool)().backward()
    gradient = change(_gradient(pool.parameter))
    expected = gradient.to_dense().clone()
    file = io.BytesIO()
    torch.save({"gradient": gradient}, file)
    file.seek(0)
    copies = [copy.deepcopy(gradient), pickle.loads(pickle.dumps(gradient)), torch.load(file)["gradient"]]
    gradient.zero_()
    for each in copies:
        assert torch.equal(each.to_dense(), expected)
    with pytest.raises(WorkError, match="no dense gradient"):
        pool = _pool(torch.int8)
        _reader(pool)().backward()
        pickle.dumps(pool.parameter.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_a_pool_is_copied_pickled_and_saved_after_a_backward(dtype: torch.dtype) -> None:
    """Without its gradient, as torch copies a parameter."""
    pool = _pool(dtype)
    optimizer = RowAdamW([pool.parameter], lr=0.1)
    _reader(pool)().backward()
    optimizer.step()  # now rows may lag behind
    file = io.BytesIO()
    torch.save(pool, file)
    file.seek(0)
    expected = pool.state_dict()
    for twin in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool)), torch.load(file, weights_only=False)):
        assert twin.parameter.grad is None and twin.before_read is None
        assert all(torch.equal(value, expected[name]) for name, value in twin.state_dict().items())
        _reader(twin)().backward()
        RowAdamW([twin.parameter], lr=0.1).step()
        assert not torch.equal(twin.table.values, pool.table.values)
