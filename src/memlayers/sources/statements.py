"""Sentences that state a fact in one of a few plain forms: "X is the Y of Z", "Z was founded in 1987 by A"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from memlayers.sources.claims import Kind
from memlayers.sources.lexicon import (
    LOWER_CASE,
    PAST,
    PLACES,
    ROLES,
    SUPERLATIVE,
    UNCERTAIN,
    head_noun,
    is_relational,
)


class Statement(NamedTuple):
    """What a sentence says of a subject; "" is whom its document or section is about."""

    subject: str
    relation: str
    value: str
    kind: Kind | None = None


class Context(NamedTuple):
    """What the rules must know beside a sentence's own words.

    Attributes:
        about: whom the document or section is about; "" where that is not clear.
        organised: whether that is an organisation which the document describes.
        certain: whether "the chief executive" is of `about`: no other name came in between.
        is_name: whether a phrase at a sentence's beginning is a name.
    """

    about: str
    organised: bool
    certain: bool
    is_name: Callable[[str], bool]


_CAP: Final = (
    r"[A-Z0-9À-ÖØ-Þ][\w'’&/+-]*(?:\.[\w]+)*(?:(?<=\b[A-Z])\.|(?<=\bSt)\.|(?<=\bDr)\.|(?<=\bMr)\.|(?<=\bMrs)\.)?"
)
_LINK: Final = r"(?:of the|of|de la|de|del|della|di|du|da|dos|von|van der|van|der|den|la|le|el|al|bin|ibn|&)"
_NAME: Final = rf"(?:[Tt]he )?{_CAP}(?: (?:{_LINK} )?{_CAP})*"
_PLACE: Final = rf"(?!\d{{3,4}}\b){_NAME}"
_NAMES: Final = rf"{_NAME}(?:(?:, and |, | and ){_NAME})*"
_MONTH: Final = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DAY: Final = rf"(?:\d{{1,2}} {_MONTH} \d{{4}}|{_MONTH} \d{{1,2}}, \d{{4}})"
_DATE: Final = rf"(?:{_DAY}|{_MONTH} \d{{4}}|\d{{4}}(?!\d|,\d))"
_TIME: Final = r"(?:\d{1,2}(?:[:.]\d\d)?(?: ?[ap]\.?m\.?)?|noon|midnight)"
_COUNT: Final = (
    r"(?:\d[\d.,]*|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|"
    r"sixty|ninety|a hundred|half)"
)
_NOUNS: Final = r"[a-zA-Z][\w'’/-]*(?: [a-z][\w'’/-]*){0,4}"  # a phrase of ordinary words
_RELATION: Final = r"(?:[a-z][\w'’/-]*|[A-Z]{2,})(?: (?:[a-z][\w'’/-]*|[A-Z]{2,})){0,7}"
_SELF: Final = r"(?:(?:The|Our) (?:company|firm|organi[sz]ation|business|club|school|charity|institute|team)|We)"
_EMAIL: Final = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
_URL: Final = r"(?:https?://|www\.)\S+"
_MOST_VALUE_WORDS: Final = 12
_CLAUSE: Final = re.compile(
    r"\b(?:who|whom|whose|which|that|where|when|because|while|is|are|was|were|has|have|had|will|can|may|must|shall|but|"
    r"so|then|than|as|it|they|he|she|we|you)\b",
    re.IGNORECASE,
)
_APPOSITION: Final = re.compile(
    r"(?:,? \(|; |, (?=(?:who|which|where|whose|a|an|the|and its|with|since|from|but|so)\b)).*"
)
_PRONOUN: Final = re.compile(
    r"(?:it|its|he|his|she|her|they|their|this|that|these|those|there|i|you|one|here|such|both|all|some|many|most|"
    r"another|each other)\b",
    re.IGNORECASE,
)
_POINTS: Final = re.compile(r"\b(?:this|that|these|those|its|their|his|her)\b|\b(?:of|for|in|the)\Z")
_ACTS: Final[dict[str, tuple[str, str, str]]] = {  # a verb: the relations of its time, its doer, its place
    **dict.fromkeys(
        ("founded", "established", "formed", "incorporated", "set up"), ("founded", "founder", "place of foundation")
    ),
    "built": ("construction date", "builder", ""),
    "constructed": ("construction date", "builder", ""),
    "opened": ("opening date", "", ""),
    "published": ("publication date", "publisher", ""),
    "launched": ("launch date", "", ""),
    "written": ("", "author", ""),
    "directed": ("", "director", ""),
    "designed": ("", "designer", ""),
    "invented": ("date of invention", "inventor", ""),
    "discovered": ("date of discovery", "discoverer", ""),
    "composed": ("", "composer", ""),
    "painted": ("", "painter", ""),
}
_REPEATED: Final = {
    "replaced": "replacement", "checked": "check", "serviced": "service", "reviewed": "review", "updated": "update",
    "inspected": "inspection", "cleaned": "cleaning", "tested": "test", "renewed": "renewal", "audited": "audit",
    "published": "publication", "paid": "payment", "backed up": "backup", "calibrated": "calibration",
}  # fmt: skip


def statements(sentence: str, context: Context) -> list[Statement]:
    """What a sentence states; nothing where no form fits all of it, or it is no plain statement.

    Args:
        sentence: without marks, on one line.
        context: of it.
    """
    said = sentence.strip().rstrip(".!").strip()
    if sentence.rstrip().endswith("?") or UNCERTAIN.search(said) or _PRONOUN.match(said):
        return []
    for rule in (*_NAMED, *_OF_DOCUMENT, *(_OF_ORGANISATION if context.organised else ())):
        found = [each for each in rule(said, context) if _stands_alone(each)]
        if found:
            return found
    return []


def _stands_alone(found: Statement) -> bool:
    """Whether a statement says all by itself: its words point to no other sentence, and none is cut off."""
    cut = "- " in found.value or re.search(r"\b[A-Z]\.\Z", found.value)
    return bool(found.value) and not cut and not _PRONOUN.match(found.value) and not _POINTS.search(found.relation)


# What is said of a name


def _is_the_of(said: str, context: Context) -> Iterator[Statement]:
    """Harriet Oake is the chief executive of Brindle & Oake."""
    found = re.fullmatch(
        rf"(?P<x>{_NAME}) (?P<verb>is|are|was) the (?P<y>{_RELATION}?) (?P<link>of|for|in) "
        rf"(?P<z>{_NAME})(?P<rest>,? .*)?",
        said,
    )
    if not found or not context.is_name(found["x"]) or not _ends(found["rest"]):
        return
    relation, subject = found["y"], _subject(found["z"], context)
    best = _is_best(relation)
    if not (is_relational(relation) and found["link"] == "of" or best) or subject in (None, found["x"]):
        return
    if found["verb"] == "was" and head_noun(relation) not in PAST:
        return
    if head_noun(relation) in ROLES and not _is_person(found["x"]):
        return
    yield Statement(subject, relation, found["x"], "person" if head_noun(relation) in ROLES else None)


def _the_of_is(said: str, context: Context) -> Iterator[Statement]:
    """The chief executive of Brindle & Oake is Harriet Oake."""
    found = re.fullmatch(rf"The (?P<y>{_RELATION}?) of (?P<z>{_NAME}) (?P<verb>is|are|was) (?P<x>.+)", said)
    if found and _current(found["verb"], found["y"]) and (is_relational(found["y"]) or _is_best(found["y"])):
        subject, value = _subject(found["z"], context), _value(found["x"], found["y"])
        if subject and value and not subject[0].isdigit() and head_noun(subject) not in ROLES:
            yield Statement(subject, found["y"], value, _kind(found["y"]))


def _owned(said: str, context: Context) -> Iterator[Statement]:
    """Brindle & Oake's chief executive is Harriet Oake."""
    found = re.fullmatch(
        rf"(?P<z>{_NAME}?)(?:['’]s|(?<=s)['’]) (?P<y>{_RELATION}) (?P<verb>is|are|was) (?P<x>.+)", said
    )
    if found and _current(found["verb"], found["y"]) and is_relational(found["y"]) and context.is_name(found["z"]):
        subject, value = _subject(found["z"], context), _value(found["x"], found["y"])
        if subject and value and not subject[0].isdigit() and head_noun(subject) not in ROLES:
            yield Statement(subject, found["y"], value, _kind(found["y"]))


