from __future__ import annotations

import pytest
import torch

from memlayers.tuner.relation_check import RelationCheck


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
