from __future__ import annotations

import torch
from torch.autograd import gradcheck

from memlayers.kernels import reference


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_naive_lookup_by_hand() -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    values = torch.tensor([[1.0], [10.0], [100.0]])
    query = torch.tensor([[2.0, 1.0]])  # scores 2, 1, -2: slots 0 and 1, softmax of (2, 1)
    weight = 1 / (1 + torch.exp(torch.tensor(-1.0)))
    torch.testing.assert_close(
        reference.naive_lookup(query, keys, values, top_k=2), (weight + (1 - weight) * 10).view(1, 1)
    )


def test_naive_lookup_gradients() -> None:
    inputs = [_normal(5, 6, seed=1), _normal(7, 6, seed=2), _normal(7, 4, seed=3)]
    for tensor in inputs:
        tensor.requires_grad_()
    assert gradcheck(lambda q, k, v: reference.naive_lookup(q, k, v, top_k=3), inputs)


def test_memory_plus_gradients() -> None:
    inputs = [_normal(3, 4, seed=seed) for seed in (1, 2)] + [_normal(4, 4, seed=seed) for seed in (3, 4)]
    for tensor in inputs:
        tensor.requires_grad_()
    assert gradcheck(reference.memory_plus, inputs)


def test_product_scores_are_in_slot_order() -> None:
    scores = reference.product_scores(torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0]))
    assert scores.tolist() == [11, 12, 21, 22]


def test_exhaustive_search_agrees_with_the_product_scores() -> None:
    a, b = _normal(5, 3, 7), _normal(5, 3, 7, seed=1)
    scores, indices = reference.product_key_top_k_exhaustive(a, b, k=6)
    best = reference.product_scores(a, b).topk(6)
    assert torch.equal(scores, best.values) and torch.equal(indices, best.indices)


def test_the_naive_memory_overfits_a_toy_task_and_uses_its_pool() -> None:
    """The seed's first stage: 100 % top-1 on 64 random pairs, 80 % of 64 slots read."""
    generator = torch.Generator().manual_seed(0)
    pairs, classes, slots = 64, 32, 64
    queries = torch.randn(pairs, 16, generator=generator) / 2
    answers = torch.randint(classes, (pairs,), generator=generator)
    keys = torch.randn(slots, 16, generator=generator).requires_grad_()
    values = torch.zeros(slots, classes).requires_grad_()
    optimizer = torch.optim.Adam([keys, values], lr=0.05)
    for _ in range(300):
        logits = reference.naive_lookup(queries, keys, values, top_k=16)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, answers).backward()
        optimizer.step()
    logits = reference.naive_lookup(queries, keys, values, top_k=16)
    assert (logits.argmax(-1) == answers).all()
    read = (queries @ keys.T).topk(16).indices.unique()
    assert len(read) >= 0.8 * slots
