"""The settings of an edit."""

from __future__ import annotations

import pytest

from memlayers.editing.config import EditConfig
from memlayers.utils.errors import InputError


def test_settings_out_of_range_are_one_line():
    for bad in (
        {"slots": "some"},
        {"steps": 0},
        {"rate": 0.0},
        {"neighbours": -1},
        {"rehearsed": -1},
        {"least_recall": 2},
    ):
        with pytest.raises(InputError):
            EditConfig(**bad)  # type: ignore[arg-type]
