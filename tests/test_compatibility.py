"""docs/compatibility.md says what the installed transformers shows, family by family."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.scripts import load_script
from memlayers.backbones import find_mlp_blocks

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "llama qwen2 mistral gemma phi gpt_neox bloom mpt mixtral deepseek_v3 jamba bamba nemotron_h gemma3 llava qwen2_vl"
)


compatibility: Any = load_script("compatibility")
PAGE = compatibility.PAGE.read_text(encoding="utf-8")


@pytest.fixture
def _as_made() -> None:
    if compatibility.versions() not in PAGE:
        pytest.skip(f"the page was made with other versions than {compatibility.versions()}")


def _check_row(family: str, columns: list[str]) -> None:
    (told,) = re.findall(rf"^\| `{family}` \| (.*) \|$", PAGE, re.MULTILINE)
    expected = dict(zip(compatibility.COLUMNS, told.split(" | "), strict=True))
    found = compatibility.row(family, columns)
    assert found == {column: expected[column] for column in columns}, "run python scripts/compatibility.py"


@pytest.mark.usefixtures("_as_made")
@pytest.mark.parametrize("number, family", enumerate(compatibility.FAMILIES))
def test_a_familys_row_is_what_it_does(number: int, family: str) -> None:
    """Neighbours are alike: what takes long is tried of each fourth or forty-eighth row, and of all below."""
    every = {"left padding": 4, "static cache": 4, "beams": 4, "compiled": 48}
    _check_row(family, [column for column in compatibility.COLUMNS if number % every.get(column, 1) == 0])


@pytest.mark.long
@pytest.mark.usefixtures("_as_made")
@pytest.mark.parametrize("family", compatibility.FAMILIES)
def test_a_familys_whole_row_is_what_it_does(family: str) -> None:
    _check_row(family, list(compatibility.COLUMNS))


@pytest.mark.usefixtures("_as_made")
@pytest.mark.parametrize("most", [3, pytest.param(None, marks=pytest.mark.long)])
def test_the_classes_told_to_be_refused_are_refused_with_this_reason(most: int | None) -> None:
    """Some of each reason, or all."""
    rows = re.findall(r"^\| ([^|]+) \| (`\w+`(?:, `\w+`)*) \|$", PAGE, re.MULTILINE)
    told = {why: re.findall(r"\w+", names) for why, names in rows if why != "not tried"}
    assert sum(map(len, told.values())) >= 40
    refused = {name: why for why, names in told.items() for name in names[:most]}
    assert {name: compatibility.verdict(name) for name in refused} == refused


def test_the_families_are_many_and_tiny() -> None:
    assert len(compatibility.FAMILIES) >= 60 and set(NEEDED.split()) <= set(compatibility.FAMILIES)
    for family in compatibility.FAMILIES:
        with torch.device("meta"):
            model = compatibility.build(family)
        assert sum(weight.numel() for weight in model.parameters()) < 1_000_000, family
        assert len(find_mlp_blocks(model)) >= 2, family


def test_a_family_that_crashes_has_a_row_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(family: str) -> None:
        raise KeyError(family)

    monkeypatch.setattr(compatibility, "build", breaks)
    assert set(compatibility.row("llama").values()) == {"KeyError"}


def test_what_fails_without_the_memory_is_laid_to_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(trial: object, model: object) -> bool:
        return False

    def not_with_a_memory(trial: Any, model: object) -> bool:
        return model is trial.bare

    columns = {"one": never, "two": not_with_a_memory, "three": compatibility.attaches}
    monkeypatch.setattr(compatibility, "COLUMNS", columns)
    assert compatibility.row("llama") == {"one": "backbone: no", "two": "differs", "three": "yes"}


def test_the_checks_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that adds something before it is taught, a backbone that is trained too, a file that lost the values."""
    trial = compatibility.Trial("llama")
    trial.fresh = False
    trial.bare.requires_grad_(True)
    assert not compatibility.attaches(trial, trial.model)
    trial.model.requires_grad_(True)
    assert not compatibility.gradient_reaches_the_pool_alone(trial, trial.model)
    with monkeypatch.context() as patch:
        patch.setattr(compatibility, "logits", lambda model: torch.rand(2))
        assert not compatibility.is_saved(trial, trial.model)
