"""What one of several processes does with a pool split by columns; a case is a function of this module.

Every case compares with one process that holds the whole pool and reads for all of them in turn: the same bits.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import cpu_offload
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from helpers.distributed import NAME, SIZES, batches, build, layers, refused, shard, trainable
from helpers.ranks import settings_of
from helpers.teaching import FACTS, adapter_bytes, teach
from memlayers.editing.memory import load_memory
from memlayers.inference import generation
from memlayers.pool.columns import Columns
from memlayers.pool.row_adamw import RowAdamW
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner import memory_handle
from memlayers.tuner.handle import splitting_pools
from memlayers.utils.errors import InputError, WorkError

DTYPES = (torch.float32, torch.bfloat16, torch.int8)
OPTIMIZERS: tuple[dict[str, Any], ...] = ({}, {"semantics": "lazy"}, {"state_bits": 8}, {"state_device": "host"})


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def reads(slots: int, dim: int, step: int, layer: int, process: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slots, weights and a wanted value for some tokens of a process: in some steps none, or none of any process."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * layer + process)
    n = 0 if step == 1 else (3, 0, 5, 1)[(process + step) % 4]
    indices = torch.randint(slots, (n, 3), generator=generator)
    return indices, torch.rand(n, 3, generator=generator), torch.randn(n, dim, generator=generator)


def learn(pool: ValuePool, optimizer: RowAdamW, processes: list[int]) -> list[float]:
    """Steps on the reads of these processes, two a step; the clipped norms."""
    norms = []
    for step in range(4):
        for process in processes:
            losses = []
            for layer in range(2):
                indices, weights, wanted = reads(pool.slots, pool.dim, step, layer, process)
                losses.append((pool(indices, weights) - wanted).square().sum())
            (losses[0] + losses[1]).backward()  # type: ignore[no-untyped-call]
        norms.append(float(torch.nn.utils.clip_grad_norm_([pool.parameter], 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    optimizer.flush()
    return norms


def split_pool_alone() -> None:
    """Every storage and every state; widths that do not divide, and of which a process holds padding only."""
    everybody, own = list(range(dist.get_world_size())), [dist.get_rank()]
    for dtype, (number, options) in itertools.product(DTYPES, enumerate(OPTIMIZERS)):
        dim = (19, 24, 300, 7)[number]
        columns = Columns(mesh(), dim, unit=128 if "state_bits" in options else 1, average=False)
        whole, part = ValuePool(30, dim, dtype), ValuePool(30, dim, dtype, columns=columns)
        for pool in (whole, part):
            pool.initialise("normal", 0)
        norms = learn(whole, RowAdamW([whole.parameter], lr=0.05, **options), everybody)
        assert norms == learn(part, RowAdamW([part.parameter], lr=0.05, **options), own)
        for name, value in whole.state_dict().items():
            got = part.state_dict()[name]
            assert torch.equal(got.full_tensor()[:, :dim] if isinstance(got, DTensor) else got, value), (dtype, options)
        indices, weights, _ = reads(30, dim, 0, 0, own[0])
        with torch.no_grad():
            assert torch.equal(part(indices, weights), whole(indices, weights))


def split_states_travel() -> None:
    """Pool and optimizer saved by several processes, taken up by one, and the other way round."""
    everybody, own = list(range(dist.get_world_size())), [dist.get_rank()]
    for dtype, options in ((torch.float32, {}), (torch.int8, {"state_bits": 8})):
        columns = Columns(mesh(), 300, unit=128 if options else 1, average=False)

        def fresh(split: bool, dtype: torch.dtype = dtype, columns: Columns = columns) -> ValuePool:
            pool = ValuePool(30, 300, dtype, columns=columns if split else None)
            pool.initialise("normal", 0)
            return pool

        pools = {split: fresh(split) for split in (False, True)}
        optimizers = {split: RowAdamW([pools[split].parameter], lr=0.05, **options) for split in pools}
        for split, pool in pools.items():
            learn(pool, optimizers[split], own if split else everybody)
        states = {split: (pools[split].state_dict(), optimizers[split].state_dict()) for split in pools}
        assert any(isinstance(value, DTensor) for value in states[True][1]["state"][0].values())

        def together(tensors: dict[str, Any], columns: Columns = columns) -> dict[str, Any]:
            return {name: columns.together(value) for name, value in tensors.items()}

        values, state = states[True]
        whole = together(values), {**state, "state": {0: together(state["state"][0])}}
        results = []
        for split, (values, state) in ((False, states[False]), (False, whole), (True, whole), (True, states[True])):
            pool = fresh(split)
            pool.load_state_dict(values)
            optimizer = RowAdamW([pool.parameter], lr=0.05, **options)
            optimizer.load_state_dict(state)
            norms = learn(pool, optimizer, own if split else everybody)
            values = pool.table.values
            results.append((norms, columns.whole(values) if split else values))
        for norms, values in results[1:]:
            assert norms == results[0][0] and torch.equal(values, results[0][1])


def split_weights_learn() -> None:
    """The gradient of the weights, which all columns have a part in."""
    part = ValuePool(30, 19, columns=Columns(mesh(), 19))
    whole = ValuePool(30, 19)
    for pool in (whole, part):
        pool.initialise("normal", 0)
    indices, weights, wanted = reads(30, 19, 0, 0, dist.get_rank())
    found = []
    for pool in (whole, part):
        learning = weights.clone().requires_grad_()
        (pool(indices, learning) * wanted).sum().backward()  # type: ignore[no-untyped-call]
        found.append(learning.grad)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def split_model(recipe: str = "addressed", **settings: Any) -> Any:
    with splitting_pools(mesh()):
        return build(recipe, **settings)


def split_memory_learns() -> None:
    """A model taught as DDP would, each process on its share of a batch: the mean of their gradients."""
    alone, shared = build(), split_model()
    size, rank = dist.get_world_size(), dist.get_rank()
    optimizers = [RowAdamW([memory_handle(model).pool.parameter], lr=0.03) for model in (alone, shared)]
    for ids in batches():
        for share in ids.chunk(size):
            (alone(input_ids=share, labels=share).loss / size).backward()
        share = ids.chunk(size)[rank]
        shared(input_ids=share, labels=share).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    whole, own = memory_handle(alone).pool.state_dict()["weight"], memory_handle(shared).pool.state_dict()["weight"]
    torch.testing.assert_close(own.full_tensor()[:, : whole.shape[1]], whole, rtol=1e-5, atol=1e-6)


def split_beside_a_placed_backbone() -> None:
    """The pool is split; FSDP2 or a device map has parts of the backbone: taught as beside one that each has whole."""
    found = []
    for placed in ("whole", "sharded", "offloaded"):
        model = split_model()
        pool = memory_handle(model).pool
        if placed == "sharded":
            shard(*layers(model), model, ignored_params=set(pool.parameters()))
            assert any(isinstance(each, DTensor) for each in model.parameters())
        elif placed == "offloaded":  # as a device map has it
            for layer in layers(model)[::2]:
                cpu_offload(layer.self_attn, torch.device("cpu"))
                assert layer.self_attn.q_proj.weight.is_meta
        optimizer = RowAdamW([pool.parameter], lr=0.03)
        for ids in batches():
            share = ids.chunk(dist.get_world_size())[dist.get_rank()]
            model(input_ids=share, labels=share).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(pool.state_dict()["weight"].full_tensor())
    assert all(torch.equal(found[0], each) for each in found)
    for inner in (layers, lambda model: [memory_handle(model).pool, *layers(model)]):
        model = split_model()
        shard(*inner(model), model)  # the pool is in one of the units
        refused(WorkError, "leave it out of each unit", partial(model, batches()[0]))


def split_and_nobody_is_named() -> None:
    """In all but one process gates stay closed: they take part in its reads."""
    models = [build(subjects=True), split_model(subjects=True)]
    ids = batches()[0].clone()
    if dist.get_rank() == 0:
        ids[:, 2:4] = torch.tensor(NAME)
    for model in models:
        index = memory_handle(model).index
        assert index is not None
        index.fill({NAME: NAME}, 30)
        model.eval()
    with torch.no_grad():
        assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def split_saved_and_loaded(folder: Path) -> None:
    """One adapter folder, which one process loads, and several; and torch's own checkpoint."""
    for dtype in ("bfloat16", "int8"):
        alone, shared = build(pool_dtype=dtype), split_model(pool_dtype=dtype)
        here = folder / dtype
        memory_handle(shared).save(here)
        dist.barrier()
        kept = memory_handle(alone).pool.state_dict()
        written = load_file(here / "adapter_model.safetensors")
        (name,) = (name for name in written if name.endswith(("pool.weight", "pool.codes")))
        assert torch.equal(written[name], kept[name.rpartition(".")[2]])
        torch.manual_seed(0)
        plain = PeftModel.from_pretrained(Qwen2ForCausalLM(Qwen2Config(**SIZES)), str(here))
        torch.manual_seed(0)
        with splitting_pools(mesh()):
            again = PeftModel.from_pretrained(Qwen2ForCausalLM(Qwen2Config(**SIZES)), str(here))
        ids = batches()[0]
        with torch.no_grad():
            logits = [model.eval()(ids).logits for model in (alone, plain, shared, again)]
        assert all(torch.equal(logits[0], each) for each in logits[1:])
    state = {"pool": memory_handle(split_model()).pool.state_dict()["weight"]}
    save_checkpoint(state, checkpoint_id=str(folder / "torch"))
    value = trainable(build())
    (whole,) = (each for name, each in value.items() if "pool" in name)
    read = {"pool": torch.zeros_like(whole)}
    load_checkpoint(read, checkpoint_id=str(folder / "torch"), no_dist=True)
    assert torch.equal(read["pool"], whole)


