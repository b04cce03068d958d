"""Rows that are kept and put back."""

from __future__ import annotations

import torch

from memlayers.editing.rows import Kept


def test_rows_of_every_format_are_put_back_bit_for_bit():
    from memlayers.pool.value_pool import ValuePool

    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        pool = ValuePool(9, 4, dtype)
        pool.initialise("normal", 0)
        before = {name: tensor.clone() for name, tensor in pool.state_dict().items()}
        kept = Kept.of(pool, torch.tensor([1, 3, 5])).joined(Kept.of(pool, torch.tensor([3, 7])))
        assert kept.rows.tolist() == [1, 3, 5, 7]
        with torch.no_grad():
            pool.table.values[3] += 1
            if pool.table.scales is not None:
                pool.table.scales[7] *= 2
        changed = kept.changed(pool)
        assert changed.rows.tolist() == ([3, 7] if dtype == torch.int8 else [3])
        changed.put_back(pool)
        assert all(torch.equal(before[name], tensor) for name, tensor in pool.state_dict().items())
