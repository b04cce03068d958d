from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from helpers.tuner import seen
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers
from memlayers.tuner.boundary_flags import Boundary
from memlayers.tuner.letters import Letters
from memlayers.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
FORM = (7, 8, 9)


def _model(
    backbone: PreTrainedModel, forms: tuple[tuple[int, ...], ...] = (FORM,), scope: int = 4, weight: float = 0.0
) -> Any:
    config = MemoryConfig(
        layers=[0, 2], sub_keys=8, heads=2, top_k=3, gate=True, gate_hidden=8, subjects=True,
        subject_weight=weight,
    )  # fmt: skip
    model = get_peft_model(backbone, config).eval()
    memory_handle(model, "default").pool.initialise("normal", 0)
    memory_layers(model)[0].memlayers_subjects["default"].fill({form: form for form in forms}, scope)
    return model


@torch.no_grad()
def _both(model: Any, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Logits with the memory and without."""
    after = model(ids, **options).logits
    with model.disable_adapter():
        return after, model(ids, **options).logits


def test_the_memory_is_read_after_a_mention_and_within_its_scope(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    ids = torch.tensor([[3, 4, *FORM, 5, 6, 10, 11, 12, 13]])
    assert seen(model, ids).subjects["default"].nonzero().flatten().tolist() == [5, 6, 7, 8]
    after, before = _both(model, ids)
    assert torch.equal(after[:, :5], before[:, :5])
    assert not torch.equal(after[:, 5], before[:, 5])


def test_a_text_without_a_stored_name_keeps_the_backbones_bits(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    after, before = _both(model, torch.tensor([[3, 4, 7, 8, 5], [9, 8, 7, 9, 9]]))
    assert torch.equal(after, before)


def test_until_it_is_filled_an_index_holds_nothing_back(tiny_backbone: Build) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(layers=[0, 2], sub_keys=8, top_k=3, subjects=True)).eval()
    memory_handle(model, "default").pool.initialise("normal", 0)
    after, before = _both(model, torch.tensor([[3, 4, 5]]))
    assert not torch.equal(after[:, 0], before[:, 0])


def test_a_mention_that_continues_is_none(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    index: Any = memory_layers(model)[0].memlayers_subjects["default"]
    flags = torch.zeros(64, dtype=torch.uint8)
    flags[[20, 63]] = Boundary.CONTINUES
    index.fill({FORM: FORM}, 4, flags)
    for follower, places in ((20, []), (63, []), (21, [4, 5, 6, 7])):
        ids = torch.tensor([[3, *FORM, follower, 5, 5, 5, 5]])
        assert seen(model, ids).subjects["default"].nonzero().flatten().tolist() == places
        cache = model(ids[:, :4], use_cache=True).past_key_values
        assert seen(model, ids[:, 4:], past_key_values=cache).subjects["default"].bool().sum() == len(places)
    assert not index.mentions(torch.tensor([[20, 63]])).any()


@pytest.mark.parametrize("pieces", [(1,) * 11, (3, 8), (4, 1, 6), (10, 1)])
def test_pieces_with_a_cache_decide_as_the_whole(tiny_backbone: Build, pieces: tuple[int, ...]) -> None:
    model = _model(tiny_backbone(), scope=5)
    ids = torch.tensor([[3, 4, *FORM, 5, 6, 10, 11, 12, 13], [3, 4, 5, 5, 5, 5, 6, *FORM, 13]])
    whole = seen(model, ids)
    cache, reads, logits = None, [], []
    for piece in ids.split(list(pieces), dim=1):
        part = seen(model, piece, past_key_values=cache, use_cache=True)
        cache = part.output.past_key_values
        reads.append(part.subjects["default"].view(len(ids), -1))
        logits.append(part.output.logits)
    expected = whole.subjects["default"].view(len(ids), -1)
    assert torch.equal(torch.cat(reads, 1), expected)
    assert expected.any() and not expected.all()
    torch.testing.assert_close(torch.cat(logits, 1), whole.output.logits)


def test_a_copied_and_a_cropped_cache_keep_their_history(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), scope=20)
    cache = DynamicCache(config=model.config)
    seen(model, torch.tensor([[3, *FORM[:2]]]), past_key_values=cache)
    copied = copy.deepcopy(cache)
    after = seen(model, torch.tensor([[FORM[2], 5]]), past_key_values=cache)
    assert after.subjects["default"].bool().tolist() == [False, True]
    other = seen(model, torch.tensor([[5, 5]]), past_key_values=copied)  # another continuation of the same start
    assert not other.subjects["default"].any()
    cache.crop(-2)  # the name's last token is taken back
    assert not seen(model, torch.tensor([[5, 5]]), past_key_values=cache).subjects["default"].any()


def test_beams_and_padding_on_the_left_decide_per_row(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), scope=30)
    ids = torch.tensor([[0, 0, 3, *FORM], [3, 4, 5, 6, 10, 11]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    for beams in (1, 2):
        generated = seen(
            model, call="generate", input_ids=ids, attention_mask=mask, num_beams=beams, do_sample=False,
            max_new_tokens=3, min_new_tokens=3, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        assert generated.subjects["default"].bool().tolist() == [True] * beams + [False] * beams


def test_the_layers_follow_the_first_ones_decision(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    first, second = memory_layers(model)
    assert "default" in first.memlayers_gate and "default" not in second.memlayers_gate
    gate: Any = first.memlayers_gate["default"]
    gate.trained.fill_(1)
    gate.threshold.fill_(1e9)  # closed for every token: the other layer has no say
    after, before = _both(model, torch.tensor([[3, *FORM, 5]]))
    assert torch.equal(after, before)
    gate.threshold.fill_(-1e9)
    opened = seen(model, torch.tensor([[3, *FORM, 5, 5]])).opened["default"]
    assert opened is not None and opened.tolist() == [4, 5]


def _half_open(model: Any) -> Any:
    """Gives the gate a mind of its own: it opens for about a third of the tokens. Its decisions are returned."""
    gate: Any = memory_layers(model)[0].memlayers_gate["default"]
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    gate.trained.fill_(1)
    seen: list[Tensor] = []
    gate.register_forward_hook(lambda _, __, logits: seen.append(logits))
    gate.threshold.fill_(-1e9)
    with torch.no_grad():
        model(torch.tensor([[3, *FORM, *range(10, 30)]]))
    gate.threshold.copy_(torch.cat(seen).quantile(0.67))
    seen.clear()
    return gate


def test_a_gate_that_has_opened_stays_open_until_the_next_mention(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), scope=9)
    gate = _half_open(model)
    ids = torch.tensor([[3, *FORM, *range(10, 22), *FORM, *range(30, 42)]])
    tried: list[Tensor] = []
    gate.register_forward_hook(lambda _, __, logits: tried.append(logits > gate.threshold))
    found = seen(model, ids)
    subjects = found.subjects["default"] != 0
    (opened,) = tried  # one entry per token that may read
    alone = torch.zeros_like(subjects)
    alone[subjects] = opened
    expected = alone.clone()
    for t in range(1, ids.shape[1]):
        same_name = bool(subjects[t] and subjects[t - 1]) and t != 16 + len(FORM)
        expected[t] = alone[t] | (expected[t - 1] & same_name)
    assert found.opened["default"] is not None
    assert found.opened["default"].tolist() == expected.nonzero().flatten().tolist()
    assert alone.sum() < expected.sum() < subjects.sum()


@pytest.mark.parametrize("pieces", [(1,) * 28, (3, 25), (6, 1, 21)])
def test_a_gate_stays_open_across_the_pieces_of_a_text(tiny_backbone: Build, pieces: tuple[int, ...]) -> None:
    model = _model(tiny_backbone(), scope=9)
    _half_open(model)
    ids = torch.tensor([[3, *FORM, *range(10, 22), *FORM, *range(30, 39)], [3] * 20 + [*FORM, 50, 51, 52, 53, 54]])
    with torch.no_grad():
        whole = model(ids).logits
        cache, logits = None, []
        for piece in ids.split(list(pieces), dim=1):
            out = model(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole)


def test_two_memories_have_subjects_of_their_own(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    config = MemoryConfig(layers=[0, 2], sub_keys=8, heads=2, top_k=3, subjects=True)
    model.add_adapter("other", config)
    memory_handle(model, "other").pool.initialise("normal", 1)
    memory_layers(model)[0].memlayers_subjects["other"].fill({(3, 4): (3, 4)}, 3)
    ids = torch.tensor([[5, *FORM, 5], [5, 3, 4, 5, 5]])
    for adapter, row in (("default", 0), ("other", 1)):
        model.set_adapter(adapter)
        after, before = _both(model, ids)
        assert torch.equal(after[1 - row], before[1 - row]) and not torch.equal(after[row], before[row])
    model.delete_adapter("other")
    model.set_adapter("default")
    after, before = _both(model, ids)
    assert torch.equal(after[1], before[1])


def test_embeddings_in_place_of_tokens_are_refused(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    with pytest.raises(InputError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 32))


def test_an_index_is_saved_loaded_and_taken_away_with_its_memory(tiny_backbone: Build, tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    model = _model(AutoModelForCausalLM.from_pretrained(tmp_path / "backbone"), forms=(FORM, (11,)))
    index: Any = memory_layers(model)[0].memlayers_subjects["default"]
    index.thresholds.copy_(torch.tensor([0.25, 0.5]))
    model.save_pretrained(tmp_path / "memory")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "backbone"), tmp_path / "memory")
    again: Any = memory_layers(loaded)[0].memlayers_subjects["default"]
    for name, tensor in index.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor) and again.state_dict()[name].dtype == tensor.dtype
    ids = torch.tensor([[3, *FORM, 5], [5, 5, 11, 5, 5]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        bare = loaded.unload()
        assert not bare.base_model._forward_pre_hooks and not bare.base_model._forward_hooks
        assert torch.equal(bare(ids).logits, _both(model, ids)[1])


def test_a_deep_copy_watches_its_own_tokens(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    twin = copy.deepcopy(model)
    assert memory_layers(twin)[0].hooks is not memory_layers(model)[0].hooks
    ids = torch.tensor([[3, *FORM, 5]])
    with torch.no_grad():
        assert torch.equal(twin(ids).logits, model(ids).logits)
    memory_handle(twin, "default").pool.weight.data.zero_()
    after, before = _both(twin, ids)
    assert torch.equal(after, before)


def test_the_latest_mention_counts_until_its_scope_ends(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), (FORM, (5,)), scope=3)
    found = seen(model, torch.tensor([[3, *FORM, 4, 5, 4, 4, 4]]))
    first, second = Letters.none(64).fingerprint(FORM), Letters.none(64).fingerprint((5,))
    assert found.subjects["default"].tolist() == [0, 0, 0, 0, first, first, second, second, second]


def test_teaching_and_answering_by_the_cache_read_the_same_slots(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), scope=30, weight=2.0)
    ids = torch.tensor([[3, 4, *FORM, 5, 6, 10, 11, 12, 13]])
    with torch.no_grad():
        whole = model(ids).logits
        cache = model(ids[:, :6], use_cache=True).past_key_values
        rest = model(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 6:])
