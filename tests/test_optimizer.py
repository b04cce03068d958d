from __future__ import annotations

import io

import pytest
import torch

from memlayers.errors import InputError, WorkError
from memlayers.optimizer import OPTIMIZERS, CPUOffloadAdamW, make_optimizer

SETTINGS = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1}


def _parameter(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def _gradients(parameter: torch.Tensor, steps: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, *parameter.shape)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64).to(parameter.dtype))


def _run(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_name_makes_an_optimizer_that_descends(name: str):
    parameter = _parameter(6, 3)
    optimizer = make_optimizer(name, [{"params": [parameter]}], lr=0.05)
    first = parameter.square().sum().item()
    for _ in range(20):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert parameter.square().sum().item() < 0.5 * first


def test_names_give_their_classes_and_weight_decay_defaults_to_zero():
    dense = make_optimizer("adamw", [{"params": [_parameter(2, 2)]}], lr=0.1)
    assert type(dense) is torch.optim.AdamW
    assert dense.param_groups[0]["weight_decay"] == 0
    assert dense.param_groups[0]["fused"]
    offloaded = make_optimizer("cpu-offload", [{"params": [_parameter(2, 2)]}], lr=0.1)
    assert type(offloaded) is CPUOffloadAdamW
    assert offloaded.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_keeps_its_own_learning_rate(name: str):
    slow, fast = _parameter(2, 2), _parameter(2, 2)
    before = slow.detach().clone()
    optimizer = make_optimizer(name, [{"params": [slow], "lr": 0.001}, {"params": [fast]}], lr=0.1)
    slow.grad, fast.grad = torch.ones(2, 2), torch.ones(2, 2)
    optimizer.step()
    assert torch.allclose(before - slow, torch.full((2, 2), 0.001), atol=1e-6)
    assert torch.allclose(before - fast, torch.full((2, 2), 0.1), atol=1e-6)


def test_an_unknown_name_is_an_input_error():
    with pytest.raises(InputError, match="unknown optimizer 'sgd': take one of adamw, cpu-offload"):
        make_optimizer("sgd", [{"params": [_parameter(2, 2)]}], lr=0.1)


@pytest.mark.parametrize("setting", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1.0}, {"weight_decay": -0.1}])
def test_settings_out_of_range_are_input_errors(setting: dict[str, object]):
    with pytest.raises(InputError, match="at least 0"):
        make_optimizer("cpu-offload", [{"params": [_parameter(2, 2)]}], **{"lr": 0.1, **setting})


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4), (6,), ()], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-6)], ids=str)
def test_cpu_offload_is_adamw_where_every_row_has_gradient(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
):
    ours, theirs = _parameter(*shape, dtype=dtype), _parameter(*shape, dtype=dtype)
    gradients = _gradients(ours, steps=25)
    _run(make_optimizer("cpu-offload", [{"params": [ours]}], **SETTINGS), ours, gradients)
    _run(torch.optim.AdamW([theirs], foreach=False, **SETTINGS), theirs, gradients)
    assert not torch.equal(ours, _parameter(*shape, dtype=dtype))
    assert (ours - theirs).abs().max().item() <= tolerance


def test_rows_without_gradient_do_not_move():
    parameter = _parameter(5, 3)
    before = parameter.detach().clone()
    optimizer = CPUOffloadAdamW([parameter], **SETTINGS)
    gradients = _gradients(parameter, steps=4)
    for gradient in gradients:
        gradient[[0, 3]] = 0
    gradients[-1][1] = 0  # row 1 has momentum by now: it must not drift either
    _run(optimizer, parameter, gradients[:-1])
    moved = parameter.detach().clone()
    _run(optimizer, parameter, gradients[-1:])
    assert torch.equal(parameter[[0, 3]], before[[0, 3]])
    assert torch.equal(parameter[1], moved[1])
    assert not torch.equal(moved[1], before[1])
    assert not torch.equal(parameter[2], moved[2])
    assert optimizer.state[parameter]["row_steps"].tolist() == [0, 3, 4, 0, 4]


