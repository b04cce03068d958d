"""A memory under torch.compile: one graph, the same tokens read, closed gates keep the compiled backbone's bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from helpers.tuner import NAME, SMALL, fill, logits, taught
from memlayers.tuner import MemoryConfig, memory_handle, without_memory

Build = Callable[..., PreTrainedModel]
NAMED = torch.tensor([[3, *NAME, 4, 5, 6], [3, 4, 5, 6, 7, 8], [9, 8, 7, *NAME, 6]])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _without_unique(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """The backend "eager", for graphs that inductor takes: torch's `unique` had it end the process."""
    assert "unique" not in graph.code
    return graph.forward


@torch.no_grad()
def _compiled(model: Any, ids: Tensor, backend: Any = _without_unique, **options: Any) -> Tensor:
    made: Any = torch.compile(model, fullgraph=True, backend=backend)
    found: Tensor = made(input_ids=ids, use_cache=False, **options).logits
    return found


def _closed(ids: Tensor) -> Tensor:
    """The tokens that come before a name, or have none, bool [b, t]."""
    return (ids == NAME[1]).cumsum(1) - (ids == NAME[1]).int() == 0


@pytest.mark.parametrize(("gate", "dtype"), [(False, "float32"), (True, "bfloat16"), (False, "int8")])
def test_one_graph_reads_what_is_read_without(tiny_backbone: Build, gate: bool, dtype: str) -> None:
    model = taught(tiny_backbone(num_hidden_layers=2), scale=1.0, gate=gate, gate_hidden=8, pool_dtype=dtype)
    if gate:
        (network,) = memory_handle(model).gates
        network.trained.fill_(1)
        with torch.no_grad():
            network.output_weight.copy_(torch.randn(8, generator=torch.Generator().manual_seed(3)))
            network.threshold.fill_(0.01)
    expected, found = logits(model, NAMED), _compiled(model, NAMED)
    with without_memory(model):
        assert not torch.equal(expected, logits(model, NAMED))
    # All tokens are looked up together, so that what the open ones read is rounded otherwise.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(found[_closed(NAMED)], expected[_closed(NAMED)])


def test_compiled_and_not_the_fixed_shape_gives_the_same_bits(
    tiny_backbone: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = taught(tiny_backbone(num_hidden_layers=2), scale=1.0, pool_dtype="bfloat16")
    compiled = _compiled(model, NAMED)
    with monkeypatch.context() as patch:
        patch.setattr("memlayers.tuner.layer.static_shapes", lambda x: True)
        for module in ("layer", "forward_pass", "subject_index"):
            patch.setattr(f"memlayers.tuner.{module}.asks", lambda x: False)
        assert torch.equal(logits(model, NAMED), compiled)
    with without_memory(model):
        bare = logits(model, NAMED)
    assert torch.equal(compiled[_closed(NAMED)], bare[_closed(NAMED)])
    assert not torch.equal(compiled, bare)


def test_a_memory_without_an_index_is_compiled_too(tiny_backbone: Build) -> None:
    model: Any = get_peft_model(
        tiny_backbone(num_hidden_layers=2), MemoryConfig(**SMALL, gate=True, recipe="dense")
    ).eval()
    fill(model)
    torch.testing.assert_close(_compiled(model, NAMED), logits(model, NAMED), rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_inductor_reads_the_same_tokens(tiny_backbone: Build) -> None:
    """A minute of a C++ compiler; the graphs that it gets are tried above."""
    model = taught(tiny_backbone(num_hidden_layers=1))
    torch.testing.assert_close(_compiled(model, NAMED, "inductor"), logits(model, NAMED), rtol=1e-4, atol=1e-5)


def test_a_text_in_pieces_is_compiled(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone(num_hidden_layers=1))
    made: Any = torch.compile(model, backend="eager")
    expected = logits(model, NAMED)
    cache = StaticCache(config=model.config, max_cache_len=8)
    with torch.no_grad():
        pieces = NAMED.split([2, 4], 1)
        found = [made(input_ids=piece, past_key_values=cache, use_cache=True).logits for piece in pieces]
    torch.testing.assert_close(torch.cat(found, 1), expected)


def test_packed_sequences_are_compiled(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone(num_hidden_layers=1))
    packed = torch.tensor([[3, *NAME, 4, 5, 6, 7]])
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    with torch.no_grad():
        expected = model(input_ids=packed, position_ids=places, use_cache=False).logits
    torch.testing.assert_close(_compiled(model, packed, position_ids=places), expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(logits(model, packed), expected)


@pytest.mark.parametrize("part", ["base_model.model.model.layers.0.mlp", pytest.param("", marks=pytest.mark.long)])
def test_teaching_a_compiled_model_gives_the_gradient(tiny_backbone: Build, part: str) -> None:
    """What learns breaks the graph, and each module around it costs a graph or two more: the memory's own, or all."""

    def gradient(compiled: bool) -> Tensor:
        model = taught(tiny_backbone(num_hidden_layers=1))
        if compiled:
            model.get_submodule(part).compile(backend="eager")
        model(input_ids=NAMED, use_cache=False).logits.square().mean().backward()
        dense: Tensor = memory_handle(model).pool.weight.grad.to_dense()  # type: ignore[union-attr]
        return dense

    expected = gradient(False)
    assert expected.any()
    torch.testing.assert_close(gradient(True), expected)
