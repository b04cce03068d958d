"""The memory's arithmetic behind one interface: `reference` (the oracle), `numba_cpu`, `triton_gpu`.

`interface` says what a backend offers, `storage` how rows and moments are kept; `kernels_for` chooses a backend by
device.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    import torch

    from memlayers.kernels.interface import Kernels

BACKENDS = ("reference", "numba", "triton")
CHOICE = "MEMLAYERS_KERNELS"


def kernels_for(device: torch.device) -> Kernels:
    """The backend for tensors on `device`: numba on a CPU, Triton on CUDA and ROCm, plain torch elsewhere.

    The environment variable MEMLAYERS_KERNELS (reference, numba, triton) overrides the choice.

    Raises:
        InputError: the variable names no backend, or triton is not installed where it is needed.
    """
    name = os.environ.get(CHOICE) or {"cpu": "numba", "cuda": "triton"}.get(device.type, "reference")
    if name == "numba":
        from memlayers.kernels import numba_cpu

        return numba_cpu
    if name == "triton":
        try:
            from memlayers.kernels import triton_gpu  # type: ignore[attr-defined, unused-ignore]
        except ModuleNotFoundError as error:
            raise InputError(f"no {error.name}: install it (pip install triton), or set {CHOICE}=reference") from error
        return triton_gpu
    if name == "reference":
        from memlayers.kernels import reference

        return reference
    raise InputError(f"{CHOICE}={name}: take one of {', '.join(BACKENDS)}")
