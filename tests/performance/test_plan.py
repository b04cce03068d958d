from __future__ import annotations

import inspect
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.gguf_files import write_gguf
from memlayers.config.sections import GateConfig
from memlayers.config.teach import TeachConfig
from memlayers.data.general_text import SHIPPED, read_general_text
from memlayers.inference.capture import collect_features
from memlayers.inference.generation import MAX_NEW_TOKENS, generate_answers
from memlayers.kernels.interface import STATE_BLOCK
from memlayers.performance.backbone_size import CONFIGS, GIB, POCKET_CONFIG, Backbone, default_layers, read_backbone
from memlayers.performance.plan import (
    GENERAL_TOKENS,
    SCHEMES,
    STAGING,
    Line,
    Scheme,
    Work,
    addressing_bytes,
    answer_bytes,
    command,
    make_plan,
    phases_on_cpu,
    preparation_bytes,
    recommended,
    saved_bytes,
    table_cells,
    touched_rows,
)
from memlayers.pool import row_state
from memlayers.pool.offload import STAGE_BYTES
from memlayers.pool.row_adamw import RowAdamW
from memlayers.pool.row_state import RowFormat
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner import MemoryConfig, memory_layers
from memlayers.utils.errors import InputError

WORK = Work(708, 1, 8, 64, (6, 14, 22), 4, 64, 16, "bfloat16", 100_000)


# -- backbones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b", "Qwen2.5-7B"])
def test_seven_billion_are_15_gigabytes_in_bf16(name: str) -> None:
    backbone = read_backbone(name)
    assert backbone.weights == 7_615_616_512  # as the hub has it
    assert backbone.weight_bytes("bfloat16") / 1e9 == pytest.approx(15.2, abs=0.05)
    assert 5.0 < backbone.weight_bytes("4-bit") / 1e9 < 6.0


def test_the_other_shipped_sizes() -> None:
    assert read_backbone("qwen2.5-0.5b").weights == 494_032_768
    assert read_backbone("qwen2.5-1.5b").weights == 1_543_714_304
    assert len(list(CONFIGS.glob("*.json"))) == 3


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3", "gemma", "mistral", "gpt2", "phi3", "gpt_neox"])
def test_weights_are_counted_to_the_last_one(family: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 70,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 70, "n_positions": 16}
    for extra in ({}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}):
        if family not in ("llama", "qwen2") and "attention_bias" in extra:
            continue
        config = AutoConfig.for_model(family, **sizes, **extra)
        config.save_pretrained(tmp_path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert read_backbone(str(tmp_path)).weights == sum(p.numel() for p in model.parameters()), extra


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "take pocket, qwen2.5-0.5b"),
        ("[1]", "not a config"),
        ("{", "cannot be read"),
        ('{"model_type": "llama"}', "hidden_size"),
    ],
)
def test_what_is_no_config_is_said(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_backbone(str(path))


# -- bytes ----------------------------------------------------------------------------------------------------------


def test_the_schemes_by_hand() -> None:
    """1,000 slots of 300 values, 100 of them touched."""
    bytes_of = {scheme.name: (scheme.pool_bytes(1000, 300), scheme.state_bytes(1000, 300, 100)) for scheme in SCHEMES}
    assert bytes_of == {
        "float32, torch's AdamW": (1_200_000, 4_800_000),
        "float32, 32-bit state": (1_200_000, 100 * (2400 + 16) + 12_000),
        "bfloat16 master, 32-bit state": (600_000, 100 * (2400 + 1200 + 16) + 12_000),
        "bfloat16 stochastic, 32-bit state": (600_000, 100 * (2400 + 16) + 4_000),
        "bfloat16 stochastic, 8-bit state": (600_000, 100 * (600 + 24 + 16) + 4_000),
        "bfloat16, host state": (600_000, 100 * (2400 + 1200 + 16) + 4_000),
        "int8, host state": (304_000, 100 * (2400 + 1200 + 16) + 4_000),
    }


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme.optimizer != "adamw"], ids=lambda s: s.name)
def test_the_optimizer_keeps_what_the_plan_says(scheme: Scheme) -> None:
    pool = ValuePool(400, 300, getattr(torch, scheme.pool_dtype))
    pool.initialise("zero", 0)
    optimizer = RowAdamW(
        [pool.parameter], state_bits=scheme.optimizer_bits, state_device=scheme.optimizer_device,
        rounding=scheme.half_rounding,
    )  # fmt: skip
    pool(torch.arange(50).view(10, 5), torch.ones(10, 5)).sum().backward()
    optimizer.step()
    state = optimizer.state[pool.parameter]
    touched = state["touched"]
    kept = [tensor for tensor in touched.tensors().values()] + [touched.place]
    kept += [state["caught_up"]] if "caught_up" in state else []
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == scheme.state_bytes(400, 300, 50)
    stored = [pool.table.values] + ([pool.table.scales] if pool.table.scales is not None else [])
    assert sum(tensor.numel() * tensor.element_size() for tensor in stored) == scheme.pool_bytes(400, 300)


