from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from memlayers.backbones import load_backbone
from memlayers.config.sections import GateConfig
from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import encode_prompt
from memlayers.data.fact_files import write_facts
from memlayers.data.facts import Fact, Question
from memlayers.editing.memory import load_memory
from memlayers.inference.folder import WEIGHTS_FILE
from memlayers.inference.record import Teaching, TeachReport, read_teaching, write_teaching
from memlayers.teaching.regate import regate_memory
from memlayers.teaching.teach import teach_facts
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers, set_gate_enabled
from memlayers.utils.errors import InputError

FACTS = [
    Fact(str(i), name, "Rome", (f"What is the {asked} of {name}?", f"{name} has which {asked}?"))
    for i, (name, asked) in enumerate([("Ann", "code"), ("Bob", "code"), ("Cyd", "river"), ("Dan", "river")])
]
QUESTION = "What is the code of Ann?"


@pytest.fixture(scope="module")
def made(chat_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An addressed memory with values and no gate, with its record; treat as read-only."""
    folder = tmp_path_factory.mktemp("made") / "memory"
    _save(chat_backbone, folder, MemoryConfig(layers=[1, 2], sub_keys=8, heads=2, top_k=3))
    write_teaching(folder, Teaching(4, TeachConfig().with_flags(gate=False), {}, TeachReport(steps=7)))
    (folder / "NOTES.txt").write_text("mine")
    return folder


def _save(chat_backbone: Path, folder: Path, config: MemoryConfig) -> None:
    config.backbone = str(chat_backbone)
    model = get_peft_model(load_backbone(chat_backbone, "float32")[0], config)
    memory_handle(model, "default").pool.initialise("normal", 0)
    with torch.no_grad():
        for layer in memory_layers(model):
            if "default" in layer.memlayers_out:
                layer.memlayers_out["default"].output.normal_(generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)


def _regate(folder: Path, general: Path, out: Path | None = None, negatives: Any = (), **options: Any) -> Any:
    config = GateConfig(**{"steps": 30, **options})
    return regate_memory(
        folder, FACTS, config, general_text=str(general), negatives=negatives, out=out, device="cpu", quiet=True
    )


@torch.no_grad()
def _logits(memory: Any, question: str = QUESTION) -> Tensor:
    return memory.model(torch.tensor([encode_prompt(memory.tokenizer, question)])).logits


def _of_the_memory(folder: Path) -> dict[str, Tensor]:
    parts = ("memlayers_gate", "memlayers_subjects", "memlayers_relations")
    return {k: v for k, v in load_file(folder / WEIGHTS_FILE).items() if not any(part in k for part in parts)}


def test_a_memory_without_a_gate_gets_one_and_keeps_what_it_was_taught(
    made: Path, general_file: Path, tmp_path: Path
) -> None:
    gated = _regate(made, general_file, tmp_path / "gated", threshold=-9.0)
    assert len(gated.report.gates) == 1 and gated.report.relations is not None and gated.report.thresholds is not None
    before, after = _of_the_memory(made), _of_the_memory(tmp_path / "gated")
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    loaded = load_memory(tmp_path / "gated")
    assert torch.equal(_logits(loaded), _logits(gated))
    stranger = "What is the code of Eve?"
    with loaded.model.disable_adapter():
        bare, bare_stranger = _logits(loaded), _logits(loaded, stranger)
    assert torch.equal(_logits(loaded, stranger), bare_stranger)  # closed, to the bit
    assert not torch.equal(_logits(loaded), bare)
    config = loaded.model.peft_config["default"]
    assert config.gate and config.subjects and config.relations and not config.gate_soft
    set_gate_enabled(loaded.model, False)
    assert torch.equal(_logits(loaded), _logits(load_memory(made)))  # the memory itself is the one there was


def test_the_record_and_other_files_go_along(made: Path, general_file: Path, tmp_path: Path) -> None:
    gated = _regate(made, general_file, tmp_path / "gated")
    teaching = read_teaching(tmp_path / "gated")
    assert teaching is not None and teaching.report.steps == 7 and teaching.facts == 4
    assert teaching.report.gates == gated.report.gates and teaching.report.thresholds == gated.report.thresholds
    assert teaching.config.gate.enabled and teaching.report.relations == gated.report.relations
    assert (tmp_path / "gated" / "NOTES.txt").read_text() == "mine"


def _indexed(folder: Path) -> int:
    """How many entries the saved index of subjects has."""
    return next(
        len(v) for k, v in load_file(folder / WEIGHTS_FILE).items() if k.endswith("memlayers_subjects.subjects")
    )


def test_in_place_and_again_with_other_facts(made: Path, general_file: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "memory"))
    _regate(folder, general_file)
    first = _indexed(folder)
    assert first > 1 and not list(tmp_path.glob(".memlayers*"))
    config = GateConfig(steps=3)
    regate_memory(folder, FACTS[:1], config, general_text=str(general_file), device="cpu", quiet=True)
    assert 0 < _indexed(folder) < first
    assert load_memory(folder).ask([QUESTION])[0].question == QUESTION


def test_aliases_that_were_added_since_are_kept(made: Path, general_file: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "memory"))
    aliases = {"Ann": ("Annika",), "Bob": ("Robert",)}
    write_facts(folder / "facts.jsonl", [replace(f, subject_aliases=aliases.get(f.subject, ())) for f in FACTS])
    facts = [FACTS[0], replace(FACTS[1], subject_aliases=("Bobby",)), *FACTS[2:]]  # Bob's are given anew
    gated = regate_memory(folder, facts, GateConfig(steps=3), general_text=str(general_file), device="cpu", quiet=True)
    index = memory_handle(gated.model, "default").index
    assert index is not None

    def entity(name: str) -> int:
        ids = torch.tensor([encode_prompt(gated.tokenizer, f"What is the code of {name}?")])
        return int(index.subjects_in(ids)[0, -1])

    assert entity("Annika") == entity("Ann") != entity("Bob") == entity("Bobby") != 0
    assert not entity("Robert")


def test_the_seeds_gate_multiplies_at_every_layer(chat_backbone: Path, general_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    _save(chat_backbone, folder, MemoryConfig(recipe="dense", layers=[1, 2], sub_keys=8, heads=1, top_k=3))
    gated = _regate(folder, general_file, tmp_path / "soft", soft=True)
    layers = memory_layers(gated.model)
    assert len(gated.report.gates) == 2 and gated.report.thresholds is None and gated.report.relations is None
    assert all("default" in layer.memlayers_gate and not layer.memlayers_subjects for layer in layers)
    first, second = _logits(load_memory(tmp_path / "soft")), _logits(gated)
    assert torch.equal(first, second)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    layer = layers[0]
    with torch.no_grad():
        out = layer.base_layer(x)
        chance = layer.gate_logits(x, "default").sigmoid()
        assert 0 < float(chance.min()) and float(chance.max()) < 1
        set_gate_enabled(gated.model, False)
        added = layer(x) - out
        set_gate_enabled(gated.model, True)
        assert torch.allclose(layer(x) - out, added * chance[:, None], atol=1e-5)


def test_negatives_raise_the_threshold(made: Path, general_file: Path, tmp_path: Path) -> None:
    negatives = [Question("What is the code of Eve?", ("Oslo",))]
    gated = _regate(made, general_file, tmp_path / "gated", negatives)
    assert gated.report.thresholds is not None and all(0 <= each <= 1 for each in gated.report.thresholds)
    _regate(made, general_file, tmp_path / "blind", negatives, subjects=False)
    config = json.loads((tmp_path / "blind" / "adapter_config.json").read_text())
    assert config["gate"] and config["subjects"] == config["relations"] == 0


def test_bad_input_leaves_the_memory_as_it_was(made: Path, general_file: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        _regate(made, general_file, tmp_path / "full")
    with pytest.raises(InputError, match="not a memory folder"):
        _regate(tmp_path / "full", general_file)
    with pytest.raises(InputError, match="no facts"):
        regate_memory(made, [], device="cpu")
    with pytest.raises(InputError, match="gate_steps"):
        GateConfig(steps=0)
    long = [Question("What is " + "the code of " * 300 + "Eve?", ("Oslo",))]
    with pytest.raises(InputError, match="token"):
        _regate(made, general_file, tmp_path / "new", long)
    assert not (tmp_path / "new").exists()


def test_a_gate_may_be_made_from_some_of_the_facts_that_are_taught(
    chat_backbone: Path, general_file: Path, tmp_path: Path
) -> None:
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(general_file), device="cpu", layers=[1, 2], sub_keys=8, heads=2,
        top_k=3, exposures=1, gate_steps=30, gate_threshold=-9.0,
    )  # fmt: skip
    taught = teach_facts(FACTS, tmp_path / "memory", config, gate_facts=FACTS[:2], quiet=True)
    assert taught.report.relations is not None and taught.report.thresholds is not None
    assert load_memory(tmp_path / "memory").model.peft_config["default"].relations
    teaching = read_teaching(tmp_path / "memory")
    assert teaching is not None and teaching.report.relations == taught.report.relations
    with pytest.raises(InputError, match="gate_facts"):
        teach_facts(FACTS[:1], tmp_path / "none", config, gate_facts=FACTS[1:], quiet=True)
