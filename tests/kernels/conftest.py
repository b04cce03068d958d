"""Fixtures of the tests of the kernels."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from helpers.kernels import DEVICE, needs_triton


@pytest.fixture(params=["numba_cpu", pytest.param("triton_gpu", marks=needs_triton)])
def backend(request: pytest.FixtureRequest) -> Any:
    """The module of a fast backend."""
    if request.param == "numba_cpu" and DEVICE != "cpu":
        pytest.skip("numba is for the CPU, and this machine's tensors are on a GPU")
    return importlib.import_module(f"memlayers.kernels.{request.param}")