def test_constants_that_the_plan_repeats() -> None:
    from memlayers.performance import plan

    assert (plan.STATE_BLOCK, STAGING) == (STATE_BLOCK, 8 * STAGE_BYTES)
    assert (plan.CALIBRATION_TOKENS, plan.CHUNK_BYTES) == (GateConfig().tokens, row_state.CHUNK_BYTES)
    assert plan.FORWARD_TOKENS == inspect.signature(collect_features).parameters["batch_tokens"].default
    assert (plan.QUESTIONS, plan.NEW_TOKENS) == (
        inspect.signature(generate_answers).parameters["batch_size"].default, MAX_NEW_TOKENS,
    )  # fmt: skip


def test_general_text_has_as_many_tokens_as_planned() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POCKET_CONFIG.parent)
    tokens = sum(map(len, read_general_text(SHIPPED).encode(tokenizer, 256)))
    assert tokens == pytest.approx(GENERAL_TOKENS, rel=0.01)


@pytest.mark.parametrize(("slots", "d", "touched"), [(400, 300, 50), (10**6, 3584, 4097), (10**6, 256, 70_000)])
def test_state_is_allocated_in_the_optimizers_chunks(slots: int, d: int, touched: int) -> None:
    size = RowFormat(slots, d, torch.float32, 32, master=False, device=torch.device("cpu")).chunk_rows
    expected = min(-(-touched // size) * size, slots)
    assert Scheme("float32").allocated_rows(slots, d, touched) == expected


def test_preparation_by_hand() -> None:
    """100,000 tokens of contexts and as many of general text, three layers of width 4096, bfloat16."""
    backbone = Backbone("any", 4096, 8192, 28, 32, 4096, 1000, 0, 0)
    work = dict(sub_keys=8, heads=1, top_k=8, key_dim=8, layers=(0, 1, 2), batch=1, length=1, answer=1, touched=0)
    sized = partial(Work, **work, dtype="bfloat16", general=100_000)
    moments = 2 * 3 * 4096 * 4096 * 8
    calibrating = moments + 8 * 4096 * (2 * 4096 + 8 * 4096)
    assert preparation_bytes(backbone, sized(contexts=100_000, gated=False)) == calibrating  # no input is kept
    rows = 180_000 * 4096 * 4
    every_layer = moments + 200_000 * 4096 * 2 * 4 + 2 * rows + rows // 2
    assert preparation_bytes(backbone, sized(contexts=100_000, subjects=False)) == every_layer
    shown = 100_000 + 100_000 * 75 // 110
    rows = shown * 4096 * 9 // 10
    gated = moments + 200_000 * 4096 * 2 + 2 * shown * 4096 * 2 + rows * 4 + rows * 2
    assert preparation_bytes(backbone, sized(contexts=100_000)) == gated
    line = make_plan(backbone, sized(contexts=100_000), vram=24, host=64)[1]
    assert line.host == gated and line.fits
    without = make_plan(backbone, sized(contexts=100_000), vram=24, host=1)
    assert not any(line.fits for line in without)
    assert all(
        cells[5].endswith("no: host") == line.fits_device
        for cells, line in zip(table_cells(without), without, strict=False)
    )


def test_answers_by_hand() -> None:
    """128 questions of 10 tokens, a cache of 2 layers x 2 x 8 values."""
    work = Work(64, 2, 8, 16, (0,), 4, 10, 5, "float32", 0)
    begin = 1280 * (2 * 2 * 8 * 4 + 3 * 32 * 4) + 1280 * 2 * (2 * 64 + 16) * 4
    assert answer_bytes(Backbone("any", 32, 48, 2, 4, 32, 100, 0, 0, 8), work) == begin


def test_every_phase_counts_what_stays() -> None:
    """A step and its answers hold the optimizer's state, preparation does not."""
    backbone = read_backbone("pocket")
    phases = [
        phases_on_cpu(backbone, Work(256, 8, 8, 64, (2, 4, 6), 32, 40, 13, "float32", touched), Scheme("float32"))
        for touched in (0, 60_000)
    ]
    grown = {name: phases[1][name] - phases[0][name] for name in phases[0]}
    assert grown == {"preparation": 0, "step": 60_000 * (2048 + 16), "answers": 60_000 * (2048 + 16)}


@pytest.mark.parametrize(("shape", "message"), [((2, 8, 8, 64), "64 or more"), ((8, 8, 8, 7), "even")])
def test_a_memory_that_cannot_be_built_is_refused(shape: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Work(*shape, (0,), 1, 1, 1, "float32", 0)


def test_addressing_is_what_a_memory_holds(tiny_backbone: Any) -> None:
    config = MemoryConfig(sub_keys=6, heads=2, top_k=3, key_dim=8, layers=[0, 2], gate=True)
    model = get_peft_model(tiny_backbone(), config)
    held = sum(
        tensor.numel() * tensor.element_size()
        for layer in memory_layers(model)
        for name, tensor in layer.state_dict().items()
        if "memlayers_" in name and "pool" not in name
    )
    work = Work(6, 2, 3, 8, (0, 2), 1, 1, 1, "float32", 0)
    backbone = Backbone("tiny", 32, 48, 4, 4, 32, 64, 0, 0)
    assert addressing_bytes(backbone, work) == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_saves(tiny_backbone: Any, dtype: str) -> None:
    """Distinct storages that are saved for backward, weights and rotary tables aside, against the plan's count."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "vocab_size": 512}
    backbone = tiny_backbone(max_position_embeddings=256, **sizes).to(getattr(torch, dtype)).requires_grad_(False)
    nudge = nn.Parameter(torch.zeros(64, dtype=backbone.dtype))
    backbone.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output + nudge)
    ids = torch.randint(3, 512, (4, 100), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -5:] = 0
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.dim() > 1:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=9)
    planned = Backbone("tiny", 64, 160, 6, 4, 64, 512, 0, 0)
    work = Work(8, 1, 4, 8, (1,), 4, 100, 9, dtype, 0)
    assert sum(saved.values()) == pytest.approx(saved_bytes(planned, work), rel=0.03)


# -- plans ----------------------------------------------------------------------------------------------------------


def test_more_slots_and_facts_need_more() -> None:
    backbone = read_backbone("qwen2.5-7b")
    small, large = (
        make_plan(backbone, Work(m, 1, 8, 64, (6, 14, 22), 4, 64, 16, "bfloat16", t), vram=24, host=64)
        for m, t in ((224, 50_000), (1000, 500_000))
    )
    for one, other in zip(small, large, strict=True):
        assert one.device < other.device or one.scheme.optimizer_device == "host"
        assert one.pool < other.pool and one.state < other.state
    assert touched_rows(10_000, 100, 20, 3, 8) < touched_rows(10_000, 200, 20, 3, 8) < 10_000
    assert touched_rows(100, 10**6, 20, 3, 8) == 100


@pytest.mark.parametrize(
    ("sub_keys", "touched", "vram", "chosen"),
    [
        (224, 50_000, 24, "float32, 32-bit state"),
        (224, 50_000, 80, "float32, 32-bit state"),
        (708, 100_000, 24, "bfloat16 stochastic, 32-bit state"),
        (708, 500_000, 24.5, "bfloat16 stochastic, 8-bit state"),
        (708, 500_000, 24, "bfloat16, host state"),
        (1000, 500_000, 24, "int8, host state"),
        (1000, 500_000, 16, "bfloat16, host state"),
        (1000, 500_000, 4, None),
    ],
)
def test_the_first_scheme_that_fits_is_recommended(
    sub_keys: int, touched: int, vram: float, chosen: str | None
) -> None:
    work = Work(sub_keys, 1, 8, 64, (6, 14, 22), 4, 64, 16, "bfloat16", touched)
    best = recommended(make_plan(read_backbone("qwen2.5-7b"), work, vram=vram, host=64))
    assert (best.scheme.name if best else None) == chosen
    if best is not None:
        assert best.device <= vram * GIB and (best.weights_dtype == "4-bit") == (vram == 16)


def test_processes_share_a_step_and_split_the_pool() -> None:
    backbone, scheme = read_backbone("qwen2.5-7b"), Scheme("bfloat16")
    alone = replace(WORK, batch=8)
    shared, split = replace(alone, gpus=8), replace(alone, gpus=8, split=True)

    def line(work: Work) -> Line:
        return next(each for each in make_plan(backbone, work, vram=24, host=64) if each.scheme == scheme)

    assert line(alone).traffic == 0
    assert line(shared).pool == line(alone).pool and line(split).pool * 8 == line(alone).pool
    assert line(shared).activations == line(split).activations < line(alone).activations / 7
    # Half of a state of 8 bits is blocks: 3584 columns are 28 of these, 4 for each of 7 processes and none for one.
    assert split.columns(3584) == 448 and split.columns(3584, optimizer_bits=8) == 512
    reads = 64 * 8 * (4 + 4)  # of one sequence, at one layer
    assert line(shared).traffic == 3 * 7 * (reads + 64 * 3584 * 2)
    assert line(split).traffic == 3 * 7 * (reads + 64 * (2 * 448 + 1) * 2)
    assert not any(each.scheme.half_rounding == "stochastic" for each in make_plan(backbone, split, vram=24, host=64))
    assert command(backbone, split, line(split)).startswith("torchrun --nproc-per-node 8 -m memlayers.cli teach ")


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("layers", [(6, 14, 22), (3, 9)])
def test_the_command_is_teachs(scheme: Scheme, layers: tuple[int, ...]) -> None:
    work = replace(WORK, layers=layers, key_dim=32)
    backbone = read_backbone("qwen2.5-7b")
    lines = make_plan(backbone, work, vram=24, host=64)
    line = next(line for line in lines if line.scheme == scheme)
    config = _config_of(command(backbone, work, line))
    assert config == TeachConfig().with_flags(
        backbone="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", sub_keys=708, heads=1, top_k=8, key_dim=32, batch_size=4,
        layers=None if layers == (6, 14, 22) else list(layers), pool_dtype=scheme.pool_dtype,
        optimizer=scheme.optimizer, optimizer_bits=scheme.optimizer_bits, optimizer_device=scheme.optimizer_device,
        half_rounding=scheme.half_rounding,
    )  # fmt: skip


def _config_of(words: str) -> TeachConfig:
    """What the flags of a command say."""
    flags = iter(shlex.split(words.removeprefix("memlayers teach ")))
    given: dict[str, Any] = {flag[2:].replace("-", "_"): value for flag, value in zip(flags, flags, strict=True)}
    assert given.pop("facts") and given.pop("out")
    values = {name: int(value) if value.isdigit() else value for name, value in given.items()}
    if "layers" in values:
        values["layers"] = [int(number) for number in given["layers"].split(",")]
    return TeachConfig().with_flags(**values)


def test_teach_is_told_the_backbone_as_it_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_backbone("qwen2.5-0.5b").name == "Qwen/Qwen2.5-0.5B-Instruct"
    assert read_backbone("Qwen/Qwen2.5-7B").name == "Qwen/Qwen2.5-7B"
    folder = tmp_path / "qwen2.5-7b"  # a folder of that name is what `teach` would load
    folder.mkdir()
    (folder / "config.json").write_text((CONFIGS / "qwen2.5-0.5b.json").read_text())
    monkeypatch.chdir(tmp_path)
    assert read_backbone("qwen2.5-7b").weights == read_backbone("qwen2.5-0.5b").weights
    assert read_backbone("qwen2.5-7b").name == "qwen2.5-7b"
    assert read_backbone("qwen2.5-7b/config.json").name == "qwen2.5-7b"


def test_default_layers_are_the_backbones() -> None:
    from memlayers import backbones

    assert all(list(default_layers(depth)) == backbones.default_layers(depth) for depth in range(1, 81))


def test_the_command_works_offline_and_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv[1:] = 'plan --backbone qwen2.5-7b --slots 1000000 --heads 1 --json'.split()\n"
        "from memlayers.cli import main\ntry:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["work"]["slots"] == 1_000_000 and len(found["lines"]) == 2 * len(SCHEMES)
    assert found["recommended"].startswith("memlayers teach --backbone Qwen/Qwen2.5-7B-Instruct ")


def test_a_gguf_file_is_read_for_its_shapes(chat_backbone: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = write_gguf(chat_backbone, tmp_path / "tiny.GGUF")
    folder, found = read_backbone(str(chat_backbone)), read_backbone(str(path))
    biases = folder.depth * (folder.attention + 2 * folder.kv)
    assert found == replace(folder, name=str(path)) and biases < found.other
    from memlayers.performance.planning import plan

    assert plan(str(path), slots=64).backbone.name == str(path)
    (tmp_path / "no.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    for name, reason in (("no.gguf", "cannot be read as a GGUF file"), ("not-there.gguf", "no such file")):
        with pytest.raises(InputError, match=reason) as error:
            read_backbone(str(tmp_path / name))
        assert "\n" not in str(error.value)
