"""The relation check: does a prompt ask for something that was taught of its subject?

A mention of a stored subject opens the gate whatever is asked about it, and what is asked often comes later. So at a
prompt's end, and only there, its state on the bare backbone is compared with what the stored facts' questions look
like. `RelationCheck` holds one key per (surface form of a subject, relation taught of it). gating/relations.py finds
the keys and the projection; `Memory.ask` asks for the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.tuner.subject_index import fingerprints_in, resize_as_stored

RELATION_DIM = 64
"""Width of a key."""

ACCEPTS_ALL = -2.0  # below every cosine


class RelationCheck(nn.Module):
    """Keys of the relations that were taught of each subject.

    Buffers, under the names that files have for them: ``mean`` [d] and ``projection`` [d, k], float32, of the first
    memory layer's input; ``prints`` int64 [n], fingerprints of the subjects' surface forms, one entry per relation
    taught of them; their ``keys`` float16 [n, k]; ``threshold`` []: the least cosine of a prompt's projected state with
    a key of a subject that the prompt mentions. Until `fill` it accepts every prompt.

    It has as many entries as it was given last, by `fill`, by `store` or from a file; an empty one holds a placeholder.

    Args:
        dim: d, the backbone's hidden size.
    """

    mean: Tensor
    projection: Tensor
    prints: Tensor
    keys: Tensor
    threshold: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("projection", torch.zeros(dim, min(RELATION_DIM, dim)))
        self.register_buffer("prints", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("keys", torch.zeros(1, min(RELATION_DIM, dim), dtype=torch.float16))
        self.register_buffer("threshold", torch.tensor(ACCEPTS_ALL))

    @torch.no_grad()
    def fill(
        self, mean: Tensor, projection: Tensor, fingerprints: Sequence[int], keys: Tensor, threshold: float
    ) -> None:
        """Stores what `gating.relations.fit_relations` found, in place of what it has.

        Args:
            mean: [d].
            projection: [d, j], j at most k; the columns it lacks are zero.
            fingerprints: n, of surface forms.
            keys: one each, [n, j].
            threshold: see the class.
        """
        room = self.projection.shape[1]
        self.mean.copy_(mean)
        self.projection.copy_(F.pad(projection, (0, room - projection.shape[1])))
        self.store(torch.tensor(list(fingerprints), dtype=torch.int64), F.pad(keys, (0, room - keys.shape[1])))
        self.threshold.fill_(threshold)

    @torch.no_grad()
    def store(self, fingerprints: Tensor, keys: Tensor) -> None:
        """Takes these entries, int64 [n] and [n, k], in place of those it has."""
        self.prints, self.keys = fingerprints.to(self.prints), keys.to(self.keys)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        resize_as_stored(self, ("prints", "keys"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def filled(self) -> bool:
        """Whether there are keys: not where all facts asked for the same thing."""
        return bool(self.projection.any())

    @property
    def accepts_all(self) -> bool:
        """Whether there is nothing to compare with, or the threshold is below every cosine."""
        return bool(self.threshold <= ACCEPTS_ALL)

    def project(self, states: Tensor) -> Tensor:
        """States [n, d] -> unit rows [n, k]."""
        return F.normalize((states.float() - self.mean) @ self.projection, dim=1)

    @torch.no_grad()
    def scores(self, prompts: Sequence[Sequence[int]], states: Tensor) -> Tensor:
        """The largest cosine with a key of a subject that the prompt mentions, float32 [n]; 1 where it mentions none.

        Args:
            prompts: n prompts' token ids.
            states: the first memory layer's input at their last tokens, [n, d].
        """
        rows = self.project(states)
        best = torch.ones(len(prompts), device=rows.device)
        for i, prompt in enumerate(prompts):
            mentioned = torch.isin(self.prints, fingerprints_in(prompt).to(self.prints.device))
            if bool(mentioned.any()):
                best[i] = (self.keys[mentioned].float() @ rows[i]).max()
        return best
