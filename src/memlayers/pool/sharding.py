"""What a value pool is told apart by when a model is sharded: whole, or why it cannot be read.

FSDP gathers a unit's parameters when the unit's forward runs, and only then. Every memory layer reads the pool, so it
has to be a unit of its own. A pool that is split by columns (`columns`) is no affair of FSDP's: it would gather rows of
different columns into one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from memlayers.utils.errors import WorkError

THE_WAY = (
    "shard it with FSDP2, as a unit of its own and before the rest: fully_shard(memory_handle(model).pool), then the "
    "decoder layers, then the model"
)
LEFT_OUT = (
    "the value pool is split by columns, and FSDP would split it again: leave it out of each unit that it is in: "
    "fully_shard(model, ignored_params=set(memory_handle(model).pool.parameters()))"
)


def check_whole(pool: nn.Module, parameter: Tensor | None, slots: int, learns: bool, split: bool) -> None:
    """Refuses to read a pool that FSDP has flattened, cut up or left out; one that is split, unless it is left out.

    Args:
        pool: the value pool.
        parameter: its one parameter; None where the module has none any more.
        slots: its rows.
        learns: whether the read asks for a gradient.
        split: whether the pool is split by columns.

    Raises:
        WorkError: what is wrong, and the way to put it right.
    """
    is_part = parameter is not None and not isinstance(parameter, nn.Parameter) and parameter._is_view()
    if split and (parameter is None or is_part or is_sharded(parameter) or _sharded_around(pool)[0]):
        raise WorkError(LEFT_OUT)
    if parameter is None or is_part or parameter.shape[:1] != (slots,):
        raise WorkError(f"the value pool was flattened, as FSDP1 does: {THE_WAY}")
    if is_sharded(parameter):
        raise WorkError(f"the value pool is read by layers of several FSDP units and so must be one: {THE_WAY}")
    if learns and not split and _several_processes() and _sharded_around(pool) == (False, True):
        raise WorkError(f"FSDP leaves the value pool out, so that every process would teach its own: {THE_WAY}")


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor: a part of a tensor, of which other processes have the rest."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _sharded_around(pool: nn.Module) -> tuple[bool, bool]:
    """Whether the pool is in one of FSDP2's units, and whether a module around it is one.

    torch has no public list of its units; what is looked at here may be absent in another torch, which then says no to
    both (tests/test_distributed.py would tell).
    """
    try:
        units = list(_units())
        managed = any(
            pool in (info.module, *info.shared_modules)
            for _, state in units
            for group in getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
            if group is not None
            for info in (parameter._module_info for parameter in group.fsdp_params)
        )
    except (ImportError, AttributeError):
        return False, False
    return managed, any(pool in module.modules() for module, _ in units)


def _units() -> Iterator[tuple[nn.Module, Any]]:
    from torch.distributed._composable_state import _module_state_mapping

    for module, reference in list(_module_state_mapping.items()):
        state = reference()
        if hasattr(state, "_fsdp_param_group") or hasattr(state, "_fsdp_param_groups"):
            yield module, state
