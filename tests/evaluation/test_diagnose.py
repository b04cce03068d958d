from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from typer.testing import CliRunner

from memlayers import Fact, InputError, MemoryConfig, TeachConfig, WorkError, load_memory, teach_facts, write_facts
from memlayers.cli import app
from memlayers.data.encoding import encode_prompt
from memlayers.editing.memory import Memory
from memlayers.evaluation.diagnose import pool_replaced, probe_memory, start_layers
from memlayers.evaluation.probes import (
    PROBES,
    Diagnosis,
    Probe,
    diagnosis_text,
    format_probe,
    read_diagnosis,
    reads_histogram,
    write_diagnosis,
)
from memlayers.evaluation.read_probes import jaccard, last_token_of
from memlayers.tuner import memory_handle, memory_layers

NAMES, ANSWERS = "Ada Bob Cid Dot Eve Fay".split(), "red blue 12 Oslo kite 7f".split()
FACTS = [
    Fact(id=name, subject=name, answer=answer, questions=(f"What is the code of {name}?", f"Name {name}'s code."))
    for name, answer in zip(NAMES, ANSWERS, strict=True)
]


def _teach(backbone: Path, text: Path, folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "backbone": str(backbone), "general_text": str(text), "sub_keys": 16, "heads": 2, "top_k": 4, "key_dim": 8,
        "gate": False, "exposures": 60, "batch_size": 3, "value_rate": 1.0, "dense_rate": 0.02, "warmup": 1,
        "recall_sample": 6, "dtype": "float32", "device": "cpu", "seed": 1,
    }  # fmt: skip
    teach_facts(FACTS, folder / "memory", TeachConfig().with_flags(**{**settings, **changes}), quiet=True)
    write_facts(folder / "facts.jsonl", FACTS)
    return folder / "memory"


