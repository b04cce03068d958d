from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from transformers import PreTrainedModel

from memlayers.tuner import MemoryConfig, active_memories, memory_handle, memory_layers
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
    model = get_peft_model(tiny_backbone(), CONFIG)
    first, second = memory_layers(model)
    second.gate_enabled = False
    with gates_off(model):
        assert not first.gate_enabled and not second.gate_enabled
    assert first.gate_enabled and not second.gate_enabled
