"""Reads a library of wordings from YAML: the shipped one, or a user's on top of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, get_args

import yaml

from memlayers.data.facts import folded
from memlayers.sources.claims import Kind
from memlayers.utils.errors import InputError, reason_of
from memlayers.utils.files import StrPath, read_text

_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_GENERIC: Final = ("text", "number", "date", "person", "place", "is", "has", "does", "done")
_FIELDS: Final = ("also", "kind", "noun", "questions", "unseen")

Pair: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Taught wordings and unseen ones."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a library knows of a relation.

    Attributes:
        name: of the relation.
        noun: what stands for it in requests and generic wordings.
        kind: of its values; None: as the values tell.
        questions: taught, with "{subject}", and the file's requests; none: the generic ones.
        unseen: never taught; none: the generic ones.
    """

    name: str
    noun: str
    kind: Kind | None = None
    questions: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


def read_wordings(
    path: StrPath, entries: Mapping[str, Entry], generic: Mapping[str, Pair]
) -> tuple[dict[str, Entry], dict[str, Pair]]:
    """The entries of a file and its generic wordings, on top of others.

    Args:
        path: the file.
        entries: by what a relation may be called, folded.
        generic: taught and unseen wordings, by kind.

    Raises:
        InputError: anything wrong with the file, in one line with file and key.
    """
    try:
        content = yaml.load(read_text(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(
            f"{path}{line}: not YAML ({error.problem}); a wording that begins with a brace or has a colon needs quotes"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({reason_of(error)})") from None
    sections = _mapping(path, "", content, ("requests", "relations", "generic"))
    requests = _wordings(path, "requests", sections["requests"], relation=True) if "requests" in sections else ()
    found, general = dict(entries), dict(generic)
    for kind, given in _mapping(path, "generic", sections.get("generic", {}), _GENERIC).items():
        fields = _mapping(path, f"generic.{kind}", given, ("questions", "unseen"))
        had = general.get(kind, ((), ()))
        taught, unseen = (
            _wordings(path, f"generic.{kind}.{field}", fields[field], relation=True) if field in fields else had[i]
            for i, field in enumerate(("questions", "unseen"))
        )
        general[kind] = taught, unseen
    own: dict[str, str] = {}
    for name, given in _mapping(path, "relations", sections.get("relations", {})).items():
        entry, also = _entry(path, name, given, requests, entries)
        for text in (*entry.questions, *entry.unseen):
            key = folded(text.replace("{relation}", name))
            if own.setdefault(key, name) != name:
                raise InputError(
                    f"{path}: relations.{name}: {text!r} is a wording of relations.{own[key]} too; leave it to one"
                )
        if old := entries.get(folded(name)):  # under each name that it had
            found |= {key: entry for key, each in entries.items() if each is old}
        found |= {folded(each): entry for each in (name, *also)}
    return found, general


def _entry(
    path: StrPath, name: str, given: Any, requests: tuple[str, ...], entries: Mapping[str, Entry]
) -> tuple[Entry, list[str]]:
    where = f"relations.{name}"
    if not folded(name):
        raise InputError(f"{path}: {where}: the name holds no letter and no digit; give the relation's noun")
    fields = _mapping(path, where, given, _FIELDS)
    also = _texts(path, f"{where}.also", fields.get("also", []))
    kind = fields.get("kind")
    if kind is not None and kind not in _KINDS:
        raise InputError(f"{path}: {where}.kind is {kind!r}; known kinds: {', '.join(_KINDS)}")
    told: dict[str, Any] = {"kind": kind} if kind else {}
    for field in ("questions", "unseen"):
        if field in fields:
            told[field] = _wordings(path, f"{where}.{field}", fields[field])
    old = entries.get(folded(name))
    known = old if old and folded(old.name) == folded(name) else Entry(name, name)
    noun = fields.get("noun", known.noun)
    if not isinstance(noun, str) or not folded(noun):
        raise InputError(f"{path}: {where}.noun: not a text with a letter in it; give what stands for {{relation}}")
    if "questions" in told:
        asked_for = (each.replace("{relation}", noun) for each in requests)
        told["questions"] = tuple(dict.fromkeys((*told["questions"], *asked_for)))
    if "questions" in told and "unseen" not in told:
        told["unseen"] = ()  # the old ones may be among the new; the generic ones are dropped where they are
    return replace(known, name=name, noun=noun, **told), also


def _mapping(path: StrPath, where: str, value: Any, known: Iterable[str] | None = None) -> dict[str, Any]:
    at = f"{where}: " if where else ""
    if not isinstance(value, dict):
        raise InputError(f"{path}: {at}not a mapping; write keys with values, as in docs/sources.md")
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{path}: {at}the key {key!r} is not a text; put it in quotes")
        if known is not None and key not in known:
            raise InputError(f"{path}: {at}unknown key {key!r}; known keys: {', '.join(known)}")
    return value


def _texts(path: StrPath, where: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise InputError(f"{path}: {where}: not a list; write each text after a hyphen")
    for i, text in enumerate(value):
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"{path}: {where}[{i}]: not a text; put it in quotes (one that begins with a brace needs them)"
            )
    return [text.strip() for text in value]


def _wordings(path: StrPath, where: str, value: Any, relation: bool = False) -> tuple[str, ...]:
    texts = _texts(path, where, value)
    if not texts:
        raise InputError(f"{path}: {where}: no wording; give at least one")
    for i, text in enumerate(texts):
        for needed in ("{subject}", *(("{relation}",) if relation else ())):
            if needed not in text:
                raise InputError(f"{path}: {where}[{i}]: {text!r} lacks {needed}; put it in")
        for name in re.findall(r"\{[^{}]*\}?|\}", re.sub(r"\{(?:subject|relation|is)\}", "", text)):
            raise InputError(
                f"{path}: {where}[{i}]: unknown placeholder {name!r}; known ones: {{subject}}, {{relation}}, {{is}}"
            )
    return tuple(texts)
