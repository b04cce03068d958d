from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from memlayers.kernels import reference
from memlayers.kernels.interface import Table
from memlayers.tuner import MemoryConfig, MemoryLayer, memory_layers
from memlayers.tuner.letters import Letters
from memlayers.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
DIM = 16


class _Tupled(nn.Module):
    """An MLP block that returns more than its output, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, str]:
        return self.linear(hidden_states), "router logits"


def _layer(base: nn.Module | None = None, fill: bool = True, **options: Any) -> MemoryLayer:
    """A memory layer with the memory "m" of 7 * 7 slots, with something in its pool."""
    config = MemoryConfig(**{"sub_keys": 7, "heads": 2, "top_k": 3, "key_dim": 6, **options})
    layer = MemoryLayer(base or nn.Linear(DIM, DIM), DIM)
    layer.base_layer.requires_grad_(False)
    layer.add_adapter("m", config, layer=0, owner=None)
    layer.set_adapter("m")
    if fill:
        layer.memlayers_pool["m"].initialise("normal", seed=9)
        for gated in layer.memlayers_out.values():
            nn.init.eye_(gated.output)
    return layer


def _close_gate_below(layer: MemoryLayer, x: Tensor, share: float) -> Tensor:
    """Marks the gate as trained, its threshold closing it for `share` of x; returns what stays open."""
    gate: Any = layer.memlayers_gate["m"]
    logits = gate(x).detach()
    gate.threshold.copy_(logits.quantile(share) if share < 1 else logits.max() + 1)
    gate.trained.fill_(1)
    return logits > gate.threshold


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pool_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of tokens with every read of any value pool."""
    from memlayers.pool.value_pool import ValuePool

    calls: list[int] = []
    forward = ValuePool.forward

    def counted(self: ValuePool, indices: Tensor, *arguments: Any) -> Tensor:
        calls.append(len(indices))
        return forward(self, indices, *arguments)

    monkeypatch.setattr(ValuePool, "forward", counted)
    return calls


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_forward_is_the_reference_formula(x: Tensor, recipe: str, qk_norm: bool) -> None:
    layer = _layer(recipe=recipe, qk_norm=qk_norm, temperature=3.0)
    tokens = x.view(-1, DIM)
    layer.set_addressing("m", tokens.mean(0), layer.memlayers_query["m"].projection * 2)
    query, keys = layer.memlayers_query["m"], layer.memlayers_sub_keys["m"]
    values = layer.memlayers_pool["m"].weight
    memory = torch.zeros(10, DIM)
    for head in range(2):
        q = ((tokens - tokens.mean(0)) @ query.projection)[:, head * 6 : head * 6 + 6]
        halves = [q[:, :3], q[:, 3:]]
        if qk_norm:
            halves = [nn.functional.normalize(half, dim=-1) for half in halves]
        a, b = (3.0 * half @ keys[side, head].T for side, half in enumerate(halves))
        scores, indices = reference.product_key_top_k_exhaustive(a, b, 3)
        memory += reference.weighted_sum(Table(values), indices, scores.softmax(-1), torch.float32)
    if recipe == "dense":
        gated = layer.memlayers_out["m"]
        memory = reference.memory_plus(tokens, memory, gated.gate, gated.output)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + memory.view_as(x), rtol=1e-4, atol=1e-5)


