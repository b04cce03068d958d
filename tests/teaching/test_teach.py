"""What teaching does, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from helpers.teaching import ANSWERS, FACTS, Configure, adapter_bytes, answer_loss, teach
from memlayers.backbones import load_backbone
from memlayers.config.teach import TeachConfig
from memlayers.data.answers import exact_match
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory
from memlayers.inference.generation import answer_questions
from memlayers.inference.record import read_teaching
from memlayers.teaching.teach import teach_facts
from memlayers.tuner import MemoryConfig, memory_handle
from memlayers.tuner.handle import without_memory
from memlayers.utils.errors import InputError, WorkError

pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture(scope="module")
def memorised(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> tuple[Memory, Path, TeachConfig]:
    """Six facts, one phrasing each, taught until they are recalled."""
    out, config = tmp_path_factory.mktemp("memorised") / "memory", configure(exposures=80)
    return teach_facts(_one_phrasing(), out, config, quiet=True), out, config


def _one_phrasing() -> list[Fact]:
    return [replace(fact, questions=fact.questions[:1]) for fact in FACTS]


def test_facts_are_memorised_and_teaching_stops_early(memorised: tuple[Memory, Path, TeachConfig]) -> None:
    taught, _, config = memorised
    report = taught.report
    assert report.recall == 1.0
    assert [point.recall == 1.0 for point in report.curve] == [False] * (len(report.curve) - 1) + [True]
    assert 1 < len(report.curve) < config.exposures
    assert [point.exposures for point in report.curve] == list(range(1, len(report.curve) + 1))
    assert report.exposures == len(report.curve) == report.steps / 2  # six facts in batches of three
    assert report.skipped_steps == 0 and report.seconds > 0
    questions = [fact.questions[0] for fact in FACTS]
    assert answer_questions(taught.model, taught.tokenizer, questions) == ANSWERS
    with without_memory(taught.model):
        bare = answer_questions(taught.model, taught.tokenizer, questions)
    assert not any(exact_match(given, [answer]) for given, answer in zip(bare, ANSWERS, strict=True))


def test_the_backbone_keeps_its_bits(memorised: tuple[Memory, Path, TeachConfig], chat_backbone: Path) -> None:
    wrapped = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in memorised[0].model.state_dict().items()
        if "memlayers_" not in name
    }
    stored = load_file(chat_backbone / "model.safetensors")
    assert len(stored) > 40
    assert all(torch.equal(wrapped[name], tensor) for name, tensor in stored.items())
    assert set(wrapped) == set(stored)


def test_the_folder_loads_and_gives_the_same_logits(
    memorised: tuple[Memory, Path, TeachConfig], chat_backbone: Path
) -> None:
    taught, out, config = memorised
    backbone, tokenizer = load_backbone(chat_backbone, "float32")
    ids = torch.tensor([encode_prompt(tokenizer, FACTS[0].questions[0])])
    with torch.no_grad():
        bare = backbone(ids).logits
        loaded = PeftModel.from_pretrained(backbone, out)(ids).logits
        assert torch.equal(loaded, taught.model(ids).logits)
    assert not torch.equal(loaded, bare)
    record = read_teaching(out)
    assert record is not None
    assert (record.facts, record.config, record.report) == (6, config, taught.report)
    assert not Path(f"{out}.teaching").exists()


def test_the_seed_makes_the_bits(configure: Configure, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        teach(tmp_path / name, configure(seed=seed, gate=True))
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b") != adapter_bytes(tmp_path / "c")


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw"},
        {"optimizer_semantics": "lazy"},
        {"optimizer_semantics": "lazy", "optimizer_bits": 8, "optimizer_device": "host"},
        {"optimizer_semantics": "lazy", "pool_dtype": "bfloat16", "half_rounding": "stochastic"},
        {"pool_dtype": "int8"},
        {"dtype": "bfloat16"},
        {"pool_dtype": "bfloat16"},
        {"loss": "full", "value_rate": 0.3},
        {"pack": 180},
        {"clip": 0.1},
        {"gate": True},
        {"gate": True, "gate_subjects": False},
        {"recipe": "dense", "gate": False, "exposures": 14},
        {"recipe": "dense", "gate": True, "exposures": 14},
    ],
    ids=lambda changes: "-".join(f"{key}={value}" for key, value in changes.items()),
)
def test_every_option_learns(configure: Configure, tmp_path: Path, changes: dict[str, Any]) -> None:
    taught = teach(tmp_path / "memory", configure(**{"exposures": 8, "recall_sample": 1, **changes}))
    after = answer_loss(taught.model, taught.tokenizer)
    with without_memory(taught.model):
        before = answer_loss(taught.model, taught.tokenizer)
    assert after < 0.7 * before
    assert taught.report.exposures == len(taught.report.curve) == changes.get("exposures", 8)
    assert taught.model.get_base_model().lm_head.weight.dtype == getattr(torch, changes.get("dtype", "float32"))
    pool = memory_handle(taught.model, "default").pool
    assert pool.table.values.dtype == getattr(torch, changes.get("pool_dtype", "float32"))
    gates = (3 if changes.get("gate_subjects") is False else 1) if changes.get("gate") else 0
    assert len(taught.report.gates) == gates
    assert (taught.report.thresholds is None) == (gates != 1)
    assert all(0 <= share <= 1 for gate in taught.report.gates for share in (gate.open_on_facts, gate.open_on_general))


@pytest.mark.parametrize("recipe", ["addressed", "dense"])
def test_what_each_recipe_moves(configure: Configure, tmp_path: Path, recipe: str) -> None:
    config = configure(recipe=recipe, exposures=3, recall_sample=1)
    after = load_file(_saved(teach(tmp_path / "memory", config), tmp_path / "memory"))
    backbone, _ = load_backbone(config.backbone, "float32")
    fresh = get_peft_model(
        backbone, MemoryConfig(recipe=recipe, sub_keys=16, heads=2, top_k=4, key_dim=8, seed=config.seed)
    )
    fresh.save_pretrained(tmp_path / "fresh")
    before = load_file(tmp_path / "fresh" / "adapter_model.safetensors")
    assert set(before) == set(after)
    moved = {name.split("memlayers_")[1] for name in before if not torch.equal(before[name], after[name])}
    if recipe == "dense":
        assert moved == {"pool.weight", "sub_keys", "query.projection", "out.gate", "out.output"}
    else:  # the query and its scale are calibrated, and only the pool is taught
        assert moved == {"pool.weight", "query.projection", "query.mean", "query.scale"}


def _saved(taught: Memory, out: Path) -> Path:
    trainable = {name.split("memlayers_")[1] for name, p in taught.model.named_parameters() if p.requires_grad}
    addressed = taught.model.peft_config["default"].recipe == "addressed"
    assert {name.split(".")[0] for name in trainable} == (
        {"pool"} if addressed else {"pool", "sub_keys", "query", "out"}
    )
    return out / "adapter_model.safetensors"


def test_bad_input_leaves_nothing_behind(configure: Configure, tmp_path: Path) -> None:
    out = tmp_path / "memory"
    with pytest.raises(InputError, match="no facts"):
        teach_facts([], out, configure(), quiet=True)
    long = replace(FACTS[0], questions=("why " * 200,))
    with pytest.raises(InputError, match=r"'why why.* the context holds 192"):
        teach_facts([*FACTS, long], out, configure(), quiet=True)
    with pytest.raises(InputError, match="layer 4 is out of range.* 0 to 3"):
        teach(out, configure(layers=[1, 4]))
    with pytest.raises(InputError, match="a pack of 20"):
        teach(out, configure(pack=20))
    with pytest.raises(InputError, match="absent.txt"):
        teach(out, configure(general_text=str(tmp_path / "absent.txt")))
    with pytest.raises(InputError, match="no interrupted run"):
        teach(out, configure(), resume=True)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        teach(out, configure())
    assert [path.name for path in tmp_path.rglob("*")] == ["memory", "mine.txt"]
    with pytest.raises(InputError, match="not a memory, so it is not replaced"):
        teach(out, configure(), replace=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["memory", "mine.txt"]


def test_a_memory_is_replaced_only_where_asked_for(configure: Configure, tmp_path: Path) -> None:
    teach(tmp_path / "memory", configure(seed=1))
    first = adapter_bytes(tmp_path / "memory")
    with pytest.raises(InputError, match="exists and is not empty"):
        teach(tmp_path / "memory", configure(seed=2))
    assert adapter_bytes(tmp_path / "memory") == first
    teach(tmp_path / "memory", configure(seed=2), replace=True)
    assert adapter_bytes(tmp_path / "memory") != first
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_gates_that_never_open_end_the_work(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="gate-threshold"):
        teach(tmp_path / "memory", configure(gate=True, gate_threshold=1e9))
    assert not list(tmp_path.iterdir())
