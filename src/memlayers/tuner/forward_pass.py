"""What one forward pass knows: its tokens and those before them, the subject of each, and which tokens may read.

A memory layer sees hidden states only. The hooks of tuner/hooks.py make a `ForwardPass` of the token ids that a model
is called with; the layers find it in `current()`. It belongs to this one pass, and what a later one needs of it goes
into the key-value cache (tuner/token_history.py), so nothing is left on a module.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.pool.gathering import active_ddp, shared_parameter
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner.shapes import asks
from memlayers.tuner.subject_index import LOOK_BACK, SubjectIndex, subject_code
from memlayers.tuner.token_history import (
    NO_TOKEN,
    PagedHistory,
    TokenHistory,
    history_of,
    keep_history,
    paged_history,
)
from memlayers.utils.errors import InputError


class Decided(NamedTuple):
    """What the first layer of a memory with an index of subjects decided.

    Attributes:
        tokens: that may read, int64 [open]; bool [n] where shapes must not depend on data (torch.compile); None for
            all.
    """

    tokens: Tensor | None


class ForwardPass:
    """One forward pass of a model; made by `tuner.hooks`, handed to its memory layers.

    Its tokens are counted through the batch, 0 to n - 1. They lie in `text`, together with the tokens before them.

    Args:
        ids: token ids, int [b, t]; None where there are embeddings in their place.
        kwargs: of the call. Looked at are the cache, and what says where sequences packed into one row begin.
        embeddings: [b, t, d], in place of ids.

    Attributes:
        decided: by memory; for those with an index of subjects.
        hooks: those that began it.
        outer: the pass that was under way when it began.
        depth: how many modules within the first one are under way, of those that have hooks.
        ddp: the `DistributedDataParallel` that it is a forward of; None for none.
    """

    def __init__(self, ids: Tensor | None, kwargs: dict[str, Any], embeddings: Tensor | None = None) -> None:
        self.given = ids
        self.hooks: Any = None
        self.outer: ForwardPass | None = None
        self.depth = 0
        self.ddp: Any = active_ddp()
        self._shared: dict[ValuePool, Tensor | None] = {}
        self.decided: dict[str, Decided] = {}
        self._subjects: dict[str, Tensor] = {}
        self._mentions: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._opened: dict[str, Tensor] = {}
        self._codes: dict[tuple[str, int], Tensor] = {}
        self._past: TokenHistory | None = None
        self._paged: _PagedRow | None = None
        self._text: Tensor | None = None  # int64 [b, w]
        self._first: Tensor | None = None  # int64 [b, w]: where each token's sequence begins; None for at 0
        self._new = 0  # the last columns of the text are those of this pass; not in a paged one
        if getattr(kwargs.get("cache"), "cache_allocators", None) is not None and ids is not None:
            self._read_paged(ids, kwargs)
        elif ids is not None or embeddings is not None:
            self._read_rows(ids, embeddings, kwargs)

    def _read_rows(self, ids: Tensor | None, embeddings: Tensor | None, kwargs: dict[str, Any]) -> None:
        """A batch of rows; each is one text, or several sequences packed."""
        like = ids if ids is not None else embeddings
        assert like is not None
        rows, self._new = like.shape[0], like.shape[1]
        past = history_of(cache_of(kwargs), rows, like.device)
        if ids is None:
            if not past.ids.shape[1]:
                return  # nothing is known of the text
            ids = torch.full((rows, self._new), NO_TOKEN, device=like.device)
        self._past = past
        self._text = torch.cat([past.ids, ids.long()], 1)
        if not past.ids.shape[1] and self._new > 1:
            self._first = _sequence_starts(kwargs, rows, self._new)

    def _read_paged(self, ids: Tensor, kwargs: dict[str, Any]) -> None:
        """Sequences in a paged cache: one row holds them all, each with its past before it."""
        history, attention = paged_history(kwargs["cache"], kwargs, ids.device)
        group = list(kwargs["cache"].cache_allocators).index(attention)
        written, read = kwargs["write_index"][group], kwargs["read_index"][group]
        begins, query = kwargs["cu_seq_lens_k"][attention].long(), kwargs["cu_seq_lens_q"].long()
        tokens = ids.shape[1]
        number = torch.arange(tokens, device=ids.device)
        if not read.numel():  # no sequence has a past: the row is what is written
            read, begins = written, query
        # A token counts from the end of its sequence; padding behind the last one counts on.
        owner = torch.bucketize(number, query[1:], right=True).clamp_max(len(query) - 2)
        places = (begins[1:][owner] - (query[1:][owner] - number)).clamp_max(len(read) - 1)
        history.ids[written] = ids[0, : len(written)].long()
        history.positions[written] = kwargs["position_ids"][0, : len(written)].long()
        position = torch.arange(len(read), device=ids.device)
        first = begins[torch.bucketize(position, begins[1:], right=True).clamp_max(len(begins) - 2)]
        known = history.positions[read] == position - first  # not where other software moved the keys
        self._paged = _PagedRow(history, read, written, places, known)
        self._text = torch.where(known, history.ids[read], NO_TOKEN)[None]
        self._first = first[None]

    @property
    def tokens(self) -> int:
        """How many tokens go through, n; -1 where nothing is known of them."""
        if self._text is None:
            return -1
        return len(self._paged.places) if self._paged is not None else len(self._text) * self._new

    def shared_parameter(self, pool: ValuePool) -> Tensor | None:
        """A pool's parameter as DDP's processes share it; one for all reads of the pass. None outside of DDP."""
        if self.ddp is None or not torch.is_grad_enabled() or type(pool) is not ValuePool:
            return None
        if pool not in self._shared:
            self._shared[pool] = shared_parameter(pool, self.ddp)
        return self._shared[pool]

    def subjects(self, adapter: str, index: SubjectIndex, tokens: int) -> Tensor:
        """The subject of each token, int64 [n] on the index's device; 0 for none. Worked out once.

        Args:
            adapter: name of the memory.
            index: its own.
            tokens: n, as the memory layer counts them.

        Raises:
            InputError: the token ids are not known.
        """
        if self._text is None or tokens != self.tokens:
            raise InputError("this memory opens by the names in its text: give input_ids, not inputs_embeds")
        found = self._subjects.get(adapter)
        if found is None:
            text = self._text = self._text.to(index.fingerprints.device)
            first = self._first = None if self._first is None else self._first.to(text.device)
            mentions = self._mentions[adapter] = self._mentions_in(text, adapter, index)
            if not asks(text) or mentions.any():
                last = self._last[adapter] = index.last_mention(text, mentions, first)
                mentions = index.in_scope(mentions, last)
            found = self._subjects[adapter] = self._of_tokens(mentions)
        return found

    def keep_open(self, adapter: str, opened: Tensor) -> Tensor:
        """The tokens that may read, given those that the gate opens for; bool [n] each. Where `subjects` found any.

        Once it has opened after a mention, it stays open as long as that mention's subject may be read.
        """
        subjects, last = self._subjects[adapter], self._last[adapter]
        text_opened = self._with_past(adapter, opened.to(subjects.device))
        self._opened[adapter] = text_opened
        return self._of_tokens(stays_open(text_opened, last)) & (subjects != 0)

    def code(self, adapter: str, opened: Tensor | None, width: int) -> Tensor | None:
        """The direction of each reading token's subject, float32 [open, width]; the same for all layers.

        Args:
            adapter: name of the memory.
            opened: the tokens that read, int64 [open]; None for all.
            width: of the directions.

        Returns:
            None where no subjects were asked for: the memory has no index, or none that is filled.
        """
        subjects, code = self._subjects.get(adapter), self._codes.get((adapter, width))
        if code is None and subjects is not None:
            chosen = subjects if opened is None else subjects[opened.to(subjects.device)]
            code = self._codes[adapter, width] = subject_code(chosen, width)
        return code

    def forget(self) -> None:
        """Knows nothing of its text from here on: a pass within it does."""
        self._text = self._past = self._paged = None

    def finish(self, cache: Any) -> None:
        """Leaves what the next pass needs with the key-value cache; None where there is no cache."""
        if self._paged is not None:
            row = self._paged
            for kept, found in ((row.history.mentions, self._mentions), (row.history.opened, self._opened)):
                for adapter, of_all in kept.items():
                    text = found.get(adapter)
                    of_all[row.written] = 0 if text is None else self._of_tokens(text)[: len(row.written)].to(of_all)
        elif cache is not None and self._text is not None and self._past is not None:
            opened = {
                adapter: F.pad(before, (0, self._new))
                for adapter, before in self._past.opened.items()
                if adapter not in self._opened
            }
            keep_history(cache, TokenHistory(self._text, self._mentions, {**opened, **self._opened}))

    def _mentions_in(self, text: Tensor, adapter: str, index: SubjectIndex) -> Tensor:
        """The mention that ends at each token of the text, int64 [b, w]; that of the past is looked up."""
        if self._paged is not None:
            row = self._paged
            mentions = torch.where(row.known, row.history.mentions_of(adapter)[row.read], 0)
            assert self._first is not None
            windows = row.places[:, None] + torch.arange(-LOOK_BACK, 1, device=text.device)  # [n, LOOK_BACK + 1]
            within = windows >= self._first[0, row.places, None]
            ids = torch.where(within, text[0, windows.clamp_min(0)], NO_TOKEN)
            return mentions.index_copy(0, row.places, index.mentions(ids, 1)[:, 0])[None]
        assert self._past is not None
        past = text.shape[1] - self._new
        before = self._past.mentions.get(adapter)
        if before is None:
            return index.mentions(text, first=self._first)
        context = text[:, max(past - LOOK_BACK, 0) :]
        return torch.cat([before.to(text.device), index.mentions(context, self._new)], 1)

    def _with_past(self, adapter: str, opened: Tensor) -> Tensor:
        """Where the gate opened in the text, bool [b, w], given where it opens for the tokens, bool [n]."""
        if self._paged is not None:
            row = self._paged
            before = row.history.opened_of(adapter)[row.read] & row.known
            return before.index_copy(0, row.places, opened)[None]
        assert self._past is not None and self._text is not None
        new = opened.view(len(self._text), self._new)
        past = self._text.shape[1] - self._new
        before_rows = self._past.opened.get(adapter)
        if before_rows is None:
            return F.pad(new, (past, 0))
        return torch.cat([before_rows.to(new.device), new], 1)

    def _of_tokens(self, text: Tensor) -> Tensor:
        """[b, w] -> [n]."""
        if self._paged is not None:
            return text[0, self._paged.places]
        return text[:, text.shape[1] - self._new :].reshape(-1)


class _PagedRow:
    """How the row of a paged forward pass is made up of w tokens.

    Attributes:
        history: of the cache.
        read: the places in the cache of the row's tokens, int64 [w].
        written: those of this pass's tokens, int64 [n].
        places: where in the row this pass's tokens are, int64 [n].
        known: which tokens of the row the history knows, bool [w].
    """

    def __init__(self, history: PagedHistory, read: Tensor, written: Tensor, places: Tensor, known: Tensor) -> None:
        self.history, self.read, self.written, self.places, self.known = history, read, written, places, known


def cache_of(kwargs: dict[str, Any]) -> Any:
    """The key-value cache that a model is called with; None for none."""
    cache = kwargs.get("past_key_values")
    return kwargs.get("cache_params") if cache is None else cache


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


def _sequence_starts(kwargs: dict[str, Any], rows: int, tokens: int) -> Tensor | None:
    """Where the sequence of each token begins, int64 [b, t]; None where each row is one.

    Sequences packed into one row, without padding, are told apart by positions that begin anew (as transformers does),
    or by their lengths.
    """
    positions = kwargs.get("position_ids")
    if positions is None:
        lengths = kwargs.get("cu_seq_lens_q")
        if lengths is None or rows != 1:
            return None
        begins = lengths.long()
        number = torch.arange(tokens, device=begins.device)
        owner = torch.bucketize(number, begins[1:], right=True).clamp_max(len(begins) - 2)
        starts: Tensor = begins[owner]
        return starts[None]
    if positions.dim() == 3:  # of several axes: an image's tokens share a position
        positions = positions[0]
        anew = positions[:, 1:] < positions[:, :-1]
    else:
        anew = positions[:, 1:] <= positions[:, :-1]
    number = torch.arange(1, tokens, device=positions.device)
    latest = F.pad(torch.where(anew, number, 0), (1, 0)).cummax(1).values
    return latest.expand(rows, tokens)
