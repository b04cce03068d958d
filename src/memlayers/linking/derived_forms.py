"""Forms of a name that people use in its place: each has a rule, and a switch in `LinkConfig`. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from memlayers.data.facts import Fact

if TYPE_CHECKING:
    from memlayers.linking.config import LinkConfig

_COMPANY: Final = (
    r"Inc|Incorporated|Corp|Corporation|Co|Company|Ltd|Limited|LLC|LLP|PLC|GmbH|AG|KG|SE|SA|NV|BV|Oy|AB|Pty"
)
_OF_PEOPLE: Final = re.compile(
    r"\b(born|birth|die[ds]?|death|spouse|married|wife|husband|widow|child|children|father|mother|parents?|educated|"
    r"studied|alma mater|occupation|profession|nationality|citizen\w*|notable work|known for|famous for)\b",
    re.IGNORECASE,
)
_SUFFIXES: Final = ("jr", "sr", "ii", "iii", "iv")
_SMALL: Final = ("of", "the", "and", "for", "in", "on", "de", "du", "la", "le", "der", "und", "von", "van")


def last_name(name: str) -> str | None:
    """The last word of two to four words that all begin with a capital: of a person's name."""
    words = name.split()
    if len(words) > 2 and words[-1].strip(".").lower() in _SUFFIXES:
        words = words[:-1]
    whole = all(word[0].isupper() and re.sub("[-'’.]", "", word).isalpha() for word in words)
    return words[-1] if 2 <= len(words) <= 4 and whole and len(words[-1]) >= 3 else None


def without_article(name: str) -> str | None:
    """A name without "The", "A" or "An"."""
    found = re.fullmatch(r"(?:The|A|An)\s+(.{3,})", name)
    return found[1] if found else None


def without_brackets(name: str) -> str | None:
    """A name without what stands in brackets behind it."""
    found = re.fullmatch(r"(.*\S)\s*[(\[][^()\[\]]+[)\]]", name)
    return found[1] if found else None


def without_company(name: str) -> str | None:
    """A company's name without its legal form."""
    found = re.fullmatch(rf"(.*[^\s,]),?\s+(?:{_COMPANY})\.?", name)
    return found[1] if found else None


def acronym(name: str) -> str | None:
    """The first letters of three words and more that begin with a capital; small words do not count."""
    words = [word for word in re.findall(r"[^\W\d_]+", name) if word.lower() not in _SMALL]
    return "".join(word[0] for word in words) if len(words) >= 3 and all(word[0].isupper() for word in words) else None


RULES: Final[dict[str, Callable[[str], str | None]]] = {
    "last_name": last_name,
    "article": without_article,
    "brackets": without_brackets,
    "company": without_company,
    "acronym": acronym,
}
"""By the name of the switch in `LinkConfig`."""


def derived_forms(name: str, config: LinkConfig, *, person: bool) -> Iterator[tuple[str, str]]:
    """The rule and the form of each rule that is on and applies.

    Args:
        name: of a subject, as its facts spell it.
        config: the switches.
        person: whether it is a person's.
    """
    for rule, apply in RULES.items():
        form = apply(name) if getattr(config, rule) and (person or rule != "last_name") else None
        if form is not None:
            yield rule, form


def is_person(facts: Sequence[Fact]) -> bool:
    """Whether what is asked in the facts about a subject is asked of people."""
    return any(_OF_PEOPLE.search(text) for fact in facts for text in (fact.relation, *fact.questions[:3]))