def _act(said: str, context: Context) -> Iterator[Statement]:
    """Brindle & Oake was founded in 1987 by Marta Brindle and Tomas Oake in Ludlow."""
    verbs = "|".join(_ACTS)
    found = re.match(rf"(?P<z>{_NAME}|{_SELF}) (?:was|were) (?:originally |first |co-)?(?P<verb>{verbs})(?= |,)", said)
    if not found or (subject := _whom(found["z"], context)) is None:
        return
    time, doer, place = _ACTS[found["verb"]]
    parts: list[Statement] = []
    at = found.end()
    while at < len(said):
        if part := re.compile(rf",? (?:in|on) (?P<x>{_DATE})(?=$|[ ,;])").match(said, at):
            parts.append(Statement(subject, time, part["x"], "date"))
        elif part := re.compile(rf",? by (?P<x>{_NAMES})(?=$|[ ,;])").match(said, at):
            parts.append(Statement(subject, doer, part["x"], "person"))
        elif part := re.compile(rf",? (?:in|at) (?P<x>{_PLACE}(?:, {_NAME})*)(?=$|[ ,;])").match(said, at):
            parts.append(Statement(subject, place, part["x"], "place"))
        else:
            break
        at = part.end()
    if at < len(said) and not _ends(said[at:]):
        return
    relations = [each.relation for each in parts]
    for each in parts:
        if each.relation and relations.count(each.relation) == 1:
            yield each


