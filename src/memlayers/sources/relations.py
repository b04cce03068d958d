"""What a column or a key is called as a relation, what kind of thing its values are, and which grammar follows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from memlayers.sources.claims import Kind

_UNITS: Final = frozenset(
    "eur usd gbp chf jpy cny inr aud cad € $ £ ¥ % kg g mg t lb lbs oz km m cm mm mi ft in inch inches m2 m² km2 km² "
    "sqkm sqm sqft ha acres l ml cl m3 m³ gal w kw mw wh kwh v a ah mah hz khz mhz ghz kb mb gb tb s sec ms min h hr "
    "hrs hours minutes seconds days weeks months years °c °f km/h mph rpm bar pa kpa mpa db px pcs".split()
)
_IN_WORDS: Final = _UNITS - frozenset("in m t g s a v h w l min hours minutes seconds bar".split())
"""Units that may follow a header's words without brackets; the others could be words or letters of it."""
_SPELLED: Final = ("WiFi", "iPhone", "iPad", "iOS", "macOS", "eBook", "GitHub", "LinkedIn", "YouTube", "PhD", "kWh")
"""Words with a capital inside, which does not begin another word."""


class RelationName(NamedTuple):
    """A header cleaned: the noun, and the unit that stood with it, "" without one."""

    name: str
    unit: str


def relation_name(header: str) -> RelationName:
    """A column's header, or a key, as a relation: "unit_price" is "unit price", "Price (EUR)" is "price" in EUR.

    Underscores and inner capitals part words, capitals that only style a title go, an article and a final colon too.
    """
    text = " ".join(header.replace("_", " ").split()).strip(" :;")
    unit = ""
    if found := re.fullmatch(r"(.+?)\s*[(\[]\s*(?:in )?([^()\[\]]+?)\s*[)\]]", text):
        if found[2].casefold() in _UNITS:
            text, unit = found[1], found[2]
    elif found := re.fullmatch(r"(.+?),? (?:in )?(\S+)", text):
        if found[2].casefold() in _IN_WORDS:
            text, unit = found[1], found[2]
    words = [part for word in text.split() for part in _parted(word)]
    if len(words) > 1 and words[0].casefold() in ("the", "a", "an"):
        words = words[1:]
    return RelationName(" ".join(_in_lower_case(words)) or header.strip(), unit)


def _parted(word: str) -> list[str]:
    if word in _SPELLED:
        return [word]
    for known in _SPELLED:
        if word.endswith(known):
            return [*_parted(word.removesuffix(known)), known]
    parts = re.sub(r"(?<=[a-z\d])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2,}$)|(?<=[A-Z])(?=[A-Z][a-z])", " ", word).split()
    return [part.lower() if part[1:].islower() else part for part in parts] if len(parts) > 1 else parts


def _in_lower_case(words: list[str]) -> list[str]:
    """Without capitals that only style: of a title, of its first word, of a header all in capitals."""
    shouted = all(word.isupper() for word in words) and (len(words) > 1 or len("".join(words)) > 4)
    titled = all(word[:1].isupper() or not word[:1].isalpha() for word in words)
    return [
        word.lower() if shouted or (word[1:].islower() or len(word) == 1) and (titled or i == 0) else word
        for i, word in enumerate(words)
    ]


_NUMBER: Final = re.compile(
    r"[~<>≈≤≥±+\-−]?\s?[$€£¥]?\s?\d[\d.,'  ]*(?:e[+-]?\d+)?\s?(?:(?:million|billion|trillion)\s?)?"
    r"(?:%|[^\W\d_]{1,8}[23²³]?(?:/[^\W\d_]{1,4}[23²³]?)?|[$€£¥]|°[CF]?|sq\.? [^\W\d_]{1,2})?",
    re.IGNORECASE,
)
_MONTH: Final = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE: Final = re.compile(
    rf"(?:1\d|20|21)\d\d|\d{{4}}[-/.]\d{{1,2}}(?:[-/.]\d{{1,2}}(?:[T ]\d{{1,2}}:\d\d(?::\d\d(?:\.\d+)?)?Z?)?)?"
    rf"|\d{{1,2}}[-/.]\d{{1,2}}[-/.](?:\d{{4}}|\d\d)"
    rf"|(?:\d{{1,2}}(?:st|nd|rd|th)?\.? )?{_MONTH},? \d{{4}}|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:, ?\d{{4}})?",
    re.IGNORECASE,
)
YES_NO: Final = {"yes": True, "true": True, "y": True, "no": False, "false": False, "n": False}
"""What counts as yes or no, in lower case."""


