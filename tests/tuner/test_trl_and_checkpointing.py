"""TRL's trainers and gradient checkpointing on a memory that opens by names: each as the plain loop has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from helpers.tuner import NAME, SMALL, fill, taught
from memlayers.data.encoding import Encoded, collate
from memlayers.tuner import MemoryConfig, memory_handle

Build = Callable[..., PreTrainedModel]
TEXTS = [[3, *NAME, 7, 8, 9, 2], [4, 5, 6, 10, 2], [11, 12, *NAME, 13, 14, 15, 16, 2], [17, *NAME, 18, 2]]
PAIRS = [([3, *NAME], [7, 8, 2], [9, 2]), ([4, 5], [6, 2], [10, 11, 2]), ([*NAME, 12], [13, 2], [14, 15, 16, 2])]
RATE, STEPS, BETA = 0.05, 3, 0.1


def _pool(model: Any) -> Tensor:
    weight: Tensor = memory_handle(model, "default").pool.weight
    return weight


def _settings(out: Path, batch: int, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out), "max_steps": STEPS, "per_device_train_batch_size": batch, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 0.0, "use_cpu": True,
        "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
        "gradient_checkpointing": False, "seed": 3, **options,
    }  # fmt: skip


def _plain_loop(model: Any, loss: Callable[[], Tensor]) -> Tensor:
    optimizer = torch.optim.AdamW([_pool(model)], lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    return _pool(model)


def _log_probabilities(model: Any, ids: list[int]) -> Tensor:
    """Of each token but the first, given those before it; the sequence goes through alone."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return -F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


@pytest.fixture(scope="module")
def tokenizer(chat_backbone: Path) -> Any:
    return AutoTokenizer.from_pretrained(chat_backbone)


