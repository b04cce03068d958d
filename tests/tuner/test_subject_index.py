from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from memlayers.tuner import MemoryConfig, memory_layers, value_pool
from memlayers.tuner.subject_index import (
    CAPITAL,
    DIGIT,
    GOES_ON,
    LEADS,
    LONGEST_RUN,
    PART,
    SMALL,
    SubjectIndex,
    fingerprint,
    subject_code,
)
from memlayers.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
RUN = (7, 8, 9)


def _index(runs: list[tuple[int, ...]], reach: int = 4) -> SubjectIndex:
    index = SubjectIndex(64)
    index.fill({run: run for run in runs}, reach)
    return index


def _model(
    backbone: PreTrainedModel, runs: tuple[tuple[int, ...], ...] = (RUN,), reach: int = 4, weight: float = 0.0
) -> Any:
    config = MemoryConfig(
        layers=[0, 2], sub_keys=8, heads=2, top_k=3, gate=True, gate_hidden=8, subjects=True,
        subject_weight=weight,
    )  # fmt: skip
    model = get_peft_model(backbone, config).eval()
    value_pool(model, "default").initialise("normal", 0)
    memory_layers(model)[0].memlayers_subjects["default"].fill({run: run for run in runs}, reach)
    return model


def _watch(model: Any) -> Any:
    return memory_layers(model)[0].watch


