"""Opens memories to be served: several on one backbone share its weights, and each backbone is there bare, too."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayers.backbones import device_chosen, lasting_name, load_backbone
from memlayers.editing.config import EditConfig
from memlayers.editing.memory import Memory, load_memory
from memlayers.inference.loading import backbone_named
from memlayers.linking.config import LinkConfig
from memlayers.serving.served import InferenceThread, Served, reader_of, twin
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BARE = ":bare"
"""What follows a memory's name in the id of its backbone."""


@dataclass(frozen=True, slots=True)
class _Backbone:
    """A backbone that is loaded: its bare tree, and the thread in which everything on it runs."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    thread: InferenceThread


def open_memories(
    folders: Sequence[str | Path],
    *,
    backbone: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    pool: str = "device",
    edits: EditConfig | None = None,
    links: LinkConfig | None = None,
) -> dict[str, Served]:
    """Opens memories to be served.

    Args:
        folders: at least one; a memory's id is its folder's name.
        backbone: another place of it, for all; None for the one that each was taught on.
        dtype: of the backbones; as in `load_backbone`.
        device: None chooses.
        pool: where the value pools are; as in `load_memory`.
        edits: how edits write; None for the defaults.
        links: how names in questions are linked; None for the defaults.

    Returns:
        Every memory by its id, in order, each followed by its backbone, as "ID:bare"; several memories on one backbone
        share one bare tree. `close_memories` closes them.

    Raises:
        InputError: two folders of one name, a folder twice, or one that is no memory or a damaged one.
    """
    named = _named(folders)
    chosen = device_chosen(device)
    backbones: dict[str, _Backbone] = {}
    served: dict[str, Served] = {}
    try:
        for id, folder in named.items():
            key = lasting_name(str(backbone_named(folder, backbone)))
            if key not in backbones:
                backbones[key] = _Backbone(*load_backbone(key, dtype, chosen), _new_thread())
            base = backbones[key]
            own = twin(base.model), copy.deepcopy(base.tokenizer)
            memory = load_memory(folder, pool=pool, edits=edits, links=links, loaded=own, lazy=True)
            fixed = _hold(memory)
            served[id] = Served(id, reader_of(memory.model).eval(), base.tokenizer, base.thread, memory, fixed)
            served[id + BARE] = Served(id + BARE, base.model, base.tokenizer, base.thread)
    except BaseException:
        close_memories(served.values())
        raise
    return served


def close_memories(served: Iterable[Served]) -> None:
    """Closes all of them; their edits under way are ended first."""
    for each in served:
        each.close()


def _hold(memory: Memory) -> str:
    """Keeps others from editing a memory's folder; why it cannot be edited, "" where it can."""
    try:
        memory.hold()
    except InputError as error:
        return str(error).removeprefix(f"{memory.folder}: ")
    return ""


def _named(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Folders by their ids."""
    named: dict[str, Path] = {}
    for each in map(Path, folders):
        name = each.resolve().name
        if name in named:
            raise InputError(
                f"{named[name]} and {each} would both be served as {name!r}; give each once, and rename one of two"
            )
        if not name or BARE in name:
            raise InputError(f"{each}: its name would be an id that ends in {BARE!r}; rename it")
        named[name] = each
    if not named:
        raise InputError("no memory to serve; give at least one folder")
    return named


def _new_thread() -> InferenceThread:
    from transformers.cli.serving.utils import InferenceThread as Thread

    return Thread()
