"""A memory under threads, packing, paged and other caches, beams, embeddings, and several memories at once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftMixedModel, get_peft_model
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from helpers.tuner import NAME, SMALL, fill, logits, seen, taught
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers, without_memory
from memlayers.tuner.token_history import HistoryLayer
from memlayers.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def _prompts(count: int, seed: int = 0, lengths: tuple[int, int] = (5, 12)) -> list[Tensor]:
    """Random texts, int64 [1, t]; every other one names the subject."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for number in range(count):
        length = int(torch.randint(*lengths, (), generator=generator))
        ids = torch.randint(3, 60, (1, length), generator=generator)
        if number % 2 == 0:
            ids[0, 1:3] = torch.tensor(NAME)
        prompts.append(ids)
    return prompts


def _generate(model: Any, ids: Tensor, **options: Any) -> list[int]:
    options = {**GREEDY, "max_new_tokens": 8, **options}
    mask = options.pop("attention_mask", torch.ones_like(ids))
    generated = model.generate(input_ids=ids, attention_mask=mask, **options)
    new: list[int] = generated[0, ids.shape[1] :].tolist()
    return new


def test_the_memory_of_these_tests_changes_what_is_said(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    named, unnamed = _prompts(2)
    with without_memory(model):
        bare = [_generate(model, ids) for ids in (named, unnamed)]
    assert _generate(model, named) != bare[0] and _generate(model, unnamed) == bare[1]


# -- threads ----------------------------------------------------------------------------------------------------


def test_threads_give_the_logits_of_one_after_the_other(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    prompts = _prompts(40)
    expected = [logits(model, ids) for ids in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda ids: logits(model, ids), prompts))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_threads_that_generate_and_threads_without_the_memory_do_not_touch(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    prompts = _prompts(12)

    def bare(ids: Tensor) -> list[int]:
        with without_memory(model):
            return _generate(model, ids)

    expected = [(_generate(model, ids), bare(ids)) for ids in prompts]
    with ThreadPoolExecutor(4) as pool:
        with_memory = [pool.submit(_generate, model, ids) for ids in prompts]
        without = [pool.submit(bare, ids) for ids in prompts]
    assert [(a.result(), b.result()) for a, b in zip(with_memory, without, strict=True)] == expected


def test_a_forward_pass_that_fails_leaves_nothing_behind(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    (ids,) = _prompts(1)
    expected = logits(model, ids)
    with pytest.raises(IndexError):
        model(torch.tensor([[3, *NAME, 64_000]]))
    assert torch.equal(logits(model, ids), expected)


# -- packing ----------------------------------------------------------------------------------------------------


def test_packed_sequences_are_apart(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    parts = _prompts(5, seed=3)
    parts[1] = torch.tensor([[NAME[1], 5, 6, 7]])  # the last token of the one before it, and this, are no name
    parts[0][0, -1] = NAME[0]
    packed = torch.cat(parts, 1)
    places = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    with torch.no_grad():
        together = model(input_ids=packed, position_ids=places, use_cache=False).logits
    for part, found in zip(parts, together.split([part.shape[1] for part in parts], 1), strict=True):
        torch.testing.assert_close(found, logits(model, part))
    subjects = seen(model, input_ids=packed, position_ids=places, use_cache=False).subjects["default"]
    assert subjects.bool().tolist() == [bool(each) for part in parts for each in seen(model, part).subjects["default"]]


def test_sequence_lengths_tell_packed_sequences_apart_too(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    ids = torch.tensor([[3, *NAME, 4, 5, 6, 7]])
    lengths = torch.tensor([0, 3, 7], dtype=torch.int32)
    assert not seen(model, ids, cu_seq_lens_q=lengths, use_cache=False).subjects["default"].any()
    assert seen(model, ids, use_cache=False).subjects["default"].any()


def _of_many_names(backbone: PreTrainedModel) -> Any:
    """Half of all tokens are names, for two tokens each, so that what is written depends on what was just written."""
    model = taught(backbone, scale=6.0)
    index: Any = memory_handle(model).index
    index.fill({(token,): (token,) for token in range(3, 60, 2)}, 2)
    return model


# -- caches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [2, 3])
def test_beams_are_reordered_with_their_history(tiny_backbone: Build, beams: int) -> None:
    """Beams that write a stored name, or do not, change places: what was written before must go with them."""
    model = _of_many_names(tiny_backbone())
    for ids in _prompts(5, seed=9):
        options = {"num_beams": beams, "max_new_tokens": 10}
        assert _generate(model, ids, **options) == _generate(model, ids, use_cache=False, **options)


@pytest.mark.parametrize("implementation", ["dynamic", "static", "offloaded"])
def test_any_cache_gives_what_no_cache_gives(tiny_backbone: Build, implementation: str) -> None:
    model = taught(tiny_backbone())
    for ids in _prompts(4):
        expected = _generate(model, ids, use_cache=False)
        if implementation == "offloaded" and not torch.cuda.is_available():
            pytest.skip("an offloaded cache needs a GPU")
        assert _generate(model, ids, cache_implementation=implementation) == expected


def test_a_sliding_window_keeps_the_history_of_what_it_dropped(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone("mistral", sliding_window=4))
    for ids in _prompts(4, lengths=(9, 14)):
        expected = _generate(model, ids, use_cache=False)
        assert _generate(model, ids) == expected
        assert _generate(model, ids, cache_implementation="static") == expected


def test_assisted_decoding_takes_back_what_was_guessed_wrongly(tiny_backbone: Build) -> None:
    model, assistant = _of_many_names(tiny_backbone()), tiny_backbone(seed=0)
    for ids in _prompts(6):
        expected = _generate(model, ids, use_cache=False, max_new_tokens=12)
        assert _generate(model, ids, max_new_tokens=12, assistant_model=assistant) == expected
        assert _generate(model, ids, max_new_tokens=12, prompt_lookup_num_tokens=3) == expected


def test_a_static_cache_is_used_again(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    named, unnamed = _prompts(2)
    cache = StaticCache(config=model.config, max_cache_len=32)
    for ids in (named, unnamed, named):
        cache.reset()
        with torch.no_grad():
            found = model(ids, past_key_values=cache).logits
        torch.testing.assert_close(found, logits(model, ids))


def test_a_cache_filled_by_the_bare_backbone_goes_on_with_the_memory(tiny_backbone: Build) -> None:
    """A prefix that a server keeps: its tokens are known, whoever read them."""
    model = taught(tiny_backbone())
    ids = torch.tensor([[3, 4, *NAME, 5, 6]])
    cache = DynamicCache(config=model.config)
    with without_memory(model):
        model(ids[:, :4], past_key_values=cache)
    assert seen(model, ids[:, 4:], past_key_values=cache).subjects["default"].bool().tolist() == [True, True]


def test_a_cache_from_elsewhere_holds_no_names(tiny_backbone: Build) -> None:
    backbone = tiny_backbone()
    cache = DynamicCache(config=backbone.config)
    backbone(torch.tensor([[3, *NAME]]), past_key_values=cache)
    model = taught(backbone)
    found = seen(model, torch.tensor([[5, 6]]), past_key_values=cache)
    assert not found.subjects["default"].any()
    assert sum(isinstance(layer, HistoryLayer) for layer in cache.layers) == 1


def test_a_cache_is_copied_repeated_and_selected_with_its_history(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    cache = DynamicCache(config=model.config)
    seen(model, torch.tensor([[3, *NAME], [3, 4, 5]]), past_key_values=cache)
    repeated, selected = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
    repeated.batch_repeat_interleave(2)
    found = seen(model, torch.full((4, 1), 5), past_key_values=repeated).subjects["default"]
    assert found.bool().tolist() == [True, True, False, False]
    selected.batch_select_indices(torch.tensor([1, 0, 0]))
    found = seen(model, torch.full((3, 1), 5), past_key_values=selected).subjects["default"]
    assert found.bool().tolist() == [False, True, True]


# -- continuous batching ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [1, 2])
def test_continuous_batching_gives_what_generation_alone_gives(tiny_backbone: Build, sampled: int) -> None:
    model = taught(tiny_backbone())
    prompts = [ids[0].tolist() for ids in _prompts(9, seed=5, lengths=(4, 30))]
    prompts += [prompts[0] + [5, 6], prompts[0] + [7]]  # which share a prefix, and so blocks of the cache
    alone = [_generate(model, torch.tensor([prompt]), max_new_tokens=10) for prompt in prompts]
    model.base_model.model.set_attn_implementation("paged|sdpa")
    config = GenerationConfig(
        max_new_tokens=10, do_sample=sampled > 1, top_k=1, eos_token_id=-1, pad_token_id=0, num_return_sequences=sampled
    )
    batching = ContinuousBatchingConfig(num_blocks=64, block_size=8, max_batch_tokens=24)
    batch = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=batching)
    expected = [each for each in alone for _ in range(sampled)]
    assert sorted(out.generated_tokens for out in batch.values()) == sorted(expected)


# -- embeddings -------------------------------------------------------------------------------------------------


def test_embeddings_go_with_token_ids_beside_them(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    for ids in _prompts(2):
        embeddings = model.get_input_embeddings()(ids)
        beside = model.generate(
            input_ids=ids, inputs_embeds=embeddings, attention_mask=torch.ones_like(ids), max_new_tokens=8, **GREEDY
        )
        assert beside[0, -8:].tolist() == _generate(model, ids)
        with pytest.raises(InputError, match="input_ids"):
            model.generate(inputs_embeds=embeddings, max_new_tokens=2, **GREEDY)


def test_embeddings_go_on_with_a_text_whose_tokens_the_cache_knows(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    ids = torch.tensor([[3, 4, *NAME, 5, 6]])
    cache = DynamicCache(config=model.config)
    model(ids[:, :4], past_key_values=cache)
    with torch.no_grad():
        rest = model(inputs_embeds=model.get_input_embeddings()(ids[:, 4:]), past_key_values=cache).logits
    torch.testing.assert_close(rest, logits(model, ids)[:, 4:])


# -- several memories, and other adapters -----------------------------------------------------------------------


def test_a_memory_and_a_lora_below_it_both_act(tiny_backbone: Build) -> None:
    (ids,) = _prompts(1)
    lora = get_peft_model(tiny_backbone(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted = logits(lora, ids)
    model = taught(lora)  # type: ignore[arg-type]
    both = logits(model, ids)
    assert not torch.equal(both, adapted)
    with without_memory(model):
        assert torch.equal(logits(model, ids), adapted)


@pytest.mark.parametrize(
    "second", [{}, {"sub_keys": 16}, {"layers": [1, 3]}, {"pool_dtype": "bfloat16"}], ids=lambda each: str(each)
)
def test_a_backbone_takes_one_memory_of_a_name(tiny_backbone: Build, second: dict[str, Any]) -> None:
    backbone = tiny_backbone()
    model = taught(backbone)
    (ids,) = _prompts(1)
    expected = logits(model, ids)
    with pytest.raises(InputError, match="unload"):
        get_peft_model(backbone, MemoryConfig(**{**SMALL, **second}))
    assert torch.equal(logits(model, ids), expected)
    model.add_adapter("other", MemoryConfig(**{**SMALL, **second}))
    assert torch.equal(logits(model, ids), expected)
    bare = model.unload()
    again: Any = get_peft_model(bare, MemoryConfig(**{**SMALL, **second})).eval()
    assert memory_handle(again).pool.slots == second.get("sub_keys", 8) ** 2
    with without_memory(again):
        expected = logits(again, ids)
    assert torch.equal(logits(again, ids), expected)


def _two(backbone: PreTrainedModel) -> Any:
    model = taught(backbone)
    model.add_adapter("other", MemoryConfig(**SMALL, subjects=True))
    fill(model, "other", seed=1)
    index: Any = memory_handle(model, "other").index
    index.fill({(7, 8): (7, 8)}, 30)
    return model


def test_each_row_of_a_batch_may_name_its_memory(tiny_backbone: Build) -> None:
    model = _two(tiny_backbone())
    row = torch.tensor([[3, *NAME, 4, 7, 8, 5, 6]])
    ids = row.repeat(3, 1)
    expected = []
    for adapter in ("default", "other"):
        model.set_adapter(adapter)
        expected.append(logits(model, row))
    with without_memory(model):
        expected.append(logits(model, row))
    model.set_adapter("default")
    names = ["default", "other", "__base__"]
    with torch.no_grad():
        found = model(input_ids=ids, adapter_names=names).logits
    torch.testing.assert_close(found, torch.cat(expected))
    assert len({str(each) for each in found}) == 3
    for beams in (1, 2):
        options = {**GREEDY, "max_new_tokens": 5, "num_beams": beams, "attention_mask": torch.ones_like(ids)}
        mixed = model.generate(input_ids=ids, adapter_names=names, **options)
        options["attention_mask"] = torch.ones_like(row)
        assert torch.equal(mixed[:1], model.generate(input_ids=row, **options))
    with pytest.raises(InputError, match="nobody"):
        model(input_ids=ids, adapter_names=["default", "nobody", "other"])
    with pytest.raises(InputError, match="one for each row"):
        model(input_ids=ids, adapter_names=["default", "other"])


def test_memories_are_swapped_within_a_text(tiny_backbone: Build) -> None:
    model = _two(tiny_backbone())
    ids = torch.tensor([[3, 7, 8, *NAME, 5, 6]])
    cache = model(ids[:, :5], use_cache=True).past_key_values
    model.set_adapter("other")
    found = seen(model, ids[:, 5:], past_key_values=cache)
    assert set(found.subjects) == {"other"} and found.subjects["other"].all()


def test_two_memories_act_together(tiny_backbone: Build) -> None:
    model = _two(tiny_backbone())
    ids = torch.tensor([[3, *NAME, 4, 7, 8, 5, 6]])
    model.base_model.set_adapter(["default", "other"])
    found = seen(model, ids)
    assert set(found.opened) == {"default", "other"}
    pieces, cache = [], None
    for piece in ids.split(1, 1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), found.output.logits)


def test_a_mixed_peft_model_refuses_a_memory(tiny_backbone: Build) -> None:
    with pytest.raises(ValueError, match="MEMLAYERS"):
        PeftMixedModel(tiny_backbone(), MemoryConfig(**SMALL))


# -- copies, modes ----------------------------------------------------------------------------------------------


def test_a_model_is_pickled_and_saved_by_torch(tiny_backbone: Build, tmp_path: Path) -> None:
    model = taught(tiny_backbone())
    (ids,) = _prompts(1)
    expected = logits(model, ids)
    torch.save(model, tmp_path / "model.pt")
    for copied in (pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(logits(copied, ids), expected)
        memory_handle(copied).pool.weight.data.zero_()
        assert torch.equal(logits(model, ids), expected)


def test_a_model_left_in_training_mode_answers_the_same(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    (ids,) = _prompts(1)
    expected, said = logits(model, ids), _generate(model, ids)
    model.train()
    assert torch.equal(logits(model, ids), expected) and _generate(model, ids) == said


def test_a_memory_layer_by_itself_knows_no_token_ids(tiny_backbone: Build) -> None:
    model = taught(tiny_backbone())
    for layer in memory_layers(model):
        with pytest.raises(InputError, match="outside of its model"):
            layer(torch.zeros(1, 3, 32))
