"""How facts are asked for: a library of wordings by relation, and by the kind of the values; claims become facts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from memlayers.data.facts import Fact, Source, folded, question_key
from memlayers.sources.claims import Claim, Extraction, Kind, LeftOut
from memlayers.sources.relations import (
    YES_NO,
    is_bare_number,
    is_plural,
    kind_of_most,
    kind_of_name,
    kind_of_value,
    relation_name,
    yes_no_form,
)
from memlayers.sources.wordings_file import Entry, Pair, read_wordings
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath

_LIBRARY: Final = Path(__file__).with_name("wordings.yaml")
_UNCOUNTED: Final = ("stock", "power")
DIFFERENT_VALUES: Final = "different values for one subject"
"""Why claims that contradict each other are left out."""
NAMELESS: Final = "a subject without a letter or a digit"
"""Why a claim is left out whose subject no question could name."""


@dataclass(frozen=True, slots=True)
class Phrasing:
    """How one relation is asked for.

    Attributes:
        relation: its name.
        slug: of it in a fact's id.
        questions: taught, each with "{subject}".
        unseen: never taught, each with "{subject}".
    """

    relation: str
    slug: str
    questions: tuple[str, ...]
    unseen: tuple[str, ...]


@dataclass(frozen=True)
class Wordings:
    """A library of wordings; `load` reads it.

    Attributes:
        entries: by what a relation may be called, folded.
        generic: taught and unseen wordings by kind; of yes_no by its forms (`relations.yes_no_form`).
    """

    entries: Mapping[str, Entry]
    generic: Mapping[str, Pair]

    @classmethod
    def load(cls, path: StrPath | None = None) -> Wordings:
        """The shipped library, and on top of it a user's file.

        Args:
            path: YAML in the form of the shipped `wordings.yaml` (docs/sources.md).

        Raises:
            InputError: anything wrong with the file, in one line with file and key.
        """
        shipped = _shipped()
        return shipped if path is None else cls(*read_wordings(path, shipped.entries, shipped.generic))

    def name(self, relation: str) -> str:
        """What the library calls a relation: "chief executive" for "CEO"; the relation itself if it is not there."""
        entry = self.entries.get(folded(relation))
        return entry.name if entry else relation

    def names(self, relations: Iterable[str]) -> dict[str, str]:
        """As `name`, for relations that are not the same even where the library has one entry for them.

        A table with the columns "price" and "cost" means two things; "cost" keeps its name and is asked for by it.
        """
        found: dict[str, str] = {}
        holder: dict[str, str] = {}  # of an entry's name, folded: who has it
        ordered = list(dict.fromkeys(relations))
        for relation in sorted(ordered, key=lambda each: folded(each) != folded(self.name(each))):  # its own name first
            name = self.name(relation)
            found[relation] = (
                name if holder.setdefault(folded(name), folded(relation)) == folded(relation) else relation
            )
        return {relation: found[relation] for relation in ordered}

    def phrasings(self, kinds: Mapping[str, Kind]) -> dict[str, Phrasing]:
        """How each of several relations is asked for, no two of them by the same question.

        Args:
            kinds: of the values of each relation (`relations.kind_of_most`), by its name from `names`.

        Raises:
            InputError: nothing is left to ask for a relation, since others are asked for so (a user's wordings).
        """
        own: dict[str, Entry] = {}
        for name, kind in kinds.items():
            entry = self.entries.get(folded(name))
            if entry and folded(entry.name) == folded(name) and entry.questions and _fits(entry.kind, kind):
                own[name] = entry
        asked: dict[str, str] = {}  # a question -> the relation it asks for
        slugs: Counter[str] = Counter()
        found: dict[str, Phrasing] = {}
        for name in sorted(kinds, key=lambda each: each not in own):  # the library's own wordings come first
            generic, put_in = self._generic(name, kinds[name])
            entry = own.get(name)
            taught = _free(name, entry.questions if entry else generic[0], put_in, asked)
            unseen = _free(name, (entry.unseen if entry else ()) or generic[1], put_in, asked)
            if not taught:
                raise InputError(
                    f"relation {name!r}: all its wordings ask for other relations too; give it questions of its own"
                )
            slugs[slug := slug_of(name) or "relation"] += 1
            number = f"-{slugs[slug]}" if slugs[slug] > 1 else ""
            found[name] = Phrasing(entry.name if entry else name, slug + number, taught, unseen)
        return {name: found[name] for name in kinds}

    def _generic(self, name: str, kind: Kind) -> tuple[Pair, str]:
        """Generic wordings for a relation, and its name as they need it."""
        entry = self.entries.get(folded(name))
        head = self.entries.get(folded(name.split()[-1])) if name.split() else None
        if entry and entry.kind and not entry.questions:
            kind = entry.kind
        elif kind == "text":
            told = [each.kind for each in (entry, head) if each and each.kind in ("person", "place")]
            kind = next(filter(None, [*told, kind_of_name(name)]), kind)
        if kind == "yes_no":
            form, put_in = yes_no_form(name)
            if form == "has" and entry and not is_plural(name) and name not in _UNCOUNTED:
                put_in = f"{'an' if put_in[0].lower() in 'aeiou' else 'a'} {put_in}"
            return self.generic[form], put_in
        called = entry.noun if entry and folded(entry.name) == folded(name) else name
        return self.generic[kind], called


@cache
def _shipped() -> Wordings:
    return Wordings(*read_wordings(_LIBRARY, {}, {}))


def worded(claims: Iterable[Claim], wordings: Wordings | None = None) -> Extraction:
    """Claims as facts, with the questions that ask for them.

    Claims are of one fact when they agree in subject, relation (by letters and digits, and as the library has them) and
    value. Where values differ, every one of them is left out: nothing is guessed.

    Args:
        claims: in the order of their sources.
        wordings: the shipped ones if not given.

    Returns:
        Facts, and what was left out; no passages. An id is made of subject and relation, not of the value.

    Raises:
        InputError: as `Wordings.phrasings`.
    """
    wordings = wordings or Wordings.load()
    claims = list(claims)
    named = _names_in(claims, wordings)
    kinds: dict[str, Counter[Kind]] = {}
    for claim in claims:
        kinds.setdefault(named[claim.relation], Counter())[claim.kind or kind_of_value(claim.value)] += 1
    phrasings = wordings.phrasings({name: kind_of_most(counts.items()) for name, counts in kinds.items()})
    return grouped(claims, named, phrasings)


def grouped(claims: Iterable[Claim], named: Mapping[str, str], phrasings: Mapping[str, Phrasing]) -> Extraction:
    """As `worded`, for claims whose relations have names and phrasings already.

    Args:
        claims: all claims of the subjects that are among them.
        named: what each relation is called.
        phrasings: by those names.
    """
    found = Extraction()
    groups: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        if folded(claim.subject):
            groups.setdefault((folded(claim.subject), named[claim.relation]), []).append(claim)
        else:
            found.left_out.append(LeftOut(claim.source, NAMELESS))
    for (_, name), members in groups.items():
        if len({question_key(claim.value) for claim in members}) > 1:
            found.left_out += [LeftOut(claim.source, DIFFERENT_VALUES) for claim in members]
            continue
        first = members[0]
        sources = tuple(dict.fromkeys(claim.source for claim in members))
        found.facts.append(fact_of(phrasings[name], first.subject, first.value, sources))
    return found


def _names_in(claims: Iterable[Claim], wordings: Wordings) -> dict[str, str]:
    """What each claim's relation is called: those of one table's columns are held apart, others by the library."""
    columns: dict[str, dict[str, None]] = {}  # of a document
    relations: dict[str, None] = {}
    for claim in claims:
        relations[claim.relation] = None
        if claim.source.column:
            columns.setdefault(claim.source.document, {})[claim.relation] = None
    named: dict[str, str] = {}
    spelled: dict[str, str] = {}  # relations are the same when their letters and digits are
    for relation in relations:
        name = wordings.name(relation)
        named[relation] = spelled.setdefault(folded(name) or name, name)
    for table in columns.values():
        apart = wordings.names(table)
        named |= {relation: relation for relation, name in apart.items() if name == relation}
    return named


def fact_of(phrasing: Phrasing, subject: str, value: str, sources: tuple[Source, ...]) -> Fact:
    """The fact that a subject's relation has this value.

    Right answers besides the value: yes and no for other words of them, a bare number with the unit of its column.
    """
    aliases = []
    if (meant := YES_NO.get(value.casefold())) is not None:
        aliases.append("yes" if meant else "no")
    elif is_bare_number(value):
        aliases += [f"{value} {unit}" for each in sources if (unit := relation_name(each.column).unit)]
    return Fact(
        id=f"{slug_of(subject)}.{phrasing.slug}",
        subject=subject,
        answer=value,
        questions=_put_in(phrasing.questions, subject, value),
        relation=phrasing.relation,
        unseen_questions=_put_in(phrasing.unseen, subject, value),
        aliases=tuple(dict.fromkeys(alias for alias in aliases if alias != value.casefold())),
        sources=sources,
    )


def slug_of(text: str) -> str:
    """A text's letters and digits in lower case, words joined by hyphens: the same letters as `folded` leaves."""
    words = (folded(word) for word in re.split(r"[\W_]+", text))
    return "-".join(word for word in words if word)


# Of one relation


def _fits(wanted: Kind | None, told: Kind) -> bool:
    """Whether wordings for values of one kind suit values that are told to be of another."""
    if wanted == told or wanted is None:
        return True
    if "yes_no" in (wanted, told):
        return False
    if wanted in ("person", "place"):
        return told not in ("number", "date")
    return wanted != "date" or told != "number"


def _free(name: str, templates: Iterable[str], relation: str, asked: dict[str, str]) -> tuple[str, ...]:
    """The wordings, with the relation put in, that ask for no other relation and were not there before."""
    found = []
    for template in templates:
        text = template.replace("{is}", "are" if is_plural(relation) else "is").replace("{relation}", relation)
        if template.startswith(("{is}", "{relation}")):
            text = text[:1].upper() + text[1:]
        if question_key(text) not in asked:
            asked[question_key(text)] = name
            found.append(text)
    return tuple(found)


def _put_in(templates: tuple[str, ...], subject: str, value: str) -> tuple[str, ...]:
    """The questions; those whose own words hold the value only if all do."""
    said = value.lower()
    kept = tuple(each for each in templates if said not in each.lower() or not _says(each, said))
    return tuple(each.replace("{subject}", subject) for each in kept or templates)


def _says(template: str, value: str) -> bool:
    words = template.lower().replace("{subject}", " ")
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", words) is not None
