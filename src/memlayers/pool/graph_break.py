"""Where torch.compile breaks its graph. Imported when a read is compiled: torch's compiler takes two seconds to import.

In a file of its own also because the function must be the same one at each call, or torch would compile anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.compiler.disable  # type: ignore[untyped-decorator]
def outside_of_graphs(read: Callable[..., Tensor], *arguments: object) -> Tensor:
    """`read(*arguments)`, in Python."""
    return read(*arguments)
