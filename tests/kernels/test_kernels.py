"""The fast backends against the plain-torch one. Triton runs compiled where there is a GPU, else in its interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.kernels import (
    DEVICE,
    FORMATS,
    SLOTS,
    WIDTHS,
    adamw_step,
    assert_same,
    drift,
    random_integers,
    random_table,
    random_tensor,
    read_log,
    row_state,
)
from memlayers.kernels import reference, storage
from memlayers.kernels.interface import AdamW, LogEntry, RowState, Schedule, Table


def _copy(tensors: Any) -> Any:
    return type(tensors)(*(each if each is None else each.clone() for each in tensors))


# -- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "m", "k"), [((2, 2), 20, 6), ((3,), 5, 5), ((), 6, 1), ((2,), 2, 4), ((0, 2), 4, 2)])
def test_top_k_is_exact_and_breaks_ties_as_the_exhaustive_search(
    backend: Any, shape: tuple[int, ...], m: int, k: int
) -> None:
    smooth = random_tensor(*shape, m), random_tensor(*shape, m, seed=1)
    tied = random_integers(4, *shape, m).float() - 2, random_integers(3, *shape, m, seed=1).float() - 2
    for a, b in (smooth, tied, (-tied[0], -0.0 * tied[1]), tuple(each.bfloat16() for each in smooth)):
        scores, slots = backend.product_key_top_k(a, b, k)
        best, where = reference.product_key_top_k_exhaustive(a, b, k)
        assert scores.dtype == a.dtype and torch.equal(scores, best) and torch.equal(slots, where)


def test_top_k_of_permuted_scores_and_at_a_real_size(backend: Any) -> None:
    a, b = random_tensor(2, 300, 1).permute(2, 0, 1), random_tensor(1, 300, 2, seed=1).permute(0, 2, 1)
    ours, theirs = backend.product_key_top_k(a, b, 32), reference.product_key_top_k_exhaustive(a, b, 32)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_top_k_takes_masked_slots_once(backend: Any) -> None:
    a = torch.tensor([[1.0, -torch.inf, -torch.inf, -torch.inf]], device=DEVICE)
    _, slots = backend.product_key_top_k(a, torch.zeros_like(a), 4)
    assert slots.tolist() == [[0, 1, 2, 3]]
    _, slots = backend.product_key_top_k(a, a, 4)
    assert len(set(slots[0].tolist())) == 4


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_weighted_sum(backend: Any, d: int, dtype: torch.dtype) -> None:
    table = random_table(d, dtype)
    for n, r in ((3, 9), (1, 1), (0, 4)):
        indices, weights = random_integers(SLOTS, n, r, dtype=torch.int32), random_tensor(n, r)
        ours = backend.weighted_sum(table, indices, weights, torch.float32)
        theirs = reference.weighted_sum(table, indices, weights, torch.float32)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    narrow = backend.weighted_sum(table, indices.long(), weights, torch.bfloat16)
    torch.testing.assert_close(narrow, reference.weighted_sum(table, indices, weights, torch.bfloat16))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_rounding_of_the_output_is_torchs(backend: Any) -> None:
    """Ties, powers of two from below, infinity and NaN, through one row of weight 1."""
    bits = [0x3F808000, 0x3F818000, 0x3FFFFFFF, 0x7F7FFFFF, 0x7F800000, 0x7FFFFFFF, 0xFFC00000, 0x00010000, 0x807FFFFF]
    values = torch.tensor(bits).to(torch.int32).view(torch.float32).to(DEVICE)[None]
    indices, weights = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    for dtype in (torch.bfloat16, torch.float16):
        ours = backend.weighted_sum(Table(values), indices, weights, dtype)
        torch.testing.assert_close(ours, values.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_weight_gradient(backend: Any, d: int, dtype: torch.dtype) -> None:
    table = random_table(d, dtype)
    for n, r in ((3, 9), (1, 1), (0, 4)):
        indices, gradient = random_integers(SLOTS, n, r, dtype=torch.int32), random_tensor(n, d).bfloat16()
        ours = backend.weight_gradient(table, indices, gradient)
        torch.testing.assert_close(ours, reference.weight_gradient(table, indices, gradient), rtol=1e-5, atol=1e-4)


def test_float64_goes_to_the_reference(backend: Any) -> None:
    values, weights = random_tensor(SLOTS, 5).double(), random_tensor(2, 3).double()
    indices = random_integers(SLOTS, 2, 3)
    ours = backend.weighted_sum(Table(values), indices, weights, torch.float64)
    assert torch.equal(ours, reference.weighted_sum(Table(values), indices, weights, torch.float64))
    scores = random_tensor(2, 6).double()
    assert backend.product_key_top_k(scores, scores, 3)[0].dtype == torch.float64


# -- the log ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_is_inverted_and_reduced(backend: Any, d: int, dtype: torch.dtype) -> None:
    log = read_log(d, dtype=dtype)
    ours, theirs = backend.invert(log), reference.invert(log)
    for name, ours_part, theirs_part in zip(theirs._fields[:4], ours[:4], theirs[:4], strict=True):
        assert ours_part.dtype == theirs_part.dtype and torch.equal(ours_part, theirs_part), name
    assert 1 not in ours.tokens.tolist()  # its gradient is zero
    picked = torch.arange(len(theirs.rows), device=DEVICE).flip(0)
    sums = reference.row_gradients(log, theirs, picked)
    for inverted in (ours, theirs):  # with what the backend prepared, and without
        torch.testing.assert_close(backend.row_gradients(log, inverted, picked), sums, rtol=1e-5, atol=1e-5)
    norm = backend.square_norm(log, theirs)
    assert norm.dtype == torch.float64 and norm.dim() == 0
    torch.testing.assert_close(norm, reference.square_norm(log, theirs), rtol=1e-5, atol=0)


def test_logs_of_odd_dtypes_and_strides(backend: Any) -> None:
    entries = read_log(320)
    entries[1] = entries[1]._replace(gradient=entries[1].gradient.bfloat16())
    entries[3] = entries[3]._replace(gradient=random_tensor(320, 3, seed=9).T)
    entries.append(LogEntry(entries[0].indices, entries[0].weights, random_tensor(1, 320).expand(4, 320)))
    inverted = reference.invert(entries)
    for ours_part, theirs_part in zip(backend.invert(entries)[:4], inverted[:4], strict=True):
        assert torch.equal(ours_part, theirs_part)
    picked = torch.arange(len(inverted.rows), device=DEVICE)
    log = [entry._replace(gradient=entry.gradient.float().contiguous()) for entry in entries]
    sums = reference.row_gradients(log, inverted, picked)
    torch.testing.assert_close(backend.row_gradients(entries, inverted, picked), sums, rtol=1e-5, atol=1e-5)


def test_logs_without_a_gradient(backend: Any) -> None:
    silent = [entry._replace(gradient=torch.zeros_like(entry.gradient)) for entry in read_log(320)]
    for log in ([], read_log(320, ((0, 3),)), silent):
        inverted = backend.invert(log)
        assert [len(each) for each in inverted[:4]] == [0, 1, 0, 0]
        assert inverted.offsets.tolist() == [0] and backend.square_norm(log, inverted) == 0
        assert backend.row_gradients(log, inverted, inverted.rows).shape == (0, 320 if log else 0)


def test_a_gradient_that_is_nothing_but_nan_counts(backend: Any) -> None:
    (entry,) = read_log(5, ((1, 2),))
    assert len(backend.invert([entry._replace(gradient=torch.full_like(entry.gradient, torch.nan))]).tokens) == 2


# -- the step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("form", FORMATS)
def test_adamw(backend: Any, d: int, form: tuple[Any, ...]) -> None:
    """Of bfloat16 gradients too, of one format: how gradients are summed is the same for all, and compiled for each."""
    for gradient in (torch.float32, torch.bfloat16) if form == FORMATS[3] else (torch.float32,):
        ours, theirs = (adamw_step(kernels, d, form, gradient=gradient) for kernels in (backend, reference))
        for ours_part, theirs_part in zip(ours, theirs, strict=True):
            assert_same(ours_part, theirs_part)


@pytest.mark.parametrize("form", [FORMATS[0], FORMATS[3], FORMATS[7]])
def test_adamw_gives_the_same_bits_again_and_in_pieces(backend: Any, form: tuple[Any, ...]) -> None:
    first, again, pieces = (
        adamw_step(backend, 320, form),
        adamw_step(backend, 320, form),
        adamw_step(backend, 320, form, 3),
    )
    for ours, same, parts in zip(first, again, pieces, strict=True):
        for one, two, three in zip(ours, same, parts, strict=True):
            assert one is None or (torch.equal(one, two) and torch.equal(one, three))


def test_stochastic_rounding_has_the_references_bits(backend: Any) -> None:
    """A step of size zero with weight decay: no sums, so every bit is determined."""
    tables = []
    for kernels, noise in ((backend, 11), (reference, 11), (backend, 12), (backend, None)):
        log, table = read_log(320), random_table(320, torch.bfloat16)
        inverted = reference.invert(log)
        picked = torch.arange(len(inverted.rows), device=DEVICE)
        zero = torch.zeros(len(picked), dtype=torch.float64, device=DEVICE)
        state = row_state(picked, table, inverted.rows, 32, False)
        adamw = AdamW(zero, zero + 1, 0.9999, 0.9, 0.999, 1e-8)
        kernels.adamw_rows(table, state, picked, log, inverted, picked, adamw, 1.0, noise)
        tables.append(table.values)
    ours, theirs, other, nearest = tables
    assert torch.equal(ours, theirs) and not torch.equal(ours, other) and not torch.equal(ours, nearest)


def test_scales_of_nothing_and_of_nan(backend: Any) -> None:
    table = Table(torch.zeros(2, 5, dtype=torch.int8, device=DEVICE), torch.zeros(2, device=DEVICE))
    gradient = torch.tensor([[1e-30, 0.0, 0.0, 0.0, 0.0]], device=DEVICE)
    one = torch.ones(1, 1, device=DEVICE)
    log = [LogEntry(torch.ones(1, 1, dtype=torch.int32, device=DEVICE), one, gradient)]
    state = row_state(
        torch.zeros(1, dtype=torch.int64, device=DEVICE), table, torch.ones(1, dtype=torch.int64), 8, True
    )
    state = RowState(*(torch.zeros_like(each) for each in state if each is not None))
    where, number = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.ones(1, dtype=torch.float64, device=DEVICE)
    adamw = AdamW(number, number, 1.0, 0.9, 0.999, 1e-8)
    backend.adamw_rows(table, state, where, log, reference.invert(log), where, adamw, 0.0, None)
    assert all(not each.float().any() for each in (*table, *state) if each is not None)
    log = [log[0]._replace(gradient=gradient * torch.nan)]  # nor may a scale hide what went wrong
    backend.adamw_rows(table, state, where, log, reference.invert(log), where, adamw, 1.0, None)
    ones = torch.ones(1, dtype=torch.int64, device=DEVICE)
    assert not storage.read_rows(table, ones).isfinite().any()
    assert not storage.decode_mean(state, where).isfinite().any()
    assert not storage.decode_square(state, where).isfinite().any()


# -- missed steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("form", FORMATS)
def test_drift(backend: Any, d: int, form: tuple[Any, ...]) -> None:
    for ours, theirs in zip(drift(backend, d, form), drift(reference, d, form), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_drift_without_state_only_decays(backend: Any, dtype: torch.dtype) -> None:
    """To the last bit: nothing is summed."""
    form = (dtype, 32, False, 5)
    for d in (5, 1100):
        for ours, theirs in zip(drift(backend, d, form, False), drift(reference, d, form, False), strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True) if pair[1] is not None)


def test_a_row_that_missed_nothing_stays_as_it_is(backend: Any) -> None:
    table, rows = random_table(320, torch.int8), torch.tensor([2, 5], device=DEVICE)
    state = row_state(rows, table, rows, 8, True)
    before = _copy(table), _copy(state)
    schedule = Schedule(
        *(torch.full((5,), 0.9, dtype=torch.float64, device=DEVICE) for _ in range(3)), 0.9, 0.999, 1e-8
    )
    since = torch.full((2,), 4, device=DEVICE)
    backend.drift_rows(table, state, rows, rows, since, since + 9, schedule, None)
    for now, then in zip((*table, *state), (*before[0], *before[1]), strict=True):
        assert torch.equal(now, then)