@pytest.fixture(scope="module")
def addressed(chat_backbone: Path, general_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory that recalls its six facts."""
    return _teach(chat_backbone, general_file, tmp_path_factory.mktemp("addressed"))


@pytest.fixture(scope="module")
def dense(chat_backbone: Path, general_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seed's recipe, two passes."""
    return _teach(chat_backbone, general_file, tmp_path_factory.mktemp("dense"), recipe="dense", exposures=2)


def _state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _diagnosed(folder: Path, **options: Any) -> Diagnosis:
    opened = load_memory(folder)
    before, hooks = _state(opened.model), [len(module._forward_hooks) for module in opened.model.modules()]
    probes, histograms = probe_memory(opened, FACTS, quiet=True, **options)
    after = _state(opened.model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) and set(after) == set(before)
    assert [len(module._forward_hooks) for module in opened.model.modules()] == hooks
    return Diagnosis({}, {}, probes, histograms)


def _value(found: Diagnosis, name: str, split: str) -> float:
    probe = found.find(name, split)
    assert probe is not None, [p.split for p in found.probes if p.name == name]
    return probe.value


def test_an_addressed_memory_holds_its_facts_in_the_pool(addressed: Path) -> None:
    found = _diagnosed(addressed)
    assert _value(found, "recall", "memory") >= 0.5
    assert _value(found, "recall", "pool zeroed") == _value(found, "recall", "backbone") == 0.0
    for name in ("first_token_rank", "first_token_nll", "answer_nll"):
        assert _value(found, name, "pool zeroed") == _value(found, name, "backbone") > _value(found, name, "memory")
    assert _value(found, "first_token_rank", "memory") == 1
    assert found.find("recall", "projections alone") is None
    moved = _value(found, "moved_rows", "pool")
    assert 0 < moved == _value(found, "written_rows", "pool")
    assert _value(found, "row_norm", "at the start") == 0
    assert _value(found, "row_norm", "now") == _value(found, "row_norm", "of the change") > 0
    opened = load_memory(addressed)
    layers = memory_layers(opened.model)
    for number in layers[0].memlayers_config["default"].layers or []:
        split = f"layer {number}"
        assert _value(found, "read_tokens", split) == 1.0
        assert 0 < _value(found, "output_ratio", split)
        assert 1 <= _value(found, "slots_per_read", split) <= 8
        assert 1 <= _value(found, "slots_in_use", split) <= 256
        assert _value(found, "written_reads", split) > 0.9  # the prompts were taught; all they read was written
    (usage, norms) = found.histograms
    assert usage.name == "reads per slot" and sum(usage.counts) == 256
    assert 1 - usage.counts[0] / 256 == pytest.approx(_value(found, "slots_read", "facts"))
    assert sum(norms.counts) == round(256 * moved)


def test_entities_are_compared_at_their_last_token(addressed: Path) -> None:
    found = _diagnosed(addressed)
    splits = {probe.split for probe in found.probes if probe.name == "cosine"}
    numbers = memory_layers(load_memory(addressed).model)[0].memlayers_config["default"].layers or []
    assert splits == {
        f"layer {n}, {kind}, {what}, {how}"
        for n in numbers for kind in ("entity", "prompt's end") for what in ("input", "query")
        for how in ("raw", "centred")
    }  # fmt: skip
    first = f"layer {numbers[0]}, entity"
    assert _value(found, "cosine", f"{first}, input, centred") != _value(found, "cosine", f"{first}, input, raw")
    assert 8 <= _value(found, "distinct_slots", first) <= 48
    same = _value(found, "jaccard", f"{first}, same entity in two phrasings")
    assert same > _value(found, "jaccard", first)


def test_a_dense_memory_is_asked_without_its_pool_and_without_its_teaching(dense: Path) -> None:
    found = _diagnosed(dense)
    assert 0 < _value(found, "moved_rows", "pool")
    assert _value(found, "written_rows", "pool") == 1.0
    assert _value(found, "row_norm", "at the start") == pytest.approx(1.0, abs=0.1)  # normal, std dim^-0.5
    changes = [probe for probe in found.probes if probe.name == "projection_change"]
    numbers = memory_layers(load_memory(dense).model)[0].memlayers_config["default"].layers or []
    assert len(changes) == 4 * len(numbers) and all(probe.value > 0 for probe in changes)
    # Without values nothing comes out of W_out; with the values it started with, something does.
    assert _value(found, "answer_nll", "pool zeroed") == _value(found, "answer_nll", "backbone")
    assert _value(found, "answer_nll", "projections alone") != _value(found, "answer_nll", "backbone")


def test_start_layers_are_what_a_new_memory_is(tiny_backbone: Any) -> None:
    config = MemoryConfig(recipe="dense", sub_keys=8, heads=2, seed=5, pool_dtype="int8")
    model = get_peft_model(tiny_backbone(), config)
    for own, made in zip(memory_layers(model), start_layers(memory_handle(model, "default")), strict=True):
        wanted = {n: t for n, t in own.state_dict().items() if "memlayers_" in n}
        given = made.state_dict()
        assert set(given) == set(wanted) and all(torch.equal(given[n], t) for n, t in wanted.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_replaced_pool_comes_back_to_the_bit(tiny_backbone: Any, dtype: str) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(recipe="dense", sub_keys=8, pool_dtype=dtype))
    pool = memory_handle(model, "default").pool
    before = _state(pool)
    with pytest.raises(RuntimeError, match="broken off"), pool_replaced(pool, None):
        assert not pool(torch.tensor([[1, 2]]), torch.ones(1, 2)).any()
        raise RuntimeError("broken off")
    after = _state(pool)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_general_text_and_protection_are_seen(chat_backbone: Path, general_file: Path, tmp_path: Path) -> None:
    memory = _teach(
        chat_backbone, general_file, tmp_path, gate=True, gate_steps=20, gate_threshold=-1e9, exposures=1,
        protect=str(general_file), protect_share=0.5,
    )  # fmt: skip
    opened = load_memory(memory)
    assert all(layer.gate_enabled for layer in memory_layers(opened.model))
    ids = opened.tokenizer(general_file.read_text(encoding="utf-8"))["input_ids"]
    found = _diagnosed(memory, general=[ids[:60], ids[60:100]])
    number = (memory_layers(opened.model)[0].memlayers_config["default"].layers or [])[0]
    openly = f"layer {number}, general text, no gate"
    assert _value(found, "read_tokens", openly) == 1.0
    assert _value(found, "read_tokens", f"layer {number}, general text") == 0.0  # no subject is named in it
    assert _value(found, "read_tokens", f"layer {number}") < 1.0
    assert _value(found, "protected_rows", "pool") == pytest.approx(0.5, abs=0.01)
    assert _value(found, "protected_reads", openly) > 0.5
    assert _value(found, "protected_reads", openly) + _value(found, "written_reads", openly) <= 1.0


def test_the_same_figures_again(addressed: Path) -> None:
    assert _diagnosed(addressed).probes == _diagnosed(addressed).probes


def test_jaccard_counts_a_slot_once() -> None:
    one, two = torch.tensor([[1, 1, 2], [7, 8, 9]]), torch.tensor([[1, 2, 3]])
    assert torch.allclose(jaccard(one, two), torch.tensor([[2 / 3], [0.0]]))
    assert torch.equal(jaccard(one, one).diagonal(), torch.ones(2))


def test_the_subject_ends_where_its_last_token_is(addressed: Path) -> None:
    tokenizer = load_memory(addressed).tokenizer
    prompt = encode_prompt(tokenizer, "What is the code of Dot?")
    place = last_token_of(tokenizer, prompt, "Dot")
    assert "Dot" in tokenizer.decode(prompt[: place + 1]) and "Dot" not in tokenizer.decode(prompt[:place])
    assert last_token_of(tokenizer, prompt, "") == last_token_of(tokenizer, prompt, "Zoe") == len(prompt) - 1


# -- the file, the picture, the command ---------------------------------------------------------------------------


def test_slots_are_counted_by_their_reads() -> None:
    histogram = reads_histogram([0, 0, 1, 2, 3, 4, 9])
    assert histogram.edges == (0, 1, 2, 4, 8, 16) and histogram.counts == (2, 1, 2, 1, 1)
    assert reads_histogram([0]).counts == (1,)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("recall", 0.5, "50.0 %"), ("recall", 1.0, "100.0 %"), ("recall", 0.99996, "99.996 %"),
     ("cosine", 0.0004, "0.0004"), ("slots_in_use", 44775.2, "44,775"), ("answer_nll", 38.51, "38.5"),
     ("cosine", 0.0, "0.000")],
)  # fmt: skip
def test_a_figure_is_not_rounded_to_all_or_none(name: str, value: float, shown: str) -> None:
    assert format_probe(name, value) == shown


