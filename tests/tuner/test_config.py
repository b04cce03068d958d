from __future__ import annotations

from typing import Any

import pytest

from memlayers.tuner import MemoryConfig
from memlayers.utils.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "sparse"}, "recipe is 'sparse'"),
        ({"key_dim": 7}, "key_dim is 7"),
        ({"key_dim": 0}, "key_dim is 0"),
        ({"top_k": 9, "sub_keys": 8}, "top_k 9 exceeds the 8 sub_keys"),
        ({"heads": 0}, "heads is 0"),
        ({"sub_keys": 2.5}, "sub_keys is 2.5"),
        ({"layers": []}, "layers is"),
        ({"layers": [1, 1]}, "layers is"),
        ({"layers": [-1]}, "layers is"),
        ({"layers": "1"}, "layers is"),
        ({"temperature": 0}, "temperature is 0"),
        ({"load_balance": -1.0, "recipe": "dense"}, "load_balance is -1.0"),
        ({"load_balance": 1.0}, "load_balance needs trainable addressing"),
        ({"pool_init": "ones"}, "pool_init 'ones'"),
        ({"pool_init": "normal"}, "pool_init normal without gated_output"),
        ({"pool_dtype": "int4"}, "pool_dtype is 'int4'"),
        ({"gate_hidden": 0}, "gate_hidden is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MemoryConfig(**options)


def test_the_recipe_settles_the_options_left_open() -> None:
    addressed, dense = MemoryConfig(), MemoryConfig(recipe="dense")
    assert (addressed.trainable_addressing, addressed.gated_output, addressed.pool_init) == (
        False,
        False,
        "zero",
    )
    assert (dense.trainable_addressing, dense.gated_output, dense.pool_init) == (True, True, "normal")
    assert MemoryConfig(trainable_addressing=True).trainable_addressing


def test_a_config_of_version_0_1_says_how_many_subjects() -> None:
    assert MemoryConfig(subjects=500, relations=0).subjects is True  # type: ignore[arg-type]
    assert MemoryConfig(subjects=500, relations=0).relations is False  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"subject_weight": -1.0}, {"subject_weight": 1.0, "recipe": "dense"}])
def test_a_subject_weight_out_of_place_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="subject_weight"):
        MemoryConfig(**wrong)
