"""What one of several processes does in tests/test_distributed.py; a case is a function of this module.

Every case teaches the same memory on a part of each batch, with the other processes, and compares with the plain loop
on whole batches: the same values, and the same bits in all processes. Teaching itself: helpers/ranks.py.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from memlayers.pool.row_adamw import RowAdamW
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner import MemoryConfig, memory_handle
from memlayers.utils.errors import InputError, WorkError

NAME = (61, 62)
WRAPPINGS: list[dict[str, Any]] = [
    {}, {"gradient_as_bucket_view": True}, {"find_unused_parameters": True}, {"static_graph": True},
]  # fmt: skip
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip


def run(cases: Sequence[str], rank: int, size: int, folder: str) -> None:
    """Runs cases as one of several processes, as far as the first one that fails; says of each how it went."""
    from helpers import columns, ranks

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size, timeout=timedelta(seconds=100)
    )
    said: dict[str, str] = {}
    for case in cases:
        try:
            modules = (sys.modules[__name__], ranks, columns)
            work = next(vars(module)[case] for module in modules if case in vars(module))
            work(*[Path(folder)][: len(signature(work).parameters)])
            if dist.is_initialized():  # a case may end the job
                dist.barrier()
            said[case] = ""
        except Exception:
            said[case] = traceback.format_exc()[-3000:]
        Path(folder, f"{rank}.json").write_text(json.dumps(said))
        if said[case]:
            os._exit(1)  # the other process waits for this one no longer


# -- the loops ------------------------------------------------------------------------------------------------------


def build(recipe: str = "addressed", **settings: Any) -> Any:
    torch.manual_seed(0)
    backbone = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    model = get_peft_model(backbone, MemoryConfig(recipe=recipe, sub_keys=8, heads=2, top_k=3, **settings)).train()
    pool = memory_handle(model).pool
    pool.initialise("normal", 0)
    return model


def batches(steps: int = 3) -> Tensor:
    return torch.randint(3, 60, (steps, 4, 9), generator=torch.Generator().manual_seed(1))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03, eps=1e-3)


def row_adamw(model: nn.Module) -> torch.optim.Optimizer:
    return RowAdamW([p for p in model.parameters() if p.requires_grad], lr=0.03, eps=1e-3)


def train(model: nn.Module, optimizer: Any, shares: list[list[Tensor]], no_sync: Any = nullcontext) -> None:
    """A step for each list of micro-batches."""
    for micro_batches in shares:
        for number, ids in enumerate(micro_batches):
            with no_sync() if number + 1 < len(micro_batches) else nullcontext():
                (model(input_ids=ids, labels=ids).loss / len(micro_batches)).backward()
        optimizer.step()
        optimizer.zero_grad()


def own_share(parts: int = 1) -> list[list[Tensor]]:
    return [list(ids.chunk(dist.get_world_size())[dist.get_rank()].chunk(parts)) for ids in batches()]


def trainable(model: nn.Module) -> dict[str, Tensor]:
    pools = [each for each in model.modules() if type(each) is ValuePool and each.before_read is not None]
    for pool in pools:
        pool.before_read(None)  # what RowAdamW has still to move
    return {
        name.removeprefix("module."): getattr(parameter, "full_tensor", parameter.clone)().detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.endswith("anchor")
    }


def expected(recipe: str = "addressed", optimizer: Any = adamw, **settings: Any) -> dict[str, Tensor]:
    """What the plain loop makes of whole batches, accumulated over parts: their rounding is that of the processes."""
    model = build(recipe, **settings)
    before = trainable(model)
    train(model, optimizer(model), [list(ids.chunk(dist.get_world_size())) for ids in batches()])
    after = trainable(model)
    assert after and not any(torch.equal(before[name], after[name]) for name in after)
    return after


def check(model: nn.Module, plain: dict[str, Tensor]) -> None:
    ours = trainable(model)
    assert ours.keys() == plain.keys(), (ours.keys(), plain.keys())
    for name, value in ours.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=5e-5)  # a step of Adam moves it by 0.03
        each = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(each, value)
        assert all(torch.equal(other, each[0]) for other in each), name


def refused(error: type[Exception], words: str, work: Callable[[], Any]) -> None:
    try:
        work()
    except error as raised:
        assert words in str(raised) and "\n" not in str(raised), raised
    else:
        raise AssertionError(f"not refused: {words}")


# -- DDP --------------------------------------------------------------------------------------------------------


def ddp() -> None:
    plain = expected()
    for options in WRAPPINGS:
        model = DistributedDataParallel(build(), **options)
        train(model, adamw(model), own_share())
        check(model, plain)


def ddp_row_adamw() -> None:
    plain, rank = expected(optimizer=row_adamw), dist.get_rank()
    for options in WRAPPINGS:
        bare = build()
        with torch.no_grad():
            memory_handle(bare).pool.weight += rank  # DDP begins with the first process's
        model, saved = DistributedDataParallel(bare, **options), set(bare.state_dict())
        optimizer = row_adamw(model)
        train(model, optimizer, own_share())
        check(model, plain)
        assert set(bare.state_dict()) == saved and not [name for name in saved if "anchor" in name]
        bare.load_state_dict(bare.state_dict())  # strict, the anchor there or not
        ids = batches()[0].chunk(dist.get_world_size())[rank]
        model(input_ids=ids, labels=ids).loss.backward()  # the log of all, not of this process's reads
        gradient: Any = memory_handle(bare).pool.weight.grad
        tokens = sum(len(entry.indices) for entry in gradient.entries)
        assert tokens == len(memory_handle(bare).layers) * batches()[0].numel() and not gradient.is_dense
    model = DistributedDataParallel(build("dense"))
    train(model, row_adamw(model), own_share())
    check(model, expected("dense", row_adamw))


def ddp_row_adamw_in_other_ways() -> None:
    """Accumulated, in int8, checkpointed, by accelerate, inside of which a forward is known by torch's own mark."""
    plain = expected(optimizer=row_adamw)
    for view in (False, True):
        model = DistributedDataParallel(build(), gradient_as_bucket_view=view)
        train(model, row_adamw(model), own_share(parts=2), model.no_sync)
        check(model, plain)
    model = DistributedDataParallel(build(pool_dtype="int8"))
    train(model, row_adamw(model), own_share())
    check(model, expected(optimizer=row_adamw, pool_dtype="int8"))
    for reentrant in (False, True):
        bare = build()
        bare.enable_input_require_grads()
        bare.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model = DistributedDataParallel(bare)
        train(model, row_adamw(model), own_share())
        check(model, plain)


