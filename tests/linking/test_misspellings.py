"""Names that are nearly spelled rightly are found by their parts; a plain comparison of all is the oracle."""

from __future__ import annotations

import random
import string

import pytest

from memlayers.linking.misspellings import Misspellings, Near, edits_allowed, edits_between


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [("", "", 0), ("ab", "ab", 0), ("ab", "ba", 1), ("abc", "ac", 1), ("abc", "abxc", 1), ("abc", "axc", 1),
     ("abcd", "badc", 2), ("", "abc", 3), ("kitten", "sitting", 3)],
)  # fmt: skip
def test_edits(one: str, other: str, edits: int) -> None:
    assert edits_between(one, other) == edits_between(other, one) == edits


def test_how_many_are_allowed() -> None:
    assert [edits_allowed(letters) for letters in (4, 5, 9, 10, 40)] == [0, 1, 1, 2, 2]


def edited(name: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(name))
    letter = rng.choice(string.ascii_lowercase)
    swapped = name[: place - 1] + name[place] + name[place - 1] + name[place + 1 :] if place > 1 else name
    return rng.choice([swapped, name[:place] + name[place + 1 :], name[:place] + letter + name[place:],
                       name[:place] + letter + name[place + 1 :]])  # fmt: skip


def test_what_a_comparison_with_every_name_finds_is_found() -> None:
    rng = random.Random(0)
    names = ["".join(rng.choices("abcde", k=rng.randrange(3, 16))) for _ in range(300)]
    stored = Misspellings(names)
    looked_for, missed = 0, 0
    for name in names:
        text = edited(name, rng)
        text = edited(text, rng) if len(name) >= 10 else text
        expected = {
            Near(each, edits_between(each, text)) for each in names
            if each[0] == text[0] and 0 < edits_between(each, text) <= edits_allowed(len(each))
        }  # fmt: skip
        near = set(stored.near(text))
        assert near <= expected
        looked_for, missed = looked_for + len(expected), missed + len(expected - near)
    assert looked_for > 200
    assert missed <= 0.01 * looked_for  # two swaps, each across a cut of another of the two ways


def test_one_edit_is_always_found() -> None:
    name = "kylotonn"
    stored = Misspellings([name])
    for place in range(1, len(name)):
        for text in (name[:place] + name[place + 1 :], name[:place] + "z" + name[place:],
                     name[:place] + "z" + name[place + 1 :],
                     name[:place] + name[place + 1 : place + 2] + name[place] + name[place + 2 :]):  # fmt: skip
            assert [near.name for near in stored.near(text)] == ([name] if text != name else [])


def test_digits_are_never_misspelt() -> None:
    stored = Misspellings(["caldkettle114"])
    assert stored.near("caldketle114") == [Near("caldkettle114", 1)]
    assert stored.near("caldkettle115") == []
