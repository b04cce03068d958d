from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import PreTrainedModel

from helpers.tuner import fill, logits
from memlayers.tuner import MemoryConfig, active_memories, memory_handle, memory_layers, without_memory
from memlayers.tuner.handle import gates_off
from memlayers.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
CONFIG = MemoryConfig(layers=[0, 2], sub_keys=8, heads=2, top_k=3, gate=True, subjects=True, relations=True)


def test_a_handle_names_the_parts_of_a_memory(tiny_backbone: Build) -> None:
    model = get_peft_model(tiny_backbone(), CONFIG)
    memory = memory_handle(model, "default")
    first, second = memory.layers
    assert [first, second] == memory_layers(model)
    assert memory.pool is first.memlayers_pool["default"] is second.memlayers_pool_owner["default"]["default"]
    assert memory.config is first.memlayers_config["default"] and memory.config.slots == 64
    assert memory.index is first.memlayers_subjects["default"]
    assert memory.gates == [first.memlayers_gate["default"]]
    assert memory.device == torch.device("cpu")
    assert memory.relations is None  # no keys yet
    first.memlayers_relations["default"].fill(torch.zeros(32), torch.ones(32, 2), [1], torch.ones(1, 2), 0.5)
    assert memory.relations is first.memlayers_relations["default"]


def test_without_a_name_it_is_the_first_active_memory(tiny_backbone: Build) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(layers=[0], sub_keys=8, top_k=3))
    model.add_adapter("other", CONFIG)
    assert [memory.adapter for memory in active_memories(model)] == ["default"]
    model.set_adapter("other")
    assert memory_handle(model).adapter == "other" and memory_handle(model).index is not None
    assert memory_handle(model, "default").index is None


def test_a_memory_that_is_not_there_is_refused_by_name(tiny_backbone: Build) -> None:
    with pytest.raises(InputError, match="no memory named 'other'"):
        memory_handle(get_peft_model(tiny_backbone(), CONFIG), "other")
    assert active_memories(tiny_backbone()) == []
    with pytest.raises(InputError, match="no active memory"):
        memory_handle(tiny_backbone())


def test_gates_come_back_as_they_were(tiny_backbone: Build) -> None:
    model: Any = get_peft_model(tiny_backbone(), CONFIG).eval()
    fill(model)
    index = memory_handle(model).index
    assert index is not None
    index.fill({(7, 8): (7, 8)}, 4)
    ids = torch.tensor([[3, 4, 5]])
    with without_memory(model):
        bare = logits(model, ids)
    assert torch.equal(logits(model, ids), bare)
    with gates_off(model):
        open_for_all = logits(model, ids)
        with ThreadPoolExecutor(1) as pool:  # another thread is not asked for anything
            assert torch.equal(pool.submit(logits, model, ids).result(), bare)
    assert not torch.equal(open_for_all, bare) and torch.equal(logits(model, ids), bare)
