r"""Facts and questions: reading, checking, writing. JSONL, JSON lists and CSV; no torch.

A row is a fact, or a question with its accepted answers::

    {"id": "fr", "subject": "France", "questions": ["What is the capital of France?"], "answer": "Paris"}
    {"question": "What is the capital of France?", "answers": ["Paris", "Paris, France"]}

Every error is an `InputError` of one line: `FILE:LINE: what is wrong; how to mend it`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from memlayers.data.facts import Fact, FactReport, Question, _normalise, check_facts
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath, atomic_write_text, check_output_file, read_text

_FACT_FIELDS = ("id", "subject", "relation", "questions", "unseen_questions", "answer", "aliases")
_QUESTION_FIELDS = (
    "id",
    "subject",
    "relation",
    "question",
    "questions",
    "unseen_questions",
    "answer",
    "answers",
)
_CSV_COLUMNS = ("id", "subject", "relation", "question", "answer")

_Row: TypeAlias = dict[str, Any]
_NumberedRows: TypeAlias = Iterator[tuple[int, _Row]]


def read_facts(path: StrPath, strict: bool = False) -> list[Fact]:
    """Read facts from `.jsonl`, `.json` (a list, or an object per line) or `.csv` (header `question,answer`).

    Text is kept as it stands, except that CSV cells lose surrounding space. A missing id becomes a hash of
    questions and answer (12 hex digits, the same in every process). CSV rows that share an id, and say the
    same, are the phrasings of one fact.

    Args:
        path: the file.
        strict: raise on the first contradiction (see `check_facts`).

    Returns:
        The facts in file order, at least one.

    Raises:
        InputError: anything wrong with the file, in one line with file, line number and remedy.
    """
    facts, lines = read_facts_with_lines(path)
    if strict:
        _refuse_contradictions(path, check_facts(facts, lines))
    return facts


def read_facts_with_lines(path: StrPath) -> tuple[list[Fact], list[int]]:
    """As `read_facts`, with the line number (from 1) on which each fact begins, for `check_facts`."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".jsonl", ".json", ".csv"):
        raise InputError(f"{path}: unknown kind of file {suffix!r}; use .jsonl, .json or .csv")
    text = read_text(path)
    if suffix == ".csv":
        rows = _csv_rows(path, text)
    elif suffix == ".json" and text.lstrip().startswith("["):
        rows = _json_list_rows(path, text)
    else:
        rows = _json_line_rows(path, text)
    facts, lines = _collect(path, rows, merge_phrasings=suffix == ".csv")
    if not facts:
        raise InputError(f"{path}: no rows; write at least one fact")
    return facts, lines


def read_questions(path: StrPath) -> list[Question]:
    """Read questions with their accepted answers; fact rows give one question per taught phrasing.

    Raises:
        InputError: as `read_facts`.
    """
    return [Question(question, fact.answers) for fact in read_facts(path) for question in fact.questions]


def write_facts(path: StrPath, facts: Iterable[Fact]) -> None:
    """Write facts as JSONL, whole or not at all, so that `read_facts` gives them back exactly.

    Raises:
        InputError: no facts, a fact that could not be read back (an empty text, an id used twice), or a path
            that `check_facts_target` refuses.
        WorkError: the disk is full.
    """
    check_facts_target(path)
    facts = list(facts)
    if not facts:
        raise InputError(f"{path}: no facts to write; give at least one")
    atomic_write_text(path, facts_text(path, facts))