def _born(said: str, context: Context) -> Iterator[Statement]:
    """Ann Lee was born on 3 May 1950 in Oslo; Ann Lee (born 3 May 1950) is a painter."""
    if found := re.match(rf"(?P<z>{_NAME}) \(born (?P<x>{_DAY})(?:\)|[,;] )", said):
        if (subject := _whom(found["z"], context)) is not None:
            yield Statement(subject, "date of birth", found["x"], "date")
        return
    found = re.fullmatch(
        rf"(?P<z>{_NAME}) (?:was )?(?P<verb>born|died)(?: (?:on|in) (?P<when>{_DATE}))?"
        rf"(?:,? (?:in|at) (?P<where>{_PLACE}(?:, {_NAME})*))?"
        r"(?P<rest>[,;] (?![A-Z]).*| \(.*| (?:and|to|as|after|while|from) .*)?",
        said,
    )
    if found and (subject := _whom(found["z"], context)) is not None and _is_person(subject):
        noun = "birth" if found["verb"] == "born" else "death"
        if found["when"]:
            yield Statement(subject, f"date of {noun}", found["when"], "date")
        if found["where"]:
            yield Statement(subject, f"place of {noun}", found["where"], "place")


def _is_located(said: str, context: Context) -> Iterator[Statement]:
    """Brindle & Oake is based in Ludlow; The Bull Hotel is located at 3 Corve Street."""
    found = re.fullmatch(
        rf"(?P<z>{_NAME}|{_SELF}) (?:is|are) (?P<verb>located|situated|based|headquartered) (?P<link>in|at|on|near) "
        rf"(?P<x>(?:the )?{_CAP}.*)",
        said,
    )
    if found and (subject := _whom(found["z"], context)) is not None and (value := _place(found["x"])):
        lies = found["verb"] in ("located", "situated")
        if not lies and (found["link"] not in ("in", "at") or " are based" in said):  # on something; machines, a team
            return
        relation = "location" if lies else "headquarters"
        yield Statement(
            subject, relation, value if found["link"] in ("in", "at") else f"{found['link']} {value}", "place"
        )


