"""Seeded families of invented facts: known entropy, same-shape fakes, never-taught phrasings. No torch.

Subjects and answers are spelled by mixed-radix grammars, and a keyed permutation of the index space maps
position to subject. So any number of facts is made without a rejection loop, no subject comes twice, and
every process makes the same ones. The first half of the (fixed, scattered) subject space belongs to facts,
the second to fakes: the two never meet, whatever their seeds. A subject's answer depends on the subject
alone, so facts of two seeds never contradict each other. Positions come in order: the first 10 of 1,000
facts are the facts of n=10.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from memlayers.data.facts import Fact
from memlayers.data.synthetic_families import FAMILIES, Family, Grammar
from memlayers.utils.errors import InputError


def make_facts(family: str, n: int, seed: int = 0) -> list[Fact]:
    """Make `n` facts about different subjects.

    Args:
        family: a name in `FAMILIES`.
        n: how many, at most `capacity(family)`.
        seed: chooses the subjects.

    Raises:
        InputError: unknown family, negative `n`, or `n` beyond the family's capacity.
    """
    chosen = _family(family)
    _check_count(chosen, n, capacity(family))
    return [_fact(chosen, index) for index in itertools.islice(_subject_indices(chosen, seed, fake=False), n)]


def make_fakes(family: str, n: int, seed: int = 0, avoid: Iterable[Fact] = ()) -> list[Fact]:
    """Make `n` facts of the same shape, about subjects that `make_facts` never names, under any seed.

    Args:
        family: a name in `FAMILIES`.
        n: how many, at most `capacity(family)` less those in `avoid`.
        seed: chooses the subjects.
        avoid: further facts whose subjects must not appear, e.g. read from a file.

    Raises:
        InputError: as `make_facts`.
    """
    chosen = _family(family)
    avoided = {fact.subject for fact in avoid}
    _check_count(chosen, n, capacity(family))
    candidates = (_fact(chosen, index) for index in _subject_indices(chosen, seed, fake=True))
    fakes = list(itertools.islice((fake for fake in candidates if fake.subject not in avoided), n))
    _check_count(chosen, n, len(fakes))
    return fakes


def answer_bits(family: str) -> float:
    """Entropy of one answer in bits: log2 of how many texts it is drawn from, uniformly and on its own."""
    return math.log2(_size(_family(family).answers))


def capacity(family: str) -> int:
    """How many facts the family holds (and as many fakes)."""
    return _size(_family(family).subjects) // 2


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise InputError(f"unknown family {name!r}; known families: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _check_count(family: Family, n: int, available: int) -> None:
    if n < 0:
        raise InputError(f"{n} facts asked for; give a number from 0")
    if n > available:
        raise InputError(
            f"family {family.name!r} has {available:,} subjects, {n:,} asked for; ask for fewer or add another family"
        )


def _fact(family: Family, index: int) -> Fact:
    subject = _spell(family.subjects, index)
    choice = _hash(f"answer:{family.name}:{index}") % _size(family.answers)
    return Fact(
        id=f"{family.name}-{index}",
        subject=subject,
        answer=_spell(family.answers, choice),
        questions=_ask(family.questions, subject),
        relation=family.relation,
        unseen_questions=_ask(family.unseen_questions, subject),
    )


def _ask(templates: Sequence[str], subject: str) -> tuple[str, ...]:
    asked = (template.replace("{subject}", subject) for template in templates)
    return tuple(question[0].upper() + question[1:] for question in asked)


# Index arithmetic


def _size(grammar: Grammar) -> int:
    return math.prod(len(part) for part in grammar)


def _spell(grammar: Grammar, index: int) -> str:
    """The text number `index` of the grammar, the last part varying fastest."""
    chosen = []
    for part in reversed(grammar):
        index, digit = divmod(index, len(part))
        chosen.append(part[digit])
    return "".join(reversed(chosen))


def _subject_indices(family: Family, seed: int, fake: bool) -> Iterator[int]:
    """Every subject of one half (facts or fakes) once, in the order of the seed."""
    left, right = _sides(_size(family.subjects))
    half = left // 2 * right
    for position in range(half):
        shuffled = _permute(position, left // 2, right, key=f"{family.name}:{seed}:{fake}")
        # A second, fixed permutation scatters the halves: the first letter must not tell fakes from facts.
        yield _permute(shuffled + half * fake, left, right, key=f"{family.name}:halves")


def _sides(total: int) -> tuple[int, int]:
    """An even total as left * right, left even, both near the square root where the divisors allow."""
    right = math.isqrt(total)
    while total % right or (total // right) % 2:
        right -= 1
    return total // right, right


def _permute(index: int, left: int, right: int, key: str) -> int:
    """A keyed bijection of range(left * right): four Feistel rounds, adding modulo, without cycle walking.

    Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", generalised Feistel.
    """
    a, b = divmod(index, right)
    for turn in range(4):
        a = (a + _hash(f"{key}:{turn}:left:{b}")) % left
        b = (b + _hash(f"{key}:{turn}:right:{a}")) % right
    return a * right + b


def _hash(text: str) -> int:
    """128 bits: taken modulo a few billions, their bias is beyond measuring."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest(), "big")
