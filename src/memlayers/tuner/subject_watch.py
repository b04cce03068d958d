"""Follows the token ids of each forward pass, and tells the memory layers the subject of each token.

A hook on the backbone's trunk keeps the token history with the key-value cache, so a text may come in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.tuner.subject_index import LOOK_BACK, SubjectIndex
from memlayers.utils.errors import InputError

_HISTORY = "memlayers_history"  # attribute of a key-value cache
_NO_TOKEN = -1


@dataclass(slots=True)
class TokenHistory:
    """The tokens that went through with one key-value cache.

    Attributes:
        ids: token ids, int64 [b, t].
        mentions: per memory the entity id of the mention that ends at each token, int64 [b, t]; 0 for none.
        opened: per memory where its gate opened, bool [b, t].
    """

    ids: Tensor
    mentions: dict[str, Tensor] = field(default_factory=dict)
    opened: dict[str, Tensor] = field(default_factory=dict)

    def as_of(self, tokens: int, rows: int) -> TokenHistory:
        """The history of the first tokens, in a number of rows: a cache may be cropped, or its rows repeated for beams.

        Args:
            tokens: how many the cache holds.
            rows: of the batch.
        """

        def fit(kept: Tensor, fill: int) -> Tensor:
            kept = kept[:, :tokens]
            if rows % len(kept) == 0:
                kept = kept.repeat_interleave(rows // len(kept), 0)
            else:
                kept = kept.new_full((rows, kept.shape[1]), fill)
            return F.pad(kept, (tokens - kept.shape[1], 0), value=fill)

        return TokenHistory(
            fit(self.ids, _NO_TOKEN),
            {adapter: fit(mentions, 0) for adapter, mentions in self.mentions.items()},
            {adapter: fit(opened, 0) for adapter, opened in self.opened.items()},
        )


class SubjectWatch:
    """Says for which tokens of a forward pass each memory may be read. One per model, shared by its memory layers.

    The token history lies on the key-value cache, so it goes where the cache goes, also into a deep copy.

    Attributes:
        indexes: per memory the container of its `SubjectIndex`.
        handles: of the hooks on the trunk.
        token_subjects: per memory, of the last forward pass: the subject of each token, int64 [b, t]; 0 for none.
        last_mention: per memory, of all tokens so far: where the latest mention before each ended, int64 [b, t'].
        opened: per memory, of the tokens before the last forward pass: where its gate opened, bool [b, t' - t].
        decided: per memory, of the last forward pass: the tokens that its first layer lets read, counted through the
            batch, int64 [open]; None for all.
    """

    def __init__(self) -> None:
        self.indexes: dict[str, nn.ModuleDict] = {}
        self.handles: list[Any] = []
        self.token_subjects: dict[str, Tensor] = {}
        self.last_mention: dict[str, Tensor] = {}
        self.opened: dict[str, Tensor] = {}
        self.decided: dict[str, Tensor | None] = {}
        self._history: TokenHistory | None = None

    def attach(self, model: nn.Module) -> None:
        """Hooks the trunk of `model`: what transformers calls its base model."""
        trunk = getattr(model, "base_model", model)
        self.handles = [
            trunk.register_forward_pre_hook(self.before, with_kwargs=True),
            trunk.register_forward_hook(self.after, with_kwargs=True),
        ]

    def detach(self) -> None:
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
        self.token_subjects, self.last_mention, self.opened, self.decided, self._history = {}, {}, {}, {}, None
        filled = {name: index for name in self.indexes if (index := self.index(name)) is not None}
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not filled or ids is None:
            return
        ids = ids.to(next(iter(filled.values())).fingerprints.device)  # the embeddings may lie on another one
        cache: Any = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        empty = TokenHistory(ids[:, :0])
        history = (getattr(cache, _HISTORY, empty) if past else empty).as_of(past, len(ids))
        self._history = TokenHistory(torch.cat([history.ids, ids], 1))
        context = torch.cat([history.ids[:, -LOOK_BACK:], ids], 1)
        new = ids.shape[1]
        for adapter, index in filled.items():
            before = history.mentions.get(adapter, torch.zeros_like(history.ids))
            mentions = torch.cat([before, index.mentions(context, new)], 1)
            last = index.last_mention(self._history.ids, mentions)
            self._history.mentions[adapter], self.last_mention[adapter] = mentions, last
            self.opened[adapter] = history.opened.get(adapter, torch.zeros_like(history.ids, dtype=torch.bool))
            self.token_subjects[adapter] = index.in_scope(mentions, last)[:, -new:]

    def after(self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Leaves the token history with the cache."""
        cache = getattr(output, "past_key_values", None)
        cache = kwargs.get("past_key_values") if cache is None else cache
        if self._history is not None and hasattr(cache, "get_seq_length"):
            setattr(cache, _HISTORY, self._history)
        self._history = None

    def keep_open(self, adapter: str, opened: Tensor) -> Tensor:
        """The tokens of the last forward pass that may read, given those that the gate opens for; bool [tokens] each.

        Once it has opened after a mention, it stays open as long as that mention's subject may be read.
        """
        subjects = self.token_subjects[adapter]
        opened = torch.cat([self.opened[adapter], opened.to(subjects.device).view_as(subjects)], 1)
        if self._history is not None:  # not where a block is computed once more for its gradient
            self._history.opened[adapter] = opened
        open_now = stays_open(opened, self.last_mention[adapter])[:, -subjects.shape[1] :]
        return (open_now & (subjects != 0)).flatten()

    def subjects(self, adapter: str, tokens: int) -> Tensor | None:
        """The subject of each of the last forward pass's tokens, int64 [tokens]; None where every token may read.

        Raises:
            InputError: the forward pass had embeddings in place of token ids.
        """
        if self.index(adapter) is None:
            return None
        subjects = self.token_subjects.get(adapter)
        if subjects is None or subjects.numel() != tokens:
            raise InputError("this memory opens by the names in its text: give input_ids, not inputs_embeds")
        return subjects.reshape(-1)


def stays_open(opened: Tensor, last_mention: Tensor) -> Tensor:
    """Whether a gate has opened since the latest mention.

    Once the text after a mention was seen to be a question about it, what follows is that question and its answer.

    Args:
        opened: at which tokens it opened, bool [b, t].
        last_mention: see `SubjectIndex.last_mention`, int64 [b, t].

    Returns:
        bool [b, t].
    """
    position = torch.arange(opened.shape[1], device=opened.device)
    return torch.where(opened, position, -1).cummax(1).values > last_mention.clamp_min(-1)
