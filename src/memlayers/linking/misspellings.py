"""Finds the stored name that a misspelt one is near to. Loads no torch.

One edit is allowed in a name of five letters and more, two from ten on: a letter too many, too few or wrong, or two
neighbours swapped (Damerau 1964); none in the first letter, where they are rare (Yannakoudakis and Fawthrop 1983) and
a name is often another. The name is cut in one part more than edits are allowed, so one part at least is
spelled rightly (the pigeonhole principle, as in Navarro 2001, section 6.3): names are looked up by their parts, then
compared. Each name is cut in two ways, since a swap may lie across a cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

LEAST_LETTERS: Final = 5
_LEAST_FOR_TWO: Final = 10


class Near(NamedTuple):
    """A stored name that is near to what was asked for.

    Attributes:
        name: its folded letters.
        edits: how many.
    """

    name: str
    edits: int


def edits_allowed(letters: int) -> int:
    """How many edits a name of so many folded letters may be away."""
    return 0 if letters < LEAST_LETTERS else 1 if letters < _LEAST_FOR_TWO else 2


class Misspellings:
    """Stored names, to be found by what is nearly their spelling.

    Args:
        names: folded letters of each, see `linking.folding.folded`.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._by_part = _by_part(names)

    def updated(self, gone: Collection[str], new: Iterable[str]) -> Misspellings:
        """The same without some names, and with new ones; what they have in common is shared, and this stays as it is.

        Args:
            gone: names that are stored.
            new: names that are not.
        """
        fewer, more = _by_part(gone), _by_part(new)
        other = Misspellings()
        other._by_part = self._by_part.copy()
        for group in fewer | more:
            alike = other._by_part.pop(group, {}).copy()
            for part in fewer.get(group, ()):
                alike[part] = [name for name in alike[part] if name not in gone]
            for part, names in more.get(group, {}).items():
                alike[part] = alike[part] + names if part in alike else names
            if left := {part: names for part, names in alike.items() if names}:
                other._by_part[group] = left
        return other

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._by_part)

    def near(self, letters: str) -> list[Near]:
        """The stored names that these folded letters, at least one, may stand for.

        Digits are never misspelt: "Model 114" is not "Model 115".
        """
        found: dict[str, int] = {}
        size = len(letters)
        for length in range(max(LEAST_LETTERS, size - 2), size + 3):
            edits, alike = edits_allowed(length), self._by_part.get((letters[0], length))
            if alike is None or abs(length - size) > edits:
                continue
            for start, end in _parts(length):
                for at in range(max(0, start - edits), start + edits + 1):
                    for name in alike.get((start, letters[at : at + end - start]), ()):
                        if name not in found and _digits(name) == _digits(letters):
                            found[name] = edits_between(name, letters)
        return [Near(name, edits) for name, edits in found.items() if 0 < edits <= edits_allowed(len(name))]


def _by_part(names: Iterable[str]) -> dict[tuple[str, int], dict[tuple[int, str], list[str]]]:
    """Names by their first letter and their length; of these, by where a part begins and what it is."""
    found: dict[tuple[str, int], dict[tuple[int, str], list[str]]] = {}
    for name in names:
        for start, end in _parts(len(name)):
            alike = found.setdefault((name[0], len(name)), {})
            alike.setdefault((start, name[start:end]), []).append(name)
    return found


def edits_between(one: str, other: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours that make one text the other (optimal alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        new = [i]
        for j, its in enumerate(other, 1):
            cost = min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (letter != its))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == its:
                cost = min(cost, before[j - 2] + 1)
            new.append(cost)
        before, row = row, new
    return row[-1]


def _parts(length: int) -> Iterator[tuple[int, int]]:
    """Where the parts of a name of this length begin and end: one more than edits are allowed, cut in two ways."""
    edits = edits_allowed(length)
    if not edits:
        return
    cuts = [round(length * part / (edits + 1)) for part in range(edits + 2)]
    for shift in (0, 1):
        moved = [cuts[0], *(cut + shift for cut in cuts[1:-1]), cuts[-1]]
        yield from zip(moved, moved[1:], strict=False)


def _digits(letters: str) -> str:
    return "".join(filter(str.isdigit, letters))