def _costs(said: str, context: Context) -> Iterator[Statement]:
    """The Aerolamp 100 costs 49 pounds."""
    found = re.fullmatch(rf"(?P<z>{_NAME}) (?P<verb>costs|weighs) (?P<x>[$€£¥]? ?\d.*)", said)
    if found and (subject := _whom(found["z"], context)) is not None and (value := _value(found["x"], "price")):
        yield Statement(subject, "price" if found["verb"] == "costs" else "weight", value, "number")


# What is said of whom the document is about


def _the_is(said: str, context: Context) -> Iterator[Statement]:
    """The chief executive is Harriet Oake; Core hours are 10:00 to 15:00; Our dress code is casual."""
    found = re.fullmatch(
        rf"(?:(?:The|Our) (?P<y>{_RELATION}?)|(?P<p>[A-Z][\w'’-]*(?: [a-z][\w'’-]*)*?)) (?P<verb>is|are|was) (?P<x>.+)",
        said,
    )
    if not found or not context.about or not context.certain:
        return
    relation = found["y"] or _lowered(found["p"])
    if found["p"] and (found["verb"] != "are" or context.is_name(found["p"]) or not context.organised):
        return
    if re.search(
        r"\b(?:is|are|was|it|they|he|she|their|his|her|this|that|these|who|which|currently|actually|really)\b", relation
    ):
        return
    best = _is_best(relation) and "most " not in relation
    if re.search(r" (?:of|for) (?:the|a|each)\b", relation) and not context.organised:
        return
    if not (is_relational(relation) or best) or not _current(found["verb"], relation):
        return
    value = _value(found["x"], relation)
    at = re.fullmatch(rf"(?:at|in) (?P<x>(?:the )?{_CAP}.*)", found["x"]) if context.organised else None
    if value:
        yield Statement(context.about, relation, value, _kind(relation))
    elif at and head_noun(relation) in PLACES and (place := _place(at["x"])):
        yield Statement(context.about, f"location of the {relation}", place, "place")


# What is said in a document of an organisation


def _kept(said: str, context: Context) -> Iterator[Statement]:
    """First aid boxes hang beside each kitchen; The spare keys are kept in the porter's lodge."""
    found = re.fullmatch(
        rf"(?P<z>{_NOUNS}) (?:(?:is|are) (?:kept|stored|found|located|situated|held)|is|are|hangs?|stands?|lies?) "
        r"(?P<x>(?P<link>in|at|on|beside|behind|near|next to|under|above|opposite|outside|inside) (?P<y>.+))",
        said,
    )
    if not found or context.is_name(found["z"]) or not (value := _place(found["y"])):
        return
    if value != found["y"] and re.search(r"[,)] ", found["y"]):  # the first of several places
        return
    if re.match(
        rf"(?:{_COUNT}|Mondays?|Tuesdays?|Wednesdays?|Thursdays?|Fridays?|Saturdays?|Sundays?|{_MONTH}|{_TIME})\b",
        value,
    ):
        return
    if re.match(r"(?:the )?(?:[A-Z0-9]|each|every|the|\w+ floor)", value) and not _ends_open(value):
        whole = value if found["link"] in ("in", "at") else f"{found['link']} {value}"
        if whole in found["x"]:
            yield Statement(context.about, f"location of {_the(found['z'])}", whole, "place")


