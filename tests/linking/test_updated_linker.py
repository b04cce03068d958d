"""A linker that was updated edit by edit finds what one made anew finds, and earlier linkers stay as they were."""

from __future__ import annotations

import random
from dataclasses import replace

from memlayers.data.facts import Fact, alias_fault
from memlayers.linking.config import LinkConfig
from memlayers.linking.linker import NameLinker

WORDS = ("Kara", "Lotis", "Vendar", "Marosel", "Énd")
ASKED = [
    f"{first} {name}{mark} and {other}?" for first in ("Where is", "tell Kara of", "Is") for mark in ("", "!")
    for name in ("Kara", "Vendar", "marosel", "Marosell", "Ennd Lotis", "Kara Lotsi", "KLV", "KaraVendar")
    for other in ("Énd", "it", "Lotis Vendar")
]  # fmt: skip


def made_up(number: int, rng: random.Random) -> Fact:
    """A fact about one of few names, so that many share their letters with another, an alias or a derived form."""
    one, other = rng.choices(WORDS, k=2)
    shapes = ("", "K", "?", one, one.upper(), f"{one}!", f"The {one}", f"{one} Inc.", f"{one} ({other})",
              f"{one} {other}", f"{one} of {other} Vendar", f"{one} {other} Lotis Kara")  # fmt: skip
    subject = rng.choice(shapes)
    questions = (rng.choice(("Where was {} born?", "Who founded {}?")), f"{rng.choice(WORDS)}, tell {{}}")
    fact = Fact(str(number), subject, "an answer", tuple(each.format(subject) for each in questions))
    return renamed(fact, (f"{one}{other}",)) if rng.random() < 0.2 else fact


def renamed(fact: Fact, aliases: tuple[str, ...]) -> Fact:
    return replace(fact, subject_aliases=tuple(each for each in aliases if not alias_fault(fact.subject, each)))


def edited(facts: list[Fact], number: int, rng: random.Random) -> list[Fact]:
    """The facts after an edit: one is put somewhere, some are taken out, changed, moved, or given other aliases."""
    place, fact = rng.randrange(len(facts) + 1), made_up(number, rng)
    before, behind = facts[:place], facts[place:]
    aliases = tuple(rng.sample(("Lotis", "Ka Ra", "Old Vendar (town)", "Marosel Énd"), rng.randrange(4)))
    about = behind[0].subject if behind else ""
    return rng.choices(
        [
            [*facts, fact, *(made_up(number + 1000 + i, rng) for i in range(5))],
            [*before, fact, *behind],
            [*before, *behind[3:]],
            [*before, fact, *behind[1:]],
            [*behind, *before],
            [renamed(each, aliases) if each.subject == about else each for each in facts],
        ],
        (4, 2, 3, 2, 1, 4),
    )[0][-40:]


def tables(linker: NameLinker) -> object:
    """All that a linker knows, as values of its own."""
    parts = linker._misspellings._by_part
    misspellings = {(*group, *part): sorted(names) for group, of in parts.items() for part, names in of.items()}
    about = [(subject, tuple(facts)) for subject, facts in linker._of_subject.items()]  # the order counts
    return about, dict(linker._forms), dict(linker._sizes), linker._longest, linker._common, misspellings


def test_an_updated_linker_is_one_made_anew() -> None:
    rng, how = random.Random(0), set[str]()
    for config in (LinkConfig(), LinkConfig(misspellings=False, brackets=False)):
        facts: list[Fact] = []
        linker = NameLinker(facts, config)
        for number in range(120):
            before, kept = tables(linker), linker
            facts = edited(facts, number, rng)
            linker, anew = linker.updated(facts), NameLinker(facts, config)
            assert tables(linker) == tables(anew)
            assert tables(kept) == before
            for text in rng.sample(ASKED, 4):
                assert linker.mentions(text) == (found := anew.mentions(text))
                how |= {mention.how if len(mention.subjects) == 1 else "several" for mention in found}
    assert how == {"name", "derived", "misspelt", "several"}
