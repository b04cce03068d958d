"""Keys and values: of lists, lines, tables, definition lists, and of headings with a value beneath."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from memlayers.sources.lexicon import (
    GENERAL_HEADINGS,
    NO_KEYS,
    NO_VALUES,
    QUANTITIES,
    ROLES,
    SENTENCE_VALUE,
    WEAK_KEYS,
    head_noun,
    is_relational,
    singular,
)
from memlayers.sources.outline import sentences
from memlayers.sources.relations import is_plural

NO_RULE: Final = "no rule matched"
"""Why most passages become no fact."""
MOST_WORDS: Final = 60
"""Of an answer."""
_MOST_KEY_WORDS: Final = 9
_MOST_QUOTED: Final = 8  # words of a title; more are a quotation
_KEYED: Final = re.compile(r"(?P<key>[^\W_][^:?!|]{0,79}?)\s*:\s+(?P<value>\S.*)", re.DOTALL)
_DASHED: Final = re.compile(r"(?:\*\*|__)(?P<key>[^*_]{1,80}?)(?:\*\*|__)\s*[–—-]\s+(?P<value>\S.*)", re.DOTALL)
_KEY_ALONE: Final = re.compile(r"(?P<key>[^\W_][^:?!|]{0,79}?)\s*:?\Z")
_MONTHS: Final = "january february march april may june july august september october november december".split()
_DATED: Final = re.compile(  # "1890s", "late 1859 to 1862", "July 1856 to January 1857"; a year alone may head a column
    rf"(?=.*\d)(?!\d{{4}}\Z)(?:\d{{1,4}}(?:s|st|nd|rd|th)?|{'|'.join(_MONTHS)}|early|mid|late|spring|summer|autumn|"
    r"winter|to|from|until|since|and|present|now|onwards?|forward|circa|c\.|bc|ad|bce|ce|[\s,.–−—/-])+"
)
_COUNT: Final = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d{1,4}|\d[\d.]* (?:thousand|million|billion))(?: \([^()]*\))?")
_CODE: Final = re.compile(r"[`{}<>=\\]|::|->|^--?[a-z]")
_SMALL: Final = frozenset("a an and as at by for from in of on or per the to with".split())
_JOINS: Final = re.compile(r"(?:in|of|on|at|from|by|for|with|per|as|to|\d+|under|over|less|more|up to|years?)\b")
_KEY_VERB: Final = re.compile(
    r"\b(?:is|are|was|were|has|have|had|can|may|must|will|should|do|does|did|it|they|we|you|this|these|those|here|there|"
    r"said|says|wrote|writes|stated|states|remark(?:s|ed)|noted|adds|asked|asks|replied|declared|argued|argues|claims|"
    r"begins?|began|ends|ended|not|if|that|which|who|following)\b",
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
        return NO_RULE
    if not any(letter.isalpha() for letter in key) and not re.fullmatch(r"\d{4}", key):
        return "a key without a word"
    if re.match(r"(?:his|her|its|their|my|your)\b", folded):
        return NO_RULE
    if _DATED.fullmatch(folded):
        return "a date, not a relation"
    if any(key.count(one) != key.count(other) for one, other in ("()", "[]", "“”")) or key.count('"') % 2:
        return NO_RULE
    return ""


def value_fault(value: str, most_words: int = MOST_WORDS) -> str:
    """Why a value is no answer; "" where it may be one."""
    if not value or value.casefold() in NO_VALUES or not any(letter.isalnum() for letter in value):
        return "no value"
    if len(value.split()) > most_words:
        return "too long for an answer"
    if re.search(r"(?::|\.\.\.|…)[\"”’)]*\Z", value):
        return "goes on elsewhere"
    if re.search(r"[^\s(\"'<,;]https?://", value):
        return "several values run together"
    if (quoted := re.match(r"[\"“«]([^\"”»]*)", value)) and len(quoted[1].split()) > _MOST_QUOTED:
        return "a quotation"
    if re.match(r"[\"“][^\"”]*[\"”]:", value):
        return NO_RULE
    if re.search(r"\w=[\"'\w]", value):
        return "code"
    if SENTENCE_VALUE.match(value) or re.search(r"\bsee also\b", value, re.IGNORECASE):
        return "a sentence or a pointer, not a value"
    if len(list(sentences(value, 0, len(value)))) > 1:
        return "several sentences, not a value"
    return ""


def is_no_person(key: str, value: str) -> bool:
    """Whether a key asks for a person, and its value begins as no name does."""
    return head_noun(noun(key)) in ROLES and value[:1].islower() and "@" not in value


def leads_on(value: str) -> str:
    """What a value that ends in a dash says of the lines after it: "US dollars" of "US dollars -"; "" of others."""
    return re.sub(r"\s+[-–—]\Z", "", value) if re.search(r"\w\s+[-–—]\Z", value) else ""


def answers_a_clause(key: str, value: str) -> bool:
    """Whether yes or no is said of what no question is made of: "dual citizenship recognized: yes"."""
    return value.casefold() in ("yes", "no") and " " in key and key.endswith("ed")


def trimmed(value: str) -> str:
    """A value without the marks that end a sentence or lead on."""
    value = value.strip().strip(",;")
    return value[:-1] if re.search(r"[^\W\d_]{3,}\.\Z|\d\.\Z|\)\.\Z", value) and ". " not in value else value


def noun(key: str) -> str:
    """A key as it stands in a question: "Fire Warden" and "The fire warden" are "fire warden"."""
    words = re.sub(r"^(?:the|our|a|an)\s+", "", " ".join(key.split()).strip(" :"), flags=re.IGNORECASE).split()
    if not words:
        return key
    big = [word for word in words if word.casefold() not in _SMALL]
    titled = all(word[:1].isupper() or not word[:1].isalpha() for word in big) or all(word.isupper() for word in big)
    shouted = len(big) > 1 and all(word.isupper() for word in big if word.isalpha())

    named = not titled and len(words) > 1 and words[1][:1].isupper() and words[1][1:2].islower()
    kept = titled and re.search(r"\([A-Z]{2,}\)", key) is not None and not shouted  # "Canadian Army (CA)" is a name

    def lowered(i: int, word: str) -> str:
        plain = word.strip("()")
        small = plain[1:].islower() or len(plain) == 1
        first = i == 0 and (not named or word.casefold() in WEAK_KEYS)
        return word.lower() if not kept and (shouted or (small and (titled or first))) else word

    text = re.sub(r"\(e?s\)", "", " ".join(lowered(i, word) for i, word in enumerate(words)))
    year = re.search(r"(?<=[^\d\s]) (\d{4})$", text)
    text = text[: year.start()] if year else text
    text = re.sub(r"^([^(]+?) [-–—] (.+)$", r"\1 (\2)", text) if "(" not in text else text.replace(" - ", " ")
    return f"{text} in {year[1]}" if year else text


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


def relation(key: str, parents: tuple[str, ...], heading: str, *, alone: bool) -> str:
    """What a key is called as a relation, with what it is a key of where it says too little by itself; "" if it does.

    Args:
        key: as it stands.
        parents: the items of a list that it is part of, the outermost first.
        heading: that it stands under, if that names what the keys beneath it are of; "" if not.
        alone: whether a noun that names a relation needs nothing else: no other key is called so.
    """
    name = noun(key)
    fields = [noun(each) for each in (heading, *parents) if each and each.casefold() not in GENERAL_HEADINGS]
    if len(fields) > 1 and _stems(fields[0]) <= _stems(fields[1]):
        fields = fields[1:]
    if not fields:
        return "" if is_weak(key) else name
    base, inner = fields[0], fields[1:]
    if not inner and _stems(base) <= _stems(name):
        return name
    if not inner and key.casefold() == "name" and is_relational(base):
        return base
    if not inner and key.casefold() in _SHARES and base.casefold() in _COUNTED:
        return f"{name} {base}"
    whole = is_weak(key) or name.split()[0].casefold() in _SHARES
    if is_relational(name) and not whole and not is_relational(base):
        return name if alone and not inner else put(name, ", ".join(fields))
    return put(base, ", ".join((*inner, name)))


def put(name: str, within: str) -> str:
    """A noun with words in brackets, in those that it has already; as it is, with none."""
    if not within:
        return name
    within = within.replace("(", "").replace(")", "")
    return f"{name[:-1]}, {within})" if name.endswith(")") else f"{name} ({within})"


def counted(name: str, value: str) -> str:
    """A relation whose value is a plain count says so: "number of airports"."""
    if head_noun(name) in _PEOPLE and _PERCENT.match(value):
        return f"share of {name}"
    plain = is_plural(name) and head_noun(name) not in QUANTITIES and head_noun(name) not in ("hours", "hour")
    if not plain or not _COUNT.fullmatch(value):
        return name
    return f"total number of {name.removeprefix('total ')}" if name.startswith("total ") else f"number of {name}"


_PEOPLE: Final = frozenset(["women", "men", "children", "people", "persons", "adults", "households"])
_PERCENT: Final = re.compile(r"[<>~]?\s?\d[\d.,]*\s?%")
_SHARES: Final = frozenset(["male", "female", "total", "urban", "rural"])
_COUNTED: Final = frozenset(["population", "area", "staff", "budget", "revenue", "income", "land area"])


def _stems(phrase: str) -> set[str]:
    """The words of a phrase that say something, in the singular."""
    words = re.findall(r"[^\W_]+", phrase.casefold())
    return {singular(word) for word in words if word not in _SMALL}
