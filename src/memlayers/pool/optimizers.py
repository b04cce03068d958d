"""The optimizers that teach a value pool, by name: RowAdamW and torch's AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from memlayers.pool.factored_gradient import FactoredGradient
from memlayers.pool.row_adamw import ParameterGroups, RowAdamW
from memlayers.utils.errors import InputError

OPTIMIZERS: Final = ("row-adamw", "adamw")
"""The names `make_optimizer` knows."""


def make_optimizer(
    name: str,
    parameter_groups: ParameterGroups,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    **options: Any,
) -> Optimizer:
    """Makes the optimizer called `name`.

    Args:
        name: "row-adamw", see `RowAdamW`; or "adamw", torch's own dense and fused AdamW, which needs the dense gradient
            of the whole pool.
        parameter_groups: dicts with "params" and, where they differ from the arguments below, "lr", "betas",
            "eps" or "weight_decay".
        lr: the learning rate of groups that name none, in units of the parameter per step.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay. 0 by default: decay shrinks the values of facts already taught.
        options: of `RowAdamW` alone: semantics, state_bits, state_device, rounding.

    Returns:
        The optimizer, before its first step.

    Raises:
        InputError: the name is unknown, or an option is out of range.
    """
    settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    match name:
        case "row-adamw":
            return RowAdamW(parameter_groups, **settings, **options)
        case "adamw":
            return torch.optim.AdamW(parameter_groups, **settings, fused=True)
        case _:
            raise InputError(f"unknown optimizer {name!r}: take one of {', '.join(OPTIMIZERS)}")


def gradients_are_finite(parameters: Iterable[Tensor]) -> bool:
    """Whether no gradient of these parameters has an infinity or a NaN. A GPU is waited for once."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    found = [
        each.is_finite() if isinstance(each, FactoredGradient) else torch.isfinite(each).all() for each in gradients
    ]
    return not found or bool(torch.stack([each.to(found[0].device) for each in found]).all())
