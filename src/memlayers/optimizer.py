"""The optimizers of the value pool, behind one function.

`make_optimizer` is the seam: a further optimizer (the row-wise one over the read log, RowAdamW) is one more
case of its ``match`` and one more name in `OPTIMIZERS`; nothing else in the package knows which optimizer it
runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias, overload

import torch
from torch.optim import Optimizer

from memlayers.errors import InputError, WorkError

ParameterGroups: TypeAlias = Iterable[dict[str, Any]]

OPTIMIZERS: Final = ("adamw", "cpu-offload")
"""The names `make_optimizer` knows."""


def make_optimizer(
    name: str,
    parameter_groups: ParameterGroups,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Makes the optimizer called `name`.

    Args:
        name: "adamw", torch's own dense and fused AdamW, state on the parameters' device; or "cpu-offload",
            see `CPUOffloadAdamW`.
        parameter_groups: dicts with "params" and, where they differ from the arguments below, "lr", "betas",
            "eps" or "weight_decay".
        lr: the learning rate of groups that name none, in units of the parameter per step.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay. 0 by default: decay wears away facts already written.

    Returns:
        The optimizer, before its first step.

    Raises:
        InputError: the name is unknown.
    """
    match name:
        case "adamw":
            return torch.optim.AdamW(
                parameter_groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
            )
        case "cpu-offload":
            return CPUOffloadAdamW(parameter_groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        case _:
            raise InputError(f"unknown optimizer {name!r}: take one of {', '.join(OPTIMIZERS)}")


class CPUOffloadAdamW(Optimizer):
    """AdamW whose state lives on the host and which moves only the rows that have a gradient.

    Follows the seed's CPU-offloaded Adam: a fp32 master copy and both moments in host memory, the parameter
    itself on any device and in any floating dtype (a bf16 pool learns from updates smaller than its own
    resolution). Per step, only the rows with a non-zero gradient travel, are updated and are written back. A
    row is a last-dimension vector of the parameter, [..., d] -> [rows, d]; a parameter of one dimension is
    one row.

    It differs from the seed in the bias correction (Kingma and Ba 2015, section 3), which counts steps per
    row and not per parameter: with one global count a row that gets its first gradient late takes a step of
    up to (1 - beta1) / sqrt(1 - beta2) = 3.2 times the learning rate. Where every row has a gradient in every
    step the result is torch.optim.AdamW's; a row without one does not move, and neither decays nor drifts.

    State per parameter: ``step`` (float32 scalar), ``row_steps`` (int32 [rows]), ``master``, ``exp_avg`` and
    ``exp_avg_sq`` (fp32 [rows, d], fp64 for a fp64 parameter), all on the host. The master is copied from the
    parameter at its first step and rules from then on.

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the bias-corrected second moment.
        weight_decay: decoupled weight decay, on the rows that move.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | ParameterGroups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            in_range = group["lr"] >= 0 and group["eps"] >= 0 and group["weight_decay"] >= 0
            if not (in_range and all(0 <= beta < 1 for beta in group["betas"])):
                raise InputError("lr, eps and weight_decay must be at least 0, and both betas in [0, 1)")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates, in every parameter with a gradient, the rows whose gradient is not zero.

        Args:
            closure: computes the loss anew and returns it, as in torch.

        Returns:
            The closure's loss, if there is one.

        Raises:
            WorkError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state, bit for bit and on the host.

        torch's own would cast the state to each parameter's dtype and device: a bf16 master on the GPU.

        Args:
            state_dict: what `state_dict` returned, wherever its tensors lie now.
        """
        super().load_state_dict({**state_dict, "state": {}})
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(saved, own, strict=True):
            if key in state_dict["state"]:
                entries = state_dict["state"][key]
                self.state[parameter] = {name: value.to("cpu", copy=True) for name, value in entries.items()}

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        if gradient.is_sparse:
            raise WorkError("cpu-offload takes dense gradients only: set sparse=False on the value pool")
        state = self.state[parameter]
        if not state:
            state.update(_fresh_state(parameter))
        state["step"] += 1
        width = state["master"].shape[1]
        gradient = gradient.reshape(-1, width)
        rows_there = gradient.ne(0).any(dim=1).nonzero().squeeze(1)  # on the parameter's device
        if rows_there.numel() == 0:
            return
        rows = rows_there.cpu()
        state["row_steps"][rows] += 1
        values = _step_rows(state, rows, gradient[rows_there].to(state["master"]), group)
        parameter.view(-1, width)[rows_there] = values.to(parameter)


def _fresh_state(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    width = parameter.shape[-1] if parameter.dim() else 1
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    master = parameter.detach().to("cpu", dtype, copy=True).reshape(-1, width)
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "row_steps": torch.zeros(master.shape[0], dtype=torch.int32),
        "master": master,
        "exp_avg": torch.zeros_like(master),
        "exp_avg_sq": torch.zeros_like(master),
    }


def _step_rows(
    state: dict[str, torch.Tensor], rows: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
) -> torch.Tensor:
    """One AdamW step on the given rows of the state; gradient [n, d] -> the rows' new values [n, d]."""
    beta1, beta2 = group["betas"]
    mean = state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
    square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    # In float64, as torch's AdamW, which computes its scalars in Python: 1 - beta2**t loses digits in fp32.
    steps = state["row_steps"][rows].double().unsqueeze(1)
    step_size = (group["lr"] / (1 - beta1**steps)).to(mean.dtype)
    root = (1 - beta2**steps).sqrt().to(mean.dtype)
    values = state["master"][rows].mul_(1 - group["lr"] * group["weight_decay"])
    values.sub_(step_size * mean / (square.sqrt().div_(root).add_(group["eps"])))
    state["exp_avg"][rows] = mean
    state["exp_avg_sq"][rows] = square
    state["master"][rows] = values
    return values