def kind_of_value(value: str) -> Kind:
    """Date, number (also with a unit), yes_no, or text; that a text is a person or a place it does not tell."""
    if value.casefold() in YES_NO:
        return "yes_no"
    if _DATE.fullmatch(value):
        return "date"
    if not _NUMBER.fullmatch(value):
        return "text"
    unit = re.sub(r".*\d", "", value)  # "12kg" and "8 h" are numbers, "4B" is a name
    return "text" if re.fullmatch(r"[^\W\d_]", unit) and unit.casefold() not in _UNITS else "number"


def is_bare_number(value: str) -> bool:
    """Whether a value is a number without a unit."""
    return re.fullmatch(r"[+\-−]?\d[\d.,'  ]*", value) is not None


def kind_of_most(kinds: Iterable[tuple[Kind, int]]) -> Kind:
    """The kind that more than half of the values have, else text: one odd value among many does not change it.

    Args:
        kinds: each kind with the number of its values.
    """
    counts = dict(kinds)
    most: Kind = max(counts, key=lambda kind: counts[kind], default="text")
    return most if counts and 2 * counts[most] > sum(counts.values()) else "text"


def is_plural(relation: str) -> bool:
    """Whether one says "are" of it: "opening hours", "languages of the staff"."""
    words = re.split(r" (?:of|in|for|at|per|on|with|by) | \(", relation, maxsplit=1)[0].split()
    head = (words[-2] if len(words) > 1 and words[-1].casefold() in _DONE else words[-1]).casefold()
    return head.endswith("s") and not head.endswith(("ss", "us", "is", "news", "series", "ics", "gas", "gps", "sms"))


_PERSONS: Final = frozenset(
    "president minister chancellor chairman chairwoman chairperson secretary monarch king queen emperor governor "
    "senator spouse wife husband partner father mother parent son daughter child sibling brother sister editor "
    "translator illustrator composer singer drummer guitarist actor actress artist painter sculptor architect "
    "designer inventor discoverer developer coach captain trainer teacher tutor doctor nurse assistant deputy "
    "successor predecessor treasurer accountant lawyer tenant landlord host officer representative ambassador "
    "champion winner coordinator administrator reviewer assignee maintainer head principal dean professor bishop "
    "pope sponsor patron".split()
)
_PLACES: Final = frozenset("site venue port airport station building hall village hometown residence resort".split())


def kind_of_name(relation: str) -> Kind | None:
    """Person or place, by the last word of a relation ("prime minister", "home port"); None where it tells neither."""
    last = (relation.split() or [""])[-1].casefold()
    return "person" if last in _PERSONS else "place" if last in _PLACES else None


Form = Literal["is", "has", "does", "done"]
_VERBS: Final = frozenset(
    "can may must will shall should does supports includes requires needs allows contains uses offers accepts works "
    "runs ships comes fits speaks provides produces sells holds exports imports belongs wants takes likes".split()
)
_ADJECTIVES: Final = frozenset(
    "active alive broken built certified closed compliant digital empty fragile full hidden live local new offline old "
    "online open organic overdue paid private public ready remote safe secure sold sold-out valid vegan vegetarian "
    "electric international confidential optional official legal seasonal permanent temporary current recent".split()
)
_ADJECTIVE_ENDINGS: Final = (
    "ed",
    "able",
    "ible",
    "proof",
    "free",
    "less",
    "ful",
    "ive",
    "ous",
    "resistant",
    "friendly",
)
_DONE: Final = frozenset(
    "accepted allowed approved completed confirmed delivered forbidden given granted included installed issued needed "
    "offered paid passed permitted prohibited provided received recognised recognized required returned sent signed "
    "submitted supplied".split()
)
_NOUNS: Final = ("eed", "bed", "shed", "table", "cable", "drive", "archive")
_PREPOSITIONS: Final = frozenset("in on out under at for off from within over up".split())


def yes_no_form(relation: str) -> tuple[Form, str]:
    """How to ask for a relation whose values are yes and no, and what to put into the question.

    "is waterproof", "discontinued" and "in stock": is it; "has WiFi" and "parking": has it; "supports Bluetooth": does
    it; "pets allowed": are they.
    """
    first, _, rest = relation.partition(" ")
    first, last = first.casefold(), relation.split()[-1].casefold()
    if rest and first in ("is", "are", "was", "were"):
        return ("done" if " " in rest and last in _DONE else "is"), rest
    if rest and first in ("has", "have", "with"):
        return "has", rest
    if rest and first in _VERBS:
        return "does", relation
    if rest and last in _DONE and not first.endswith("ly") and not relation.split()[-2].isupper():
        return "done", relation
    if last in _ADJECTIVES or (last.endswith(_ADJECTIVE_ENDINGS) and not last.endswith(_NOUNS)):
        return "is", relation
    if rest and first in (_PREPOSITIONS | {"available"}):
        return "is", relation
    return "has", relation
