"""How the memory is built up, stage by stage, to be read from top to bottom.

1. **The naive lookup.** One key per slot: score all keys, take the best k, sum their values by softmax. It is
   differentiable, it can learn by heart, and it spreads over its slots instead of collapsing onto a few.
2. **Product keys.** m * m slots from 2 * m sub-keys. The fast search never scores the product set, and yet finds
   exactly what scoring all of it finds.
3. **Memory+ in a model.** Three memory layers of a small Qwen2 read one value pool (the dense recipe: query,
   sub-keys, gated output and pool learn). The backbone is random and stays frozen: embeddings, attention, MLPs and
   head keep their random start. What maps 500 random 128-bit keys to 500 random values can only be the memory.
4. **Injection into a frozen Qwen2.** A new memory changes no logit by one bit; teaching changes no weight of the
   backbone by one bit; switched off, the memory leaves no trace. This holds for both recipes.

Stages 1 to 3 are fits of training data, and say nothing about generalisation; stages 3 and 4 are measured under
teacher forcing, not in free generation. Facts in words, asked in free generation, come in tests/teaching/test_teach.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn
from torch.autograd import gradcheck
from transformers import PreTrainedModel

from memlayers.inference.capture import collect_features
from memlayers.kernels import reference
from memlayers.kernels.interface import Table
from memlayers.pool.product_keys import make_sub_keys, product_key_top_k
from memlayers.teaching.calibrate import calibrate
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers

Build = Callable[..., PreTrainedModel]


def _generator(seed: int = 137) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Stage 1: the naive lookup


def test_stage_1_the_naive_lookup_is_differentiable() -> None:
    """Gradients by finite differences, float64; random scores lie far enough apart for top-k to stay put."""
    generator = _generator()
    shapes = {"query": (6, 5), "keys": (12, 5), "values": (12, 3)}
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes.values()]
    assert gradcheck(
        lambda query, keys, values: reference.naive_lookup(query, keys, values, top_k=4),
        [tensor.requires_grad_() for tensor in inputs],
    )


def test_stage_1_a_naive_memory_learns_by_heart_and_uses_its_slots() -> None:
    """200 random queries, each of one of 16 classes: all answered right, and at least 80 % of 128 slots are read.

    The value of a slot is a vector of class scores, so nothing but keys and values stands between query and answer.
    """
    generator = _generator()
    items, classes, slots, top_k = 200, 16, 128, 16
    queries = torch.randn(items, 24, generator=generator) * 0.3
    answers = torch.randint(classes, (items,), generator=generator)
    keys = (torch.randn(slots, 24, generator=generator) * 0.5).requires_grad_()
    values = torch.zeros(slots, classes).requires_grad_()
    optimizer = torch.optim.Adam([keys, values], lr=0.05)
    for _ in range(150):
        loss = F.cross_entropy(reference.naive_lookup(queries, keys, values, top_k), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    given = reference.naive_lookup(queries, keys, values, top_k).argmax(-1)
    assert torch.equal(given, answers)
    read = (queries @ keys.T).topk(top_k).indices.unique()
    assert len(read) >= 0.8 * slots


# Stage 2: product keys


def test_stage_2_product_keys_find_what_scoring_every_slot_finds() -> None:
    """Against all m * m = 1,024 scores: the same slots, the same scores to the bit, KL = 0 between the softmaxes."""
    scores_a, scores_b = _half_scores()
    scores, slots = product_key_top_k(scores_a, scores_b, k=8)
    best = reference.product_scores(scores_a, scores_b).topk(8)
    assert torch.equal(slots, best.indices) and torch.equal(scores, best.values)
    read, expected = scores.log_softmax(-1), best.values.log_softmax(-1)
    assert F.kl_div(read, expected, reduction="sum", log_target=True) == 0


def test_stage_2_product_keys_are_flat_keys_of_a_product_form() -> None:
    """Slot i * m + j has the flat key (a_i, b_j): the naive lookup over these m * m keys reads the same value."""
    query, sub_keys = _query_and_sub_keys()
    m = sub_keys.shape[2]
    first, second = sub_keys[:, 0]  # of the only head
    flat_keys = torch.cat([first.repeat_interleave(m, 0), second.repeat(m, 1)], dim=-1)
    values = torch.randn(m * m, 7, generator=_generator(1), dtype=torch.float64)
    expected = reference.naive_lookup(query, flat_keys, values, top_k=8)

    scores, slots = product_key_top_k(*_half_scores(), k=8)
    assert torch.equal(slots[:, 0], (query @ flat_keys.T).topk(8).indices)
    read = reference.weighted_sum(Table(values), slots[:, 0], scores[:, 0].softmax(-1), torch.float64)
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-12)  # a sum of halves against one long product


def _query_and_sub_keys() -> tuple[Tensor, Tensor]:
    """100 queries [100, 24] and 32 sub-keys per half [2, 1, 32, 12], float64: no ties."""
    query = torch.randn(100, 24, generator=_generator(), dtype=torch.float64)
    return query, make_sub_keys(heads=1, sub_keys=32, half_dim=12, seed=137, dtype=torch.float64)


def _half_scores() -> tuple[Tensor, Tensor]:
    query, sub_keys = _query_and_sub_keys()
    scores = torch.einsum("nhsk,shmk->snhm", query.view(100, 1, 2, 12), sub_keys)
    return scores[0], scores[1]


# Stage 3: Memory+, three layers on one pool


def test_stage_3_three_memory_layers_on_one_pool_learn_500_uuid_pairs(tiny_backbone: Build) -> None:
    """500 random 128-bit keys, 16 byte tokens each, to random 2-byte values: top-1 100 % of all 1,000 value tokens.

    Teacher-forced: the second byte is predicted from the key and the right first byte. Only the memory is trained.
    """
    backbone = tiny_backbone(
        hidden_size=64, intermediate_size=64, num_hidden_layers=3, vocab_size=257, initializer_range=0.1,
        tie_word_embeddings=False,
    )  # fmt: skip
    config = MemoryConfig(recipe="dense", layers=[0, 1, 2], sub_keys=24, heads=2, top_k=8, seed=137)
    model = get_peft_model(backbone, config).train()
    assert len({id(layer.memlayers_pool_owner["default"]["default"]) for layer in memory_layers(model)}) == 1
    pool = memory_handle(model, "default").pool.weight
    untaught = pool.detach().clone()

    generator = _generator()
    keys = torch.randint(256, (500, 16), generator=generator)
    values = torch.randint(256, (500, 2), generator=generator)
    assert len(keys.unique(dim=0)) == 500
    ids = torch.cat([keys, torch.full((500, 1), 256), values], dim=1)  # token 256 ends the key

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-2, betas=(0.9, 0.99))
    passes = 40
    for number in range(passes):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * max(0.1, 1 - number / passes)
        for batch in torch.randperm(500, generator=generator).split(100):
            loss = F.cross_entropy(_value_logits(model, ids[batch]).flatten(0, 1), values[batch].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
        if number % 4 == 3 and _top_1(model, ids) == 1:
            break
    assert _top_1(model, ids) == 1
    with model.disable_adapter():
        assert _top_1(model, ids) < 0.05
    assert (pool != untaught).any(-1).float().mean() >= 0.8  # the pool took part: rows that were written


def _value_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """The logits that predict the two value tokens, [n, 2, vocabulary]."""
    logits: Tensor = model(ids[:, :-1], use_cache=False, logits_to_keep=2).logits
    return logits


@torch.no_grad()
def _top_1(model: nn.Module, ids: Tensor) -> float:
    """Share of the value tokens that are the most likely ones."""
    return float((_value_logits(model, ids).argmax(-1) == ids[:, -2:]).float().mean())


# Stage 4: injection into a frozen Qwen2


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
def test_stage_4_a_frozen_qwen2_takes_a_memory_and_stays_the_same(tiny_backbone: Build, recipe: str) -> None:
    """Six facts (5 prompt tokens, 2 answer tokens) into a random Qwen2 with rotary attention, RMS norms, SwiGLU."""
    backbone = tiny_backbone(initializer_range=0.2).eval()
    ids = torch.randint(3, 64, (6, 7), generator=_generator())
    with torch.no_grad():
        bare = backbone(ids).logits
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}

    model = get_peft_model(backbone, MemoryConfig(recipe=recipe, sub_keys=16, heads=2, top_k=4, seed=137)).eval()
    assert torch.equal(_logits(model, ids), bare)  # at creation
    if recipe == "addressed":
        general = torch.randint(3, 64, (40, 12), generator=_generator(1))
        features = [collect_features(memory_handle(model, "default"), text.tolist()) for text in (ids, general)]
        calibrate(memory_handle(model, "default"), features)
        assert torch.equal(_logits(model, ids), bare)  # calibration only moves addresses

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=0.3 if recipe == "addressed" else 1e-2)
    for _ in range(60):
        loss = F.cross_entropy(_value_logits(model, ids).flatten(0, 1), ids[:, -2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert _top_1(model, ids) == 1 and not torch.equal(_logits(model, ids), bare)  # the facts are in

    inside = {
        name.replace(".base_layer", ""): value
        for name, value in model.get_base_model().state_dict().items()
        if "memlayers_" not in name
    }
    assert inside.keys() == weights.keys()
    assert all(torch.equal(inside[name], value) for name, value in weights.items())
    with model.disable_adapter():
        assert torch.equal(_logits(model, ids), bare)


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids).logits
    return logits
