"""Every bad input of the command line: one line on stderr, the right exit code, and nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, T5Config
from transformers.utils import logging

from memlayers import TeachConfig, cli, read_facts, teach_facts

FACTS = [
    {"id": "a", "subject": "Ann", "questions": ["Where was Ann born?", "Birthplace of Ann?"], "answer": "Rome"},
    {"id": "b", "subject": "Bob", "questions": ["Where was Bob born?", "Birthplace of Bob?"], "answer": "Oslo"},
]
GENERAL = "The river runs to the sea.\n\nIt rained for three days.\n\nThe train left late.\n"
SMALL = {"layers": [1, 2], "sub_keys": 8, "heads": 2, "top_k": 2, "exposures": 1, "batch_size": 2, "gate": False}
FLAGS = ["--layers", "1,2", "--sub-keys", "8", "--heads", "2", "--top-k", "2", "--exposures", "1", "--batch-size", "2"]
FLAGS += ["--no-gate", "--device", "cpu", "--quiet"]

Refused = Callable[..., str]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` with what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    # The command tells transformers by its environment, which has been read long ago in this process.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    yield
    logging.enable_progress_bar()
    logging.set_verbosity_warning()


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused(*arguments, code=2)` runs `memlayers`, checks how it ends, and returns its one line."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable has been read long ago

    def run(*arguments: object, code: int = 2) -> str:
        before = contents(tmp_path)
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["memlayers", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        assert stopped.value.code == code, said.err
        lines = said.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("memlayers: "), said.err
        assert contents(tmp_path) == before
        return lines[0].removeprefix("memlayers: ")

    return run


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "facts.jsonl", FACTS)


@pytest.fixture
def general(tmp_path: Path) -> Path:
    path = tmp_path / "general.txt"
    path.write_text(GENERAL)
    return path


@pytest.fixture
def teaching(chat_backbone: Path, facts: Path, general: Path, tmp_path: Path) -> list[object]:
    """The arguments of a `teach` that would succeed; a flag given again replaces the first."""
    out = tmp_path / "memory"
    return ["teach", "--backbone", chat_backbone, "--facts", facts, "--general-text", general, "--out", out, *FLAGS]


@pytest.fixture(scope="session")
def taught(chat_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory on `chat_backbone`; treat as read-only."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "general.txt").write_text(GENERAL)
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(folder / "general.txt"), device="cpu", **{**SMALL, "sub_keys": 16}
    )
    teach_facts(read_facts(write_rows(folder / "facts.jsonl", FACTS)), folder / "memory", config, quiet=True)
    return folder / "memory"


@pytest.fixture
def memory(taught: Path, tmp_path: Path) -> Path:
    """A copy of `taught`, to be damaged."""
    return shutil.copytree(taught, tmp_path / "damaged")


def test_the_arguments_that_these_tests_spoil_are_good(teaching: list[object], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["memlayers", *map(str, teaching)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.jsonl", "general.txt", "memory"]


# Facts


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("f.jsonl", b'{"question": "a?", "answers": ["b"]}\n{"question": \n', ":2: malformed JSON"),
        ("f.jsonl", b"[1, 2]\n", ":1: the row is a list"),
        (
            "f.jsonl",
            b'{"subject": "s", "questions": "q?", "answer": "a"}\n',
            ":1: questions is a string; make it",
        ),
        ("f.jsonl", b'{"subject": "s", "questions": ["q?"], "answer": 7}\n', ":1: answer is a number, not a string"),
        ("f.jsonl", b'{"subject": "s", "questions": ["q?"]}\n', ":1: missing field 'answer'"),
        ("f.jsonl", b'{"question": "q?", "answers": ["a"], "tone": "x"}\n', ":1: unknown field 'tone'"),
        ("f.jsonl", b"", "the file is empty"),
        ("f.jsonl", b"\n \n", "the file is empty"),
        ("f.jsonl", b'{"question": "a?", "answers": ["b"]}\n{"question": "caf\xe9?"}\n', ":2: not UTF-8"),
        ("f.csv", b"question,answer\nq?\n", ":2: "),
        ("f.csv", b"one,two\nq?,a\n", ":1: "),
        ("f.txt", b"q?,a\n", "unknown kind of file '.txt'"),
    ],
)
@pytest.mark.parametrize("command", ["teach", "eval", "check"])
def test_a_malformed_facts_file(
    name: str, data: bytes, said: str, command: str, refused: Refused, teaching: list[object], tmp_path: Path
):
    path = tmp_path / name
    path.write_bytes(data)
    arguments = {
        "teach": [*teaching, "--facts", path],
        "eval": ["eval", tmp_path, "--facts", path, "--out", tmp_path / "scores.json"],
        "check": ["facts", "check", path],
    }
    line = refused(*arguments[command])
    assert line.startswith(f"{path}:") and said in line and "; " in line


@pytest.mark.parametrize("flag", ["--facts", "--known", "--qa", "--text"])
def test_a_missing_file_to_score_on(flag: str, refused: Refused, memory: Path, tmp_path: Path):
    line = refused("eval", memory, flag, tmp_path / "none.jsonl", "--out", tmp_path / "scores.json")
    assert line == f"{tmp_path / 'none.jsonl'}: no such file; check the path"


@pytest.mark.parametrize("flag", ["--facts", "--general-text", "--anchors", "--fluency", "--config"])
def test_a_missing_file_or_a_folder_in_its_place(flag: str, refused: Refused, teaching: list[object], tmp_path: Path):
    assert "no such file" in refused(*teaching, flag, tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a directory" in refused(*teaching, flag, tmp_path / "folder.jsonl")


def test_contradictory_facts_are_refused_by_both_lines(refused: Refused, teaching: list[object], tmp_path: Path):
    other = {"id": "c", "subject": "Ann", "questions": ["where was Ann born"], "answer": "Paris"}
    path = write_rows(tmp_path / "contradictory.jsonl", [*FACTS, other])
    line = refused(*teaching, "--facts", path)
    assert line.startswith(f"{path}:3: ") and "line 1" in line and "'Paris'" in line and "'Rome'" in line


def test_facts_check_shows_contradictions_and_exits_2(tmp_path: Path, capsys, monkeypatch):
    rows = [{"question": "q?", "answers": ["a"]}, {"question": "Q", "answers": ["b"]}]
    path = write_rows(tmp_path / "facts.jsonl", rows)
    monkeypatch.setattr(sys, "argv", ["memlayers", "facts", "check", str(path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    out = capsys.readouterr().out
    assert "1 contradictions" in out and "contradiction, lines 1, 2: 'q?' is answered 'a', 'b'" in out


LONG = "Where was Ann born? " * 40


def test_a_question_to_teach_longer_than_the_context(refused: Refused, teaching: list[object], tmp_path: Path):
    path = write_rows(tmp_path / "long.jsonl", [{"question": LONG, "answers": ["Rome"]}])
    line = refused(*teaching, "--facts", path)
    assert "Where was Ann born?" in line and "context holds 192" in line and line.endswith("shorten it")


def test_a_question_to_ask_longer_than_the_context(refused: Refused, memory: Path, tmp_path: Path):
    assert "context holds 192" in refused("ask", memory, LONG, "--device", "cpu")
    path = write_rows(tmp_path / "long.jsonl", [{"question": LONG, "answers": ["Rome"]}])
    flags = ["--out", tmp_path / "scores.json", "--device", "cpu", "--quiet"]
    assert "context holds 192" in refused("eval", memory, "--qa", path, *flags)


def test_an_answer_that_fits_the_context_only_just_is_generated(chat_backbone: Path, tmp_path: Path):
    # GPT-2's positions end with its context: it would fail beyond, where a rotary backbone would ramble.
    from memlayers.inference.generation import answer_questions

    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 400}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes)).eval()
    tokenizer = AutoTokenizer.from_pretrained(chat_backbone)
    assert len(answer_questions(model, tokenizer, ["Where was she born?" * 2, "Who?"])) == 2


@pytest.mark.parametrize("question", ["", "  "])
def test_an_empty_question(question: str, refused: Refused, memory: Path):
    assert "question is empty" in refused("ask", memory, question)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("g.txt", "\n\n", "is empty"),
        ("g.jsonl", "no json\n", ":1: not JSON"),
        ("g.jsonl", '{"text": "a"}\n{"passage": "b"}\n', ":2: neither"),
        ("g.jsonl", '{"question": "q?", "answers": 5}\n', ":1: neither"),
        ("g.jsonl", '{"question": "q?", "answers": [" "]}\n', ":1: neither"),
    ],
)
def test_malformed_general_text(
    name: str, text: str, said: str, refused: Refused, teaching: list[object], tmp_path: Path
):
    path = tmp_path / name
    path.write_text(text)
    line = refused(*teaching, "--general-text", path)
    assert line.startswith(f"{path}:") and said in line


# Settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exposure: 3\n", "unknown key 'exposure'; known keys: backbone, "),
        ("exposures: 3\n", "unknown key 'exposures'; it belongs under 'schedule:'"),
        ("schedule:\n  exposures: many\n", "exposures is 'many': give a whole number"),
        ("schedule:\n  exposures: 2.5\n", "exposures is 2.5: give a whole number"),
        ("gate:\n  enabled: 1\n", "gate is 1: give true or false"),
        ("memory:\n  layers: 1,2\n", "layers is '1,2': give a list"),
        ("memory:\n  layers: [1, x]\n", "layers is [1, 'x']: give a list"),
        ("optimizer:\n  value_rate: fast\n", "value_rate is 'fast': give a number"),
        ("- exposures\n", "not a mapping"),
        ("words\n", "not a mapping"),
        ("", "is empty"),
        ("# nothing but a comment\n", "not a mapping"),
        ("exposures: [\n", "not YAML"),
        ("exposures: 3\n\tbatch_size: 4\n", "not YAML"),
        ("memory:\n  recipe: foo\n", "recipe is 'foo': take one of addressed, dense"),
    ],
)
def test_a_bad_yaml_file(text: str, said: str, refused: Refused, teaching: list[object], tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    line = refused(*teaching, "--config", path)
    assert line.startswith(f"{path}: ") and said in line


def test_a_bad_flag_over_a_good_yaml_file_does_not_blame_the_file(
    refused: Refused, teaching: list[object], tmp_path: Path
):
    path = tmp_path / "settings.yaml"
    path.write_text("memory:\n  heads: 2\n")
    assert refused(*teaching, "--config", path, "--recipe", "foo").startswith("recipe is 'foo'")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--exposures", 0], "exposures is 0: it must be at least 1"),
        (["--batch-size", -1], "batch_size is -1"),
        (["--sub-keys", 0], "sub_keys is 0"),
        (["--heads", 0], "heads is 0"),
        (["--top-k", 0], "top_k is 0"),
        (["--top-k", 9], "top_k 9 exceeds the 8 sub_keys"),
        (["--key-dim", 3], "key_dim is 3"),
        (["--recipe", "dense", "--heads", 64], "64 heads are too many"),
        (["--value-rate", 0], "value_rate is 0"),
        (["--value-rate", "nan"], "value_rate is nan"),
        (["--value-rate", "inf"], "value_rate is inf"),
        (["--clip", 0], "clip is 0"),
        (["--pack", 0], "pack is 0"),
        (["--pack", 5], "does not fit a pack of 5"),
        (["--warmup", -1], "warmup is -1"),
        (["--seed", -1], "seed is -1"),
        (["--stop-at-recall", "nan"], "stop_at_recall is nan"),
        (["--checkpoint-seconds", -1], "checkpoint_seconds is -1"),
        (["--recipe", "foo"], "recipe is 'foo': take one of addressed, dense"),
        (["--optimizer", "sgd"], "optimizer is 'sgd'"),
        (["--loss", "all"], "loss is 'all'"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--pool-dtype", "int4"], "pool_dtype is 'int4'"),
        (["--layers", "2,x"], "--layers 2,x: give numbers"),
        (["--layers", "2,"], "--layers 2,: give numbers"),
        (["--layers", "1,4"], "layer 4 is out of range: this backbone has the layers 0 to 3"),
        (["--layers", "1,1"], "layers is [1, 1]"),
        (["--layers", "-1,2"], "layers is [-1, 2]"),
        (["--device", "gpu"], "device 'gpu'"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
    ],
)
def test_a_bad_flag(flags: list[object], said: str, refused: Refused, teaching: list[object]):
    assert said in refused(*teaching, *flags)


def test_a_gate_that_opens_for_nothing(refused: Refused, teaching: list[object]):
    line = refused(*teaching, "--gate", "--gate-steps", 1, "--gate-threshold", 100, code=1)
    assert "--gate-threshold" in line


def test_values_that_run_away(refused: Refused, teaching: list[object]):
    line = refused(*teaching, "--exposures", 40, "--value-rate", 1e38, "--stop-at-recall", 2, code=1)
    assert "not finite" in line and "--value-rate" in line


# Backbones


@pytest.fixture
def bert(chat_backbone: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=400, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(chat_backbone).save_pretrained(folder)
    return folder


def test_a_backbone_that_is_not_a_causal_lm(refused: Refused, teaching: list[object], bert: Path, tmp_path: Path):
    assert str(bert) in refused(*teaching, "--backbone", bert)
    T5Config(d_model=32, num_layers=2).save_pretrained(tmp_path / "t5")
    line = refused(*teaching, "--backbone", tmp_path / "t5")
    assert str(tmp_path / "t5") in line and "causal LM" in line


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", None])
def test_a_backbone_with_a_file_missing(
    lost: str | None, refused: Refused, teaching: list[object], chat_backbone: Path, tmp_path: Path
):
    folder = tmp_path / "backbone"
    if lost is None:
        folder.mkdir()
    else:
        shutil.copytree(chat_backbone, folder)
        (folder / lost).unlink()
    line = refused(*teaching, "--backbone", folder)
    assert str(folder) in line and "; give 'pocket', the folder of a causal LM" in line


def test_a_backbone_without_a_tokenizer(refused: Refused, teaching: list[object], chat_backbone: Path, tmp_path: Path):
    folder = shutil.copytree(chat_backbone, tmp_path / "backbone")
    (folder / "tokenizer.json").unlink()
    line = refused(*teaching, "--backbone", folder)
    assert line.startswith(f"the backbone {str(folder)!r} has no tokenizer")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert f"the backbone {str(folder)!r}" in refused(*teaching, "--backbone", folder)


def test_a_backbone_with_weights_missing(refused: Refused, teaching: list[object], chat_backbone: Path, tmp_path: Path):
    folder = shutil.copytree(chat_backbone, tmp_path / "backbone")
    weights = load_file(folder / "model.safetensors")
    lost = "model.layers.3.mlp.up_proj.weight"
    save_file({name: w for name, w in weights.items() if name != lost}, folder / "model.safetensors", {"format": "pt"})
    line = refused(*teaching, "--backbone", folder)
    assert str(folder) in line and f"lacks 1 weights, {lost} first" in line


def test_a_truncated_backbone(refused: Refused, teaching: list[object], chat_backbone: Path, tmp_path: Path):
    folder = shutil.copytree(chat_backbone, tmp_path / "backbone")
    os.truncate(folder / "model.safetensors", 1000)
    assert str(folder) in refused(*teaching, "--backbone", folder)


@pytest.mark.parametrize("name", ["no/such/folder/here", "./none", "none", "a b", "", "/dev/null"])
def test_a_backbone_that_is_nowhere(name: str, refused: Refused, teaching: list[object], tmp_path: Path):
    line = refused(*teaching, "--backbone", name)
    assert line.startswith(f"cannot load the backbone {name!r}: ") and "give 'pocket'" in line


# Memories


def test_a_folder_that_is_no_memory(refused: Refused, chat_backbone: Path, tmp_path: Path):
    for folder in (tmp_path, chat_backbone, tmp_path / "none", "/dev/null"):
        assert refused("ask", folder, "Who?").startswith(f"{folder}: not a memory folder")
        assert refused("eval", folder, "--text", __file__, "--out", tmp_path / "x.json").startswith(f"{folder}: not a")


def test_an_adapter_of_another_method(refused: Refused, chat_backbone: Path, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(chat_backbone)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    line = refused("ask", tmp_path / "lora", "Who?")
    assert line == f"{tmp_path / 'lora'}: an adapter of another method; give a folder that `memlayers teach` wrote"


def _other_backbone(source: Path, folder: Path, seed: int, **sizes: int) -> Path:
    own = AutoConfig.from_pretrained(source).to_dict()
    config = AutoConfig.for_model(own.pop("model_type"), **{**own, "layer_types": None, **sizes})
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"hidden_size": 48}, "hidden_size is 48 and not 32"),
        ({"num_hidden_layers": 2}, "layers is 2 and not 4"),
        ({}, "its embedding weights differ"),
    ],
)
def test_a_memory_on_another_backbone(
    sizes: dict[str, int], said: str, refused: Refused, memory: Path, chat_backbone: Path, tmp_path: Path
):
    other = _other_backbone(chat_backbone, tmp_path / "other", 7, **sizes)
    line = refused("ask", memory, "Who?", "--backbone", other)
    assert line.startswith(f"{memory}: this memory was made for another backbone") and said in line


def test_a_backbone_that_has_moved(refused: Refused, memory: Path, tmp_path: Path):
    path = memory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "backbone": str(tmp_path / "gone")}))
    assert str(tmp_path / "gone") in refused("ask", memory, "Who?")
    path.write_text(json.dumps({**json.loads(path.read_text()), "backbone": None, "base_model_name_or_path": None}))
    assert refused("ask", memory, "Who?") == f"{memory}: names no backbone; say which with --backbone"


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_adapter(keep: int, refused: Refused, memory: Path):
    weights = memory / "adapter_model.safetensors"
    os.truncate(weights, keep if keep >= 0 else weights.stat().st_size + keep)
    assert refused("ask", memory, "Who?").startswith(f"{memory}: damaged or incomplete memory (")


def test_a_corrupted_adapter(refused: Refused, memory: Path):
    weights = memory / "adapter_model.safetensors"
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])
    assert refused("ask", memory, "Who?").startswith(f"{memory}: damaged or incomplete memory (")


def test_a_missing_adapter_file(refused: Refused, memory: Path):
    (memory / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in refused("ask", memory, "Who?")


def test_an_adapter_with_weights_missing(refused: Refused, memory: Path):
    weights = load_file(memory / "adapter_model.safetensors")
    for name in weights:
        save_file({k: w for k, w in weights.items() if k != name}, memory / "adapter_model.safetensors")
        assert refused("ask", memory, "Who?").startswith(
            f"{memory}: incomplete memory, adapter_model.safetensors lacks 1 of"
        )


def test_an_adapter_of_another_size(refused: Refused, memory: Path):
    path = memory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sub_keys": 4}))
    assert refused("ask", memory, "Who?").startswith(f"{memory}: damaged or incomplete memory (")


def test_an_adapter_with_values_that_are_not_finite(refused: Refused, memory: Path):
    weights = load_file(memory / "adapter_model.safetensors")
    pool = next(name for name in weights if "memlayers_pool" in name)
    weights[pool][3, 5] = float("nan")
    save_file(weights, memory / "adapter_model.safetensors")
    assert "not finite" in refused("ask", memory, "Who?")


@pytest.mark.parametrize(
    "change",
    [
        {"layers": "x"}, {"layers": [99]}, {"fingerprint": [1]}, {"fingerprint": {"probe": "x"}}, {"recipe": "none"},
        {"backbone": 5}, {"heads": None}, {"sub_keys": "8"}, {"pool_dtype": "int3"}, {"peft_type": None},
    ],
)  # fmt: skip
def test_an_adapter_config_with_wrong_values(change: dict[str, Any], refused: Refused, memory: Path):
    path = memory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    line = refused("ask", memory, "Who?")
    assert str(memory) in line or "backbone '5'" in line


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"peft_type": "MEMLAYERS"', b"\xff\xfe", b"[" * 9999])
def test_a_damaged_adapter_config(data: bytes, refused: Refused, memory: Path):
    (memory / "adapter_config.json").write_bytes(data)
    assert refused("ask", memory, "Who?").startswith(str(memory))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"facts": 1, "config": {"x": 1}, "environment": {}}'])
def test_a_damaged_record_of_teaching(text: str, refused: Refused, memory: Path, facts: Path, tmp_path: Path):
    (memory / "teaching.json").write_text(text)
    line = refused("eval", memory, "--facts", facts, "--out", tmp_path / "scores.json", "--device", "cpu", "--quiet")
    assert line.startswith(f"{memory / 'teaching.json'}: damaged record")


# Checkpoints


@pytest.fixture
def interrupted(teaching: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The arguments of a run that was interrupted and left one checkpoint."""
    from memlayers.teaching import teach

    def stop(run: Any) -> None:
        if run.report.steps == 3:
            run._save_checkpoint()
            raise KeyboardInterrupt

    arguments = [*teaching, "--exposures", 4, "--stop-at-recall", 2]
    with monkeypatch.context() as patched:
        patched.setattr(teach.Teacher, "_checkpoint_when_due", lambda run, _: stop(run))
        patched.setattr(sys, "argv", ["memlayers", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 130
    assert [path.name for path in (tmp_path / "memory.teaching").iterdir()] == ["step-00000003-0002"]
    return [*arguments, "--resume"]


def test_a_good_checkpoint_is_resumed(interrupted: list[object], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["memlayers", *map(str, interrupted)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.jsonl", "general.txt", "memory"]


def test_an_interrupted_run_in_the_way(refused: Refused, interrupted: list[object], tmp_path: Path):
    line = refused(*interrupted[:-1])
    assert line.startswith(f"{tmp_path / 'memory.teaching'}: ") and "--resume" in line


def test_nothing_to_resume(refused: Refused, teaching: list[object], tmp_path: Path):
    line = refused(*teaching, "--resume")
    assert line == f"{tmp_path / 'memory.teaching'}: no interrupted run there; start without --resume"


def test_a_file_where_the_checkpoints_go(refused: Refused, teaching: list[object], tmp_path: Path):
    (tmp_path / "memory.teaching").write_text("mine")
    assert refused(*teaching).startswith(str(tmp_path / "memory.teaching"))
    assert refused(*teaching, "--resume").startswith(str(tmp_path / "memory.teaching"))


@pytest.mark.parametrize("change", [["--seed", 5], ["--value-rate", 0.5], ["--facts"]])
def test_a_checkpoint_of_another_run(change: list[object], refused: Refused, interrupted: list[object], tmp_path: Path):
    if change == ["--facts"]:
        change = ["--facts", write_rows(tmp_path / "other.jsonl", FACTS[:1])]
    assert "other settings or other facts" in refused(*interrupted, *change)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("keep", [None, 0, 30, -1])
def test_a_truncated_checkpoint(
    name: str, keep: int | None, refused: Refused, interrupted: list[object], tmp_path: Path
):
    path = next((tmp_path / "memory.teaching").glob(f"*/{name}"))
    if keep is None:
        path.unlink()
    else:
        os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    line = refused(*interrupted)
    assert line.startswith(f"{path.parent}: damaged checkpoint (") and f"delete {tmp_path / 'memory.teaching'}" in line


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_with_tensors_missing_or_of_another_shape(
    name: str, refused: Refused, interrupted: list[object], tmp_path: Path
):
    path = next((tmp_path / "memory.teaching").glob(f"*/{name}"))
    save_file({"0.exp_avg": torch.zeros(3, 2)}, path)
    assert "damaged checkpoint" in refused(*interrupted)


def test_a_checkpoint_whose_report_is_damaged(refused: Refused, interrupted: list[object], tmp_path: Path):
    path = next((tmp_path / "memory.teaching").glob("*/state.json"))
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "report": {"steps": 3}}))
    assert "damaged checkpoint" in refused(*interrupted)


# Places to write


def test_an_out_that_exists(refused: Refused, teaching: list[object], tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    line = refused(*teaching, "--out", tmp_path / "full")
    assert line.startswith(f"{tmp_path / 'full'}: exists and is not empty")
    assert refused("demo", "--out", tmp_path / "full").startswith(f"{tmp_path / 'full'}: exists and is not empty")


def test_replace_takes_a_memory_and_nothing_else(refused: Refused, teaching: list[object], tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "not a memory" in refused(*teaching, "--out", tmp_path / "full", "--replace")


@pytest.mark.parametrize("place", ["file", "file/below/it", "/proc/x", "/dev/null", "/dev/null/x", "/proc/1/x/y"])
def test_an_out_that_cannot_be_written(
    place: str, refused: Refused, teaching: list[object], memory: Path, facts: Path, tmp_path: Path
):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / place
    assert refused(*teaching, "--out", out).startswith(f"{out}: ")
    assert refused("demo", "--out", out).startswith(f"{out}: ")
    if place == "file":  # which may be replaced by another file
        return
    assert refused("facts", "make", "sensor_calibration", "--n", 3, "--out", out).startswith(f"{out}")
    assert refused("facts", "convert", facts, out).startswith(f"{out}")
    assert refused("eval", memory, "--facts", facts, "--out", out).startswith(f"{out}: ")


def test_eval_out_that_is_a_directory(refused: Refused, memory: Path, facts: Path, tmp_path: Path):
    line = refused("eval", memory, "--facts", facts, "--out", tmp_path)
    assert line == f"{tmp_path}: not a regular file; give the path of a file to write"


def test_eval_report_that_cannot_be_written(refused: Refused, memory: Path, facts: Path, tmp_path: Path):
    out = tmp_path / "scores.json"
    assert refused("eval", memory, "--facts", facts, "--out", out, "--report", facts).startswith(f"{facts}: ")
    assert refused("eval", memory, "--facts", facts, "--out", out, "--report", "/dev/null/x").startswith(
        "/dev/null/x: "
    )


def test_nothing_to_score(refused: Refused, memory: Path, tmp_path: Path):
    line = refused("eval", memory, "--out", tmp_path / "scores.json")
    assert line == "nothing to score: give --facts, --known, --qa or --text"


def test_a_text_too_short_to_score(refused: Refused, memory: Path, tmp_path: Path):
    (tmp_path / "short.txt").write_text("a")
    out = tmp_path / "scores.json"
    assert "less than two tokens" in refused("eval", memory, "--text", tmp_path / "short.txt", "--out", out, "--quiet")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "unknown family 'nothing'; known families: "),
        (["sensor_calibration", "--n", "99999999"], "99,999,999 asked for"),
        (["sensor_calibration", "--n", "-1"], "-1 facts"),
        (["sensor_calibration", "--n", "0"], "no facts to write"),
    ],
)
def test_facts_make(arguments: list[str], said: str, refused: Refused, tmp_path: Path):
    assert said in refused("facts", "make", *arguments, "--out", tmp_path / "f.jsonl")


