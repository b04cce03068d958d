"""A memory is a PEFT method: transformers.Trainer and a plain loop train it as they train any adapter."""

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
from memlayers.encoding import Encoded, collate, encode_example, pad_token_id
from memlayers.tuner import MemoryConfig, value_pool

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
    assert torch.equal(pool, value_pool(memory, "default").weight)
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
    pools = [value_pool(model, "default").weight for model in (whole, first, second)]
    assert torch.equal(pools[2], pools[0])
    assert not torch.equal(pools[1], pools[0])