def split_pool_is_taught_the_same_bytes(folder: Path) -> None:
    """Each process holds some columns; the folder is that of one process which holds all. Opened by all of them.

    In the dense recipe the gradient of a read's weights is a sum over columns, so that it is the same but for rounding.
    """
    generation.MAX_NEW_TOKENS = 8
    for name in ("gated", "dense"):
        config, out = settings_of(folder, name), folder / f"{name}-split-{dist.get_world_size()}"
        memory = teach(out, replace(config, machine=replace(config.machine, shard_pool="columns")))
        if name == "gated":
            assert adapter_bytes(out) == adapter_bytes(folder / "gated-1")
        alone = json.loads((folder / f"{name}-report.json").read_text())
        losses = [[point["loss"] for point in alone["curve"]], [point.loss for point in memory.report.curve]]
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-3, atol=1e-3)
        with splitting_pools(mesh()):
            again = load_memory(out)
        assert memory_handle(again.model).pool.columns is not None
        assert again.ask(FACTS[0].questions[0]).text == memory.ask(FACTS[0].questions[0]).text
        if name == "gated" and dist.get_rank() == 0:
            refused(InputError, "edit it in one", partial(memory.forget, ids=[FACTS[0].id]))


def split_refuses() -> None:
    columns = Columns(mesh(), 19)
    for dtype, options, words in (
        (torch.bfloat16, {"rounding": "stochastic"}, "take rounding='master'"),
        (torch.float32, {"state_bits": 8}, "Columns(unit=128)"),
        (torch.int8, {"weight_decay": 0.1}, "take 0, or a bfloat16 pool"),
    ):
        pool = ValuePool(30, 19, dtype, columns=columns)
        pool.initialise("normal", 0)
        indices, weights, _ = reads(30, 19, 0, 0, 0)
        pool(indices, weights).sum().backward()  # type: ignore[no-untyped-call]
        refused(InputError, words, RowAdamW([pool.parameter], **options).step)  # type: ignore[arg-type]
