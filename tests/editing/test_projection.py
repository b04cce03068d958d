"""Steps that keep out of what other facts read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from helpers.editing import CONFIG, FACTS
from memlayers.editing.projection import Beside, Projection
from memlayers.inference.capture import capture, slots_read
from memlayers.inference.scoring import answer_logits


def test_a_step_keeps_out_of_what_is_read() -> None:
    draw = torch.Generator().manual_seed(0)
    reads, step = torch.zeros(5, 12), torch.randn(12, 3, generator=draw)
    reads[:, :8] = torch.rand(5, 8, generator=draw)
    strength = 100.0
    projected = Projection(reads, strength)(step)
    exact = torch.linalg.inv(torch.eye(12) + strength * reads.T @ reads) @ step
    assert torch.allclose(projected, exact, atol=1e-4)
    assert torch.equal(projected[8:], step[8:])  # nobody reads these rows
    assert float((reads @ projected).norm()) < 0.05 * float((reads @ step).norm())
    assert torch.allclose(Projection(torch.zeros(0, 12), strength)(step), step)


def test_what_the_facts_beside_an_edit_read_is_what_the_memory_reads(opened: Any) -> None:
    opened.prepare()
    session = opened._editing().session
    examples = [session.encoded(fact) for fact in FACTS[:2]]
    sequences = [one.input_ids for each in examples for one in each]
    (slots, _), _ = slots_read(session.memory, sequences, [0, 0, 1, 1])
    rows = torch.cat([slots, torch.tensor([int(slots.max()) + 1])])
    beside = Beside(session.memory, examples, rows)
    with torch.no_grad(), capture(session.memory, "reads") as seen:
        totals = [
            float(torch.where(torch.isin(read.indices, rows), read.weights, 0.0).sum() / scale)
            for _ in seen.run(sequences)
            for read in seen.reads
            for scale in [session.memory.queries[read.layer].scale]
        ]
    assert torch.isclose(beside._reads.sum(), torch.tensor(sum(totals)), rtol=1e-4) and not bool(
        beside._reads[:, -1].any()
    )
    step = torch.randn(len(rows), 2, generator=torch.Generator().manual_seed(1))
    for without, owners in (((), (0, 1)), ((0,), (1,)), ((0, 1), ())):
        own = beside._reads[torch.isin(beside._owner, torch.tensor(owners, dtype=torch.int64))]
        assert torch.allclose(beside.projection(2.0, without)(step), Projection(own, 2.0)(step))


def test_an_edit_moves_what_another_fact_of_its_subject_reads_less(opened: Any) -> None:
    other = FACTS[-1]  # of Ada's, too

    def moved(sparing: float) -> float:
        opened.edits = replace(CONFIG, sparing=sparing, neighbours=0)
        session = opened._editing().session
        (example,) = session.encoded(other, 1)
        before = answer_logits(session.model, session.tokenizer, [example]).logits.detach()
        assert opened.update([replace(FACTS[0], answer="teal")]).recalled == 1.0
        after = answer_logits(session.model, session.tokenizer, [example]).logits.detach()
        opened.undo()
        return float((after - before).norm())

    assert moved(10.0) < moved(0.0)
