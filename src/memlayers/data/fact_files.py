r"""Facts and questions in files: reading, checking, writing. JSONL, JSON lists and CSV; no torch.

A row is a fact, or a question with its accepted answers::

    {"id": "fr", "subject": "France", "questions": ["What is the capital of France?"], "answer": "Paris"}
    {"question": "What is the capital of France?", "answers": ["Paris", "Paris, France"]}

Every error is an `InputError` of one line: `FILE:LINE: what is wrong; how to repair it`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from memlayers.data.fact_rows import BadRow, fact_of, row_of
from memlayers.data.facts import PUBLIC_FACTS, Fact, FactReport, Question, check_facts, question_key
from memlayers.data.row_readers import CSV_COLUMNS, NumberedRows, csv_rows, json_line_rows, json_list_rows
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath, atomic_write_text, check_output_file, read_text


def read_facts(path: StrPath, strict: bool = False) -> list[Fact]:
    """Read facts from `.jsonl`, `.json` (a list, or an object per line) or `.csv` (header `question,answer`).

    Text is kept as it stands, except that CSV cells lose surrounding space. A missing id becomes a hash of
    questions and answer (12 hex digits, the same in every process). CSV rows that share an id, and say the
    same, are the phrasings of one fact.

    Args:
        path: the file.
        strict: raise on the first contradiction, or the first alias of two subjects (see `check_facts`).

    Returns:
        The facts in file order, at least one.

    Raises:
        InputError: anything wrong with the file, in one line with file, line number and remedy.
    """
    facts, lines = read_facts_with_lines(path)
    if strict:
        report = check_facts(facts, lines)
        _refuse_contradictions(path, report)
        _refuse_shared_names(path, report)
    return facts


def read_facts_with_lines(path: StrPath) -> tuple[list[Fact], list[int]]:
    """As `read_facts`, with the line number (from 1) on which each fact begins, for `check_facts`."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".jsonl", ".json", ".csv"):
        raise InputError(f"{path}: unknown kind of file {suffix!r}; use .jsonl, .json or .csv")
    text = read_text(path)
    if suffix == ".csv":
        rows = csv_rows(path, text)
    elif suffix == ".json" and text.lstrip().startswith("["):
        rows = json_list_rows(path, text)
    else:
        rows = json_line_rows(path, text.split("\n"))
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
    rows = [row_of(fact) for fact in _checked(path, facts)]
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
        InputError: as `write_facts`, and for what CSV cannot hold: unseen questions, aliases, and sources.
        WorkError: the disk is full.
    """
    facts = list(facts)
    if not facts:
        raise InputError(f"{path}: no facts to write; give at least one")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for fact in _checked(path, facts):
        if fact.unseen_questions or fact.aliases or fact.subject_aliases or fact.sources:
            raise InputError(
                f"{path}: fact {fact.id!r} has unseen questions, aliases or sources: CSV cannot hold them; write .jsonl"
            )
        writer.writerows((fact.id, fact.subject, fact.relation, question, fact.answer) for question in fact.questions)
    atomic_write_text(path, text.getvalue())


# From rows to facts


def _collect(path: StrPath, rows: NumberedRows, merge_phrasings: bool) -> tuple[list[Fact], list[int]]:
    facts: list[Fact] = []
    lines: list[int] = []
    place: dict[str, int] = {}  # id -> index of the fact
    repeats: dict[str, int] = {}  # hashed id -> how many rows had it
    for number, row in rows:
        try:
            fact = fact_of(row)
        except BadRow as error:
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


def _refuse_contradictions(path: StrPath, report: FactReport) -> None:
    if not report.contradictions:
        return
    clash = report.contradictions[0]
    first = clash.answers[0]
    other = next(i for i, answer in enumerate(clash.answers) if question_key(answer) != question_key(first))
    more = len(report.contradictions) - 1
    raise InputError(
        f"{path}:{clash.lines[other]}: {clash.question!r} has the answer {clash.answers[other]!r} here and "
        f"{first!r} on line {clash.lines[0]}{f' ({more} contradictions more)' if more else ''}; "
        "keep one answer"
    )


def _refuse_shared_names(path: StrPath, report: FactReport) -> None:
    if not report.shared_names:
        return
    shared = report.shared_names[0]
    more = len(report.shared_names) - 1
    raise InputError(
        f"{path}:{shared.lines[1]}: {shared.alias!r} is a name of {shared.subjects[1]!r} here and of "
        f"{shared.subjects[0]!r} on line {shared.lines[0]}{f' ({more} shared names more)' if more else ''}; "
        "leave it to one of them"
    )


# From facts to rows


def _checked(path: StrPath, facts: Iterable[Fact]) -> list[Fact]:
    """The facts as a list, if a reader would take them."""
    facts = list(facts)
    ids: set[str] = set()
    for fact in facts:
        try:
            fact_of(row_of(fact))
        except BadRow as error:
            raise InputError(f"{path}: fact {fact.id!r}: {error}") from None
        if fact.id in ids:
            raise InputError(f"{path}: two facts have the id {fact.id!r}; give each its own")
        ids.add(fact.id)
    return facts


def public_questions() -> list[Question]:
    """Questions about public facts, one per fact of the shipped ``known.jsonl``; the pocket backbone knows them."""
    facts = read_facts(PUBLIC_FACTS)
    return [Question(fact.questions[i % len(fact.questions)], fact.answers) for i, fact in enumerate(facts)]