def test_zero_rows_stay_exactly_zero():
    parameter = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = CPUOffloadAdamW([parameter], **SETTINGS)
    _run(optimizer, parameter, [torch.zeros(4, 2), torch.tensor([[0, 0], [1.0, -1], [0, 0], [0, 0]])])
    assert parameter[[0, 2, 3]].count_nonzero().item() == 0
    assert parameter[1].count_nonzero().item() == 2


def test_a_row_first_touched_late_takes_one_learning_rate():
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = CPUOffloadAdamW([parameter], lr=0.01)
    early = torch.tensor([[1.0, 1, 1], [0, 0, 0]])
    _run(optimizer, parameter, [early] * 500 + [torch.ones(2, 3)])
    assert torch.allclose(parameter[1], torch.full((3,), -0.01), rtol=1e-5)  # a global count: -0.032


def test_a_half_precision_pool_learns_from_updates_below_its_resolution():
    parameter = torch.nn.Parameter(torch.ones(1, 2, dtype=torch.bfloat16))
    optimizer = CPUOffloadAdamW([parameter], lr=1e-4)
    _run(optimizer, parameter, [torch.ones(1, 2, dtype=torch.bfloat16)] * 100)
    assert parameter.dtype is torch.bfloat16
    assert torch.allclose(parameter.float(), torch.full((1, 2), 0.99), atol=4e-3)
    assert optimizer.state[parameter]["master"].dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_state_round_trips_bit_exactly_through_a_file(dtype: torch.dtype):
    whole = _parameter(6, 4, dtype=dtype)
    gradients = _gradients(whole, steps=9)
    for step, gradient in enumerate(gradients):
        gradient[step % 6] = 0
    uninterrupted = CPUOffloadAdamW([whole], **SETTINGS)
    _run(uninterrupted, whole, gradients)

    first = _parameter(6, 4, dtype=dtype)
    optimizer = CPUOffloadAdamW([first], **SETTINGS)
    _run(optimizer, first, gradients[:5])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = torch.nn.Parameter(first.detach().clone())
    restored = CPUOffloadAdamW([resumed], lr=1.0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for name, value in optimizer.state[first].items():
        assert restored.state[resumed][name].dtype is value.dtype
        assert torch.equal(restored.state[resumed][name], value)
    _run(restored, resumed, gradients[5:])

    assert torch.equal(resumed, whole)
    for name, value in uninterrupted.state[whole].items():
        assert torch.equal(restored.state[resumed][name], value)


def test_a_loaded_state_is_a_copy():
    parameter = _parameter(2, 2)
    optimizer = CPUOffloadAdamW([parameter], lr=0.1)
    _run(optimizer, parameter, _gradients(parameter, steps=1))
    saved = optimizer.state_dict()
    other = _parameter(2, 2)
    restored = CPUOffloadAdamW([other], lr=0.1)
    restored.load_state_dict(saved)
    kept = optimizer.state[parameter]["master"].clone()
    _run(restored, other, _gradients(other, steps=1))
    assert torch.equal(optimizer.state[parameter]["master"], kept)


def test_the_state_has_a_step_tensor():
    parameter = _parameter(2, 2)
    optimizer = CPUOffloadAdamW([parameter], lr=0.1)
    _run(optimizer, parameter, _gradients(parameter, steps=3))
    assert optimizer.state[parameter]["step"].item() == 3


def test_a_closure_runs_with_gradients_on():
    parameter = _parameter(2, 2)
    optimizer = CPUOffloadAdamW([parameter], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_a_sparse_gradient_is_refused():
    parameter = _parameter(3, 2)
    parameter.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (3, 2), check_invariants=True)
    with pytest.raises(WorkError, match="dense gradients only"):
        CPUOffloadAdamW([parameter], lr=0.1).step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_parameter_on_the_gpu_keeps_its_state_on_the_host():
    here, there = _parameter(5, 3), torch.nn.Parameter(_parameter(5, 3).detach().cuda())
    gradients = _gradients(here, steps=6)
    on_host, offloaded = CPUOffloadAdamW([here], lr=0.1), CPUOffloadAdamW([there], lr=0.1)
    _run(on_host, here, gradients)
    _run(offloaded, there, [gradient.cuda() for gradient in gradients])
    offloaded.load_state_dict(offloaded.state_dict())
    assert {value.device.type for value in offloaded.state[there].values()} == {"cpu"}
    assert torch.equal(here, there.cpu())
