"""Every optimizer of torch, and those of transformers.Trainer, moves a value pool as it moves an ordinary parameter."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from memlayers.pool.value_pool import ValuePool
from memlayers.utils.errors import WorkError

SLOTS, DIM = 20, 6
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.5},
        {"weight_decay": 0.1, "maximize": True}, {"momentum": 0.9, "foreach": True}, {"momentum": 0.9, "fused": True},
    ],
    "Adam": [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}, {"weight_decay": 0.1}],
    "AdamW": [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}, {"maximize": True}],
    "Adafactor": [{}, {"weight_decay": 0.1}],
    "NAdam": [{}, {"foreach": True}],
    "RAdam": [{}, {"foreach": True}],
    "Adagrad": [{}, {"foreach": True}, {"fused": True}],
    "Adadelta": [{}, {"foreach": True}],
    "Adamax": [{}, {"foreach": True}],
    "ASGD": [{}, {"foreach": True}],
    "RMSprop": [{}, {"foreach": True, "centered": True, "momentum": 0.5}],
    "Rprop": [{}, {"foreach": True}],
    "LBFGS": [{}, {"line_search_fn": "strong_wolfe"}],
    "Muon": [{}],
}  # fmt: skip
CASES = [(name, options) for name, variants in VARIANTS.items() for options in variants]
IDS = [f"{name}-{'-'.join(options) or 'plain'}" for name, options in CASES]


def _reads(steps: int = 4) -> list[tuple[Tensor, Tensor]]:
    """The third is empty."""
    generator = torch.Generator().manual_seed(1)
    sizes = [0 if step == 2 else 5 for step in range(steps)]
    return [(torch.randint(SLOTS, (n, 3), generator=generator), torch.rand(n, 3, generator=generator)) for n in sizes]


def _pool(dtype: torch.dtype = torch.float32) -> ValuePool:
    pool = ValuePool(SLOTS, DIM, dtype)
    pool.initialise("normal", seed=0)
    return pool


def _make(name: str, parameter: nn.Parameter, options: dict[str, Any]) -> Any:
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    return getattr(torch.optim, name)([parameter], lr=0.02, **options)


def _teach(optimizer: Any, parameter: nn.Parameter, read: Any) -> None:
    for indices, weights in _reads():

        def closure(indices: Tensor = indices, weights: Tensor = weights) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = (read(indices, weights) - 1).square().sum()
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        state = io.BytesIO()  # what an optimizer keeps can be saved
        torch.save(optimizer.state_dict(), state)
        state.seek(0)
        optimizer.load_state_dict(torch.load(state))


def _plain_read(parameter: nn.Parameter) -> Any:
    return lambda indices, weights: F.embedding_bag(indices, parameter, per_sample_weights=weights, mode="sum")


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_an_optimizer_of_torch_moves_a_pool_as_any_parameter(name: str, options: dict[str, Any]) -> None:
    pool = _pool()
    whole = nn.Parameter(pool.weight.detach().clone())
    before = whole.detach().clone()
    _teach(_make(name, pool.parameter, options), pool.parameter, pool)
    _teach(_make(name, whole, options), whole, _plain_read(whole))
    torch.testing.assert_close(pool.weight, whole, rtol=1e-4, atol=1e-5)
    assert not torch.equal(whole, before)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_optimizer_of_torch_says_that_an_int8_pool_is_none_of_its(name: str) -> None:
    pool = _pool(torch.int8)
    if name == "Muon":
        with pytest.raises(ValueError, match="2D"):
            _make(name, pool.parameter, {})
        return
    with pytest.raises(WorkError, match="an int8 pool is taught by memlayers.RowAdamW only"):
        _teach(_make(name, pool.parameter, {}), pool.parameter, pool)


def test_sparse_adam_says_that_the_gradient_is_not_sparse() -> None:
    pool = _pool()
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients, please consider Adam instead"):
        _teach(torch.optim.SparseAdam([pool.parameter]), pool.parameter, pool)


class _Reader(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool


@pytest.mark.parametrize("name", [
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop",
])  # fmt: skip
def test_an_optimizer_of_trainer_moves_a_pool_as_any_parameter(name: str, tmp_path: Any) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), optim=name, learning_rate=0.02, weight_decay=0.1, use_cpu=True, report_to="none"
    )
    ours, theirs = _pool(), nn.Embedding.from_pretrained(_pool().weight.detach().clone(), freeze=False)
    for module, read in ((ours, ours), (theirs, _plain_read(theirs.weight))):
        optimizer = Trainer(model=_Reader(module), args=arguments).create_optimizer()
        _teach(optimizer, module.weight, read)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-5)
