from __future__ import annotations

import torch

from memlayers.tuner.boundary_flags import Boundary, flags_of, preceding


def test_the_flags_values_are_those_in_files() -> None:
    names = ("WORD_PART", "CAPITAL", "DIGIT", "LOWERCASE", "CONTINUES", "PRECEDES", "UPPER", "HYPHEN")
    assert [Boundary[name].value for name in names] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert Boundary.WORD == 15


def test_the_last_entry_stands_for_no_token_and_for_ids_beyond() -> None:
    flags = torch.tensor([1, 2, 4, 8], dtype=torch.uint8)
    assert flags_of(flags, torch.tensor([[0, 2], [-1, 99]])).tolist() == [[1, 4], [8, 8]]
    assert flags_of(flags, torch.tensor(1)).dtype == torch.uint8


def test_a_mention_is_led_up_to_by_its_own_word_or_by_the_capital_word_before_it() -> None:
    flags = torch.zeros(8, dtype=torch.uint8)
    for token, flag in {1: Boundary.CAPITAL, 2: Boundary.WORD_PART, 3: Boundary.LOWERCASE}.items():
        flags[token] = flag
    ids = torch.tensor([[3, 1, 2, 1, 0, 1, 3]])  # low Cap|part Cap . Cap low
    assert preceding(flags, ids).tolist() == [[-1, -1, 2, 1, -1, -1, -1]]
