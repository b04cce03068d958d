"""The entity level of the relevance gate: of whom has the text just spoken, and is anything stored about them?

What tells a stored fact's question from a same-shape one is the subject alone, and the subject is a run of tokens. So
an adapter holds a fingerprint of every run of tokens that spells a stored subject (`SubjectIndex`), and a memory is
read from the token behind such a run on, for as many tokens as a question and its answer may still take; unless that
token shows that a longer name goes on ("Wolves Road", where Wolves are stored), or the words before the run that it had
begun ("the Grey Wolves"): then the run was none. The decision is causal, the same for all memory layers, exact but for
a collision of 64-bit hashes, and needs no forward. Where the trained gate (tuner/gate.py) has opened behind a name, it
stays open as long as that name's subject may be read (`stays_open`).

Only token ids are looked at, and a memory layer does not see them. `SubjectWatch` does: it stands at the entrance of
the backbone's trunk, and keeps what passed through with the key-value cache, so that a text may come in pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONGEST_RUN = 32
"""Tokens of a fingerprint; of a longer subject the last ones count."""

GUESS_PLACES = 2**16
"""Places of the table that counts the backbone's wrong guesses; answers that share one are told apart by nothing."""

PART, CAPITAL, DIGIT, SMALL = 1, 2, 4, 8
"""What a token is, as bits of its mark: the rest of a word, or the beginning of one with such a first character. Others
(punctuation, line ends, special tokens) have none of these."""
GOES_ON, LEADS = 16, 32
"""What it says beside a name, as bits: right behind one, that the name goes on. Of a word right before one, or, on the
rest of a word, at the name's own beginning: that the name had begun before."""
WORD = PART | CAPITAL | DIGIT | SMALL

_NO_TOKEN = -1
_BEFORE = 16  # tokens before a run that are looked at: two words
_LONG_AGO = -(2**40)
# Odd 64-bit constants (of splitmix64, Steele et al. 2014); int64 arithmetic wraps around, on a CPU and on a GPU.
_MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)


