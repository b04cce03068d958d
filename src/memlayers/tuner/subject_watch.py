"""Follows the token ids of each forward pass, so that memory layers know of which subject each token speaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.tuner.subject_index import _BEFORE, _NO_TOKEN, LONGEST_RUN, SubjectIndex, stays_open
from memlayers.utils.errors import InputError

_TRAIL = "memlayers_trail"


@dataclass(slots=True)
class _Trail:
    """What passed through with one cache.

    Attributes:
        ids: token ids [b, t].
        names: per adapter, whom runs named that ended, int64 [b, t].
        opened: per adapter, where its gate opened, bool [b, t].
    """

    ids: Tensor
    names: dict[str, Tensor] = field(default_factory=dict)
    opened: dict[str, Tensor] = field(default_factory=dict)

    def last(self, tokens: int, rows: int) -> _Trail:
        """The trail as of `tokens` tokens in `rows` rows: a cache may be cropped, or its rows repeated for beams."""

        def fit(kept: Tensor, fill: int) -> Tensor:
            kept = kept[:, :tokens]
            if rows % len(kept) == 0:
                kept = kept.repeat_interleave(rows // len(kept), 0)
            else:
                kept = kept.new_full((rows, kept.shape[1]), fill)
            return F.pad(kept, (tokens - kept.shape[1], 0), value=fill)

        return _Trail(
            fit(self.ids, _NO_TOKEN),
            {adapter: fit(names, 0) for adapter, names in self.names.items()},
            {adapter: fit(opened, 0) for adapter, opened in self.opened.items()},
        )


class SubjectWatch:
    """Stands at the trunk of a backbone and says for which tokens of a forward each memory may be read.

    One per model, shared by its memory layers. The trail of a text lies on its key-value cache, so it goes where the
    cache goes, also into a deep copy.
    """

    def __init__(self) -> None:
        self.indexes: dict[str, nn.ModuleDict] = {}
        self.handles: list[Any] = []
        self.about: dict[str, Tensor] = {}
        """Per memory, of the last forward: int64 [b, t], of which subject each token may read; 0: of none."""
        self.since: dict[str, Tensor] = {}
        """Per memory, of all tokens so far: int64 [b, t'], where the latest name before each ended."""
        self.opened: dict[str, Tensor] = {}
        """Per memory, of the tokens before the last forward's: bool [b, t' - t], where its gate opened."""
        self.decided: dict[str, Tensor | None] = {}
        """Per memory, of the last forward: the tokens that its first layer lets read, int64 [open]; None for all."""
        self._trail: _Trail | None = None

    def stand_at(self, model: nn.Module) -> None:
        """Watches the trunk of `model`: what transformers calls its base model."""
        trunk = getattr(model, "base_model", model)
        self.handles = [
            trunk.register_forward_pre_hook(self.before, with_kwargs=True),
            trunk.register_forward_hook(self.after, with_kwargs=True),
        ]

    def leave(self) -> None:
        """Takes the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def index(self, adapter: str) -> SubjectIndex | None:
        """The index of a memory, where it has one that is filled."""
        home: Any = self.indexes.get(adapter, {})
        index: Any = home[adapter] if adapter in home else None  # gone where the memory was deleted
        return index if index is not None and index.reach else None

    @torch.no_grad()
    def before(self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Looks at the tokens that are about to go through."""
        self.about, self.since, self.opened, self.decided, self._trail = {}, {}, {}, {}, None
        filled = {name: index for name in self.indexes if (index := self.index(name)) is not None}
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not filled or ids is None:
            return
        ids = ids.to(next(iter(filled.values())).fingerprints.device)  # the embeddings may lie on another one
        cache: Any = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        empty = _Trail(ids[:, :0])
        trail = (getattr(cache, _TRAIL, empty) if past else empty).last(past, len(ids))
        self._trail = _Trail(torch.cat([trail.ids, ids], 1))
        seen = torch.cat([trail.ids[:, -(LONGEST_RUN - 1 + _BEFORE) :], ids], 1)
        new = ids.shape[1]
        for adapter, index in filled.items():
            before = trail.names.get(adapter, torch.zeros_like(trail.ids))
            names = torch.cat([before, index.names(seen, new)], 1)
            since = index.since(self._trail.ids, names)
            self._trail.names[adapter], self.since[adapter] = names, since
            self.opened[adapter] = trail.opened.get(adapter, torch.zeros_like(trail.ids, dtype=torch.bool))
            self.about[adapter] = index.about(names, since)[:, -new:]

    def after(self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Leaves the trail with the cache."""
        cache = getattr(output, "past_key_values", None)
        cache = kwargs.get("past_key_values") if cache is None else cache
        if self._trail is not None and hasattr(cache, "get_seq_length"):
            setattr(cache, _TRAIL, self._trail)
        self._trail = None

    def hold_open(self, adapter: str, opened: Tensor) -> Tensor:
        """The tokens of the last forward that may read, bool [tokens], given those that the gate opens for."""
        about = self.about[adapter]
        opened = torch.cat([self.opened[adapter], opened.to(about.device).view_as(about)], 1)
        if self._trail is not None:  # not where a block is computed once more for its gradient
            self._trail.opened[adapter] = opened
        held = stays_open(opened, self.since[adapter])[:, -about.shape[1] :]
        return (held & (about != 0)).flatten()

    def subjects(self, adapter: str, tokens: int) -> Tensor | None:
        """Of which subject each of the last forward's tokens may read, int64 [tokens]; None where nothing is held back.

        Raises:
            InputError: the forward had embeddings in place of token ids.
        """
        if self.index(adapter) is None:
            return None
        about = self.about.get(adapter)
        if about is None or about.numel() != tokens:
            raise InputError("this memory opens by the names in its text: give input_ids, not inputs_embeds")
        return about.reshape(-1)