def test_facts_make_writes_neither_file_where_one_cannot_be(refused: Refused, tmp_path: Path):
    assert "no place to write" in refused("facts", "make", "sensor_calibration")
    made = ["facts", "make", "sensor_calibration", "--n", 3, "--out", tmp_path / "f.jsonl"]
    assert refused(*made, "--fakes", "/dev/null/x.jsonl").startswith("/dev/null/x.jsonl: ")
    assert "one file" in refused(*made, "--fakes", tmp_path / "f.jsonl")


def test_facts_are_not_written_where_no_reader_would_take_them(refused: Refused, facts: Path, tmp_path: Path):
    assert ".jsonl" in refused("facts", "make", "sensor_calibration", "--n", 3, "--out", tmp_path / "facts.txt")
    assert ".jsonl" in refused("facts", "convert", facts, tmp_path / "facts.txt")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "memlayers.results/1"}'])
def test_a_report_of_no_results(text: str, refused: Refused, tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text(text)
    assert refused("report", path, "--out", tmp_path / "report").startswith(f"{path}:")
    assert "no such file" in refused("report", tmp_path / "none.json", "--out", tmp_path / "report")


# A demo that fails takes its folder along


@pytest.mark.parametrize("fails_in", ["teach_facts", "score_model", "write_report"])
def test_a_demo_that_fails_leaves_nothing(
    fails_in: str, refused: Refused, chat_backbone: Path, general: Path, tmp_path: Path, monkeypatch
):
    from memlayers import demo
    from memlayers.utils.errors import WorkError

    def fail(*_: object, **__: object) -> None:
        raise WorkError("the work failed; try again")

    settings = tmp_path / "settings.yaml"
    config = TeachConfig().with_flags(**SMALL, backbone=str(chat_backbone), general_text=str(general))
    settings.write_text(json.dumps(dataclasses.asdict(config)))
    monkeypatch.setattr(demo, fails_in, fail)
    monkeypatch.setattr(demo, "score_model", fail if fails_in == "score_model" else lambda *_, **__: ([], []))
    monkeypatch.setattr(demo, "watch", lambda *_: None)
    line = refused("demo", "--config", settings, "--facts", 4, "--out", tmp_path / "demo", "--quiet", code=1)
    assert line == "the work failed; try again"


# The same through real processes: nothing else on stderr, whatever the libraries beneath have to say


def _code(before: str) -> str:
    return f"import sys\n{before}\nfrom memlayers.cli import main\nmain()"


@pytest.fixture
def process(warm_python: Any) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`process(*arguments, before="")` runs `memlayers` in a process of its own, `before` before it."""

    def run(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = warm_python.run(_code(before), *arguments)
        return done

    return run


def _fresh_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One in which nothing is imported yet."""
    return subprocess.run(
        [sys.executable, "-c", _code(""), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def _one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    lines = done.stderr.splitlines()
    assert done.returncode == code and len(lines) == 1 and lines[0].startswith("memlayers: "), done.stderr
    return lines[0]


def test_a_backbone_of_another_kind_in_a_process(process: Callable[..., Any], teaching: list[object], bert: Path):
    assert str(bert) in _one_line(process(*teaching, "--backbone", bert), 2)


def test_a_name_that_is_not_at_hand_offline_in_a_process(process: Callable[..., Any], teaching: list[object]):
    line = _one_line(process(*teaching, "--backbone", "nobody/no-such-model"), 2)
    assert "nobody/no-such-model" in line


def test_a_damaged_memory_in_a_process(memory: Path):
    weights = load_file(memory / "adapter_model.safetensors")
    save_file({k: w for k, w in weights.items() if "pool" not in k}, memory / "adapter_model.safetensors")
    assert "damaged" in _one_line(_fresh_process("ask", memory, "Who?"), 2)


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_memory_beyond_the_limit_of_a_file_in_a_process(
    process: Callable[..., Any], teaching: list[object], tmp_path: Path
):
    # 64 * 64 slots of 32 float32 take 512 KiB.
    before = contents(tmp_path)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    line = _one_line(process(*teaching, "--sub-keys", 64, before=limit), 1)
    assert str(tmp_path / "memory") in line and "free some space" in line
    assert contents(tmp_path) == before


@pytest.fixture
def full_disk(tmp_path: Path) -> Any:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a file system here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_in_a_process(process: Callable[..., Any], teaching: list[object], full_disk: Path):
    line = _one_line(process(*teaching, "--sub-keys", 64, "--out", full_disk / "memory"), 1)
    assert str(full_disk / "memory") in line and "free some space" in line
    assert list(full_disk.iterdir()) == []


def test_a_disk_that_is_full_at_a_checkpoint_in_a_process(
    process: Callable[..., Any], teaching: list[object], full_disk: Path
):
    flags = ["--sub-keys", 64, "--checkpoint-seconds", 0, "--batch-size", 1]
    line = _one_line(process(*teaching, *flags, "--out", full_disk / "memory"), 1)
    assert "free some space" in line
    assert list(full_disk.iterdir()) == []
