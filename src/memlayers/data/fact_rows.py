"""A row of a facts file and the fact that it holds: fields, checks, and back again. No torch.

A row is a fact, or a question with its accepted answers, see `fact_files`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, TypeAlias

from memlayers.data.facts import Fact, Source, alias_fault

_FACT_FIELDS = (
    "id",
    "subject",
    "relation",
    "questions",
    "unseen_questions",
    "answer",
    "aliases",
    "subject_aliases",
    "sources",
)
_QUESTION_FIELDS = (
    "id",
    "subject",
    "relation",
    "question",
    "questions",
    "unseen_questions",
    "answer",
    "answers",
    "subject_aliases",
    "sources",
)
_SOURCE_TEXTS = ("document", "evidence", "column")
_SOURCE_NUMBERS = ("start", "end", "page", "row")

Row: TypeAlias = dict[str, Any]


class BadRow(ValueError):
    """What is wrong with a row and how to repair it; the reader adds file and line."""


def fact_of(row: Row) -> Fact:
    """Builds a fact from a fact row or a question row.

    Raises:
        BadRow: a field is missing, unknown, or not what it must be.
    """
    is_question = "question" in row or "answers" in row
    known = _QUESTION_FIELDS if is_question else _FACT_FIELDS
    for name in row:
        if name not in known:
            raise BadRow(f"unknown field {name!r}; known fields: {', '.join(known)}")
    if is_question:
        questions = (_text(row, "question"),) if _one_of(row, "question", "questions") else _texts(row, "questions")
        answers = (_text(row, "answer"),) if _one_of(row, "answer", "answers") else _texts(row, "answers")
        subject = _text(row, "subject") if "subject" in row else ""
        answer, aliases = answers[0], answers[1:]
    else:
        missing = [name for name in ("subject", "questions", "answer") if name not in row]
        if missing:
            raise BadRow(
                f"missing field {missing[0]!r}; a fact needs subject, questions and answer "
                "(a question row: question and answers)"
            )
        subject, questions, answer = _text(row, "subject"), _texts(row, "questions"), _text(row, "answer")
        aliases = _texts(row, "aliases", may_be_empty=True)
    unseen = _texts(row, "unseen_questions", may_be_empty=True)
    for question in unseen:
        if question in questions:
            raise BadRow("an unseen question is also among the taught ones; remove it from one of the two")
    subject_aliases = _texts(row, "subject_aliases", may_be_empty=True)
    for i, alias in enumerate(subject_aliases):
        if fault := alias_fault(subject, alias):
            raise BadRow(f"subject_aliases[{i}]: {fault}")
    return Fact(
        id=_text(row, "id") if "id" in row else _hashed_id(questions, answer),
        subject=subject,
        answer=answer,
        questions=questions,
        relation=_text(row, "relation") if "relation" in row else "",
        unseen_questions=unseen,
        aliases=aliases,
        subject_aliases=subject_aliases,
        sources=_sources(row.get("sources", [])),
    )


def _sources(values: Any) -> tuple[Source, ...]:
    if not isinstance(values, list):
        raise BadRow(f'sources is {kind_of(values)}, not a list; write "sources": [{{"document": "...", ...}}]')
    return tuple(_source(value, f"sources[{i}]") for i, value in enumerate(values))


def _source(value: Any, name: str) -> Source:
    if not isinstance(value, dict):
        raise BadRow(f"{name} is {kind_of(value)}, not an object; give document and evidence")
    for field in value:
        if field not in (*_SOURCE_TEXTS, *_SOURCE_NUMBERS):
            raise BadRow(
                f"{name}: unknown field {field!r}; known fields: {', '.join((*_SOURCE_TEXTS, *_SOURCE_NUMBERS))}"
            )
    for field in ("document", "evidence"):
        if field not in value:
            raise BadRow(f"{name}: missing field {field!r}; give document and evidence")
    for field in _SOURCE_TEXTS:
        if field in value:
            _checked_text(value[field], f"{name}.{field}")
    for field in _SOURCE_NUMBERS:
        if field in value and (type(value[field]) is not int or value[field] < 0):
            raise BadRow(f"{name}.{field} is {value[field]!r}; give a whole number from 0")
    if ("start" in value) != ("end" in value):
        raise BadRow(f"{name} has one of start and end; give both, or none")
    return Source(**value)


def _one_of(row: Row, one: str, many: str) -> bool:
    """Whether the row has `one` rather than `many`; exactly one of the two must be there."""
    if one in row and many in row:
        raise BadRow(f"both {one!r} and {many!r}; keep one of the two")
    if one not in row and many not in row:
        wanted = one if one == "question" else many
        raise BadRow(f"missing field {wanted!r}; a question row needs question and answers")
    return one in row


def _text(row: Row, name: str) -> str:
    return _checked_text(row[name], name)


def _texts(row: Row, name: str, may_be_empty: bool = False) -> tuple[str, ...]:
    values = row.get(name, [])
    if isinstance(values, str):
        raise BadRow(f'{name} is a string; make it a list: "{name}": ["..."]')
    if not isinstance(values, list):
        raise BadRow(f'{name} is {kind_of(values)}, not a list; write "{name}": ["..."]')
    if not values and not may_be_empty:
        raise BadRow(f"{name} is an empty list; give at least one text")
    if not all(map(_is_plain, values)):  # a name is made up only for the rare ones that need a closer look
        for i, value in enumerate(values):
            _checked_text(value, f"{name}[{i}]")
    return tuple(values)


def _is_plain(value: Any) -> bool:
    return type(value) is str and value.isascii() and value != "" and not value.isspace()


def _checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is {kind_of(value)}, not a string; put it in double quotes")
    if not value or value.isspace():
        raise BadRow(f"{name} is empty; fill it in or remove it")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow(f"{name} holds half of a surrogate pair, which is no character; retype the text")
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is, as a person says it: "a number"."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a string",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def _hashed_id(questions: tuple[str, ...], answer: str) -> str:
    return hashlib.sha256(json.dumps([questions, answer]).encode("ascii")).hexdigest()[:12]


def row_of(fact: Fact) -> Row:
    """A row in the order of the format; a fact without a subject is a question row."""
    row: Row = {"id": fact.id}
    if fact.subject:
        row["subject"] = fact.subject
    if fact.relation:
        row["relation"] = fact.relation
    if fact.subject or len(fact.questions) != 1:
        row["questions"] = list(fact.questions)
    else:
        row["question"] = fact.questions[0]
    if fact.unseen_questions:
        row["unseen_questions"] = list(fact.unseen_questions)
    if fact.subject:
        row["answer"] = fact.answer
        if fact.aliases:
            row["aliases"] = list(fact.aliases)
        if fact.subject_aliases:
            row["subject_aliases"] = list(fact.subject_aliases)
    else:
        row["answers"] = list(fact.answers)
    if fact.sources:
        row["sources"] = [source_row(source) for source in fact.sources]
    return row


def source_row(source: Source) -> Row:
    """A source as JSON holds it: without what it has none of."""
    values = ((field.name, getattr(source, field.name)) for field in dataclasses.fields(source))
    return {name: value for name, value in values if value not in (None, "")}
