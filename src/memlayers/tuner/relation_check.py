"""The relation check: does a prompt ask for something that was taught of its subject?

A mention of a stored subject opens the gate whatever is asked about it, and what is asked often comes later. So a
prompt is read once more by the bare backbone, without the mention (`without_mention`): what is left is the wording
alone, and its state at the end is compared with what the stored facts' wordings look like. `RelationCheck` holds one
key per (surface form of a subject, relation taught of it). gating/relations.py finds the keys and the projection;
`Memory.ask` asks for the scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.tuner.letters import LONGEST_FORM, Letters
from memlayers.tuner.subject_index import resize_as_stored

RELATION_DIM = 64
"""Width of a key."""

ACCEPTS_ALL = -2.0  # below every score
_EARLIER = "this memory's relation check is of an earlier version and not used: make it anew with `memlayers gate`"
_RIVAL = 0.5  # share of the best other key's cosine that a score loses
_ALIKE = 0.5  # cosine from which on two keys may stand for one relation, and are no rivals


def without_mention(prompt: Sequence[int], prints: Tensor, letters: Letters) -> list[int]:
    """A prompt without the longest mention of a subject in it, the last of equally long ones; whole where it has none.

    Args:
        prompt: token ids.
        prints: fingerprints of the surface forms of subjects, int64 [n].
        letters: of the vocabulary.
    """
    found = torch.isin(letters.in_text(prompt), prints.to(letters.widths.device)).cpu()  # [t, length - 1]
    if not bool(found.any()):
        return list(prompt)
    longest = (found * torch.arange(1, LONGEST_FORM + 1)).amax(1).tolist()
    end, size = max(enumerate(longest), key=lambda each: (each[1], each[0]))
    return [*prompt[: end + 1 - size], *prompt[end + 1 :]]


class RelationCheck(nn.Module):
    """Keys of the relations that were taught of each subject.

    Buffers, under the names that files have for them: ``centre`` [d] and ``projection`` [d, k], float32, of a
    state of the bare backbone; ``deep`` bool []: whether that is its last hidden state or the first
    memory layer's input; ``prints`` int64 [n], fingerprints of the subjects' surface forms, one entry per
    relation taught of them; their ``keys`` float16 [n, k]; ``threshold`` []: the least score (`score`) of a prompt that
    asks for what was taught of a subject that it mentions. Until `fill` it accepts every prompt. A check that
    earlier versions wrote has a ``mean``: it is not taken, and every prompt is accepted.

    It has as many entries as it was given last, by `fill`, by `store` or from a file; an empty one holds a placeholder.

    Args:
        dim: d, the backbone's hidden size.
    """

    centre: Tensor
    deep: Tensor
    projection: Tensor
    prints: Tensor
    keys: Tensor
    threshold: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("deep", torch.tensor(False))
        self.register_buffer("projection", torch.zeros(dim, min(RELATION_DIM, dim)))
        self.register_buffer("prints", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("keys", torch.zeros(1, min(RELATION_DIM, dim), dtype=torch.float16))
        self.register_buffer("threshold", torch.tensor(ACCEPTS_ALL))
        self._known: tuple[Tensor, Tensor] | None = None  # `keys`, and what is distinct of them

    @torch.no_grad()
    def fill(
        self,
        centre: Tensor,
        projection: Tensor,
        fingerprints: Sequence[int],
        keys: Tensor,
        threshold: float,
        *,
        deep: bool = True,
    ) -> None:
        """Stores what `gating.relations.fit_relations` found, in place of what it has.

        Args:
            centre: [d].
            projection: [d, j], j at most k; the columns it lacks are zero.
            fingerprints: n, of surface forms.
            keys: one each, [n, j].
            threshold: see the class.
            deep: see the class.
        """
        room = self.projection.shape[1]
        self.centre = centre.to(self.centre)  # as wide as the last hidden state, which need not be the residual stream
        self.projection = F.pad(projection, (0, room - projection.shape[1])).to(self.projection)
        self.store(torch.tensor(list(fingerprints), dtype=torch.int64), F.pad(keys, (0, room - keys.shape[1])))
        self.threshold.fill_(threshold)
        self.deep.fill_(deep)

    @torch.no_grad()
    def store(self, fingerprints: Tensor, keys: Tensor) -> None:
        """Takes these entries, int64 [n] and [n, k], in place of those it has."""
        self.prints, self.keys = fingerprints.to(self.prints), keys.to(self.keys)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}mean" in state_dict:
            for name in [key for key in state_dict if key.startswith(prefix)]:
                del state_dict[name]
            warnings.warn(_EARLIER, stacklevel=2)
            return
        resize_as_stored(self, ("centre", "projection"), state_dict, prefix)
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
        return F.normalize((states.float() - self.centre) @ self.projection, dim=1)

    def score(self, row: Tensor, own: Tensor, others: Tensor) -> Tensor:
        """How much a projected state asks for one of some relations, rather than for another that is known.

        The largest cosine with a key of these, less a share of the largest with the key of another relation: known
        relations are told apart by which is nearest, and what nobody taught by how near it is.

        Args:
            row: [k], of `project`.
            own: keys of the relations taught of a subject, [n, k].
            others: keys of all relations, these among them, [m, k].
        """
        rivals = others[(others @ own.T).amax(1) < _ALIKE]
        nearest = (rivals @ row).max().clamp_min(0) if len(rivals) else row.new_zeros(())
        return (own @ row).max() - _RIVAL * nearest

    def _distinct(self) -> Tensor:
        """The keys without repetition, float32 [m, k]; found once, since keys are replaced and never written into."""
        known = self._known
        if known is None or known[0] is not self.keys:
            known = self._known = self.keys, torch.unique(self.keys.float(), dim=0)
        return known[1]

    @torch.no_grad()
    def scores(self, prompts: Sequence[Sequence[int]], states: Tensor, letters: Letters) -> Tensor:
        """The `score` of each prompt for the subjects that it mentions, float32 [n]; 1 where it mentions none.

        Args:
            prompts: n prompts' token ids.
            states: of each `without_mention`, of the kind that it compares (``deep``), [n, d].
            letters: of the vocabulary.
        """
        rows, every = self.project(states), self._distinct()
        best = torch.ones(len(prompts), device=rows.device)
        for i, prompt in enumerate(prompts):
            mentioned = torch.isin(self.prints, letters.in_text(prompt).to(self.prints.device))
            if bool(mentioned.any()):
                best[i] = self.score(rows[i], self.keys[mentioned].float(), every)
        return best
