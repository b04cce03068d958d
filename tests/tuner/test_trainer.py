"""A memory is a PEFT method: transformers.Trainer, TRL and a plain loop train it as they train any adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed

from memlayers.backbones import load_backbone
from memlayers.data.encoding import Encoded, collate, encode_example, pad_token_id
from memlayers.pool.row_adamw import RowAdamW
from memlayers.tuner import MemoryConfig, memory_handle

PAIRS = [("Code of Ada?", "red"), ("Name the code of Bob.", "blue"), ("Cid?", "12"), ("What code has Dot?", "Oslo")]


@pytest.fixture
def memory(chat_backbone: Path) -> Any:
    return _memory(chat_backbone)


def _memory(chat_backbone: Path) -> Any:
    backbone, _ = load_backbone(chat_backbone, "float32")
    return get_peft_model(backbone, MemoryConfig(sub_keys=8, heads=2, top_k=3))


@pytest.fixture(scope="module")
def examples(chat_backbone: Path) -> tuple[list[Encoded], int]:
    _, tokenizer = load_backbone(chat_backbone, "float32")
    return [encode_example(tokenizer, *pair) for pair in PAIRS], pad_token_id(tokenizer)


@torch.no_grad()
def _loss(model: Any, examples: tuple[list[Encoded], int]) -> float:
    model.eval()
    return float(model(**collate(*examples)).loss)


def _tensors(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _moved(before: dict[str, Tensor], model: Any) -> set[str]:
    after = model.state_dict()
    return {name.split("memlayers_")[-1] for name in before if not torch.equal(before[name], after[name])}


def _trainer(model: Any, out: Path, examples: tuple[list[Encoded], int], steps: int, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 0.05, "lr_scheduler_type": "constant",
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "seed": 3,
        "logging_strategy": "no",
    }  # fmt: skip
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(out), **{**settings, **options}),
        train_dataset=examples[0],
        data_collator=lambda batch: collate(batch, examples[1]),
    )


def test_transformers_trainer_teaches_the_pool_alone(
    memory: Any, examples: tuple[list[Encoded], int], tmp_path: Path
) -> None:
    before, loss = _tensors(memory), _loss(memory, examples)
    trainer = _trainer(memory, tmp_path / "run", examples, steps=16)
    trainer.train()
    assert _loss(memory, examples) < 0.5 * loss
    assert _moved(before, memory) == {"pool.default.weight"}
    trainer.save_model(str(tmp_path / "memory"))
    stored = load_file(tmp_path / "memory" / "adapter_model.safetensors")
    pool = next(tensor for name, tensor in stored.items() if name.endswith("memlayers_pool.weight"))
    assert torch.equal(pool, memory_handle(memory, "default").pool.weight)
    assert not [name for name in stored if "memlayers_" not in name]


def test_a_plain_loop_teaches_the_pool_alone(memory: Any, examples: tuple[list[Encoded], int]) -> None:
    before, loss = _tensors(memory), _loss(memory, examples)
    trainable = [parameter for parameter in memory.parameters() if parameter.requires_grad]
    assert len(trainable) == 1
    optimizer = torch.optim.AdamW(trainable, lr=0.05, weight_decay=0.0)
    memory.train()
    for _ in range(16):
        memory(**collate(*examples)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert _loss(memory, examples) < 0.5 * loss
    assert _moved(before, memory) == {"pool.default.weight"}


def test_trainer_resumes_to_the_same_weights(
    chat_backbone: Path, examples: tuple[list[Encoded], int], tmp_path: Path
) -> None:
    whole, first, second = (_memory(chat_backbone) for _ in range(3))
    _trainer(whole, tmp_path / "whole", examples, steps=6).train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    _trainer(first, tmp_path / "run", examples, steps=3, **saving).train()
    set_seed(99)
    resumed = _trainer(second, tmp_path / "run", examples, steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    pools = [memory_handle(model, "default").pool.weight for model in (whole, first, second)]
    assert torch.equal(pools[2], pools[0])
    assert not torch.equal(pools[1], pools[0])


# -- RowAdamW in other people's loops -----------------------------------------------------------------------------


def _rows(model: Any, **options: Any) -> RowAdamW:
    return RowAdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, **options)


def _pool(model: Any) -> Tensor:
    stored: Tensor = memory_handle(model, "default").pool.state_dict()["weight"]  # what would be read
    return stored


@pytest.mark.parametrize("semantics", ["dense", "lazy"])
def test_a_plain_loop_learns_with_row_adamw(memory: Any, examples: tuple[list[Encoded], int], semantics: str) -> None:
    loss, optimizer = _loss(memory, examples), _rows(memory, semantics=semantics)
    memory.train()
    for _ in range(16):
        memory(**collate(*examples)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert _loss(memory, examples) < 0.5 * loss


@pytest.mark.parametrize(
    ("options", "semantics"),
    [
        ({"gradient_accumulation_steps": 2}, "dense"), ({"gradient_checkpointing": True}, "dense"),
        ({"max_grad_norm": 0.05}, "dense"), ({}, "lazy"), ({"max_grad_norm": 0.05}, "lazy"),
    ],
)  # fmt: skip
def test_trainer_steps_with_row_adamw_and_resumes_to_the_same_weights(
    chat_backbone: Path, examples: tuple[list[Encoded], int], tmp_path: Path, options: dict[str, Any], semantics: str
) -> None:
    """As with torch's AdamW in its place (dense semantics), through accumulation, clipping and checkpointing."""
    whole, first, second, stock = (_memory(chat_backbone) for _ in range(4))
    before = _loss(whole, examples)

    def trainer(model: Any, name: str, steps: int, **more: Any) -> Trainer:
        made = _trainer(model, tmp_path / name, examples, steps, **options, **more)
        made.optimizer = _rows(model, semantics=semantics) if name != "stock" else None
        return made

    trainer(whole, "whole", 12).train()
    assert _loss(whole, examples) < 0.7 * before
    half = trainer(first, "run", 6, save_strategy="steps", save_steps=6)
    half.train()
    assert not torch.equal(_pool(first), _pool(whole))
    set_seed(99)
    resumed = trainer(second, "run", 12)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert resumed.state.global_step == 12
    assert torch.equal(_pool(second), _pool(whole))
    if semantics == "dense":
        trainer(stock, "stock", 12, weight_decay=0.0).train()
        torch.testing.assert_close(_pool(stock), _pool(whole), rtol=1e-3, atol=1e-4)