def _open_from(said: str, context: Context) -> Iterator[Statement]:
    """The office is open from 08:30 to 17:00; The canteen closes at 14:00."""
    days = (
        r"(?:,? (?:on |from )?[A-Z][a-z]+days?(?: (?:to|and) [A-Z][a-z]+days?)?|"
        r",? (?:on )?(?:weekdays|weekends)| daily| every day)?"
    )
    found = re.fullmatch(
        rf"(?P<z>{_NOUNS}) (?:is|are) open(?:ed)? (?P<x>(?:from )?(?P<y>{_TIME} (?:to|until|till|-|–) {_TIME}{days}))",
        said,
    )
    if found and not context.is_name(found["z"]):
        yield Statement(context.about, f"opening hours of {_the(found['z'])}", found["y"])
        return
    found = re.fullmatch(rf"(?P<z>{_NOUNS}) (?P<verb>opens|closes|starts|begins|ends) at (?P<x>{_TIME}{days})", said)
    if found and not context.is_name(found["z"]):
        noun = {"opens": "opening", "closes": "closing", "ends": "end"}.get(found["verb"], "start")
        yield Statement(context.about, f"{noun} time of {_the(found['z'])}", found["x"])


def _reached(said: str, context: Context) -> Iterator[Statement]:
    """The help desk can be reached on extension 4417."""
    found = re.fullmatch(
        rf"(?P<z>{_NOUNS}) (?:can be|is|are) (?:reached|contacted|called) (?:on|at|under|via|by|through|by calling) "
        rf"(?:(?P<how>extension|ext\.?|phone|telephone|mobile|e-?mail)(?: (?:number|at|on|under))? )?"
        rf"(?P<x>\+?\d[\d ()/-]*\d|{_EMAIL}|{_URL})",
        said,
    )
    if found and not context.is_name(found["z"]):
        how = found["how"] or ""
        relation = (
            "e-mail address" if "@" in found["x"] else "website" if re.match(_URL, found["x"])
            else "extension" if how.startswith("ext") else "phone number"
        )  # fmt: skip
        yield Statement(context.about, f"{relation} of {_the(found['z'])}", found["x"])


def _things_cost(said: str, context: Context) -> Iterator[Statement]:
    """Lost badges cost 15 pounds; Meals are refunded up to 32 pounds a day."""
    amount = r"(?:[$€£¥] ?\d[\d.,]*|\d[\d.,]* [a-z]+|[A-Z]{3} \d[\d.,]*)(?: (?:a|per|each) ?[a-z]*| each)?"
    found = re.fullmatch(rf"(?P<z>{_NOUNS}) costs? (?P<x>{amount})", said)
    if found and not context.is_name(found["z"]):
        yield Statement(context.about, f"cost of {_the(found['z'])}", found["x"], "number")
        return
    found = re.fullmatch(
        rf"(?P<z>{_NOUNS}) (?:is|are) (?:refunded|reimbursed|covered|paid back) up to (?P<x>{amount})", said
    )
    if found and not context.is_name(found["z"]):
        yield Statement(context.about, f"refund limit for {_the(found['z'])}", found["x"], "number")


def _each_has(said: str, context: Context) -> Iterator[Statement]:
    """Every employee has 27 days of paid leave."""
    found = re.fullmatch(
        rf"(?P<who>(?:Every|Each) [a-z][\w-]*(?: [a-z][\w-]*)?) (?:has|gets|receives|is entitled to|is given) "
        rf"(?P<x>{_COUNT} [a-z]+|[$€£] ?\d[\d.,]*) (?:of|for|as) (?P<y>{_NOUNS})"
        r"(?: (?:a|per|each|every) (?:year|month|week|day))?",
        said,
    )
    if found:
        relation = re.sub(r" (?:a|per|each|every) (?:year|month|week|day)$", "", found["y"])
        yield Statement(context.about, f"{relation} of {_lowered(found['who'])}", found["x"], "number")


