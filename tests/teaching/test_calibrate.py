from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import PreTrainedModel

from memlayers.inference.capture import LayerFeatures, collect_features
from memlayers.teaching.calibrate import calibrate
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers

Build = Callable[..., PreTrainedModel]


def _model(backbone: PreTrainedModel, **options: Any) -> Any:
    config = {"layers": [1, 2], "sub_keys": 8, "heads": 2, "top_k": 3, "key_dim": 8, **options}
    return get_peft_model(backbone, MemoryConfig(**config)).eval()


def _sequences(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, 64, (length,), generator=generator).tolist() for length in lengths]


def test_queries_are_whitened_and_the_scale_is_the_rms_of_the_output(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(initializer_range=0.2))
    features = collect_features(memory_handle(model, "default"), _sequences(60, 40))
    calibrate(memory_handle(model, "default"), [features])
    for layer, seen in zip(memory_layers(model), features, strict=True):
        query: Any = layer.memlayers_query["default"]
        raw = seen.inputs - seen.inputs.mean(0)
        assert (raw.T @ raw / len(raw) - torch.eye(32)).abs().max() > 0.1  # it was not white before
        queries = query(seen.inputs)
        covariance = queries.T @ queries / len(queries)
        assert queries.mean(0).abs().max() < 1e-3
        torch.testing.assert_close(covariance, torch.eye(16), rtol=0, atol=0.01)
        assert float(query.scale) == pytest.approx(seen.output_rms, rel=1e-5)
    first, second = (layer.memlayers_query["default"].projection for layer in memory_layers(model))
    assert not torch.allclose(first, second, atol=0.1)


def test_kinds_of_text_count_alike_however_long_they_are(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), layers=[1])
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(4000, 32, generator=generator) + 3
    few = torch.randn(400, 32, generator=generator) - 1
    kinds = [[LayerFeatures(rows, torch.zeros(len(rows)), rms)] for rows, rms in ((many, 3.0), (few, 4.0))]
    calibrate(memory_handle(model, "default"), kinds)
    query: Any = memory_layers(model)[0].memlayers_query["default"]
    torch.testing.assert_close(query.mean, (many.mean(0) + few.mean(0)) / 2)
    assert float(query.scale) == pytest.approx(12.5**0.5)
    queries = [query(rows) for rows in (many, few)]
    covariance = sum(q.T @ q / len(q) for q in queries) / 2
    torch.testing.assert_close(covariance, torch.eye(16), rtol=0, atol=0.01)


def test_calibration_is_a_function_of_the_seed(tiny_backbone: Build) -> None:
    projections = []
    for seed in (3, 3, 4):
        model = _model(tiny_backbone(), layers=[1], seed=seed)
        calibrate(
            memory_handle(model, "default"), [collect_features(memory_handle(model, "default"), _sequences(20, 10))]
        )
        projections.append(memory_layers(model)[0].memlayers_query["default"].projection)
    assert torch.equal(projections[0], projections[1])
    assert not torch.equal(projections[0], projections[2])
