"""Whether shapes, and the way taken, may depend on data, and whether that is worth asking the data."""

from __future__ import annotations

import torch
from torch import Tensor


def static_shapes(x: Tensor) -> bool:
    """Whether no shape, and no way taken, may depend on data: the pass is compiled, or recorded into a CUDA graph."""
    return torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())


def asks(x: Tensor) -> bool:
    """Whether small work that may be for nothing is worth asking the data for.

    Not on a GPU, which would be waited for, nor where no way taken may depend on data.
    """
    return not x.is_cuda and not static_shapes(x)