class SubjectIndex(nn.Module):
    """Fingerprints of the token runs that spell the stored subjects.

    Buffers ``fingerprints`` int64 [n], ascending; ``subjects`` int64 [n]: whom each run names, a number that all
    spellings of one subject share, never 0; and ``reach`` int64 []: how many tokens behind a run the memory may be
    read. While ``reach`` is 0 the index is empty, and nothing is held back. ``marks`` uint8 [v + 1]: what the tokens
    say of a name beside them, bits as above; the last entry stands for all ids beyond. ``thresholds`` float32 [2]: the
    least confidence, 0 to 1, with which an answer of the memory's, and one of the backbone's, is worth giving
    (`session.Memory.ask`); 0 until they are settled. ``guesses`` uint8 [GUESS_PLACES]: how often the backbone gave an
    answer wrongly, by the answer's place (inference/confidence.py); likewise.

    It has as many entries as it was given last, by `fill`, by `store` or from a file; an empty one holds a placeholder.

    Args:
        vocabulary: v, token ids of the backbone.
    """

    fingerprints: Tensor
    subjects: Tensor
    marks: Tensor
    reach: Tensor
    thresholds: Tensor
    guesses: Tensor

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.register_buffer("fingerprints", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("subjects", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("reach", torch.zeros((), dtype=torch.int64))
        self.register_buffer("marks", torch.zeros(vocabulary + 1, dtype=torch.uint8))
        self.register_buffer("thresholds", torch.zeros(2))
        self.register_buffer("guesses", torch.zeros(GUESS_PLACES, dtype=torch.uint8))

    @torch.no_grad()
    def fill(self, runs: Mapping[tuple[int, ...], tuple[int, ...]], reach: int, marks: Tensor | None = None) -> None:
        """Stores the runs, in place of those it has.

        Args:
            runs: token ids of each run, and of the run that stands for its subject in all spellings.
            reach: see the class.
            marks: uint8, of the first token ids, all others' are 0; None for 0 everywhere.
        """
        self.store(index_entries(runs))
        self.reach.fill_(reach)
        self.marks.zero_()
        if marks is not None:
            known = marks[: len(self.marks) - 1]
            self.marks[: len(known)] = known.to(self.marks.device)

    @property
    def entries(self) -> Tensor:
        """What is stored, int64 [n, 2]: fingerprint and subject of each run, by ascending fingerprint."""
        return torch.stack([self.fingerprints, self.subjects], 1)

    @torch.no_grad()
    def store(self, entries: Tensor) -> None:
        """Takes these entries, int64 [n, 2], in place of those it has, however many; of one run the first counts.

        At least a placeholder stays.
        """
        entries = entries if len(entries) else entries.new_zeros(1, 2)
        order = entries[:, 0].argsort(stable=True)
        entries = entries[order]
        first = torch.ones(len(entries), dtype=torch.bool, device=entries.device)
        first[1:] = entries[1:, 0] != entries[:-1, 0]
        entries = entries[first].to(self.fingerprints.device)
        self.fingerprints, self.subjects = entries[:, 0].clone(), entries[:, 1].clone()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        resize_as_stored(self, ("fingerprints", "subjects"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def names(self, ids: Tensor, latest: int | None = None) -> Tensor:
        """Whom the longest stored run that ends at each token names, int64 [b, t] for token ids [b, t]; 0: none ends.

        A run whose name had begun before it is none. What lies before the tokens given is not seen. With `latest`, the
        answer is of the last so many tokens, [b, latest]: those before them are only looked back at.
        """
        latest = ids.shape[1] if latest is None else latest
        hashes = _hashes(ids, latest)  # [b, latest, LONGEST_RUN]
        place = torch.searchsorted(self.fingerprints, hashes).clamp_max(len(self.fingerprints) - 1)
        found = self.fingerprints[place] == hashes
        lengths = torch.arange(1, LONGEST_RUN + 1, device=ids.device)
        longest = (found * lengths).amax(-1, keepdim=True)  # [b, latest, 1]; 0 where none
        subject = self.subjects[place.gather(-1, (longest - 1).clamp_min(0))].squeeze(-1)
        longest = longest.squeeze(-1)
        end = torch.arange(ids.shape[1] - latest, ids.shape[1], device=ids.device)
        start = (end - longest + 1).clamp_max(ids.shape[1] - 1)
        leader = leaders(self.marks, ids).gather(1, start)
        led = (leader >= 0) & (self._marks(ids.gather(1, leader.clamp_min(0))) & LEADS != 0)
        known = longest < LONGEST_RUN  # where a longer name began is not
        return torch.where((longest > 0) & ~(led & known), subject, 0)

    def since(self, ids: Tensor, names: Tensor) -> Tensor:
        """Where the latest name before each token ended, int64 [b, t], given the ids and `names`, [b, t] each.

        Far below 0 where there is none. A name that its next token shows to go on was none.
        """
        place = torch.arange(ids.shape[1], device=ids.device)
        whole = (names[:, :-1] != 0) & (self._marks(ids[:, 1:]) & GOES_ON == 0)
        ended = torch.where(whole, place[:-1], _LONG_AGO)
        return F.pad(ended, (1, 0), value=_LONG_AGO).cummax(1).values

    def about(self, names: Tensor, since: Tensor) -> Tensor:
        """Of whom each token may read, int64 [b, t], 0 of nobody, given `names` and `since`, [b, t] each."""
        place = torch.arange(names.shape[1], device=names.device)
        return torch.where(place - since <= self.reach, names.gather(1, since.clamp_min(0)), 0)

    def subjects_in(self, ids: Tensor) -> Tensor:
        """Of whom each token of whole texts may read, int64 [b, t] for token ids [b, t]; 0: of nobody."""
        names = self.names(ids)
        return self.about(names, self.since(ids, names))

    def _marks(self, ids: Tensor) -> Tensor:
        return marks_of(self.marks, ids)


def resize_as_stored(module: nn.Module, names: Sequence[str], state_dict: dict[str, Any], prefix: str) -> None:
    """Gives buffers, of one row per entry, the number of rows that a state dict has for them; they are then loaded.

    Rows that do not belong together, of different numbers, are left to torch, which refuses them.
    """
    stored = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
    if len(stored) == len(names) and len({len(tensor) if tensor.dim() else None for tensor in stored.values()}) == 1:
        for name, tensor in stored.items():
            own: Tensor = getattr(module, name)
            setattr(module, name, own.new_zeros(len(tensor), *own.shape[1:]) if tensor.dim() else own)


def marks_of(marks: Tensor, ids: Tensor) -> Tensor:
    """The marks of token ids of any shape; the last mark stands for all ids beyond, and for none (-1)."""
    last = len(marks) - 1
    return marks[torch.where(ids < 0, last, ids).clamp_max(last)]


def leaders(marks: Tensor, ids: Tensor) -> Tensor:
    """Where each token's name would have begun before it, if the token began a name: int64 [b, t] for ids [b, t].

    The place of the token that says so: the token itself, where it is the rest of a word; the first token of the word
    before it, where that begins with a capital and does not begin a sentence (and so had to). -1 where nothing does.
    """
    kinds = marks_of(marks, ids)
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    part, word = kinds & PART != 0, kinds & WORD != 0
    behind_word = F.pad(word[:, :-1], (1, 0))
    begun = torch.where(part, 0, place).cummax(1).values  # where the word of each token began
    last_word = F.pad(begun[:, :-1], (1, 0))
    capital = (kinds & CAPITAL != 0).gather(1, last_word) & behind_word.gather(1, last_word)
    led = torch.where(behind_word & word & capital, last_word, -1)
    return torch.where(part & behind_word, place, led)


def stays_open(opened: Tensor, since: Tensor) -> Tensor:
    """Whether a gate that opened at some token has opened since the latest name: bool [b, t] for bool and int64 [b, t].

    Once it was seen behind a name that the text is a question about it, what follows is that question and its answer.
    """
    place = torch.arange(opened.shape[1], device=opened.device)
    return torch.where(opened, place, -1).cummax(1).values > since.clamp_min(-1)


def fingerprint(run: Sequence[int]) -> int:
    """The 64-bit hash of a run of token ids, of its last `LONGEST_RUN` ones where it is longer."""
    kept = list(run)[-LONGEST_RUN:]
    return int(_hashes(torch.tensor([kept]), 1)[0, 0, len(kept) - 1])


def index_entries(runs: Mapping[tuple[int, ...], tuple[int, ...]]) -> Tensor:
    """What an index stores of runs and of the runs that stand for their subjects, int64 [n, 2], in their order."""
    entries = [(fingerprint(run), fingerprint(subject) or 1) for run, subject in runs.items()]
    return torch.tensor(entries, dtype=torch.int64).view(-1, 2)


def fingerprints_in(ids: Sequence[int]) -> Tensor:
    """The fingerprints of all runs in a text, int64."""
    return _hashes(torch.tensor([list(ids)]), len(ids)).flatten()


def _hashes(ids: Tensor, latest: int) -> Tensor:
    """Hashes of the runs of 1 to `LONGEST_RUN` tokens that end at each of the latest tokens.

    Token ids [b, t] -> int64 [b, latest, LONGEST_RUN].
    """
    first, second, third = _MULTIPLIERS
    mixed = (ids + 1) * first  # padding on the left, below, hashes as no token does
    mixed = (mixed ^ (mixed >> 29)) * second
    mixed = mixed ^ (mixed >> 32)
    runs = F.pad(mixed, (LONGEST_RUN - 1, 0)).unfold(1, LONGEST_RUN, 1)  # [b, t, LONGEST_RUN], a view
    backwards = runs[:, runs.shape[1] - latest :].flip(-1)
    powers = torch.full((LONGEST_RUN,), third, dtype=torch.int64, device=ids.device).cumprod(0)
    lengths = torch.arange(1, LONGEST_RUN + 1, device=ids.device) * second
    return (backwards * powers).cumsum(-1) ^ lengths


def subject_code(about: Tensor, width: int) -> Tensor:
    """A direction for each subject, the same on every device: int64 [n] -> float32 [n, width] of unit norm; 0 for 0.

    Each coordinate's sign is a bit of a hash of the subject's number, so any two subjects are nearly orthogonal.
    """
    first, second, third = _MULTIPLIERS
    subjects, of = about.unique(return_inverse=True)
    mixed = subjects[:, None] + torch.arange(1, width + 1, device=about.device) * first
    mixed = (mixed ^ (mixed >> 30)) * second
    mixed = (mixed ^ (mixed >> 27)) * third
    signs: Tensor = torch.where(mixed >> 31 & 1 == 1, width**-0.5, -(width**-0.5)) * (subjects[:, None] != 0)
    return signs[of]
