"""Facts, edits, memories and scores as the API has them. Loads no web framework."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayers.certificate.learn import CERTIFICATE_FILE
from memlayers.data.facts import Fact
from memlayers.editing.journal import Record
from memlayers.evaluation.results import Results, read_results
from memlayers.inference.record import read_teaching
from memlayers.utils.errors import InputError

if TYPE_CHECKING:
    from memlayers.serving.served import Edited, Served


def fact_json(fact: Fact) -> dict[str, Any]:
    """A fact, with where it was found in words too ("place")."""
    return {"object": "memory.fact", **dataclasses.asdict(fact), "sources": sources_json(fact)}


def sources_json(fact: Fact) -> list[dict[str, Any]]:
    """Where a fact was found, in words too ("place")."""
    return [{"place": each.place, **dataclasses.asdict(each)} for each in fact.sources]


def record_json(record: Record, undone: bool) -> dict[str, Any]:
    """A line of the journal, and whether it was taken back since."""
    return {"object": "memory.edit", **dataclasses.asdict(record), "undone": undone}


def records_json(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The journal, the latest edit first."""
    records = tuple(records)
    undone = {record.undoes for record in records}
    return [record_json(record, record.number in undone) for record in reversed(records)]


def edited_json(edited: Edited) -> dict[str, Any]:
    """What an edit did."""
    report = dataclasses.asdict(edited.report)
    report["facts"] = [fact_json(fact) for fact in edited.report.facts]
    return {"object": "memory.edit", **report, "version": edited.version}


def memory_json(served: Served) -> dict[str, Any]:
    """A memory that is served; no path."""
    state = served.state
    return {
        "id": served.id,
        "object": "memory",
        "version": state.version,
        "facts": len(state.facts),
        "editable": not served.fixed,
        "reason": clean(served, served.fixed) or None,
        "waiting": served.waiting,
    }


def scores_json(folder: Path) -> dict[str, Any]:
    """What is known of how well a memory answers: from teaching, from the last evaluation, from the last certificate.

    The evaluation is the newest file in the memory's folder that `memlayers eval` wrote (``--out MEMORY/scores.json``).

    Raises:
        InputError: the record of teaching is damaged.
    """
    teaching = read_teaching(folder)
    report = None if teaching is None else dataclasses.asdict(teaching.report)
    newest = next(iter(sorted(_results(folder), key=lambda each: each[0].stat().st_mtime, reverse=True)), None)
    return {
        "object": "memory.scores",
        "teaching": report and {name: report[name] for name in ("recall", "exposures", "seconds", "curve")},
        "evaluation": newest and _evaluation(*newest),
        "certificate": _certificate(folder),
    }


def clean(served: Served, message: str) -> str:
    """A message without the memory's folder, which is named by its id: no path leaves the server."""
    if served.folder is None:
        return message
    for path in {str(served.folder), str(served.folder.absolute()), str(served.folder.resolve())}:
        message = message.replace(path, served.id)
    return message


def _results(folder: Path) -> Iterable[tuple[Path, Results]]:
    for path in folder.glob("*.json"):
        try:
            yield path, read_results(path)
        except InputError:
            continue  # another kind of file


def _evaluation(path: Path, results: Results) -> dict[str, Any]:
    return {
        "file": path.name,
        "rows": [dataclasses.asdict(row) for row in results.rows],
        "curve": [dataclasses.asdict(point) for point in results.curve],
    }


def _certificate(folder: Path) -> dict[str, Any] | None:
    try:
        summary = json.loads((folder / CERTIFICATE_FILE).read_bytes()).get("summary")
    except (OSError, ValueError, AttributeError):
        return None
    return summary if isinstance(summary, dict) else None
