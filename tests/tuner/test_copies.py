"""A model with a memory is copied, pickled and saved whole, also between a backward and a step."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from helpers.tuner import SMALL, Build, fill, logits, train_steps
from memlayers.tuner import MemoryConfig, memory_handle


def _saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _saved],
                         ids=["deepcopy", "pickle", "save"])  # fmt: skip
@pytest.mark.parametrize("pool_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("after_backward", [False, True])
def test_a_copied_model_answers_alike_and_learns_alone(
    tiny_backbone: Build, ids: Tensor, way: Callable[[Any], Any], pool_dtype: str, after_backward: bool
) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(pool_dtype=pool_dtype, **SMALL))
    fill(model)
    if after_backward:
        model(ids, labels=ids).loss.backward()
        assert memory_handle(model).pool.parameter.grad is not None
    twin = way(model)
    assert memory_handle(twin).pool.parameter.grad is None
    before = logits(model, ids)
    assert torch.equal(logits(twin, ids), before)
    if pool_dtype == "int8":
        memory_handle(twin).pool.initialise("zero", 0)
    else:
        train_steps(twin, ids, steps=2)
    assert not torch.equal(logits(twin, ids), before)
    assert torch.equal(logits(model, ids), before)
