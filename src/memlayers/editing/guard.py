"""Guarding the other facts: those nearest to an edit are asked before and after it, and taught again if lost."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from memlayers.data.encoding import Encoded
from memlayers.data.facts import Fact
from memlayers.editing.edit import Edit
from memlayers.editing.report import EditRefused
from memlayers.editing.rows import Kept

Asked = list[tuple[str, Encoded]]
"""Phrasings of stored facts, each with its fact's id."""


def guard(edit: Edit, facts: Sequence[Fact], again: Callable[[list[Fact]], None]) -> None:
    """Measures the facts nearest to what moved; teaches those again whose answer changed, or refuses the edit.

    Args:
        edit: its rows are written already.
        facts: those that the edit is about.
        again: writes the edit once more, together with these facts.

    Raises:
        EditRefused: it still changes a stored fact's answer.
    """
    session, config, report = edit.session, edit.session.config, edit.report
    by_id = {fact.id: fact for fact in session.book.facts}
    near = _nearest(edit, facts)
    rng = random.Random(f"{config.seed}:{report.number}:guard")
    asked: Asked = []
    for each in near:
        fact = by_id[each]
        questions = rng.sample(fact.questions, min(len(fact.questions), config.phrasings))
        asked += [(each, session.encode(question, fact.answer)) for question in questions]
    report.neighbours = len(near)
    broken: dict[str, None] = {}
    lost: Asked = []
    for attempt in range(config.repairs + 1):
        lost = lost_by(edit, asked)
        if not lost:
            break
        broken |= dict.fromkeys(each for each, _ in lost)
        if attempt < config.repairs:
            again([by_id[each] for each in broken])
    report.repaired = tuple(each for each in broken if each not in {key for key, _ in lost})
    refuse_changes(edit, lost)


def refuse_changes(edit: Edit, lost: Asked) -> None:
    """Notes in the edit's report whose answers it changed.

    Raises:
        EditRefused: there are some, and `EditConfig.refuse` is on.
    """
    session, report = edit.session, edit.report
    report.changed = tuple(dict.fromkeys(each for each, _ in lost))
    if report.changed and session.config.refuse:
        first = next(fact for fact in session.book.facts if fact.id == report.changed[0])
        raise EditRefused(
            f"{session.folder}: refused, as it would change the answer of {len(report.changed)} of "
            f"{report.neighbours} stored facts beside it, {first.id!r} first ({first.questions[0]!r}); nothing was "
            "changed",
            report,
        )


def lost_by(edit: Edit, asked: Asked) -> Asked:
    """What is answered wrongly now and was answered rightly before the edit."""
    session = edit.session
    wrong = [pair for pair, right in zip(asked, session.answered([o for _, o in asked]), strict=True) if not right]
    if not wrong:
        return []
    assert edit.kept is not None
    now, subjects = Kept.of(session.memory.pool, edit.kept.rows), session.subjects.state()
    edit.put_back()
    before = session.answered([one for _, one in wrong])
    now.put_back(session.memory.pool)
    session.subjects.restore(subjects)
    return [pair for pair, right in zip(wrong, before, strict=True) if right]


def _nearest(edit: Edit, facts: Sequence[Fact]) -> list[str]:
    """Ids of the stored facts that the edit may have touched: about the same subjects, or reading what it moved."""
    session, config = edit.session, edit.session.config
    assert edit.kept is not None
    moved = edit.kept.movement(session.memory.pool)
    near = about_the_same(facts, session.book.facts)
    number = min(config.neighbours * len(facts), config.most_neighbours)
    left_out = [fact.id for fact in facts] + near
    near += session.use.most_moved(edit.kept.rows.cpu(), moved.cpu(), number, left_out)
    return near[: max(number, 1)] if number else []


def about_the_same(facts: Sequence[Fact], stored: Sequence[Fact]) -> list[str]:
    """Ids of stored facts about the same subjects, then of those whose questions name one of them."""
    ids = {fact.id for fact in facts}
    names = {fact.subject for fact in facts if fact.subject}
    others = [fact for fact in stored if fact.id not in ids]
    same = [fact.id for fact in others if fact.subject in names]
    if names:
        pattern = re.compile("|".join(map(re.escape, sorted(names))))
        known = set(same)
        same += [f.id for f in others if f.id not in known and any(pattern.search(q) for q in f.questions)]
    return same
