from __future__ import annotations

import pytest
import torch

from memlayers.tuner.letters import Letters
from memlayers.tuner.relation_check import RelationCheck, without_mention


def test_a_check_takes_as_many_keys_as_it_is_given() -> None:
    check = RelationCheck(8)
    assert not check.filled and check.accepts_all
    check.fill(torch.zeros(8), torch.ones(8, 1), [3, 4], torch.ones(2, 1), 0.5)
    assert check.filled and check.prints.tolist() == [3, 4] and check.keys.shape == (2, 8)
    other = RelationCheck(8)
    other.load_state_dict(check.state_dict())
    assert torch.equal(other.keys, check.keys) and torch.equal(other.prints, check.prints)
    with pytest.raises(RuntimeError, match="size mismatch for keys"):
        other.load_state_dict({**check.state_dict(), "keys": check.keys[:1]})


def test_a_prompt_loses_its_longest_mention() -> None:
    letters = Letters.none(64)
    prints = torch.tensor([letters.fingerprint(form) for form in ((7,), (5, 6), (6, 7, 8))])
    assert without_mention([1, 5, 6, 7, 8, 2, 5, 6], prints, letters) == [1, 5, 2, 5, 6]
    # Of equally long ones the last.
    assert without_mention([1, 5, 6, 2, 5, 6, 3, 7], prints, letters) == [1, 5, 6, 2, 3, 7]
    assert without_mention([1, 2], prints, letters) == [1, 2]


def test_a_score_tells_known_relations_apart_by_the_nearest_and_others_by_nearness() -> None:
    check = RelationCheck(4)
    every = torch.eye(4)
    own = every[:1]
    near = check.score(torch.tensor([0.9, 0.1, 0.0, 0.0]), own, every)
    nearer_to_another = check.score(torch.tensor([0.6, 0.8, 0.0, 0.0]), own, every)
    far = check.score(torch.tensor([0.3, -0.9, 0.0, 0.0]), own, every)
    assert near > 0.8 and nearer_to_another < 0.25 and far < 0.35
    alike = torch.cat([every[:1], torch.tensor([[0.8, 0.6, 0.0, 0.0]])])  # a later fact's key of the same relation
    assert check.score(alike[1], own, alike) == pytest.approx(0.8)


def test_a_check_of_an_earlier_version_accepts_all() -> None:
    check = RelationCheck(8)
    check.fill(torch.zeros(8), torch.ones(8, 1), [3, 4], torch.ones(2, 1), 0.5)
    state = check.state_dict()
    state["mean"] = state.pop("centre")
    other = RelationCheck(8)
    with pytest.warns(UserWarning, match="earlier version"):
        other.load_state_dict(state, strict=False)
    assert not other.filled and other.accepts_all
