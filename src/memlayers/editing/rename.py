"""Changing the aliases of a subject: the index knows other names of it, and no row of the pool changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memlayers.data.facts import Fact, aliases_by_subject, folded
from memlayers.editing.edit import Edit
from memlayers.editing.guard import Asked, lost_by, refuse_changes
from memlayers.editing.journal import Change, apply_changes
from memlayers.editing.report import EditRefused
from memlayers.tuner.subject_index import SubjectIndex
from memlayers.utils.errors import InputError


def rename(edit: Edit, changes: Sequence[Change]) -> None:
    """Has the gate know a subject by the aliases that its facts have after these changes.

    Stored facts in whose phrasings another subject, or none, is mentioned by it are asked before and after.

    Args:
        edit: the edit; its report's evidence gets the subject, and the aliases "added" and "removed".
        changes: at least one, of facts about one subject, which change its aliases alone.

    Raises:
        InputError: the gate knows no subjects.
        EditRefused: an alias is how another stored fact is mentioned, or a stored fact's answer would change.
    """
    session, report = edit.session, edit.report
    index = session.subjects.index
    if index is None:
        raise InputError(
            f"{session.folder}: its gate knows no subjects, so that names make no difference; make one that does "
            "with `memlayers gate`"
        )
    stored = session.book.facts
    after = apply_changes(stored, changes)
    subject = report.facts[0].subject
    before, now = (aliases_by_subject(facts).get(subject, ()) for facts in (stored, after))
    added, removed = [a for a in now if a not in before], [a for a in before if a not in now]
    report.evidence = {"subject": subject, "added": added, "removed": removed}
    edit.keep(torch.zeros(0, dtype=torch.int64))
    asked = _naming(edit, stored, [*added, *removed])
    mentioned = _mentioned(index, asked)
    unlinked = [a for a in session.subjects.rename(subject, stored, after, session.words) if a in added]
    if unlinked:
        raise EditRefused(
            f"{session.folder}: refused, as {unlinked[0]!r} is how the questions of another stored fact name its "
            "subject; nothing was changed",
            report,
        )
    each = zip(asked, mentioned, _mentioned(index, asked), strict=True)
    moved = [pair for pair, old, new in each if not torch.equal(old, new)]
    report.neighbours = len({key for key, _ in moved})
    refuse_changes(edit, lost_by(edit, moved))


def _mentioned(index: SubjectIndex, asked: Asked) -> list[Tensor]:
    """The subject of each token of each phrasing and its answer."""
    device = index.fingerprints.device
    return [index.subjects_in(torch.tensor([one.input_ids], device=device)) for _, one in asked]


def _naming(edit: Edit, facts: Sequence[Fact], names: Sequence[str]) -> Asked:
    """The phrasings of facts that hold one of these names."""
    return [
        (fact.id, edit.session.encode(fact.questions[place], fact.answer))
        for fact, places in edit.session.phrasings.holding(facts, [folded(name) for name in names])
        for place in places
    ]
