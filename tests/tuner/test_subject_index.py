from __future__ import annotations

import random

import pytest
import torch

from memlayers.tuner.boundary_flags import Boundary
from memlayers.tuner.letters import LONGEST_FORM, Letters
from memlayers.tuner.subject_index import SubjectIndex, subject_code
from memlayers.utils.errors import InputError

FORM = (7, 8, 9)
fingerprint = Letters.none(64).fingerprint
KINDS = [Boundary.WORD_PART, Boundary.CAPITAL, Boundary.LOWERCASE, Boundary.CAPITAL | Boundary.PRECEDES]


def _index(forms: list[tuple[int, ...]], scope: int = 4) -> SubjectIndex:
    index = SubjectIndex(64)
    index.fill({form: form for form in forms}, scope)
    return index


def _flags(given: dict[int, Boundary]) -> torch.Tensor:
    flags = torch.zeros(64, dtype=torch.uint8)
    for token, flag in given.items():
        flags[token] = flag
    return flags


def test_mentions_are_found_where_they_end_and_nowhere_else() -> None:
    rng = random.Random(0)
    forms = [tuple(rng.randrange(5) for _ in range(rng.randint(2, 6))) for _ in range(12)]
    ids = [[rng.randrange(5) for _ in range(40)] for _ in range(6)]
    found = _index(forms).mentions(torch.tensor(ids)) != 0
    expected = [
        [any(tuple(row[max(0, t + 1 - len(form)) : t + 1]) == form for form in forms) for t in range(40)] for row in ids
    ]
    assert found.tolist() == expected
    assert 0 < sum(map(sum, expected)) < 240


@pytest.mark.parametrize("latest", [0, 1, 7, 40])
def test_asked_for_the_latest_tokens_it_says_of_them_what_it_says_of_all(latest: int) -> None:
    rng = random.Random(1)
    index = _index([tuple(rng.randrange(5) for _ in range(rng.randint(2, 6))) for _ in range(12)])
    for token in range(5):  # any kind of word, so that names are also led up to
        index.marks[token] = rng.choice(KINDS)
    ids = torch.tensor([[rng.randrange(5) for _ in range(40)] for _ in range(6)])
    assert torch.equal(index.mentions(ids, latest), index.mentions(ids)[:, 40 - latest :])


def test_order_and_length_matter_and_the_zero_token_is_a_token() -> None:
    index = _index([(1, 2), (0, 3)])
    assert index.mentions(torch.tensor([[1, 2]])).bool().tolist() == [[False, True]]
    for other in ([2, 1], [3, 0], [1, 1, 0], [3, 3]):
        assert not index.mentions(torch.tensor([other])).any()
    assert not index.mentions(torch.tensor([[3]])).any()  # what lies before a text is not token 0
    assert len({fingerprint(form) for form in ((0,), (0, 0), (0, 0, 0))}) == 3


def test_of_a_long_form_the_last_tokens_count() -> None:
    long = tuple(range(1, LONGEST_FORM + 10))
    index = _index([long])
    assert index.mentions(torch.tensor([long]))[0].nonzero().flatten().tolist() == [len(long) - 1]
    assert fingerprint(long) == fingerprint(long[-LONGEST_FORM:])
    index.marks[:] = Boundary.CAPITAL | Boundary.PRECEDES  # a title in capitals: its own words do not lead up to it
    assert index.mentions(torch.tensor([long]))[0, -1] != 0


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


def test_an_index_of_an_earlier_version_is_refused() -> None:
    state = SubjectIndex(64).state_dict()
    del state["letters"]
    with pytest.raises(InputError, match="earlier version"):
        SubjectIndex(64).load_state_dict(state, strict=False)


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
def test_a_suffix_of_a_longer_name_is_no_mention(before: list[int], named: bool) -> None:
    index = SubjectIndex(64)
    kinds = {
        30: Boundary.LOWERCASE,
        40: Boundary.CAPITAL | Boundary.PRECEDES,
        41: Boundary.DIGIT,
        42: Boundary.CAPITAL,
        50: Boundary.WORD_PART | Boundary.PRECEDES,
        FORM[0]: Boundary.CAPITAL | Boundary.PRECEDES,
    }
    index.fill({FORM: FORM}, 4, _flags(kinds))
    ids = torch.tensor([[*before, *FORM, 5]])
    assert bool(index.mentions(ids)[0, -2] != 0) == named
    assert not index.mentions(ids)[0, :-2].any()


def test_a_form_in_the_middle_of_a_word_is_no_mention() -> None:
    index = SubjectIndex(64)
    index.fill({FORM: FORM}, 4, _flags({FORM[0]: Boundary.WORD_PART | Boundary.PRECEDES, 30: Boundary.LOWERCASE}))
    for before, named in (([], True), ([3], True), ([30], False)):
        assert bool(index.mentions(torch.tensor([[*before, *FORM]]))[0, -1] != 0) == named


def test_all_forms_share_an_entity_id_and_the_longest_mention_counts() -> None:
    index = SubjectIndex(64)
    index.fill({(5, 6): (5, 6), (7, 6): (5, 6), (6,): (6,), (9, 7, 6): (9, 7, 6)}, 4)
    named = index.mentions(torch.tensor([[5, 6, 1, 7, 6, 1, 6, 9, 7, 6]]))[0].tolist()
    assert [named[t] for t in (0, 2, 3, 5)] == [0] * 4
    assert named[1] == named[4] == fingerprint((5, 6))
    assert (named[6], named[9]) == (fingerprint((6,)), fingerprint((9, 7, 6)))


def test_a_subjects_code_is_its_own_and_nobodys_is_nothing() -> None:
    subjects = torch.tensor([fingerprint((i,)) for i in range(200)] + [0, fingerprint((3,))])
    code = subject_code(subjects, 256)
    torch.testing.assert_close(code[:200].norm(dim=1), torch.ones(200))
    assert not code[200].any()
    assert torch.equal(code[201], code[3])
    cosines = (code[:200] @ code[:200].T).fill_diagonal_(0)
    assert cosines.abs().max() < 6 * 256**-0.5  # as random directions
    assert torch.equal(subject_code(subjects[5:6], 256), code[5:6])  # whoever else is asked about