@torch.no_grad()
def _both(model: Any, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Logits with the memory and without."""
    after = model(ids, **options).logits
    with model.disable_adapter():
        return after, model(ids, **options).logits


def test_runs_are_found_where_they_end_and_nowhere_else() -> None:
    rng = random.Random(0)
    runs = [tuple(rng.randrange(5) for _ in range(rng.randint(2, 6))) for _ in range(12)]
    ids = [[rng.randrange(5) for _ in range(40)] for _ in range(6)]
    found = _index(runs).names(torch.tensor(ids)) != 0
    expected = [
        [any(tuple(row[max(0, t + 1 - len(run)) : t + 1]) == run for run in runs) for t in range(40)] for row in ids
    ]
    assert found.tolist() == expected
    assert 0 < sum(map(sum, expected)) < 240


@pytest.mark.parametrize("latest", [0, 1, 7, 40])
def test_asked_for_the_latest_tokens_it_says_of_them_what_it_says_of_all(latest: int) -> None:
    rng = random.Random(1)
    index = _index([tuple(rng.randrange(5) for _ in range(rng.randint(2, 6))) for _ in range(12)])
    for token in range(5):  # any kind of word, so that names are also led up to
        index.marks[token] = rng.choice([PART, CAPITAL, SMALL, CAPITAL | LEADS])
    ids = torch.tensor([[rng.randrange(5) for _ in range(40)] for _ in range(6)])
    assert torch.equal(index.names(ids, latest), index.names(ids)[:, 40 - latest :])


def test_order_and_length_matter_and_the_zero_token_is_a_token() -> None:
    index = _index([(1, 2), (0, 3)])
    assert index.names(torch.tensor([[1, 2]])).bool().tolist() == [[False, True]]
    for other in ([2, 1], [3, 0], [1, 1, 0], [3, 3]):
        assert not index.names(torch.tensor([other])).any()
    assert not index.names(torch.tensor([[3]])).any()  # what lies before a text is not token 0
    assert len({fingerprint(run) for run in ((0,), (0, 0), (0, 0, 0))}) == 3


def test_of_a_long_run_the_last_tokens_count() -> None:
    long = tuple(range(1, LONGEST_RUN + 10))
    index = _index([long])
    assert index.names(torch.tensor([long]))[0].nonzero().flatten().tolist() == [len(long) - 1]
    assert fingerprint(long) == fingerprint(long[-LONGEST_RUN:])
    index.marks[:] = CAPITAL | LEADS  # a title in capitals: its own words do not lead up to it
    assert index.names(torch.tensor([long]))[0, -1] != 0


def test_an_index_has_as_many_entries_as_it_was_given_last() -> None:
    index = SubjectIndex(64)
    index.fill({(1,): (1,), (2,): (2,)}, 3)
    assert len(index.fingerprints) == 2
    other = SubjectIndex(64)
    other.load_state_dict(index.state_dict())
    assert torch.equal(other.entries, index.entries)
    index.fill({(5,): (5,)}, 3)
    other.load_state_dict(index.state_dict())
    assert torch.equal(other.entries, index.entries) and len(other.entries) == 1
    with pytest.raises(RuntimeError, match="size mismatch for subjects"):
        SubjectIndex(64).load_state_dict({**other.state_dict(), "subjects": torch.zeros(3, dtype=torch.int64)})


def test_a_config_of_version_0_1_says_how_many_subjects() -> None:
    assert MemoryConfig(subjects=500, relations=0).subjects is True  # type: ignore[arg-type]
    assert MemoryConfig(subjects=500, relations=0).relations is False  # type: ignore[arg-type]


def test_the_memory_is_read_from_behind_the_name_on_and_no_further_than_its_reach(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    ids = torch.tensor([[3, 4, *RUN, 5, 6, 10, 11, 12, 13]])
    _both(model, ids)
    model(ids)
    assert _watch(model).about["default"][0].nonzero().flatten().tolist() == [5, 6, 7, 8]
    after, before = _both(model, ids)
    assert torch.equal(after[:, :5], before[:, :5])
    assert not torch.equal(after[:, 5], before[:, 5])


def test_a_text_without_a_stored_name_keeps_the_backbones_bits(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    after, before = _both(model, torch.tensor([[3, 4, 7, 8, 5], [9, 8, 7, 9, 9]]))
    assert torch.equal(after, before)


def test_until_it_is_filled_an_index_holds_nothing_back(tiny_backbone: Build) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(layers=[0, 2], sub_keys=8, top_k=3, subjects=True)).eval()
    value_pool(model, "default").initialise("normal", 0)
    after, before = _both(model, torch.tensor([[3, 4, 5]]))
    assert not torch.equal(after[:, 0], before[:, 0])


def test_a_name_that_goes_on_was_none(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    index: Any = memory_layers(model)[0].memlayers_subjects["default"]
    index.fill({RUN: RUN}, 4, marks_with({20: GOES_ON, 63: GOES_ON}))
    for follower, places in ((20, []), (63, []), (21, [4, 5, 6, 7])):
        ids = torch.tensor([[3, *RUN, follower, 5, 5, 5, 5]])
        model(ids)
        assert _watch(model).about["default"][0].nonzero().flatten().tolist() == places
        cache = model(ids[:, :4], use_cache=True).past_key_values
        model(ids[:, 4:], past_key_values=cache)
        assert _watch(model).about["default"][0].bool().sum() == len(places)
    assert not index.names(torch.tensor([[20, 63]])).any()


def marks_with(given: dict[int, int]) -> torch.Tensor:
    marks = torch.zeros(64, dtype=torch.uint8)
    for token, mark in given.items():
        marks[token] = mark
    return marks


@pytest.mark.parametrize(
    ("before", "named"),
    [
        ([], True),
        ([30], True),  # a word
        ([40], True),  # a word with a capital, which begins the text
        ([3, 40], True),  # or a sentence, behind what is no word
        ([30, 40], False),
        ([30, 40, 50], False),  # in two tokens
        ([40, 50, 30], True),
        ([30, 41], True),  # a year
        ([30, 40, 3], True),  # a comma between
        ([30, 42], True),  # in these phrasings such a word stands before names
    ],
)
def test_a_name_that_had_begun_before_was_none(before: list[int], named: bool) -> None:
    index = SubjectIndex(64)
    kinds = {30: SMALL, 40: CAPITAL | LEADS, 41: DIGIT, 42: CAPITAL, 50: PART | LEADS, RUN[0]: CAPITAL | LEADS}
    index.fill({RUN: RUN}, 4, marks_with(kinds))
    ids = torch.tensor([[*before, *RUN, 5]])
    assert bool(index.names(ids)[0, -2] != 0) == named
    assert not index.names(ids)[0, :-2].any()


def test_a_run_in_the_middle_of_a_word_is_no_name() -> None:
    index = SubjectIndex(64)
    index.fill({RUN: RUN}, 4, marks_with({RUN[0]: PART | LEADS, 30: SMALL}))
    for before, named in (([], True), ([3], True), ([30], False)):
        assert bool(index.names(torch.tensor([[*before, *RUN]]))[0, -1] != 0) == named


@pytest.mark.parametrize("pieces", [(1,) * 11, (3, 8), (4, 1, 6), (10, 1)])
def test_pieces_with_a_cache_decide_as_the_whole(tiny_backbone: Build, pieces: tuple[int, ...]) -> None:
    model = _model(tiny_backbone(), reach=5)
    ids = torch.tensor([[3, 4, *RUN, 5, 6, 10, 11, 12, 13], [3, 4, 5, 5, 5, 5, 6, *RUN, 13]])
    with torch.no_grad():
        whole = model(ids).logits
        reads = _watch(model).about["default"]
        cache, seen, logits = None, [], []
        for piece in ids.split(list(pieces), dim=1):
            out = model(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            seen.append(_watch(model).about["default"])
            logits.append(out.logits)
    assert torch.equal(torch.cat(seen, 1), reads)
    assert reads.any() and not reads.all()
    torch.testing.assert_close(torch.cat(logits, 1), whole)


def test_a_copied_and_a_cropped_cache_keep_their_trail(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), reach=20)
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(torch.tensor([[3, *RUN[:2]]]), past_key_values=cache)
        copied = copy.deepcopy(cache)
        model(torch.tensor([[RUN[2], 5]]), past_key_values=cache)
        assert _watch(model).about["default"].bool().tolist() == [[False, True]]
        model(torch.tensor([[5, 5]]), past_key_values=copied)  # another continuation of the same start
        assert not _watch(model).about["default"].bool().any()
        cache.crop(-2)  # the name's last token is taken back
        model(torch.tensor([[5, 5]]), past_key_values=cache)
        assert not _watch(model).about["default"].bool().any()


def test_beams_and_padding_on_the_left_decide_per_row(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), reach=30)
    ids = torch.tensor([[0, 0, 3, *RUN], [3, 4, 5, 6, 10, 11]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    for beams in (1, 2):
        model.generate(
            input_ids=ids, attention_mask=mask, num_beams=beams, do_sample=False, max_new_tokens=3, min_new_tokens=3,
            eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        assert _watch(model).about["default"].bool().flatten().tolist() == [True] * beams + [False] * beams


def test_the_layers_follow_the_first_ones_decision(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    first, second = memory_layers(model)
    assert "default" in first.memlayers_gate and "default" not in second.memlayers_gate
    gate: Any = first.memlayers_gate["default"]
    gate.trained.fill_(1)
    gate.threshold.fill_(1e9)  # closed for every token: the other layer has no say
    after, before = _both(model, torch.tensor([[3, *RUN, 5]]))
    assert torch.equal(after, before)
    gate.threshold.fill_(-1e9)
    model(torch.tensor([[3, *RUN, 5, 5]]))
    assert _watch(model).decided["default"].tolist() == [4, 5]


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
        model(torch.tensor([[3, *RUN, *range(10, 30)]]))
    gate.threshold.copy_(torch.cat(seen).quantile(0.67))
    seen.clear()
    return gate


def test_a_gate_that_has_opened_stays_open_until_the_next_name(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), reach=9)
    gate = _half_open(model)
    ids = torch.tensor([[3, *RUN, *range(10, 22), *RUN, *range(30, 42)]])
    tried: list[Tensor] = []
    gate.register_forward_hook(lambda _, __, logits: tried.append(logits > gate.threshold))
    with torch.no_grad():
        model(ids)
    about = _watch(model).about["default"][0] != 0
    (opened,) = tried  # one entry per token that may read
    alone = torch.zeros_like(about)
    alone[about] = opened
    expected = alone.clone()
    for t in range(1, ids.shape[1]):
        same_name = bool(about[t] and about[t - 1]) and t != 16 + len(RUN)
        expected[t] = alone[t] | (expected[t - 1] & same_name)
    assert _watch(model).decided["default"].tolist() == expected.nonzero().flatten().tolist()
    assert alone.sum() < expected.sum() < about.sum()


@pytest.mark.parametrize("pieces", [(1,) * 28, (3, 25), (6, 1, 21)])
def test_a_gate_stays_open_across_the_pieces_of_a_text(tiny_backbone: Build, pieces: tuple[int, ...]) -> None:
    model = _model(tiny_backbone(), reach=9)
    _half_open(model)
    ids = torch.tensor([[3, *RUN, *range(10, 22), *RUN, *range(30, 39)], [3] * 20 + [*RUN, 50, 51, 52, 53, 54]])
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
    value_pool(model, "other").initialise("normal", 1)
    memory_layers(model)[0].memlayers_subjects["other"].fill({(3, 4): (3, 4)}, 3)
    ids = torch.tensor([[5, *RUN, 5], [5, 3, 4, 5, 5]])
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
    model = _model(AutoModelForCausalLM.from_pretrained(tmp_path / "backbone"), runs=(RUN, (11,)))
    index: Any = memory_layers(model)[0].memlayers_subjects["default"]
    index.thresholds.copy_(torch.tensor([0.25, 0.5]))
    model.save_pretrained(tmp_path / "memory")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "backbone"), tmp_path / "memory")
    again: Any = memory_layers(loaded)[0].memlayers_subjects["default"]
    for name, tensor in index.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor) and again.state_dict()[name].dtype == tensor.dtype
    ids = torch.tensor([[3, *RUN, 5], [5, 5, 11, 5, 5]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        bare = loaded.unload()
        assert not bare.base_model._forward_pre_hooks and not bare.base_model._forward_hooks
        assert torch.equal(bare(ids).logits, _both(model, ids)[1])


def test_a_deep_copy_watches_its_own_tokens(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone())
    twin = copy.deepcopy(model)
    assert _watch(twin) is not _watch(model)
    ids = torch.tensor([[3, *RUN, 5]])
    with torch.no_grad():
        assert torch.equal(twin(ids).logits, model(ids).logits)
    value_pool(twin, "default").weight.data.zero_()
    after, before = _both(twin, ids)
    assert torch.equal(after, before)


def test_all_spellings_name_one_subject_and_the_longest_run_counts() -> None:
    index = SubjectIndex(64)
    index.fill({(5, 6): (5, 6), (7, 6): (5, 6), (6,): (6,), (9, 7, 6): (9, 7, 6)}, 4)
    named = index.names(torch.tensor([[5, 6, 1, 7, 6, 1, 6, 9, 7, 6]]))[0].tolist()
    assert [named[t] for t in (0, 2, 3, 5)] == [0] * 4
    assert named[1] == named[4] == fingerprint((5, 6))
    assert (named[6], named[9]) == (fingerprint((6,)), fingerprint((9, 7, 6)))


def test_the_latest_name_is_read_until_its_reach_ends(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), (RUN, (5,)), reach=3)
    model(torch.tensor([[3, *RUN, 4, 5, 4, 4, 4]]))
    first, second = fingerprint(RUN), fingerprint((5,))
    assert _watch(model).about["default"][0].tolist() == [0, 0, 0, 0, first, first, second, second, second]


def test_a_subjects_code_is_its_own_and_nobodys_is_nothing() -> None:
    about = torch.tensor([fingerprint((i,)) for i in range(200)] + [0, fingerprint((3,))])
    code = subject_code(about, 256)
    torch.testing.assert_close(code[:200].norm(dim=1), torch.ones(200))
    assert not code[200].any()
    assert torch.equal(code[201], code[3])
    cosines = (code[:200] @ code[:200].T).fill_diagonal_(0)
    assert cosines.abs().max() < 6 * 256**-0.5  # as random directions
    assert torch.equal(subject_code(about[5:6], 256), code[5:6])  # whoever else is asked about


def test_queries_that_carry_their_subject_read_alike_about_one_and_apart_about_two(tiny_backbone: Build) -> None:
    def shared(weight: float) -> tuple[float, float]:
        config = MemoryConfig(layers=[0], sub_keys=32, heads=2, top_k=4, subjects=True, subject_weight=weight)
        layer = memory_layers(get_peft_model(tiny_backbone(), config))[0]
        states = torch.randn(2, 40, layer.dim, generator=torch.Generator().manual_seed(0))
        one, other = torch.full((40,), fingerprint((1,))), torch.full((40,), fingerprint((2,)))
        slots = [layer.read(*each) for each in ((states[0], "default", one), (states[1], "default", one))]
        apart = layer.read(states[1], "default", other)
        overlap = [
            sum(len(set(a) & set(b)) for a, b in zip(slots[0].indices.tolist(), read.indices.tolist(), strict=True))
            / 320
            for read in (slots[1], apart)
        ]
        return overlap[0], overlap[1]

    alike, apart = shared(2.0)
    assert alike > 3 * apart
    alike, apart = shared(0.0)
    assert alike == apart  # the state alone


def test_without_a_subject_the_state_alone_is_the_query(tiny_backbone: Build) -> None:
    config = MemoryConfig(layers=[0], sub_keys=8, heads=2, top_k=3, subjects=True, subject_weight=2.0)
    layer = memory_layers(get_peft_model(tiny_backbone(), config))[0]
    x = torch.randn(5, layer.dim, generator=torch.Generator().manual_seed(0))
    nobody, alone = layer.read(x, "default", torch.zeros(5, dtype=torch.int64)), layer.read(x, "default")
    assert torch.equal(nobody.indices, alone.indices)
    torch.testing.assert_close(nobody.weights, alone.weights)


def test_teaching_and_answering_by_the_cache_read_the_same_slots(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(), reach=30, weight=2.0)
    ids = torch.tensor([[3, 4, *RUN, 5, 6, 10, 11, 12, 13]])
    with torch.no_grad():
        whole = model(ids).logits
        cache = model(ids[:, :6], use_cache=True).past_key_values
        rest = model(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 6:])


@pytest.mark.parametrize("wrong", [{"subject_weight": -1.0}, {"subject_weight": 1.0, "recipe": "dense"}])
def test_a_subject_weight_out_of_place_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="subject_weight"):
        MemoryConfig(**wrong)
