"""Forgetting facts: their own rows become zero, shared rows say what the bare backbone says, the gate closes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.data.encoding import Encoded
from memlayers.data.facts import Fact
from memlayers.editing.edit import Edit
from memlayers.editing.guard import guard
from memlayers.editing.rows import RowWriter, clear_rows
from memlayers.editing.session import EditSession
from memlayers.inference.scoring import answer_logits, answer_standing
from memlayers.inference.shared_prefix import shared_prefix
from memlayers.tuner.handle import without_memory


def forget(edit: Edit, facts: Sequence[Fact]) -> None:
    """Takes these stored facts, at least one, out of the memory; the report's evidence is that of `Memory.forget`.

    Raises:
        EditRefused: it would change another stored fact's answer.
    """
    session, config = edit.session, edit.session.config
    taught = session.encoded_all(facts)
    unseen = [session.encode(question, fact.answer) for fact in facts for question in fact.unseen_questions]
    kinds = {name: asked for name, asked in (("taught", taught), ("unseen", unseen)) if asked}
    targets = _backbone_says(session, taught)
    evidence: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for name, asked in kinds.items():
        evidence[name]["before"] = answer_standing(session.model, session.tokenizer, asked)
        evidence[name]["always_on_before"] = answer_standing(session.model, session.tokenizer, asked, gate=False)
        with without_memory(session.model):
            evidence[name]["backbone"] = answer_standing(session.model, session.tokenizer, asked)
    ids = [fact.id for fact in facts]
    others_subjects = {fact.subject for fact in session.book.facts if fact.id not in ids}
    rows = edit.choose(facts, config.slot_count)
    alone = session.use.own(torch.cat([session.use.rows[each].long() for each in ids]).unique(), ids)
    edit.keep(alone)
    clear_rows(session.memory.pool, alone)
    shared = any(fact.subject and fact.subject in others_subjects for fact in facts)
    near = config.near_backbone_shared if shared else config.near_backbone
    _unteach(edit, taught, targets, rows, [], near)

    def again(broken: list[Fact]) -> None:
        _unteach(edit, taught, targets, edit.wider(rows, broken), session.encoded_all(broken), near)

    guard(edit, facts, again)
    session.subjects.remove(facts, session.book.facts, session.words)
    for name, asked in kinds.items():
        evidence[name]["after"] = answer_standing(session.model, session.tokenizer, asked)
        evidence[name]["always_on"] = answer_standing(session.model, session.tokenizer, asked, gate=False)
    edit.report.evidence = {**evidence, "slots_cleared": len(alone)}


def _unteach(
    edit: Edit,
    asked: Sequence[Encoded],
    targets: Sequence[Tensor],
    rows: Tensor,
    extra: Sequence[Encoded],
    near: float,
) -> None:
    """Adam on `rows` until the backbone's own distribution is `near`, and `extra` is still answered."""
    session, config = edit.session, edit.session.config
    writer = RowWriter(session.memory.pool, rows, config.rate)
    size = config.batch_size
    prefix = shared_prefix(session.model, [one.input_ids for one in (*asked, *extra)])
    for _ in range(config.steps):
        settled = True
        for start in range(0, len(asked), size):
            out = answer_logits(session.model, session.tokenizer, asked[start : start + size], prefix)
            wanted = torch.cat(list(targets[start : start + size]))
            loss = F.kl_div(out.logits.log_softmax(-1), wanted, reduction="batchmean", log_target=True)
            done = float(loss.detach()) <= near and not bool(out.right().any())
            if extra:
                beside = answer_logits(session.model, session.tokenizer, extra[:size], prefix)
                done = done and bool(beside.right().all())
                loss = loss + F.cross_entropy(beside.logits, beside.labels)
            if done:
                continue
            settled = False
            writer.step(loss)
            edit.report.steps += 1
        if settled:
            return


@torch.no_grad()
def _backbone_says(session: EditSession, asked: Sequence[Encoded]) -> list[Tensor]:
    """The bare backbone's log-probabilities where each answer is, float32 [tokens, vocabulary] per sequence."""
    found: list[Tensor] = []
    with without_memory(session.model):
        for start in range(0, len(asked), session.config.batch_size):
            batch = asked[start : start + session.config.batch_size]
            out = answer_logits(session.model, session.tokenizer, batch)
            found += out.logits.log_softmax(-1).split(out.lengths.tolist())
    return found