def _done_through(said: str, context: Context) -> Iterator[Statement]:
    """Train tickets are booked through Corvus Travel; Sick leave must be reported to Dana Whitlock before 9:00."""
    found = re.fullmatch(
        rf"(?P<z>{_NOUNS}) (?:is|are|must be|should be|has to be|have to be) (?P<verb>booked|ordered|bought|supplied|"
        rf"delivered|cleaned|maintained|reported|sent|submitted|addressed|handed in|returned|made|given) "
        rf"(?P<link>through|with|via|by|to|from|at) (?P<x>{_EMAIL}|{_NAME})"
        r"(?P<rest> (?:before|by|within|no later than|at least) .+)?",
        said,
    )
    if not found or context.is_name(found["z"]):
        return
    things, link = _lowered(found["z"]), found["link"]
    if "@" in found["x"] and link == "to":
        yield Statement(context.about, f"e-mail address for {things}", found["x"])
    elif link == "to" and _is_person(found["x"]):
        yield Statement(context.about, f"contact for {things}", found["x"], "person")
    elif link in ("through", "with", "via", "by", "from") and len(found["x"].split()) > 1:
        noun = {"booked": "booking agent", "cleaned": "cleaner", "maintained": "maintainer"}.get(
            found["verb"], "supplier"
        )
        if found["verb"] in ("booked", "ordered", "bought", "supplied", "delivered", "cleaned", "maintained"):
            yield Statement(context.about, f"{noun} for {_the(found['z'])}", found["x"])


def _repeated(said: str, context: Context) -> Iterator[Statement]:
    """Laptops are replaced every four years."""
    found = re.fullmatch(
        rf"(?P<z>{_NOUNS}) (?:is|are) (?P<verb>{'|'.join(_REPEATED)}) (?P<x>every (?:{_COUNT} [a-z]+|[a-z]+))", said
    )
    if found and not context.is_name(found["z"]):
        yield Statement(context.about, f"{_REPEATED[found['verb']]} interval of {_the(found['z'])}", found["x"])


def _organisation(said: str, context: Context) -> Iterator[Statement]:
    """The company makes barometers; The company employs 140 people; The newsletter is called The Aneroid."""
    found = re.fullmatch(
        rf"(?P<z>{_NAME}|{_SELF}) (?:makes?|manufactures?|produces?|sells?) "
        rf"(?P<x>[a-z][\w-]*(?:,? (?:and )?[a-z][\w-]*){{0,5}})",
        said,
    )
    if found and (subject := _whom(found["z"], context)) == context.about and not _CLAUSE.search(found["x"]):
        if not re.match(r"(?:a|an|the|use|sure|it|no|up|out|every|some|most|all)\b", found["x"]):
            yield Statement(subject, "products", found["x"])
            return
    found = re.fullmatch(
        rf"(?P<z>{_NAME}|{_SELF}) (?:employs?|has|have) (?P<x>\d[\d,.]*) (?:people|employees|staff|members of staff)",
        said,
    )
    if found and (subject := _whom(found["z"], context)) == context.about:
        yield Statement(subject, "number of employees", found["x"], "number")
        return
    found = re.fullmatch(rf"(?:The|Our) (?P<y>{_NOUNS}) (?:is|are) (?:called|named) (?P<x>{_NAME})", said)
    if found:
        yield Statement(context.about, f"name of the {found['y']}", found["x"])


_NAMED: Final = (_is_the_of, _the_of_is, _owned, _act, _born, _is_located, _costs)
_OF_DOCUMENT: Final = (_the_is,)
_OF_ORGANISATION: Final = (
    _open_from, _reached, _things_cost, _each_has, _done_through, _repeated, _organisation, _kept,
)  # fmt: skip


# Parts


def _subject(name: str, context: Context) -> str | None:
    """A name without its article; the whole name for a last name; None for another part of it."""
    name = re.sub(r"^[Tt]he (?=\S)", "", name)
    words = context.about.split()
    if name == context.about or name not in words:
        return name
    return None if context.organised or "&" in words or name != words[-1] else context.about


def _whom(phrase: str, context: Context) -> str | None:
    """The subject that a phrase at a sentence's beginning names; None where it names nobody for certain."""
    if re.fullmatch(_SELF, phrase):
        return context.about if context.organised and context.certain else None
    return _subject(phrase, context) if context.is_name(phrase) else None