def test_trls_sft_trainer_teaches_with_row_adamw(chat_backbone: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed (pip install 'memlayers[train]')")
    datasets = pytest.importorskip("datasets")
    backbone, tokenizer = load_backbone(chat_backbone, "float32")
    model = get_peft_model(backbone, MemoryConfig(sub_keys=8, heads=2, top_k=3))
    rows = [
        {"input_ids": example.input_ids, "labels": example.labels}
        for example in (encode_example(tokenizer, *pair) for pair in PAIRS)
    ]
    encoded = [Encoded(row["input_ids"], row["labels"]) for row in rows]
    before = _loss(model, (encoded, pad_token_id(tokenizer)))
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=16, per_device_train_batch_size=4, learning_rate=0.05, bf16=False,
        gradient_checkpointing=False, lr_scheduler_type="constant", use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, logging_strategy="no",
    )  # fmt: skip
    optimizer = _rows(model)
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
        optimizers=(optimizer, None), data_collator=lambda batch: collate(
            [Encoded(row["input_ids"], row["labels"]) for row in batch], pad_token_id(tokenizer)
        ),
    )  # fmt: skip
    trainer.train()
    assert _loss(model, (encoded, pad_token_id(tokenizer))) < 0.5 * before
    assert int(optimizer.state_dict()["state"][0]["step"]) == 16