def ddp_around_something_else() -> None:
    """A pool that DDP finds in a model of another kind is exchanged whole: torch's AdamW alone can teach it."""
    model = DistributedDataParallel(Reader())
    before = trainable(model)
    optimizer = row_adamw(model)
    model(4, 0).backward()
    refused(InputError, "DDP around anything but a PEFT model", optimizer.step)
    assert all(torch.equal(before[name], value) for name, value in trainable(model).items())


class Reader(nn.Module):
    """A pool alone, read by random tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ValuePool(40, 8)
        self.pool.initialise("normal", 0)

    def forward(self, tokens: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        indices = torch.randint(40, (tokens, 3), generator=generator)
        loss: Tensor = self.pool(indices, torch.rand(tokens, 3, generator=generator)).square().sum()
        return loss


def one_reads_nothing() -> None:
    """In one of the two processes no token reads."""
    sizes = [(4, 0), (0, 3), (0, 0), (2, 5)]

    def steps(model: nn.Module, own: slice) -> None:
        optimizer = adamw(model)
        for step, tokens in enumerate(sizes):
            reads = list(enumerate(tokens, start=2 * step))[own]
            torch.stack([model(n, seed) for seed, n in reads]).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    alone = Reader()
    steps(alone, slice(None))
    rank = dist.get_rank()
    for sharded in (False, True):
        reader = Reader()
        if sharded:
            shard(reader.pool, reader)
        shared = reader if sharded else DistributedDataParallel(reader)
        steps(shared, slice(rank, rank + 1))
        check(shared, trainable(alone))


def one_names_nobody() -> None:
    """Only one process's text mentions the subject: the other's gates stay closed, in teaching and in answering."""
    rank = dist.get_rank()
    named, unnamed = batches().clone(), batches(6)[3:]
    named[:, :, 2:4] = torch.tensor(NAME)
    shares = [[torch.cat(each)] for each in zip(named, unnamed, strict=True)]

    def taught() -> Any:
        model = build(subjects=True)
        index = memory_handle(model).index
        assert index is not None
        index.fill({NAME: NAME}, 30)
        return model

    for sharded, optimizer in ((False, adamw), (True, adamw), (False, row_adamw)):
        alone, model = taught(), taught()
        train(alone, optimizer(alone), shares)
        if sharded:
            shard(memory_handle(model).pool, *layers(model), model)
        shared = model if sharded else DistributedDataParallel(model)
        train(shared, optimizer(shared), [[ids.chunk(2)[rank]] for (ids,) in shares])
        check(shared, trainable(alone))
        with torch.no_grad():  # a process whose gates are closed takes part in gathering the pool
            ids = shares[0][0].chunk(2)[rank]
            torch.testing.assert_close(shared.eval()(ids).logits, alone.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def ddp_accumulates() -> None:
    plain = expected()
    for view in (False, True):
        model = DistributedDataParallel(build(), gradient_as_bucket_view=view)
        train(model, adamw(model), own_share(parts=2), model.no_sync)
        check(model, plain)
    model = DistributedDataParallel(build("dense"))
    train(model, adamw(model), own_share())
    check(model, expected("dense"))


def ddp_by_accelerate() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    for kind in (adamw, row_adamw):
        bare = build()
        model, optimizer = accelerator.prepare(bare, kind(bare))
        assert isinstance(model, DistributedDataParallel)
        for ids in (part for parts in own_share(parts=2) for part in parts):
            with accelerator.accumulate(model):
                accelerator.backward(model(input_ids=ids, labels=ids).loss)
                accelerator.clip_grad_norm_(model.parameters(), 1e9)
                optimizer.step()
                optimizer.zero_grad()
        check(model, expected(optimizer=kind))


def ddp_by_trainers() -> None:
    """transformers.Trainer and TRL's, all rows in each step: as the plain loop on them, the norm clipped as a whole."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in batches()[0]]
    settings: dict[str, Any] = {
        "max_steps": 3, "per_device_train_batch_size": 2, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "max_grad_norm": 0.05, "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "logging_strategy": "no", "gradient_checkpointing": False,
    }  # fmt: skip

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        ids = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    alone = build()
    optimizer = row_adamw(alone)
    for _ in range(3):
        ids = batches()[0]
        alone(input_ids=ids, labels=ids).loss.backward()
        assert torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.05) > 0.05
        optimizer.step()
        optimizer.zero_grad()
    plain = trainable(alone)
    with tempfile.TemporaryDirectory() as out:
        for trl in (False, True):
            model = build()
            common: dict[str, Any] = {"optimizers": (row_adamw(model), None), "data_collator": collate}
            if trl:
                plain_rows = SFTConfig(out, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, **settings)
                tokenizer = AutoTokenizer.from_pretrained(os.environ["CHAT_BACKBONE"])
                trainer: Any = SFTTrainer(
                    model, plain_rows, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **common
                )
            else:
                trainer = Trainer(model, TrainingArguments(out, **settings), train_dataset=rows, **common)
            trainer.train()
            assert isinstance(trainer.model_wrapped, DistributedDataParallel)
            check(model, plain)


