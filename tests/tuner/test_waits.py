"""How often a pass must know what a tensor holds. On a GPU each time is a wait, and here they can be counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from helpers.tuner import NAME, logits, taught
from memlayers.data.encoding import Encoded
from memlayers.inference.scoring import answer_logits
from memlayers.pool.optimizers import gradients_are_finite
from memlayers.teaching.shared_step import Passes
from memlayers.tuner import memory_handle

Build = Callable[..., PreTrainedModel]
NAMED = torch.tensor([[3, *NAME, 4, 5, 6], [3, 4, 5, 6, 7, 8], [9, 8, 7, *NAME, 6]])
PLAIN = torch.tensor([[3, 4, 5, 6, 7, 8]])
_ASKING = ("_local_scalar_dense", "nonzero", "_unique2", "unique_consecutive", "bincount", "masked_select")


class Asked(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations whose result, or its shape, is known only when the data is."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(each is not None and each.dtype == torch.bool for each in args[1])
        if name in _ASKING or by_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("layer", "forward_pass", "subject_index"):
        monkeypatch.setattr(f"memlayers.tuner.{module}.asks", lambda x: False)
    monkeypatch.setattr("memlayers.kernels.operators.checked", lambda indices, slots: indices)


@pytest.mark.parametrize("ids", [NAMED, PLAIN], ids=["named", "plain"])
@pytest.mark.parametrize("gate", [False, True])
def test_a_pass_asks_which_tokens_read_and_nothing_else(
    tiny_backbone: Build, monkeypatch: pytest.MonkeyPatch, gate: bool, ids: torch.Tensor
) -> None:
    model = taught(tiny_backbone(num_hidden_layers=2), scale=1.0, gate=gate, gate_hidden=8)
    expected = logits(model, ids)
    _as_on_a_gpu(monkeypatch)
    asked = Asked()
    with torch.no_grad(), asked:
        found = model(ids, attention_mask=None).logits
    assert asked.counts == {"_local_scalar_dense": 1, "nonzero": 1}  # whether the index is filled; the open tokens
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_counts_of_an_answer_is_looked_up_before_the_pass(
    tiny_backbone: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = taught(tiny_backbone(num_hidden_layers=1), scale=1.0)
    examples = [Encoded([3, *NAME, 4, 5], [-100] * (len(NAME) + 1) + [4, 5]), Encoded([3, 4, 5], [-100, -100, 5])]
    _as_on_a_gpu(monkeypatch)
    asked = Asked()
    forward, seen = model.forward, list[Counter[str]]()

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(Counter(asked.counts))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    with torch.no_grad(), asked:
        out = answer_logits(model, SimpleNamespace(pad_token_id=0), examples)  # type: ignore[arg-type]
        right, sure = out.right(), out.log_probability()
    (before,) = seen
    # The pass's own two, and transformers', which looks whether sequences are packed.
    assert asked.counts - before == {"_local_scalar_dense": 2, "nonzero": 1}
    assert len(right) == len(sure) == 2 and out.lengths.tolist() == [2, 1] and out.sequence.tolist() == [0, 0, 1]


def test_a_step_reads_losses_at_once_and_gradients_at_once(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone(num_hidden_layers=1), scale=1.0)
    model(NAMED).logits.square().mean().backward()
    beside = torch.nn.Parameter(torch.ones(2))
    beside.grad = torch.ones(2)
    asked = Asked()
    with asked:
        assert gradients_are_finite([memory_handle(model).pool.parameter, beside])
    assert asked.counts == {"_local_scalar_dense": 1}
    beside.grad[1] = torch.nan
    assert not gradients_are_finite([memory_handle(model).pool.parameter, beside])
    passes = [(torch.tensor(0.1), torch.tensor([True, False])), (torch.tensor(0.2), torch.tensor([True]))]
    assert Passes.of(passes) == Passes([float(loss) for loss, _ in passes], [True, False, True])
    assert Passes.of([]) == Passes([], [])
