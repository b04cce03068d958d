"""Protects the slots that general text reads most: they stay zero.

Addressing is fixed before a value is written, so which slots a text reads is known before teaching. Slots that general
text reads most can be left out of writing (docs/method.md, 3): what such text then reads is mostly zeros, also where no
gate keeps it from reading.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memlayers.tuner.handle import MemoryHandle
from memlayers.utils.errors import InputError


@torch.no_grad()
def protect_slots(memory: MemoryHandle, reads: Tensor, share: float) -> int:
    """Keeps at zero the slots that were read most, a share of all slots.

    A slot that was not read at all is never protected, so there are fewer where the text was short. Of slots that were
    read equally often, the lower numbers come first.

    Args:
        memory: built with `MemoryConfig(protectable=True)`; nothing is written yet.
        reads: per slot how often it was read, int64 [slots] (`count_reads`).
        share: of all slots, 0 to 1.

    Returns:
        How many slots are protected.

    Raises:
        InputError: the memory has no room for the marks.
    """
    protected = memory.pool.protected
    if protected is None:
        raise InputError(
            f"the memory {memory.adapter!r} cannot protect slots: build it with MemoryConfig(protectable=True)"
        )
    most = reads.argsort(descending=True, stable=True)[: int(share * len(reads))]
    most = most[reads[most] > 0].to(protected.device)
    protected.zero_()
    protected[most] = True
    return len(most)