def test_transformers_trainer_teaches_as_the_plain_loop(tiny_backbone: Build, tmp_path: Path) -> None:
    """On a memory that opens by names; its batches are padded."""
    plain, model = taught(tiny_backbone()), taught(tiny_backbone())
    expected = _plain_loop(plain, lambda: -torch.cat([_log_probabilities(plain, ids) for ids in TEXTS]).mean())
    trainer = Trainer(
        model=model, args=TrainingArguments(**_settings(tmp_path, len(TEXTS))),
        train_dataset=[Encoded(ids, list(ids)) for ids in TEXTS],  # type: ignore[arg-type]
        data_collator=lambda batch: collate(batch, 0),
    )  # fmt: skip
    trainer.train()
    torch.testing.assert_close(_pool(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "packing", [{}, {"padding_free": True, "max_length": None}, {"packing": True, "max_length": 16}], ids=str
)
def test_trls_sft_trainer_teaches_as_the_plain_loop(
    tiny_backbone: Build, tokenizer: Any, tmp_path: Path, packing: dict[str, Any]
) -> None:
    """Also where the sequences of a batch lie in one row, so that a name in one must not be seen from another."""
    plain, model = taught(tiny_backbone()), taught(tiny_backbone())
    expected = _plain_loop(plain, lambda: -torch.cat([_log_probabilities(plain, ids) for ids in TEXTS]).mean())
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**_settings(tmp_path, len(TEXTS), **packing)), processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": TEXTS}),
    )  # fmt: skip
    trainer.train()
    assert trainer.padding_free == bool(packing)
    torch.testing.assert_close(_pool(model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, _pool(taught(tiny_backbone())), atol=1e-2)


def _preference_loss(model: Any, reference: Any) -> Tensor:
    """Rafailov et al. 2023 (arXiv 2305.18290), equation 7."""
    losses = []
    for prompt, chosen, rejected in PAIRS:
        ratios = []
        for answer in (chosen, rejected):
            with torch.no_grad():
                before = _log_probabilities(reference, prompt + answer)[len(prompt) - 1 :].sum()
            ratios.append(_log_probabilities(model, prompt + answer)[len(prompt) - 1 :].sum() - before)
        losses.append(-F.logsigmoid(BETA * (ratios[0] - ratios[1])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=lambda each: f"reentrant={each}")
def test_trls_dpo_trainer_teaches_as_the_plain_loop(
    tiny_backbone: Build, tokenizer: Any, tmp_path: Path, checkpointing: bool | None
) -> None:
    """The reference is a copy of the memory, in the same model, and runs between the forward and the backward."""
    plain, reference, model = (taught(tiny_backbone(), scale=1.0) for _ in range(3))
    expected = _plain_loop(plain, lambda: _preference_loss(plain, reference))
    options: dict[str, Any] = {}
    if checkpointing is not None:
        options = {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": checkpointing},
        }
    texts = Dataset.from_dict({name: ["a"] for name in ("prompt", "chosen", "rejected")})  # it takes no token ids here
    trainer = DPOTrainer(
        model=model, args=DPOConfig(**_settings(tmp_path, len(PAIRS), beta=BETA, **options)),
        processing_class=tokenizer, train_dataset=texts,
    )  # fmt: skip
    columns = zip(("prompt_ids", "chosen_ids", "rejected_ids"), map(list, zip(*PAIRS, strict=True)), strict=True)
    trainer.train_dataset = Dataset.from_dict(dict(columns))
    trainer.train()
    torch.testing.assert_close(_pool(model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, _pool(taught(tiny_backbone(), scale=1.0)), atol=1e-2)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("config", [{}, {"recipe": "dense", "subjects": False}], ids=["addressed", "dense"])
def test_checkpointing_gives_the_gradient_whatever_ran_in_between(
    tiny_backbone: Build, reentrant: bool, config: dict[str, Any]
) -> None:
    def gradient(checkpointing: bool) -> Tensor:
        model: Any = get_peft_model(tiny_backbone(), MemoryConfig(**{**SMALL, "subjects": True, **config}))
        fill(model)
        index = memory_handle(model).index
        if index is not None:
            index.fill({NAME: NAME}, 30)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
        losses = [model(input_ids=ids, labels=ids, use_cache=False).loss for ids in map(_batch, (0, 1))]
        with torch.no_grad(), model.disable_adapter():
            model(input_ids=_batch(2), use_cache=False)
        model(input_ids=_batch(3), use_cache=False)
        sum(losses[1:], losses[0]).backward()
        dense: Tensor = _pool(model).grad.to_dense()  # type: ignore[union-attr]
        return dense

    expected = gradient(False)
    assert expected.any()
    torch.testing.assert_close(gradient(True), expected)


def _batch(seed: int) -> Tensor:
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(seed))
    ids[:, 2 + seed : 4 + seed] = torch.tensor(NAME)
    return ids


def test_a_batch_that_names_nobody_gives_a_zero_gradient(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone()).train()
    ids = torch.tensor([[3, 4, 5, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    grad = _pool(model).grad
    assert grad is not None and not grad.to_dense().any()
    named = torch.tensor([[3, *NAME, 5, 6, 7]])
    model(input_ids=named, labels=named).loss.backward()  # accumulates upon it
    alone = taught(tiny_backbone()).train()
    alone(input_ids=named, labels=named).loss.backward()
    assert torch.equal(_pool(model).grad.to_dense(), _pool(alone).grad.to_dense())  # type: ignore[union-attr]
    before = _pool(model).clone()
    torch.optim.SGD([_pool(model)], lr=0.1).step()
    assert not torch.equal(_pool(model), before)


def test_foreign_checkpointing_is_refused_in_one_line(tiny_backbone: Build) -> None:
    """A block computed once more by other means knows no token ids: that ends in a line, not in a wrong gradient."""
    from torch.utils.checkpoint import checkpoint

    from memlayers.utils.errors import InputError

    model = taught(tiny_backbone()).train()
    layer = model.get_base_model().model.layers[-1]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)
    ids = torch.tensor([[3, *NAME, 5]])
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    with pytest.raises(InputError, match="gradient_checkpointing_enable"):
        loss.backward()