def facts_text(path: StrPath, facts: Iterable[Fact]) -> str:
    """Facts as the text of a JSONL file, one per line; "" for none.

    Args:
        path: named in errors.
        facts: any number.

    Raises:
        InputError: a fact that could not be read back (an empty text, an id used twice).
    """
    rows = [_row_of(fact) for fact in _checked(path, facts)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def check_facts_target(path: StrPath) -> None:
    """Check, before any work, that `write_facts` can write to `path`; leaves nothing behind.

    Raises:
        InputError: not a name that `read_facts` would take as JSONL, or a place that cannot be written.
    """
    if Path(path).suffix.lower() not in (".jsonl", ".json"):
        raise InputError(f"{path}: not a name that facts are read by; end it in .jsonl")
    check_output_file(path)


def write_csv(path: StrPath, facts: Iterable[Fact]) -> None:
    """Write facts as CSV with columns id, subject, relation, question, answer; one line per taught phrasing.

    Raises:
        InputError: as `write_facts`, and for what CSV cannot hold: unseen questions and aliases.
        WorkError: the disk is full.
    """
    facts = list(facts)
    if not facts:
        raise InputError(f"{path}: no facts to write; give at least one")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for fact in _checked(path, facts):
        if fact.unseen_questions or fact.aliases:
            raise InputError(
                f"{path}: fact {fact.id!r} has unseen questions or aliases, which CSV cannot hold; write .jsonl"
            )
        writer.writerows((fact.id, fact.subject, fact.relation, question, fact.answer) for question in fact.questions)
    atomic_write_text(path, text.getvalue())


# Reading: bytes -> text -> numbered rows -> facts


class _BadRow(ValueError):
    """What is wrong with a row and how to mend it; the reader adds file and line."""


def _json_line_rows(path: StrPath, text: str) -> _NumberedRows:
    decode = json.JSONDecoder(object_pairs_hook=_object).decode
    # Only "\n" ends a line: JSON strings may hold U+2028 and others that str.splitlines would split at.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except _BadRow as error:
            raise InputError(f"{path}:{number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}:{number}: malformed JSON ({_reason(error)}); write one JSON object per line"
            ) from None
        yield number, _as_object(path, number, row)


def _json_list_rows(path: StrPath, text: str) -> _NumberedRows:
    """Decode one element at a time, so that each keeps its line number."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    number, counted = 1, 0
    at = _skip_space(text, text.index("[") + 1)
    while True:
        number, counted = number + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            break
        try:
            row, at = decoder.raw_decode(text, at)
        except _BadRow as error:
            raise InputError(f"{path}:{number}: {error}") from None
        except (ValueError, RecursionError) as error:
            where = error.lineno if isinstance(error, json.JSONDecodeError) else number
            raise InputError(f"{path}:{where}: malformed JSON ({_reason(error)}); mend the list") from None
        yield number, _as_object(path, number, row)
        at = _skip_space(text, at)
        if text[at : at + 1] not in (",", "]"):
            number += text.count("\n", counted, at)
            raise InputError(f"{path}:{number}: malformed JSON (a comma or ] is missing); mend the list")
        if text[at] == ",":
            at = _skip_space(text, at + 1)
    if text[at + 1 :].strip():
        number += text.count("\n", counted, _skip_space(text, at + 1))
        raise InputError(f"{path}:{number}: something follows the closing ]; remove it")


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _object(pairs: list[tuple[str, Any]]) -> _Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _BadRow(f"field {twice!r} appears twice; keep one")
    return row


def _as_object(path: StrPath, number: int, row: Any) -> _Row:
    if not isinstance(row, dict):
        raise InputError(
            f"{path}:{number}: the row is {_kind(row)}, not an object; "
            'write {"question": "...", "answers": ["..."]} or a fact'
        )
    return row


def _csv_rows(path: StrPath, text: str) -> _NumberedRows:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    columns: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}:{number}: malformed CSV ({error}); check the quotes of this row") from None
        if cells is None:
            return
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if not columns:
            columns = _csv_header(path, number, cells)
        elif len(cells) != len(columns):
            raise InputError(
                f"{path}:{number}: {len(cells)} cells where the header has {len(columns)}; "
                "put text that holds a comma in double quotes"
            )
        else:
            cell_of = dict(zip(columns, cells, strict=True))
            # An empty optional cell is an absent field.
            yield (
                number,
                {name: cell for name, cell in cell_of.items() if cell or name in ("question", "answer")},
            )


def _csv_header(path: StrPath, number: int, cells: list[str]) -> list[str]:
    columns = [cell.lower() for cell in cells]
    missing = [name for name in ("question", "answer") if name not in columns]
    if len(missing) == 2:
        raise InputError(f"{path}:{number}: no header; let the first line name the columns, e.g. question,answer")
    if missing:
        raise InputError(f"{path}:{number}: column {missing[0]!r} is missing; the header needs question and answer")
    for name in columns:
        if name not in _CSV_COLUMNS:
            raise InputError(f"{path}:{number}: unknown column {name!r}; known columns: {', '.join(_CSV_COLUMNS)}")
        if columns.count(name) > 1:
            raise InputError(f"{path}:{number}: column {name!r} appears twice; keep one")
    return columns


def _collect(path: StrPath, rows: _NumberedRows, merge_phrasings: bool) -> tuple[list[Fact], list[int]]:
    facts: list[Fact] = []
    lines: list[int] = []
    place: dict[str, int] = {}  # id -> index of the fact
    repeats: dict[str, int] = {}  # hashed id -> how many rows had it
    for number, row in rows:
        try:
            fact = _fact_of(row)
        except _BadRow as error:
            raise InputError(f"{path}:{number}: {error}") from None
        if fact.id in place:
            if "id" not in row:  # said word for word before: check_facts reports it, so both must be there
                fact = replace(fact, id=_free_id(fact.id, place, repeats))
            elif merge_phrasings and (merged := _merged(facts[place[fact.id]], fact)):
                facts[place[fact.id]] = merged
                continue
            else:
                first = lines[place[fact.id]]
                raise InputError(
                    f"{path}:{number}: id {fact.id!r} is already used on line {first}; give each fact its own id"
                )
        place[fact.id] = len(facts)
        facts.append(fact)
        lines.append(number)
    return facts, lines


def _free_id(base: str, taken: dict[str, int], repeats: dict[str, int]) -> str:
    while True:
        repeats[base] = repeats.get(base, 1) + 1
        candidate = f"{base}-{repeats[base]}"
        if candidate not in taken:
            return candidate


def _merged(first: Fact, second: Fact) -> Fact | None:
    """One fact with the phrasings of both, if they say the same and ask differently."""
    same = (first.subject, first.relation, first.answer) == (second.subject, second.relation, second.answer)
    if not same or second.questions[0] in first.questions:
        return None
    return replace(first, questions=first.questions + second.questions)


def _fact_of(row: _Row) -> Fact:
    """Build a fact from a fact row or a question row; raises `_BadRow`."""
    is_question = "question" in row or "answers" in row
    known = _QUESTION_FIELDS if is_question else _FACT_FIELDS
    for name in row:
        if name not in known:
            raise _BadRow(f"unknown field {name!r}; known fields: {', '.join(known)}")
    if is_question:
        questions = (_text(row, "question"),) if _one_of(row, "question", "questions") else _texts(row, "questions")
        answers = (_text(row, "answer"),) if _one_of(row, "answer", "answers") else _texts(row, "answers")
        subject = _text(row, "subject") if "subject" in row else ""
        answer, aliases = answers[0], answers[1:]
    else:
        missing = [name for name in ("subject", "questions", "answer") if name not in row]
        if missing:
            raise _BadRow(
                f"missing field {missing[0]!r}; a fact needs subject, questions and answer "
                "(a question row: question and answers)"
            )
        subject, questions, answer = _text(row, "subject"), _texts(row, "questions"), _text(row, "answer")
        aliases = _texts(row, "aliases", may_be_empty=True)
    unseen = _texts(row, "unseen_questions", may_be_empty=True)
    for question in unseen:
        if question in questions:
            raise _BadRow("an unseen question is also among the taught ones; remove it from one of the two")
    return Fact(
        id=_text(row, "id") if "id" in row else _hashed_id(questions, answer),
        subject=subject,
        answer=answer,
        questions=questions,
        relation=_text(row, "relation") if "relation" in row else "",
        unseen_questions=unseen,
        aliases=aliases,
    )


def _one_of(row: _Row, one: str, many: str) -> bool:
    """Whether the row has `one` rather than `many`; exactly one of the two must be there."""
    if one in row and many in row:
        raise _BadRow(f"both {one!r} and {many!r}; keep one of the two")
    if one not in row and many not in row:
        wanted = one if one == "question" else many
        raise _BadRow(f"missing field {wanted!r}; a question row needs question and answers")
    return one in row


def _text(row: _Row, name: str) -> str:
    return _checked_text(row[name], name)


def _texts(row: _Row, name: str, may_be_empty: bool = False) -> tuple[str, ...]:
    values = row.get(name, [])
    if isinstance(values, str):
        raise _BadRow(f'{name} is a string; make it a list: "{name}": ["..."]')
    if not isinstance(values, list):
        raise _BadRow(f'{name} is {_kind(values)}, not a list; write "{name}": ["..."]')
    if not values and not may_be_empty:
        raise _BadRow(f"{name} is an empty list; give at least one text")
    if not all(map(_is_plain, values)):  # a name is made up only for the rare ones that need a closer look
        for i, value in enumerate(values):
            _checked_text(value, f"{name}[{i}]")
    return tuple(values)


def _is_plain(value: Any) -> bool:
    return type(value) is str and value.isascii() and value != "" and not value.isspace()


def _checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _BadRow(f"{name} is {_kind(value)}, not a string; put it in double quotes")
    if not value or value.isspace():
        raise _BadRow(f"{name} is empty; fill it in or remove it")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise _BadRow(f"{name} holds half of a surrogate pair, which is no character; retype the text")
    return value


def _kind(value: Any) -> str:
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


def _refuse_contradictions(path: StrPath, report: FactReport) -> None:
    if not report.contradictions:
        return
    clash = report.contradictions[0]
    first = clash.answers[0]
    other = next(i for i, answer in enumerate(clash.answers) if _normalise(answer) != _normalise(first))
    more = len(report.contradictions) - 1
    raise InputError(
        f"{path}:{clash.lines[other]}: {clash.question!r} has the answer {clash.answers[other]!r} here and "
        f"{first!r} on line {clash.lines[0]}{f' ({more} contradictions more)' if more else ''}; "
        "keep one answer"
    )


# Writing


def _checked(path: StrPath, facts: Iterable[Fact]) -> list[Fact]:
    """The facts as a list, if a reader would take them."""
    facts = list(facts)
    ids: set[str] = set()
    for fact in facts:
        try:
            _fact_of(_row_of(fact))
        except _BadRow as error:
            raise InputError(f"{path}: fact {fact.id!r}: {error}") from None
        if fact.id in ids:
            raise InputError(f"{path}: two facts have the id {fact.id!r}; give each its own")
        ids.add(fact.id)
    return facts


def _row_of(fact: Fact) -> _Row:
    """A row in the order of the format; a fact without a subject is a question row."""
    row: _Row = {"id": fact.id}
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
    if not fact.subject:
        row["answers"] = list(fact.answers)
        return row
    row["answer"] = fact.answer
    if fact.aliases:
        row["aliases"] = list(fact.aliases)
    return row
