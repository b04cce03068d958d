"""How the file of a memory's weights is laid out, so that an edit changes it in place and a pool can be mapped.

::

    header            padded to whole pages, with room to spare
    value pool        row by row: `weight`, or `scales` and `codes`
    all other tensors those that edits change last

It is safetensors, and any reader of safetensors reads it. The metadata have the pool's digest: SHA-256 of its bytes
when they were written as a whole; after each edit SHA-256 of the digest before, the slots, and their new bytes. So
neither reading nor changing the digest takes a look at the whole pool. No torch.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from memlayers.utils.files import StrPath, file_digest
from memlayers.utils.tensor_file import TensorFile, read_tensor_file

POOL_DIGEST: Final = "memlayers_pool"
"""The name of the pool's digest in the metadata; only a file of this layout has it."""

_POOL = re.compile(r"\.memlayers_pool(\..+)?\.(weight|scales|codes)$")


def is_pool_tensor(name: str) -> bool:
    """Whether a tensor of this name has a row for each slot, and may be mapped."""
    return _POOL.search(name) is not None


def behind_pool(file: TensorFile) -> int:
    """The first byte behind the pool, of a file of this layout."""
    return max((each.stop for name, each in file.tensors.items() if is_pool_tensor(name)), default=file.head)


def header_digest(head: bytes) -> hashlib._Hash:
    """SHA-256 of a header, however far it is padded, to be updated with all behind the pool."""
    return hashlib.sha256(head[8:].rstrip())


def weights_digest(path: StrPath) -> str:
    """SHA-256 of what a file holds.

    Of a file of this layout: of its header, in which the pool's digest stands, and of all behind the pool. Of any other
    file: of the whole of it.

    Raises:
        OSError: it cannot be read.
    """
    try:
        found = read_tensor_file(path)
    except ValueError:
        return file_digest(path)
    if POOL_DIGEST not in found.metadata:
        return file_digest(path)
    with open(path, "rb") as file:
        digest = header_digest(file.read(found.head))
        file.seek(behind_pool(found))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
