"""Keys and values: of lists, lines, tables, definition lists, and of headings with a value beneath."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from memlayers.sources.lexicon import (
    GENERAL_HEADINGS,
    NO_KEYS,
    NO_VALUES,
    SENTENCE_VALUE,
    WEAK_KEYS,
    is_relational,
    singular,
)
from memlayers.sources.outline import sentences

MOST_WORDS: Final = 60
"""Of an answer."""
_MOST_KEY_WORDS: Final = 9
_KEYED: Final = re.compile(r"(?P<key>[^\W_][^:?!|]{0,79}?)\s*:\s+(?P<value>\S.*)", re.DOTALL)
_DASHED: Final = re.compile(r"(?:\*\*|__)(?P<key>[^*_]{1,80}?)(?:\*\*|__)\s*[–—-]\s+(?P<value>\S.*)", re.DOTALL)
_KEY_ALONE: Final = re.compile(r"(?P<key>[^\W_][^:?!|]{0,79}?)\s*:?\Z")
_CODE: Final = re.compile(r"[`{}<>=\\]|::|->|^--?[a-z]")
_SMALL: Final = frozenset("a an and as at by for from in of on or per the to with".split())
_JOINS: Final = re.compile(r"(?:in|of|on|at|from|by|for|with|per|as|to|\d|under|over|less|more|up to|years?)\b")
_KEY_VERB: Final = re.compile(
    r"\b(?:is|are|was|were|has|have|had|can|may|must|will|should|do|does|did|it|they|we|you|this|these|those|here|there|"
    r"said|says|not|if|that|which|who|following)\b",
    re.IGNORECASE,
)
VALUE_HEADERS: Final = frozenset(
    ["", "value", "values", "details", "detail", "description", "data", "information", "info", "answer", "entry", "who",
     "figure", "contact", "name", "person"]
)  # fmt: skip
"""Headers of a second column that say nothing of the value."""
ROLE_HEADERS: Final = frozenset("role position post function responsibility duty task".split())
"""Headers of a first column that holds roles: the second says who has them."""
KEY_HEADERS: Final = ROLE_HEADERS | frozenset(
    ["", "key", "keys", "field", "property", "attribute", "item", "parameter", "what", "characteristic", "fact",
     "detail", "specification", "feature", "measure", "indicator", "question", "topic", "subject", "area"]
)  # fmt: skip
"""Headers of a first column that holds keys."""
NAME_HEADERS: Final = frozenset(
    "name product article country city company employee person place site branch model customer supplier project "
    "building room title team department machine device member school animal plant species element planet book film "
    "language currency river mountain station vehicle type".split()
)
"""Headers of a first column that holds names, whatever their case."""


class Keyed(NamedTuple):
    """A key and its value, as shown."""

    key: str
    value: str


def keyed(text: str) -> Keyed | None:
    """The key and the value of "key: value" or "**key** - value", with its marks; None where it is neither.

    Args:
        text: with its marks.
    """
    found = _DASHED.match(text)
    if not found:
        bare = re.sub(r"^(\*\*|__)([^*]{1,80}?):?\1(?::)?(?=\s)", r"\2:", text)  # **key:** and **key**:
        found = _KEYED.match(bare if re.match(r"(\*\*|__)[^*]{1,80}?(?::\1|\1:)", text) else text)
    return Keyed(found["key"].strip(), found["value"].strip()) if found else None


def key_fault(key: str) -> str:
    """Why a key is no relation; "" where it may be one."""
    folded = key.casefold().strip()
    if _CODE.search(key):
        return "code, not a relation"
    if folded in NO_KEYS or re.search(r"(?:^|\W)notes?$", folded):
        return "a remark, not a relation"
    if len(key.split()) > _MOST_KEY_WORDS or _KEY_VERB.search(key) or re.search(r"[.;]\s", key):
        return "no rule matched"
    if not any(letter.isalpha() for letter in key) and not re.fullmatch(r"\d{4}", key):
        return "a key without a word"
    return ""


def value_fault(value: str, most_words: int = MOST_WORDS) -> str:
    """Why a value is no answer; "" where it may be one."""
    if not value or value.casefold() in NO_VALUES or not any(letter.isalnum() for letter in value):
        return "no value"
    if len(value.split()) > most_words:
        return "too long for an answer"
    if value.endswith((":", "...", "…")):
        return "goes on elsewhere"
    if SENTENCE_VALUE.match(value):
        return "a sentence or a pointer, not a value"
    if len(list(sentences(value, 0, len(value)))) > 1:
        return "several sentences, not a value"
    return ""


def trimmed(value: str) -> str:
    """A value without the marks that end a sentence or lead on."""
    value = re.sub(r"\s+[-–—]\Z", "", value.strip().strip(",;"))
    return value[:-1] if re.search(r"[^\W\d_]{3,}\.\Z|\d\.\Z|\)\.\Z", value) and ". " not in value else value


def noun(key: str) -> str:
    """A key as it stands in a question: "Fire Warden" and "The fire warden" are "fire warden"."""
    words = re.sub(r"^(?:the|our|a|an)\s+", "", " ".join(key.split()).strip(" :"), flags=re.IGNORECASE).split()
    if not words:
        return key
    big = [word for word in words if word.casefold() not in _SMALL]
    titled = all(word[:1].isupper() or not word[:1].isalpha() for word in big) or all(word.isupper() for word in big)
    shouted = len(big) > 1 and all(word.isupper() for word in big if word.isalpha())

    def lowered(i: int, word: str) -> str:
        plain = word.strip("()")
        if shouted or (plain[1:].islower() or len(plain) == 1) and (titled or i == 0):
            return word.lower()
        return word

    text = " ".join(lowered(i, word) for i, word in enumerate(words))
    return re.sub(r"^([^(]+?) [-–—] (.+)$", r"\1 (\2)", text) if "(" not in text else text.replace(" - ", ", ")


def is_weak(key: str) -> bool:
    """Whether a key says nothing without what it is a key of."""
    folded = re.sub(r"\s*\(.*\)$", "", key.casefold()).strip()
    words = folded.split()
    return (
        folded in WEAK_KEYS
        or not words
        or _JOINS.match(folded) is not None
        or (len(words) > 1 and all(word in WEAK_KEYS for word in words))
    )


def relation(key: str, above: tuple[str, ...], unique: bool, sure: bool) -> str:
    """What a key is called as a relation, with what it is a key of where it says too little by itself; "" if it does.

    Args:
        key: as it stands.
        above: what it is a key of, the innermost first: the items and headings above it that are no name.
        unique: whether no other key of the document is called so.
        sure: whether a noun that names a relation needs nothing else.
    """
    name = noun(key)
    fields = [noun(each) for each in above if each.casefold() not in GENERAL_HEADINGS]
    field = fields[0] if fields else ""
    if not field:
        return "" if is_weak(key) else name
    if len(fields) > 1 and is_weak(field):
        field = f"{fields[1]}, {field}"
    if _stems(field) <= _stems(name):
        return name
    if key.casefold() in ("name", "title") and is_relational(field):
        return field if key.casefold() == "name" else f"title of the {field}"
    if (
        key.casefold() in ("male", "female", "total", "urban", "rural")
        and field.split()[-1:]
        and field.casefold() in _COUNTED
    ):
        return f"{name} {field}"
    if is_weak(key):
        return f"{field} ({name})" if "(" not in field else f"{field}, {name}"
    if unique and sure and is_relational(name):
        return name
    return f"{name} ({field.replace('(', '').replace(')', '')})"


_COUNTED: Final = frozenset(["population", "area", "staff", "budget", "revenue", "income", "land area"])


def _stems(phrase: str) -> set[str]:
    """The words of a phrase that say something, in the singular."""
    words = re.findall(r"[^\W_]+", phrase.casefold())
    return {singular(word) for word in words if word not in _SMALL}
