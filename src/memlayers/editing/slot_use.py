"""Which slots of the pool a fact reads, how many others read them, and so which of them an edit may write.

Slots specific to an edit are found as words specific to a text are: by how often the edit reads them against how many
of the stored facts, and of the passages of a general text, do (Sparse Memory Finetuning, Lin et al. 2025, arXiv
2510.15103).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_UNSAVED = 0.01  # the share of the facts of which the file may say nothing, or what was


class SlotUse:
    """Which slots the stored facts read, and which a general text does.

    Args:
        slots: rows of the pool.

    Attributes:
        frequency: how many facts read each slot, int64 [slots].
        general: how many passages of the general text do, int32 [slots].
        passages: how many passages it has; 0 until it was looked at.
        rows: of each fact, by its id, the distinct slots that it reads, int32.
        texts: of each fact, by its id, a hash of the text by which that was found.
        unsaved: ids of which the file may say something else.
    """

    def __init__(self, slots: int) -> None:
        self.frequency = torch.zeros(slots, dtype=torch.int64)
        self.general = torch.zeros(slots, dtype=torch.int32)
        self.passages = 0
        self.rows: dict[str, Tensor] = {}
        self.texts: dict[str, str] = {}
        self.unsaved: set[str] = set()

    def put_general(self, passages: Sequence[Tensor]) -> None:
        """Takes these passages of general text, each by the distinct slots that it reads, for those known so far."""
        self.general.zero_()
        for rows in passages:
            self.general[rows] += 1
        self.passages = len(passages)
        self.unsaved |= self.rows.keys()

    def put(self, key: str, rows: Tensor, text: str) -> None:
        """Counts a fact in, in place of what was known of it; `text` is a hash of what was read for it."""
        self.drop(key)
        self.rows[key], self.texts[key] = rows.int(), text
        self.frequency[rows] += 1
        self.unsaved.add(key)

    def drop(self, key: str) -> None:
        """Counts a fact out; nothing where it is not known."""
        rows = self.rows.pop(key, None)
        if rows is not None:
            self.frequency[rows.long()] -= 1
            self.unsaved.add(key)

    def is_outdated(self, keys: Collection[str]) -> bool:
        """Whether the file is to be written anew, for these facts: it tells of others, or too little of these.

        What it says of a fact counts only as long as the fact's text is the same, and the next opening looks again for
        what it does not say; writing it takes longer than all else that an edit saves.
        """
        return not self.rows.keys() <= set(keys) or len(self.unsaved) > _UNSAVED * len(keys)

    def save(self, path: Path, keys: Collection[str]) -> None:
        """Writes down what is known of these facts, so that the next opening need not look again."""
        kept = [key for key in self.rows if key in keys]
        rows = [self.rows[key] for key in kept]
        tensors = {
            "rows": torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int32),
            "sizes": torch.tensor([len(each) for each in rows], dtype=torch.int64),
            "general": self.general if self.passages else self.general[:0],
            "passages": torch.tensor(self.passages),
        }
        save_file(tensors, path, metadata={"facts": json.dumps([[key, self.texts[key]] for key in kept])})

    def load(self, path: Path, texts: Mapping[str, str]) -> None:
        """Counts in what `save` wrote of the facts whose text is still the same; nothing where it is damaged.

        Args:
            path: of the file; it need not be there.
            texts: the hash of each fact's text, by its id.
        """
        try:
            with safe_open(path, framework="pt") as file:
                found = json.loads(file.metadata()["facts"])
                parts = file.get_tensor("rows").long().split(file.get_tensor("sizes").tolist())
                general, passages = file.get_tensor("general"), int(file.get_tensor("passages"))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return
        if general.shape == self.general.shape:
            self.general, self.passages = general, passages
        for (key, text), rows in zip(found, parts, strict=False):
            if texts.get(key) == text and (not len(rows) or int(rows.max()) < len(self.frequency)):
                self.put(key, rows, text)
                self.unsaved.discard(key)

    def frequency_of(self, rows: Tensor, without: Collection[str]) -> Tensor:
        """How many facts read each of some slots, int64 [n]; those of the ids `without` are left out."""
        known = [self.rows[key] for key in without if key in self.rows]
        left_out = torch.cat(known or [self.frequency[:0]]).long().sort().values
        theirs = torch.searchsorted(left_out, rows, right=True) - torch.searchsorted(left_out, rows)
        return self.frequency[rows] - theirs

    def own(self, rows: Tensor, of: Collection[str]) -> Tensor:
        """Those of some slots, int64 [n], that no fact reads but those of the ids `of`."""
        return rows[self.frequency_of(rows, of) == 0]

    def all_reads(self, without: Collection[str]) -> int:
        """The frequencies of all slots together, and of general text; facts of the ids `without` are left out."""
        left_out = sum(len(self.rows[key]) for key in set(without) & self.rows.keys())
        return int(self.frequency.sum()) - left_out + (int(self.general.sum()) if self.passages else 0)

    def reading(self, rows: Tensor, weights: Tensor, without: Collection[str]) -> tuple[list[str], Tensor]:
        """How much of some rows each fact reads.

        Args:
            rows: slots, int64.
            weights: what reading each counts for, float.
            without: ids left out.

        Returns:
            The ids of all other facts, and of each the sum of the weights, float32 [n].
        """
        left_out = set(without)
        keys = [key for key in self.rows if key not in left_out]
        if not keys:
            return keys, torch.zeros(0)
        sizes, read = torch.tensor([len(self.rows[key]) for key in keys]), torch.cat([self.rows[key] for key in keys])
        of_slot = torch.zeros(len(self.frequency))
        of_slot[rows] = weights.float()
        sums = of_slot.index_select(0, read).cumsum(0, dtype=torch.float64)
        sums = torch.cat([sums.new_zeros(1), sums])
        ends = sizes.cumsum(0)
        return keys, (sums[ends] - sums[ends - sizes]).float()

    def most_moved(self, rows: Tensor, moved: Tensor, number: int, without: Collection[str]) -> list[str]:
        """The facts that read most of what an edit moved: `number` at most, the most moved first.

        Args:
            rows: slots that changed, int64.
            moved: by how much each, float.
            number: of facts at most.
            without: ids left out.

        Returns:
            Ids; none that reads nothing of it.
        """
        keys, impact = self.reading(rows, moved, without)
        order = impact.argsort(descending=True, stable=True)[:number].tolist()
        return [keys[i] for i in order if impact[i] > 0]


class OtherReads(NamedTuple):
    """What others read, stored facts and passages of general text, beside an edit.

    Attributes:
        frequency: how many of them read each slot that the edit reads, int64 [n].
        others: how many there are.
        reads: their frequencies over the whole pool together.
        slots: of the pool.
    """

    frequency: Tensor
    others: int
    reads: int
    slots: int


def choose_slots(rows: Tensor, counts: Tensor, beside: OtherReads, rule: str, most: int | None) -> Tensor:
    """The slots an edit may write, ascending.

    Args:
        rows: distinct slots that the edit reads, int64 [n].
        counts: how often each, int64 [n].
        beside: what others read.
        rule: "tfidf" (Lin et al. 2025: count x log of inverse frequency), "kl" (each slot's share of the divergence of
            the edit's reads from the others') or "all".
        most: slots at most; None for all (of "tfidf" and "kl": all that score above 0).
    """
    if rule == "all":
        return rows
    used = beside.frequency.double()
    if rule == "tfidf":
        score = counts * ((beside.others + 1) / (used + 1)).log()
    else:
        own = counts / counts.sum()
        theirs = (used + 1) / (beside.reads + beside.slots)
        score = own * (own / theirs).log()
    order = score.argsort(descending=True, stable=True)[: most if most is not None else len(rows)]
    return rows[order[score[order] > 0]].sort().values