# -- FSDP ---------------------------------------------------------------------------------------------------------


def fsdp() -> None:
    for recipe in ("addressed", "dense"):
        plain, model = expected(recipe), build(recipe)
        shard(memory_handle(model).pool, *layers(model), model)
        train(model, adamw(model), own_share())
        check(model, plain)
    plain, model = expected(), build()
    shard(model)  # in a unit that stays whole from the first read to the last
    train(model, adamw(model), own_share())
    check(model, plain)


def fsdp_accumulates() -> None:
    plain, model = expected(), build()
    shard(memory_handle(model).pool, *layers(model), model)

    @contextmanager
    def no_sync() -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)

    train(model, adamw(model), own_share(parts=2), no_sync)
    check(model, plain)


def fsdp_by_accelerate() -> None:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    plain, bare = expected(), build()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False,
        transformer_cls_names_to_wrap=["ValuePool", "Qwen2DecoderLayer"],
    )  # fmt: skip
    model, optimizer = Accelerator(cpu=True, fsdp_plugin=plugin).prepare(bare, adamw(bare))
    train(model, optimizer, own_share())
    check(model, plain)


def fsdp_refuses() -> None:
    ids = batches()[0]
    the_way = "as a unit of its own and before the rest: fully_shard(memory_handle(model).pool), then the"
    flat: dict[str, Any] = {"device_id": torch.device("cpu")}

    def attempt(model: Any) -> Callable[[], None]:
        return lambda: train(model, adamw(model), [[ids]])

    model = build()
    shard(*layers(model), model)
    refused(WorkError, f"and so must be one: shard it with FSDP2, {the_way}", attempt(model))
    for inner in (layers, lambda model: []):
        model = build()
        shard(*inner(model), model, ignored_params={memory_handle(model).pool.weight})
        before = trainable(model)
        refused(WorkError, "FSDP leaves the value pool out", attempt(model))
        assert all(torch.equal(before[name], value) for name, value in trainable(model).items())
    units = {ValuePool, Qwen2DecoderLayer}
    for whole, classes in ((False, units), (True, units), (True, {Qwen2DecoderLayer}), (True, set())):
        policy = ModuleWrapPolicy(classes)
        model = FullyShardedDataParallel(build(), use_orig_params=whole, auto_wrap_policy=policy, **flat)
        refused(WorkError, "flattened, as FSDP1 does: shard it with FSDP2", attempt(model))
    model = build()
    shard(memory_handle(model).pool, *layers(model), model)
    optimizer = RowAdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    model(input_ids=ids, labels=ids).loss.backward()
    refused(InputError, "take torch.optim.AdamW, or train without these", optimizer.step)


def layers(model: Any) -> list[nn.Module]:
    return list(model.get_base_model().model.layers)


def shard(*units: nn.Module, **options: Any) -> None:
    for unit in units:
        fully_shard(unit, **options)