def _lowered(phrase: str) -> str:
    """A phrase that begins a sentence, as it is written within one."""
    return phrase[:1].lower() + phrase[1:] if phrase[1:2].islower() or phrase[1:2] == " " else phrase


def _the(phrase: str) -> str:
    """The same as it stands after "of": "the office" of "The office" and of "Our office"."""
    return re.sub(r"^(?:our|your) ", "the ", _lowered(phrase))


def _ends(rest: str | None) -> bool:
    """Whether what follows a statement adds to it, rather than changing what it says."""
    return not rest or re.match(
        r",? (?:and (?:its|the|his|her|one|also|a|has|is|was)|where|which|with|since|as well as|who|founded|located|"
        r"situated|after|when|while)\b|[,;] ",
        rest,
    ) is not None  # fmt: skip


def _ends_open(value: str) -> bool:
    return value.split()[-1].casefold() in ("the", "a", "of", "and", "or", "to", "in", "for", "by", "with")


def _is_best(relation: str) -> bool:
    """Whether a relation is a superlative of some noun: "largest city"."""
    return SUPERLATIVE.match(relation) is not None and re.search(r" (?:of|in)\b", relation) is None and 1 < len(
        relation.split()
    ) < 5  # fmt: skip


def _current(verb: str, relation: str) -> bool:
    return verb != "was" or head_noun(relation) in PAST


def _kind(relation: str) -> Kind | None:
    noun = head_noun(relation)
    return "person" if noun in ROLES else "place" if noun in PLACES else None


def _is_person(name: str) -> bool:
    return len(name.split()) > 1 and not any(letter.isdigit() for letter in name)


def _place(words: str) -> str:
    """Where something is, without what is said of that place; "" where it is no plain place."""
    value = _APPOSITION.sub("", words)
    value = re.split(r",? (?:and (?:is|has|was|its)|which|where|who|with)\b", value)[0].strip(" ,")
    return (
        "" if _CLAUSE.search(value) or len(value.split()) > _MOST_VALUE_WORDS or _ends_open(value or "the") else value
    )


def _value(words: str, relation: str) -> str:
    """What a relation is said to be: a name, a number, a place, an address; "" for anything else."""
    noun = head_noun(relation)
    value = _APPOSITION.sub("", words).strip()
    if re.search(r"\)(?:, | and )(?=(?:the )?[A-Z])", words[len(value) :]):  # the first of several
        return ""
    if not value or len(value.split()) > _MOST_VALUE_WORDS or _CLAUSE.search(value) or _ends_open(value):
        return ""
    if re.fullmatch(rf"{_EMAIL}|{_URL}", value):
        return value
    if re.match(rf"(?:[$€£¥+~]|{_COUNT}\b)", value):
        many = re.match(r"(?:one|two|three|four|half)\b", value) and not re.match(rf"{_COUNT} [a-z]+", value)
        return "" if noun in ROLES or many or re.match(r"one of\b", value) else value
    if noun in ROLES:
        names = re.fullmatch(_NAMES, value)
        return value if names and all(_is_person(each) for each in re.split(r", and |, | and ", value)) else ""
    if re.fullmatch(rf"{_NAMES}", value) or re.fullmatch(r"[\"“'‘][^\"”]+[\"”'’]", value):
        return value
    if re.match(r"extension \d+\Z", value):
        return value.split()[-1]
    if re.match(r"the (?:\w+est|most|least|first|last|only|same|worst)\b", value):
        return ""
    if (
        value.startswith("the ")
        and (noun in PLACES and " " in relation or noun in LOWER_CASE)
        and len(value.split()) > 1
    ):
        return value
    if noun in LOWER_CASE and re.fullmatch(r"[a-z][a-z-]*(?: [a-z][a-z-]*)?(?: and [a-z-]+)?", value):
        return (
            ""
            if re.match(r"(?:a|an|very|quite|too|so|more|less|always|also|still|now|only)\b|\w+(?:ed|ing)\b", value)
            else value
        )
    return ""
