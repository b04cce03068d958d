"""The tokens that went through a model with one key-value cache, kept in the cache itself.

As one more layer of it they go wherever its keys go: a text may come in pieces, beams are reordered, guesses are taken
back, a cache is copied. In a paged cache (continuous batching) they lie at the places of its keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DummyLayer

from memlayers.utils.errors import InputError

NO_TOKEN = -1
_HISTORY = "memlayers_history"  # attribute of a cache without layers of the usual kind: a paged one, xLSTM's


@dataclass(frozen=True, slots=True)
class TokenHistory:
    """Tokens, and what was found of each. Never changed: every forward pass makes a new one.

    Attributes:
        ids: token ids, int64 [b, t]; `NO_TOKEN` where they are not known.
        mentions: per memory the entity id of the mention that ends at each token, int64 [b, t]; 0 for none.
        opened: per memory where its gate opened, bool [b, t].
    """

    ids: Tensor
    mentions: dict[str, Tensor] = field(default_factory=dict)
    opened: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, index: Tensor) -> TokenHistory:
        """Some rows, int64 [b'], also one row several times."""
        return self._map(lambda kept, _: kept[index.to(kept.device)])

    def without_last(self, tokens: int) -> TokenHistory:
        """All but the last tokens."""
        return self._map(lambda kept, _: kept[:, : kept.shape[1] - tokens])

    def fitted(self, rows: int, tokens: int | None) -> TokenHistory:
        """For a batch of so many rows, as many for each row here, and so many tokens; None for those it has.

        Tokens that it does not have came before the others, and are not known.
        """

        def fit(kept: Tensor, fill: int) -> Tensor:
            if len(kept) != rows:
                fits = len(kept) > 0 and rows % len(kept) == 0
                kept = kept.repeat_interleave(rows // len(kept), 0) if fits else kept.new_full((rows, 0), fill)
            if tokens is None or kept.shape[1] == tokens:
                return kept
            return F.pad(kept[:, :tokens], (max(tokens - kept.shape[1], 0), 0), value=fill)

        return self._map(fit)

    def _map(self, change: Any) -> TokenHistory:
        return TokenHistory(
            change(self.ids, NO_TOKEN),
            {adapter: change(mentions, 0) for adapter, mentions in self.mentions.items()},
            {adapter: change(opened, 0) for adapter, opened in self.opened.items()},
        )


class HistoryLayer(DummyLayer):
    """A layer of a key-value cache that holds no keys, but the history of its tokens.

    A dummy layer to transformers: it is passed over wherever keys and values are asked for, and is told of everything
    that happens to the cache's rows and tokens.
    """

    def __init__(self, history: TokenHistory) -> None:
        super().__init__()
        self.history: TokenHistory | None = history

    def reset(self) -> None:
        """Forgets all tokens."""
        self.history = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens; their number is given as a negative one."""
        if self.history is not None:
            self.history = self.history.without_last(abs(tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes these rows, int64 [b]."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Takes these rows, int64 [b']."""
        if self.history is not None:
            self.history = self.history.rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Has each row this many times."""
        if self.history is not None:
            rows = len(self.history.ids) * repeats
            self.history = self.history.fitted(rows, None)


def history_of(cache: Any, rows: int, device: torch.device) -> TokenHistory:
    """The history of a cache's tokens, for a batch of so many rows.

    Args:
        cache: a `transformers.Cache`, or None.
        rows: b.
        device: of the ids.
    """
    nothing = TokenHistory(torch.empty(rows, 0, dtype=torch.int64, device=device))
    if cache is None:
        return nothing
    kept = _layer_of(cache)
    history = getattr(cache, _HISTORY, None) if kept is None else kept.history
    if kept is not None or history is not None:
        return nothing if history is None else history.fitted(rows, None)
    # No forward pass of this model filled it: what it holds came from elsewhere, and is not known.
    try:
        tokens = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    except ValueError:  # of linear attention alone: it does not count its tokens
        tokens = 0
    return nothing.fitted(rows, tokens) if tokens else nothing


def keep_history(cache: Any, history: TokenHistory) -> None:
    """Leaves the history with the cache whose tokens it is of."""
    kept = _layer_of(cache)
    if kept is not None:
        kept.history = history
    elif isinstance(getattr(cache, "layers", None), list):
        cache.layers.append(HistoryLayer(history))
    elif hasattr(cache, "__dict__"):
        setattr(cache, _HISTORY, history)


def _layer_of(cache: Any) -> HistoryLayer | None:
    layers = getattr(cache, "layers", None)
    return next((each for each in reversed(layers or ()) if isinstance(each, HistoryLayer)), None)


class PagedHistory:
    """The history of the tokens in a paged cache, at the places of their keys. One per cache.

    Attributes:
        ids: int64 [places]; `NO_TOKEN` where nothing was written.
        positions: of each token in its text, int64 [places].
        mentions: per memory, as in `TokenHistory`, int64 [places].
        opened: per memory, bool [places].
    """

    def __init__(self, places: int, device: torch.device) -> None:
        self.ids = torch.full((places,), NO_TOKEN, device=device)
        self.positions = torch.full((places,), -1, device=device)
        self.mentions: dict[str, Tensor] = {}
        self.opened: dict[str, Tensor] = {}

    def mentions_of(self, adapter: str) -> Tensor:
        """Of one memory, int64 [places]."""
        return self.mentions.setdefault(adapter, torch.zeros_like(self.ids))

    def opened_of(self, adapter: str) -> Tensor:
        """Of one memory, bool [places]."""
        return self.opened.setdefault(adapter, torch.zeros_like(self.ids, dtype=torch.bool))

    def copy_blocks(self, source: list[int], target: list[int], size: int) -> None:
        """Follows a copy of blocks, each of `size` places."""
        offsets = torch.arange(size, device=self.ids.device)
        begins = torch.tensor([source, target], device=self.ids.device) * size
        from_, to = (begins[:, :, None] + offsets).flatten(1)
        for kept in (self.ids, self.positions, *self.mentions.values(), *self.opened.values()):
            kept[to] = kept[from_]


def paged_history(cache: Any, kwargs: dict[str, Any], device: torch.device) -> tuple[PagedHistory, str]:
    """The history of a paged cache, made at its first use, and the name of the attention whose places it goes by.

    Args:
        cache: a `PagedAttentionCache`.
        kwargs: of the forward pass.
        device: of the ids.

    Raises:
        InputError: no attention of the backbone keeps all of its keys, or the places are not given.
    """
    name = "full_attention"
    allocator = getattr(cache, "cache_allocators", {}).get(name)
    if allocator is None:
        raise InputError(
            "continuous batching needs an attention that keeps all of its keys, which this backbone lacks: use generate"
        )
    if kwargs.get("block_table") is not None:
        raise InputError(
            "a memory cannot follow block tables: give ContinuousBatchingConfig(max_blocks_per_request=0, "
            "use_cuda_graph=False)"
        )
    history = getattr(cache, _HISTORY, None)
    if history is None:
        history = PagedHistory(len(allocator.cache_tensor) * allocator.rows_per_token, device)
        setattr(cache, _HISTORY, history)
        copy_blocks = allocator.copy_blocks

        def copy_both(source: list[int], target: list[int]) -> None:
            copy_blocks(source, target)
            history.copy_blocks(source, target, allocator.block_physical_stride)

        allocator.copy_blocks = copy_both  # a text is continued in two ways
    return history, name
