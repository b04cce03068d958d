"""How the names in a question are linked to the stored subjects; see docs/asked.md."""

from __future__ import annotations

from dataclasses import dataclass

from memlayers.config.options import check_section, option


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """Which forms of a stored subject's name are looked for, beside the name itself and its aliases."""

    enabled: bool = option(True, "Link names at all; otherwise a memory is asked what stands there.", flag=None)
    last_name: bool = option(True, "Of a person, the last word of the name.", flag=None)
    article: bool = option(True, "The name without its article.", flag=None)
    brackets: bool = option(True, "The name without what stands in brackets.", flag=None)
    company: bool = option(True, 'A company\'s name without "Inc." and the like.', flag=None)
    acronym: bool = option(True, "The first letters of three words and more.", flag=None)
    misspellings: bool = option(
        True, "A name with one letter wrong, from five letters on; with two, from ten on.", flag=None
    )
    languages: bool = option(
        True, "In German, French, Spanish, Italian, Portuguese or Dutch, the fact that a question asks for.", flag=None
    )
    focus: bool = option(True, "In a conversation, the subject that was named last.", flag=None)

    def __post_init__(self) -> None:
        check_section(self)
