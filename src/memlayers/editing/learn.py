"""Learning facts: the steps of Adam on chosen rows until their answers are given, and how well that worked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.data.answers import exact_match
from memlayers.data.encoding import Encoded
from memlayers.data.facts import Fact
from memlayers.editing.edit import Edit
from memlayers.editing.guard import about_the_same, guard
from memlayers.editing.projection import Beside, Projection
from memlayers.editing.report import EditRefused
from memlayers.editing.rows import RowWriter, clear_rows
from memlayers.inference.generation import generate_answers
from memlayers.inference.scoring import answer_logits
from memlayers.inference.shared_prefix import shared_prefix

_MOST_PROJECTED = 8192  # rows: P has as many rows and columns


def learn(edit: Edit, facts: Sequence[Fact]) -> None:
    """Writes the answers of these facts, at least one, which are new or take the place of stored ones.

    Raises:
        EditRefused: it would change a stored fact's answer, or too few of the facts' own are given afterwards.
    """
    session = edit.session
    session.subjects.enter(facts, session.book.facts, session.words)
    config = session.config
    crowded, most = bool(config.sparing and about_the_same(facts, session.book.facts)), config.slot_count
    if crowded and most is not None:
        most = max(most, config.spared_slots // len(facts))
    rows = edit.choose(facts, most)
    _let_go(edit, facts, rows)
    spared = _spared(edit, facts, rows) if crowded else []
    examples = [session.encoded(fact, config.spared_phrasings) for fact in spared]
    beside = Beside(session.memory, examples, rows) if examples else None

    def again(broken: list[Fact]) -> None:
        if beside is not None:
            ids = {fact.id for fact in broken}
            taught = [place for place, fact in enumerate(spared) if fact.id in ids]
            if _teach(edit, facts, rows, broken, beside.projection(config.sparing, taught)):
                return
        _teach(edit, facts, edit.wider(rows, broken) if broken else rows, broken)

    again([])
    guard(edit, facts, again)
    _measure(edit, facts)


def _let_go(edit: Edit, facts: Sequence[Fact], rows: Tensor) -> None:
    """Clears those of these rows that nobody reads but stored facts whose answer changes.

    What they held is not wanted any more. Left there, the answers of one update after the other pile up, and each takes
    more steps than the one before.
    """
    session = edit.session
    answers = {fact.id: fact.answer for fact in session.book.facts}
    changed = [fact.id for fact in facts if answers.get(fact.id, fact.answer) != fact.answer]
    if changed:
        clear_rows(session.memory.pool, session.use.own(rows.cpu(), changed))


def _spared(edit: Edit, facts: Sequence[Fact], rows: Tensor) -> list[Fact]:
    """The stored facts that an edit's steps keep out of: those that read most of its rows; none of very many rows."""
    session = edit.session
    if len(rows) > _MOST_PROJECTED:
        return []
    by_id, ids = {fact.id: fact for fact in session.book.facts}, [fact.id for fact in facts]
    found = session.use.most_moved(rows.cpu(), torch.ones(len(rows)), session.config.spared, ids)
    return [by_id[each] for each in found]


def _teach(
    edit: Edit, facts: Sequence[Fact], rows: Tensor, broken: Sequence[Fact], projection: Projection | None = None
) -> bool:
    """Adam on `rows` until all phrasings are answered rightly, those of `broken` with them, or the limit is reached.

    Returns:
        Whether they are.
    """
    session, config = edit.session, edit.session.config
    examples, extra = [session.encoded(fact) for fact in facts], session.encoded_all(broken)
    writer = RowWriter(session.memory.pool, rows, config.rate, projection)
    size = config.batch_size
    each = max(1, size // len(examples))
    rng = random.Random(f"{config.seed}:{edit.report.number}")
    everything = [one for phrasings in examples for one in phrasings]
    rehearse = _rehearsal(edit, rows, rng)
    prefix = shared_prefix(session.model, [one.input_ids for one in (*everything, *extra)])
    wrong: list[Encoded] = []
    for number in range(config.steps):
        shown = wrong or [
            phrasings[(number * each + i) % len(phrasings)]
            for phrasings in examples
            for i in range(min(each, len(phrasings)))
        ]
        if len(examples) > 1:
            rng.shuffle(shown)
        settled = True
        for start in range(0, len(shown), size):
            batch = [*shown[start : start + size], *(extra if len(extra) <= size else rng.sample(extra, size))]
            beside = rehearse()
            out = answer_logits(session.model, session.tokenizer, [*batch, *beside], prefix)
            losses = F.cross_entropy(out.logits, out.labels, reduction="none")
            own = losses.detach()[out.sequence < len(batch)]
            right = out.right()[: len(batch)]
            if bool(right.all()) and float(own.mean()) <= config.enough:
                continue
            loss = losses.mean()
            settled = False
            writer.step(loss)
            edit.report.steps += 1
        if settled and len(shown) == len(everything):
            return True
        if settled:  # for what was shown; the phrasings that are answered wrongly come next, until none is
            wrong = [one for one, right in zip(everything, session.answered(everything), strict=True) if not right]
            if not wrong:
                return True
    return all(session.answered([*everything, *extra]))


def _rehearsal(edit: Edit, rows: Tensor, rng: random.Random) -> Callable[[], list[Encoded]]:
    """Draws stored facts, each in one of its phrasings: the more of these rows it reads, the likelier."""
    session, count = edit.session, edit.session.config.rehearsed
    if not count:
        return list
    keys, read = session.use.reading(rows.cpu(), torch.ones(len(rows)), edit.report.ids)
    if not read.sum():
        return list
    chances = read.double().cumsum(0).tolist()
    by_id = {fact.id: fact for fact in session.book.facts}

    def draw() -> list[Encoded]:
        drawn = [by_id[key] for key in rng.choices(keys, cum_weights=chances, k=count)]
        return [session.encode(rng.choice(fact.questions), fact.answer) for fact in drawn]

    return draw


def _measure(edit: Edit, facts: Sequence[Fact]) -> None:
    """Reports how many of the taught phrasings are answered in free generation; refuses an edit that has too few."""
    session, report = edit.session, edit.report
    rng = random.Random(f"{session.config.seed}:{report.number}")
    asked = [(question, fact) for fact in facts for question in fact.questions]
    asked = rng.sample(asked, min(len(asked), session.config.generated))
    given = generate_answers(session.model, session.tokenizer, [question for question, _ in asked])
    right = [exact_match(each.text, fact.answers) for each, (_, fact) in zip(given, asked, strict=True)]
    report.recalled, report.asked = sum(right) / len(right), len(right)
    report.opened = sum(each.opened for each in given) / len(given)
    if report.recalled < session.config.least_recall:
        why = "" if report.opened > 0.5 else f", as the gate opens for {report.opened:.0%} of them only"
        raise EditRefused(
            f"{session.folder}: the edit does not take: {report.recalled:.0%} of {report.asked} taught phrasings are "
            f"answered rightly{why}; nothing was changed",
            report,
        )