def test_a_read_names_slots_and_weights_that_sum_to_one_per_head(x: Tensor) -> None:
    read = _layer().read(x.view(-1, DIM), "m")
    assert read.indices.shape == read.weights.shape == (10, 6)
    assert read.indices.dtype == torch.int64 and 0 <= read.indices.min() and read.indices.max() < 49
    assert read.weights.dtype == torch.float32
    torch.testing.assert_close(read.weights.view(10, 2, 3).sum(-1), torch.ones(10, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_addressing_stays_in_float32_under_autocast(x: Tensor, dtype: torch.dtype) -> None:
    layer, tokens = _layer(gate=True), x.view(-1, DIM).to(dtype)
    read, logits = layer.read(tokens, "m"), layer.gate_logits(tokens, "m")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, again_logits = layer.read(tokens, "m"), layer.gate_logits(tokens, "m")
    assert torch.equal(read.indices, again.indices) and torch.equal(read.weights, again.weights)
    assert torch.equal(logits, again_logits) and logits.dtype == torch.float32


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
def test_an_untaught_memory_adds_exactly_nothing(x: Tensor, recipe: str) -> None:
    layer = _layer(fill=False, recipe=recipe)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_output_keeps_the_dtype_of_the_block(x: Tensor) -> None:
    layer = _layer(nn.Linear(DIM, DIM).bfloat16(), pool_dtype="float16")
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.memlayers_pool["m"].weight.dtype == torch.float16


def test_tuples_keyword_arguments_and_no_tokens(x: Tensor) -> None:
    layer = _layer(_Tupled())
    out, rest = layer(hidden_states=x)
    assert rest == "router logits" and not torch.equal(out, layer.base_layer(x)[0])
    assert torch.equal(out, layer(x)[0])
    assert _layer()(x[:0]).shape == (0, 5, DIM)


def test_addressed_teaches_the_pool_alone(x: Tensor) -> None:
    layer = _layer(gate=True)
    x.requires_grad_()
    layer(x).square().sum().backward()
    learned = [name for name, parameter in layer.named_parameters() if parameter.grad is not None]
    assert learned == ["memlayers_pool.m.weight"]
    assert [name for name, parameter in layer.named_parameters() if parameter.requires_grad] == learned
    # No gradient passes through the addressing: what reaches x came through the block.
    direct = x.detach().requires_grad_()
    layer.base_layer(direct).backward(2 * layer(x).detach())
    torch.testing.assert_close(x.grad, direct.grad)


def test_dense_teaches_query_sub_keys_and_output_too(x: Tensor) -> None:
    layer = _layer(recipe="dense", gate=True)
    layer(x).square().sum().backward()
    moved = {
        name for name, parameter in layer.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert moved == {
        "memlayers_pool.m.weight",
        "memlayers_sub_keys.m",
        "memlayers_query.m.projection",
        "memlayers_out.m.gate",
        "memlayers_out.m.output",
    }


def test_a_closed_gate_keeps_the_bits_and_skips_the_lookup(x: Tensor, pool_calls: list[int]) -> None:
    layer = _layer(gate=True)
    always_on = layer(x)
    assert pool_calls == [10]  # untrained: open for all
    bare = layer.base_layer(x)
    opened = _close_gate_below(layer, x.view(-1, DIM), share=0.5).view(2, 5)
    pool_calls.clear()
    out = layer(x)
    assert pool_calls == [int(opened.sum())] and 0 < opened.sum() < 10
    assert torch.equal(out[~opened], bare[~opened])
    torch.testing.assert_close(out[opened], always_on[opened])
    _close_gate_below(layer, x.view(-1, DIM), share=1)
    pool_calls.clear()
    with torch.no_grad():
        assert torch.equal(layer(x), bare) and pool_calls == []
    assert torch.equal(layer(x), bare) and pool_calls == [0]  # nothing is looked up, but the gradient is zero
    pool_calls.clear()
    layer.gate_enabled = False
    assert torch.equal(layer(x), always_on) and pool_calls == [10]


def test_gradient_reaches_the_pool_through_an_open_gate_only(x: Tensor) -> None:
    layer = _layer(gate=True)
    opened = _close_gate_below(layer, x.view(-1, DIM), share=0.5)
    layer(x).sum().backward()
    touched = layer.memlayers_pool["m"].weight.grad.any(-1).nonzero().flatten()
    expected = layer.read(x.view(-1, DIM)[opened], "m").indices.unique()
    assert torch.equal(touched, expected)


def test_a_memory_without_gate_says_so(x: Tensor) -> None:
    with pytest.raises(InputError, match="gate=True"):
        _layer().gate_logits(x.view(-1, DIM), "m")


def test_set_addressing_checks_shapes() -> None:
    layer = _layer()
    with pytest.raises(InputError, match=r"projection is \(16, 13\): this memory's is \(16, 12\)"):
        layer.set_addressing("m", torch.zeros(DIM), torch.zeros(DIM, 13))


def test_the_scale_multiplies_what_is_read(x: Tensor) -> None:
    layer = _layer()
    once = layer(x) - layer.base_layer(x)
    query: Any = layer.memlayers_query["m"]
    layer.set_addressing("m", query.mean, query.projection, scale=3.0)
    torch.testing.assert_close(layer(x) - layer.base_layer(x), 3 * once, rtol=1e-4, atol=1e-5)


def test_merging_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        _layer().merge()


def test_the_load_balance_loss_is_handed_out_once(x: Tensor) -> None:
    layer = _layer(recipe="dense", load_balance=0.5)
    layer(x)
    layer(x)
    (loss,) = layer.take_load_balance()  # of the last forward alone
    assert loss.ndim == 0 and 0 < loss < 0.5 * 2 * 6
    loss.backward()
    assert layer.memlayers_sub_keys["m"].grad.any() and layer.memlayers_query["m"].projection.grad.any()
    assert layer.take_load_balance() == []
    layer(x)
    layer.eval()
    layer(x)
    assert layer.take_load_balance() == []  # nor does an evaluation hand out an older one


def test_the_load_balance_loss_is_zero_for_even_use(x: Tensor) -> None:
    layer = _layer(recipe="dense", load_balance=1.0, temperature=1e-6)
    layer(x)
    assert abs(layer.take_load_balance()[0]) < 1e-5


def test_the_same_seed_gives_the_same_bits_and_layers_differ() -> None:
    first, again, other = _layer(gate=True), _layer(gate=True), _layer(gate=True, seed=1)
    for name in ("memlayers_sub_keys.m", "memlayers_query.m.projection", "memlayers_gate.m.hidden_weight"):
        one, two, three = (dict(layer.named_parameters())[name] for layer in (first, again, other))
        assert torch.equal(one, two) and not torch.equal(one, three)
    neighbour = MemoryLayer(nn.Linear(DIM, DIM), DIM)
    neighbour.add_adapter("m", first.memlayers_config["m"], layer=1, owner=first)
    assert not torch.equal(neighbour.memlayers_sub_keys["m"], first.memlayers_sub_keys["m"])


def test_queries_that_carry_their_subject_read_alike_about_one_and_apart_about_two(tiny_backbone: Build) -> None:
    def shared(weight: float) -> tuple[float, float]:
        config = MemoryConfig(layers=[0], sub_keys=32, heads=2, top_k=4, subjects=True, subject_weight=weight)
        layer = memory_layers(get_peft_model(tiny_backbone(), config))[0]
        states = torch.randn(2, 40, layer.dim, generator=torch.Generator().manual_seed(0))
        one, other = (
            torch.full((40,), Letters.none(64).fingerprint((1,))),
            torch.full((40,), Letters.none(64).fingerprint((2,))),
        )
        slots = [layer.read(*each) for each in ((states[0], "default", one), (states[1], "default", one))]
        apart = layer.read(states[1], "default", other)
        overlap = [
            sum(len(set(a) & set(b)) for a, b in zip(slots[0].indices.tolist(), read.indices.tolist(), strict=True))
            / 320
            for read in (slots[1], apart)
        ]
        return overlap[0], overlap[1]

    alike, apart = shared(2.0)
    assert alike > 3 * apart
    alike, apart = shared(0.0)
    assert alike == apart  # the state alone


def test_without_a_subject_the_state_alone_is_the_query(tiny_backbone: Build) -> None:
    config = MemoryConfig(layers=[0], sub_keys=8, heads=2, top_k=3, subjects=True, subject_weight=2.0)
    layer = memory_layers(get_peft_model(tiny_backbone(), config))[0]
    x = torch.randn(5, layer.dim, generator=torch.Generator().manual_seed(0))
    nobody, alone = layer.read(x, "default", torch.zeros(5, dtype=torch.int64)), layer.read(x, "default")
    assert torch.equal(nobody.indices, alone.indices)
    torch.testing.assert_close(nobody.weights, alone.weights)