def test_a_diagnosis_is_written_read_and_drawn(tmp_path: Path) -> None:
    found = Diagnosis({"device": "cpu"}, {"seed": 1}, [Probe("recall", "memory", 0.5, 4, 0.1, 0.9)], [], [])
    write_diagnosis(tmp_path, found)
    assert read_diagnosis(tmp_path / "diagnosis.json") == found
    assert "| recall | memory | 50.0 % | 10.0 % to 90.0 % | 4 |" in (tmp_path / "diagnosis.md").read_text()
    assert (tmp_path / "diagnosis.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(InputError, match="unknown probe 'luck'"):
        Probe("luck", "memory", 1.0, 1)
    with pytest.raises(WorkError, match="not finite"):
        diagnosis_text(Diagnosis({}, {}, [Probe("recall", "memory", float("nan"), 1)]))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"other\.json: not a file of `memlayers diagnose`"):
        read_diagnosis(tmp_path / "other.json")


def test_the_command_prints_and_draws(addressed: Path, tmp_path: Path, general_file: Path) -> None:
    facts = ["--facts", str(addressed.parent / "facts.jsonl"), "--text", str(general_file), "--max-text-tokens", "50"]
    options = [*facts, "--out", str(tmp_path / "out"), "--quiet", "--json"]
    result = CliRunner().invoke(app, ["diagnose", str(addressed), *options])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    found = read_diagnosis(tmp_path / "out" / "diagnosis.json")
    assert len(printed["probes"]) == len(found.probes) > 40
    assert {probe.name for probe in found.probes} <= set(PROBES)
    assert found.curve[-1].recall == 1.0 and found.curve[-1].loss is not None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"diagnosis.{end}" for end in ("json", "md", "png")}


def test_facts_must_be_said_where_the_memory_has_none(addressed: Path, tmp_path: Path) -> None:
    forgetful = Path(shutil.copytree(addressed, tmp_path / "forgetful"))
    (forgetful / "facts.jsonl").unlink()
    result = CliRunner().invoke(app, ["diagnose", str(forgetful)])
    assert isinstance(result.exception, InputError) and "--facts FILE" in str(result.exception)
    result = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert isinstance(result.exception, InputError)
    assert isinstance(CliRunner().invoke(app, ["diagnose", str(tmp_path / "none")]).exception, InputError)
    with pytest.raises(InputError, match="no facts to diagnose"):
        probe_memory(Memory(None, None), [])  # type: ignore[arg-type]


def test_the_page_shows_the_figures_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.syspath_prepend(str(root))
    story = importlib.import_module("benchmarks.teaching.diagnosis")
    page = (root / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    assert story.filled(page) == page
    assert all(f"<!-- {name} -->\n| " in page for name in story.TABLES)
