"""The index of stored subjects: finds in token ids where a stored subject is mentioned, and which one.

What tells a stored fact's question from one of the same wording about another entity is the entity alone. So an adapter
holds a fingerprint of each surface form of its subjects, by its folded letters (tuner/letters.py). The memory is read
from the token after a mention on, for as many tokens as a question and its answer may still take (the scope), unless
the tokens beside the mention show that it is part of a longer name (tuner/boundary_flags.py). The decision is causal,
the same for all memory layers, exact but for a collision of 64-bit hashes, and needs no forward pass.

Only token ids are looked at, and a memory layer does not see them: tuner/forward_pass.py hands them over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.tuner.boundary_flags import Boundary, flags_of, hyphenated, preceding, shouted
from memlayers.tuner.letters import LONGEST_FORM, MULTIPLIERS, Letters
from memlayers.tuner.shapes import asks
from memlayers.utils.errors import InputError

LOOK_BACK = LONGEST_FORM - 1 + 16
"""Tokens before the latest one that decide whether a mention ends there: the longest form, and two words before it."""

PRIOR_SIZE = 2**16
"""Entries of the prior of wrong answers; answers that share an entry are not told apart."""

_LONG_AGO = -(2**40)


class SubjectIndex(nn.Module):
    """Fingerprints of the surface forms of the stored subjects.

    Buffers, under the names that files have for them: ``fingerprints`` int64 [n], ascending, one per surface form;
    ``subjects`` int64 [n], the entity id of each: equal for all surface forms of one subject, never 0; ``reach``
    int64 []: the scope, in tokens, after a mention, in which the memory may be read; while it is 0 the index is
    empty, and every token may read. ``marks`` uint8 [v + 1]: the `Boundary` flags of the vocabulary; the last entry
    stands for all ids beyond. ``letters`` int64 [v + 1], ``widths`` uint8 [v + 1] and ``words`` bool [v + 1]: the
    vocabulary's folded letters, see `Letters`. ``thresholds`` float32 [2]: the least confidence, 0 to 1, from which
    an answer of the memory, and one of the backbone, is given (`Memory.ask`); 0 until they are settled. ``guesses``
    uint8 [PRIOR_SIZE]: the prior of wrong answers, how often the backbone gave an answer wrongly
    (inference/confidence.py).

    It has as many entries as it was given last, by `fill`, by `store` or from a file; an empty one holds a placeholder.

    Args:
        vocabulary: v, token ids of the backbone.
    """

    fingerprints: Tensor
    subjects: Tensor
    marks: Tensor
    letters: Tensor
    widths: Tensor
    words: Tensor
    reach: Tensor
    thresholds: Tensor
    guesses: Tensor

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.register_buffer("fingerprints", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("subjects", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("reach", torch.zeros((), dtype=torch.int64))
        self.register_buffer("marks", torch.zeros(vocabulary + 1, dtype=torch.uint8))
        nothing = Letters.none(vocabulary)
        self.register_buffer("letters", nothing.hashes)
        self.register_buffer("widths", nothing.widths)
        self.register_buffer("words", nothing.words)
        self.register_buffer("thresholds", torch.zeros(2))
        self.register_buffer("guesses", torch.zeros(PRIOR_SIZE, dtype=torch.uint8))

    @torch.no_grad()
    def fill(
        self,
        forms: Mapping[tuple[int, ...], tuple[int, ...]],
        scope: int,
        flags: Tensor | None = None,
        letters: Letters | None = None,
    ) -> None:
        """Stores surface forms, in place of those it has.

        Args:
            forms: token ids of each surface form, and of the form whose fingerprint is its subject's entity id.
            scope: in tokens, after a mention.
            flags: `Boundary` flags, uint8, of the first token ids; all others have none. None for none everywhere.
            letters: of the first token ids; all others stand for themselves. None has all do so: forms are then
                compared token by token.
        """
        nothing = Letters.none(len(self.widths) - 1)
        count = 0 if letters is None else min(len(letters.widths), len(self.widths)) - 1
        for buffer, of_all, of_some in zip(self.table, nothing, letters or nothing, strict=True):
            buffer.copy_(of_all)
            buffer[:count] = of_some[:count].to(buffer.device)
        self.store(self.entries_of(forms))
        self.reach.fill_(scope)
        self.marks.zero_()
        if flags is not None:
            known = flags[: len(self.marks) - 1]
            self.marks[: len(known)] = known.to(self.marks.device)

    @property
    def table(self) -> Letters:
        """The vocabulary's folded letters."""
        return Letters(self.letters, self.widths, self.words)

    def entries_of(self, forms: Mapping[tuple[int, ...], tuple[int, ...]]) -> Tensor:
        """What is stored of surface forms, int64 [n, 2], in their order: fingerprint and entity id.

        Args:
            forms: token ids of each surface form, and of the form whose fingerprint is its subject's entity id.
        """
        print_of = self.table.fingerprint
        entities = {subject: print_of(subject) or 1 for subject in forms.values()}
        entries = [(print_of(form), entities[subject]) for form, subject in forms.items()]
        return torch.tensor(entries, dtype=torch.int64).view(-1, 2)

    @property
    def entries(self) -> Tensor:
        """What is stored, int64 [n, 2]: fingerprint and entity id of each surface form, by ascending fingerprint."""
        return torch.stack([self.fingerprints, self.subjects], 1)

    @torch.no_grad()
    def store(self, entries: Tensor) -> None:
        """Takes these entries, in place of those it has.

        Args:
            entries: fingerprint and entity id, int64 [n, 2]; of several with one fingerprint the first counts. For
                n = 0 a placeholder is kept.
        """
        entries = entries if len(entries) else entries.new_zeros(1, 2)
        order = entries[:, 0].argsort(stable=True)
        entries = entries[order]
        first = torch.ones(len(entries), dtype=torch.bool, device=entries.device)
        first[1:] = entries[1:, 0] != entries[:-1, 0]
        entries = entries[first].to(self.fingerprints.device)
        self.fingerprints, self.subjects = entries[:, 0].clone(), entries[:, 1].clone()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "fingerprints" in state_dict and prefix + "letters" not in state_dict:
            raise InputError("taught by an earlier version, whose index knew names by their tokens; teach it again")
        resize_as_stored(self, ("fingerprints", "subjects"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def mentions(self, ids: Tensor, latest: int | None = None, first: Tensor | None = None) -> Tensor:
        """The entity id of the longest mention that ends at each token; 0 where none ends.

        A mention that is a suffix of a longer name is none. Whether it continues shows at the next token only: see
        `last_mention`.

        Args:
            ids: token ids, int64 [b, t]; what lies before them is not seen.
            latest: how many of the last tokens are asked about, the others are context; None for all t.
            first: where the text of each token begins, int64 [b, t]; None where each row is one text.

        Returns:
            int64 [b, latest].
        """
        latest = ids.shape[1] if latest is None else latest
        hashes, runs = self.table.runs(ids, latest)  # [b, latest, LONGEST_FORM]
        entry = torch.searchsorted(self.fingerprints, hashes).clamp_max(len(self.fingerprints) - 1)
        found = (self.fingerprints[entry] == hashes) & runs
        lengths = torch.arange(1, LONGEST_FORM + 1, device=ids.device)
        end = torch.arange(ids.shape[1] - latest, ids.shape[1], device=ids.device)
        if first is not None:  # a mention lies within one text
            found = found & (lengths <= (end + 1 - first[:, ids.shape[1] - latest :])[..., None])
        if asks(ids) and not found.any():  # nearly every token of a generation
            return ids.new_zeros(ids.shape[0], latest)
        longest = (found * lengths).amax(-1, keepdim=True)  # [b, latest, 1]; 0 where none
        entity = self.subjects[entry.gather(-1, (longest - 1).clamp_min(0))].squeeze(-1)
        longest = longest.squeeze(-1)
        start = (end - longest + 1).clamp_max(ids.shape[1] - 1)
        before = preceding(self.marks, ids, first).gather(1, start)
        word, own = ids.gather(1, before.clamp_min(0)), ids.gather(1, start.expand_as(before))
        suffix = (before >= 0) & (flags_of(self.marks, word) & Boundary.PRECEDES != 0)
        unspaced = flags_of(self.marks, own) & (Boundary.WORD_PART | Boundary.HYPHEN) != 0
        suffix = suffix & ~(shouted(self.marks, own, word) & ~unspaced)
        start_known = longest < LONGEST_FORM  # of a longer form only the last tokens are compared
        return torch.where((longest > 0) & ~(suffix & start_known), entity, 0)

    def last_mention(self, ids: Tensor, mentions: Tensor, first: Tensor | None = None) -> Tensor:
        """The position of the last token of the latest mention before each token; far below 0 where there is none.

        A mention that continues, as its next token shows, is none. Where a hyphen joins it with what is behind it, the
        last token that is joined shows: "Stratford-upon-Avon" is a longer name, "Stratford-based" is not.

        Args:
            ids: token ids, int64 [b, t].
            mentions: of these ids, see `mentions`, int64 [b, t].
            first: where the text of each token begins, int64 [b, t]; None where each row is one text.

        Returns:
            int64 [b, t].
        """
        position = torch.arange(ids.shape[1], device=ids.device)
        after = flags_of(self.marks, ids[:, 1:])
        continues = (after & Boundary.CONTINUES != 0) & ~(
            shouted(self.marks, ids[:, :-1], ids[:, 1:]) & (after & Boundary.WORD_PART == 0)
        )
        whole = (mentions[:, :-1] != 0) & ~continues
        waits = whole & (after & Boundary.HYPHEN != 0)
        ended = F.pad(torch.where(whole & ~waits, position[:-1], _LONG_AGO), (1, 0), value=_LONG_AGO)
        if not asks(ids) or waits.any():
            ended = torch.maximum(ended, self._hyphenated(ids, F.pad(waits, (0, 1))))
        last = ended.cummax(1).values
        return last if first is None else torch.where(last >= first, last, _LONG_AGO)

    def _hyphenated(self, ids: Tensor, waits: Tensor) -> Tensor:
        """The mention that a token is the first to show whole, of those before hyphens; far below 0 for none.

        Args:
            ids: token ids, int64 [b, t].
            waits: the last tokens of mentions right before hyphens, bool [b, t].

        Returns:
            Positions of mentions' last tokens, int64 [b, t].
        """
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        glued, continued = hyphenated(self.marks, ids)
        mention, other = (
            F.pad(torch.where(each, position, -1).cummax(1).values[:, :-1], (1, 0), value=-1)
            for each in (waits, ~glued)
        )
        shown = ~glued & (mention >= 0) & (mention >= other) & (mention > continued.cummax(1).values)
        return torch.where(shown, mention, _LONG_AGO)

    def in_scope(self, mentions: Tensor, last: Tensor) -> Tensor:
        """The subject of each token: the entity id of the latest mention whose scope the token is in; 0 for none.

        Args:
            mentions: see `mentions`, int64 [b, t].
            last: see `last_mention`, int64 [b, t].

        Returns:
            int64 [b, t].
        """
        position = torch.arange(mentions.shape[1], device=mentions.device)
        return torch.where(position - last <= self.reach, mentions.gather(1, last.clamp_min(0)), 0)

    def subjects_in(self, ids: Tensor) -> Tensor:
        """The subject of each token of whole texts, int64 [b, t] for token ids [b, t]; 0 for none."""
        mentions = self.mentions(ids)
        return self.in_scope(mentions, self.last_mention(ids, mentions))


def resize_as_stored(module: nn.Module, names: Sequence[str], state_dict: dict[str, Any], prefix: str) -> None:
    """Gives buffers, of one row per entry, the number of rows that a state dict has for them; they are then loaded.

    Rows that do not belong together, of different numbers, are left to torch, which refuses them.

    Args:
        module: whose buffers.
        names: of the buffers that must have equally many rows.
        state_dict: about to be loaded.
        prefix: of the module's keys in it.
    """
    stored = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
    if len(stored) == len(names) and len({len(tensor) if tensor.dim() else None for tensor in stored.values()}) == 1:
        for name, tensor in stored.items():
            own: Tensor = getattr(module, name)
            setattr(module, name, own.new_zeros(len(tensor), *own.shape[1:]) if tensor.dim() else own)


def _multiples(multiplier: int, count: int, device: torch.device) -> Tensor:
    """1 to `count` times a multiplier, int64, which wraps around.

    Numbers, not a product of a range: inductor works that out in whole numbers that do not wrap.
    """
    multiples = [(multiplier * each + 2**63) % 2**64 - 2**63 for each in range(1, count + 1)]
    return torch.tensor(multiples, device=device)


def subject_code(subjects: Tensor, width: int) -> Tensor:
    """A direction for each subject, the same on every device.

    Each coordinate's sign is a bit of a hash of the entity id, so any two subjects are nearly orthogonal.

    Args:
        subjects: entity ids, int64 [n]; 0 for none.
        width: of the directions.

    Returns:
        float32 [n, width], rows of unit norm; 0 for no subject.
    """
    first, second, third = MULTIPLIERS
    mixed = subjects[:, None] + _multiples(first, width, subjects.device)
    mixed.bitwise_xor_(mixed >> 30).mul_(second)
    mixed.bitwise_xor_(mixed >> 27).mul_(third)
    return torch.where(mixed >> 31 & 1 == 1, width**-0.5, -(width**-0.5)) * (subjects[:, None] != 0)
