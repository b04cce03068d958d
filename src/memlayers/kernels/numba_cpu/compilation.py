"""How the CPU backend is compiled: once a machine, since numba keeps the machine code on disk where it may."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numba

NO_CACHE = (
    "memlayers' CPU kernels are compiled anew in every process, for some seconds: numba finds no folder to keep them "
    "in; set NUMBA_CACHE_DIR to one that only you may write"
)


def cached_jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with a cache on disk: beside the source, else in the user's cache folder, else none and a warning.

    There is no fallback to a shared folder such as /tmp: who can write numba's cache has its readers run their code.

    Args:
        options: of `numba.njit`.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
        warnings.warn(NO_CACHE, RuntimeWarning, stacklevel=1)  # of one place, and so shown once
        return numba.njit(**options)(function)

    return compiled
