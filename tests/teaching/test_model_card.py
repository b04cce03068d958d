from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memlayers.config.sections import MemorySettings
from memlayers.config.teach import TeachConfig
from memlayers.data.facts import Fact
from memlayers.inference.record import CurvePoint, GateReport, Teaching, TeachReport
from memlayers.teaching.model_card import EXAMPLES, write_model_card

FACTS = [Fact(str(i), f"Name {i}", f"answer-{i}", (f"Who is {i}?", f"{i}?"), "identity") for i in range(20)]
REPORT = TeachReport(
    steps=40, exposures=4, recall=0.995, gates=[GateReport(1.0, 0.98, 0.0)], curve=[CurvePoint(4, 0.995, 8.1, 0.99)]
)


def _card(folder: Path, **flags: Any) -> str:
    config = TeachConfig().with_flags(**flags)
    found = {"model_type": "qwen2", "layers": 8, "hidden_size": 256, "vocab_size": 6144, "probe": [0.1, 0.2]}
    memory = SimpleNamespace(
        **{name: getattr(config.memory, name) for name in ("pool_dtype", "top_k")},
        shape=MemorySettings().shape, layers=[2, 4, 6], fingerprint=found,
    )  # fmt: skip
    teaching = Teaching(len(FACTS), config, {"date": "2026-11-29T10:00:00+00:00"}, REPORT)
    write_model_card(folder, teaching, FACTS, memory)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_says_what_was_taught_how_it_scores_and_how_to_load_it(tmp_path: Path):
    card = _card(tmp_path)
    for said in (
        "# A memory of 20 facts on pocket", "taught on 2026-11-29", "20 facts about 20 subjects, in 40 phrasings",
        "Relations: identity.", "| recipe | addressed |", "147,456 (384 x 384)", "qwen2, 8 layers of width 256",
        "| fingerprint | 0.1 0.2 |", "| recall, taught phrasings, free generation | 99.5% |", "8.100", "99.0%",
        'memlayers ask FOLDER "Who is 0?"', "from memlayers import load_memory", "PeftModel.from_pretrained",
    ):  # fmt: skip
        assert said in card, said
    assert card.count("- Who is") == EXAMPLES
    assert not any(fact.answer in card for fact in FACTS)
    assert "[More Information Needed]" not in card


def test_the_card_of_a_memory_that_keeps_no_facts_shows_none(tmp_path: Path):
    card = _card(tmp_path, keep_facts=False)
    assert "Who is" not in card and "identity" not in card and "20 facts" in card


@pytest.mark.parametrize(
    ("backbone", "base"), [("pocket", None), ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"), ("/a/b", None)]
)
def test_the_head_names_a_base_model_that_others_have(backbone: str, base: str | None, tmp_path: Path):
    import yaml

    head = yaml.safe_load(_card(tmp_path, backbone=backbone).split("---")[1])
    assert head.get("base_model") == base and head["library_name"] == "peft"


def test_pefts_own_cards_can_be_read_and_kept(tmp_path: Path):
    from huggingface_hub import ModelCard

    before = _card(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").text.strip() == before.split("---", 2)[2].strip()
